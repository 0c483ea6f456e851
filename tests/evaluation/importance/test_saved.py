"""Tensors of torch in a file: whole or not at all, and nothing of a killed run stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors.numpy import load_file

from taskvec.evaluation.importance.saved import save


def test_what_a_kill_left_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, path = tmp_path / ".taskvec", tmp_path / "model.safetensors"
    state.mkdir()

    def killed(_: object, part: Path, **__: object) -> None:
        (part.parent / ".tmpAbCdEf").write_bytes(b"half")  # as the library names it
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", killed)
        with pytest.raises(KeyboardInterrupt):
            save(path, {"a": torch.ones(3)}, {}, state)
    assert [entry.name for entry in tmp_path.iterdir()] == [".taskvec"]
    save(path, {"a": torch.ones(3)}, {}, state)
    assert load_file(path)["a"].tolist() == [1, 1, 1]
    assert not list(state.iterdir())
