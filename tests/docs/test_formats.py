"""The decoder that the page on formats shows, as it is pasted into a file of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import taskvec as tv
from support.command_line import invoke
from support.models import Trio
from support.pages import DOCS, blocks, text_of
from taskvec.files.manifest_schema import schema


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    (source,) = [block.text for block in blocks(DOCS / "formats.md", "python") if "def decode" in block.text]
    path = tmp_path / "decoder.py"
    path.write_text(source)
    return path


def test_the_decoder_decodes(trio: Trio, decoder: Path, tmp_path: Path) -> None:
    donor, reference = tv.open(trio.donor), tv.open(trio.reference)
    tv.extract(trio.donor, trio.reference, tmp_path / "reasoning.vec", exclude="layernorm")
    rows = json.loads((tmp_path / "reasoning.vec" / "taskvec.json").read_text())["vector"]["tensors"]
    assert any(row.get("rounded") for row in rows.values())
    # In a process that imports nothing first: its results come back as a file.
    after = "\nnp.savez('decoded.npz', **dict(decode('reasoning.vec')))\n"
    code = decoder.read_text() + after
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    decoded = np.load(tmp_path / "decoded.npz")
    assert set(decoded) == set(rows)
    for name in decoded:
        expected = donor[name].astype(np.float64) - reference[name].astype(np.float64)
        np.testing.assert_array_equal(decoded[name], expected)


def described(heading: str) -> set[str]:
    """The members in the table below a heading."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## )", text_of(DOCS / "formats.md"), re.M | re.S)
    first = "".join(re.findall(r"^\| (`.*?) \|", section, re.MULTILINE))
    return set(re.findall(r"`([\w.]+)`", first))


def test_every_member_of_the_manifest_is_described() -> None:
    assert described("The manifest") == set(schema()["properties"])


def test_every_member_of_a_plan_is_described(
    trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = ("--target", trio.target, "--donor", trio.donor, "--reference", trio.reference)
    path = tmp_path / "plan.json"
    assert (
        invoke(capsys, "plan", "transfer", *models, "--seed", 3, "--out-dtype", "float32", "-o", path).code
        == 0
    )
    plan = json.loads(path.read_text())
    members = {"digest", *(f"body.{name}" for name in plan["body"])}
    assert members <= described("A plan")
    assert set(plan) == {"digest", "body"}
    lines = text_of(DOCS / "formats.md").splitlines()
    engine = next(line for line in lines if line.startswith("| `body.plan`"))
    assert {"sources", "outputs", "shards", "operations", "tensors"} <= set(plan["body"]["plan"])
    assert set(re.findall(r"`(\w+)`", engine)) <= set(plan["body"]["plan"])
