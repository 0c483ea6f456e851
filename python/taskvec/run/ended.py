"""A run in parts that has ended, told by its outputs alone: its plan went with the state of the run.

The end of a run reads no inputs, and they may lie on machines that this one does not know: what has to be as
the manifests say is the outputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from taskvec.errors import FormatError, OutputError
from taskvec.files import look
from taskvec.files.names import MANIFEST
from taskvec.report.report import Report
from taskvec.run.finished import finished_report, manifest_of
from taskvec.run.scratch import scratch
from taskvec.run.shadow import Shadow
from taskvec.run.sinks import closing
from taskvec.settings import Settings

# The folder of each output of a run with several values of alpha begins with this.
_ALPHA = "alpha="


def ended_in(out: Path) -> Report | None:
    """The report of a run that has ended in a folder, or in one for each alpha; ``None`` where none has.

    Raises
    ------
    FormatError
        A manifest is damaged, or not of this version.
    OutputError
        A file has gone or has another size, or the folders are of several runs.
    """
    names = ["", *look.listing(out)]
    outputs = _outputs(name for name in names if look.exists(out / name / MANIFEST))
    return _report([out / name for name in outputs]) if outputs else None


def ended_at(address: str) -> Report | None:
    """The same at an address; the weights there are known by their sizes.

    Raises
    ------
    FormatError, OutputError
        As :func:`ended_in`.
    HubError
        The address refuses, or cannot be reached.
    """
    with scratch() as place, closing(address) as sink:
        heads = (name.rpartition("/") for name in sink.sizes())
        outputs = _outputs(folder for folder, _, name in heads if name == MANIFEST)
        if not outputs:
            return None
        shadow = Shadow(outputs, sink, place / "out")
        return shadow.looked_at(Settings(), lambda: _report(shadow.folders))


def _outputs(folders: Iterable[str]) -> list[str]:
    """The outputs among the folders that have a manifest: the place itself, or one for each alpha."""
    found = set(folders)
    return (
        [""] if "" in found else sorted(name for name in found if name.startswith(_ALPHA) and "/" not in name)
    )


def _report(folders: list[Path]) -> Report:
    manifests = []
    for folder in folders:
        data = manifest_of(folder)
        if data is None:
            raise FormatError(
                f"`{folder / MANIFEST}` is not the manifest of a run that can be ended in parts",
                "`taskvec verify` compares an output with its manifest",
            )
        manifests.append(data)
    rows, plan = manifests[0]["run"].get("inputs"), manifests[0]["run"]["plan"]
    if any((data["run"].get("inputs"), data["run"]["plan"]) != (rows, plan) for data in manifests):
        raise OutputError(
            f"the folders in `{folders[0].parent}` are outputs of several runs", "name one of them"
        )
    alphas = [data["recipe"].get("alpha") for data in manifests]
    order = sorted(range(len(folders)), key=lambda index: (alphas[index] is None, alphas[index] or 0.0))
    try:
        return finished_report(
            [folders[index] for index in order],
            [manifests[index] for index in order],
            rows or (),
            Settings(),
            [alphas[index] for index in order],
        )
    except OutputError as error:
        raise OutputError(
            error.message, "`taskvec verify` names all files that differ from the manifest"
        ) from error
