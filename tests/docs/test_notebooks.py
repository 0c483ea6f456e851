"""The notebooks run from the top, and what they show is what comes out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from support.pages import DOCS

NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
LARGEST = 150_000  # bytes, pictures included


def shown(cells: list[Any]) -> list[list[str]]:
    """What each cell of code has printed, with figures left out, and that there are pictures."""
    found = []
    for cell in cells:
        if cell["cell_type"] == "code":
            lines, before = [], None
            for output in cell["outputs"]:
                data = output.get("data", {})
                text = output.get("text") or data.get("text/plain", "")
                text = "picture" if "image/png" in data else text
                text = re.sub(r"\b[0-9a-f]{16}\b|[\d.,e+-]*\d", "#", "".join(text))
                # how much of a stream comes in one message depends on the time
                is_more = output["output_type"] == "stream" and before == output.get("name")
                lines[-1:] = [lines[-1] + text] if is_more else [*lines[-1:], text]
                before = output.get("name")
            found.append(lines)
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    committed = shown(notebook["cells"])
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    if request.config.getoption("--update-transcripts"):
        for cell in notebook["cells"]:
            cell["metadata"].pop("execution", None)
        notebook["metadata"]["language_info"] = {"name": "python"}
        nbformat.write(notebook, path)
    assert any(shown(notebook["cells"]))
    assert committed == shown(notebook["cells"]), "run with --update-transcripts, and look at the difference"


def test_there_are_two_with_plots_in_one() -> None:
    pictures = [
        sum(line == "picture" for cell in shown(nbformat.read(path, as_version=4)["cells"]) for line in cell)
        for path in NOTEBOOKS
    ]
    assert len(pictures) >= 2
    assert max(pictures) >= 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_speaks_of_no_machine(path: Path) -> None:
    assert path.stat().st_size < LARGEST
    assert not re.search(r"/(?:home|tmp|root|Users|work)/", path.read_text(encoding="utf-8"))
