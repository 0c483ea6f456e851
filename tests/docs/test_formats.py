"""The decoder that the page on formats shows, as it is pasted into a file of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import taskvec as tv
from support.models import Trio
from support.pages import DOCS, blocks


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
