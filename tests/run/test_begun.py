"""A run that Python begins: its state is on the disk before anything else is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from taskvec.files.names import NEW, STATE
from taskvec.run import begun


@pytest.mark.parametrize("replaces", [False, True])
def test_the_names_of_the_state_are_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaces: bool
) -> None:
    """Where they are lost in a power cut, the same command finds files and no run to go on with."""
    out = tmp_path / "out"
    (out / STATE).mkdir(parents=True)
    if replaces:
        (out / "model.safetensors").write_bytes(b"old")
    flushed: list[int] = []
    genuine = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (flushed.append(os.fstat(file).st_ino), genuine(file))[1])
    place = begun.begin(out, b"{}", resume=True)
    assert (place == out / STATE / NEW) is replaces
    for folder in {out, out / STATE, place, place / STATE}:
        assert folder.stat().st_ino in flushed
