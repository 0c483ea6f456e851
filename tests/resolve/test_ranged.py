"""Samples of weights at an address: those of the files, fetched together, and a packed weight once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

import taskvec as tv
from support.models import write_trio
from support.packed_models import BY_NAME, packed_trio
from taskvec._core import Checkpoint as Reader
from taskvec.models.model import Model, Remote
from taskvec.resolve import ranged
from taskvec.resolve.ranged import RangedWeights


class Files:
    """Files of a folder as if at an address; each request waits for as many others as are to come with it."""

    def __init__(self, folder: Path, together: int = 1) -> None:
        self.folder, self.asked = folder, list[tuple[str, int, int]]()
        self.barrier = threading.Barrier(together, timeout=60)

    def read(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        self.barrier.wait()
        self.asked += [(name, *each) for each in ranges]
        data = (self.folder / name).read_bytes()
        return [data[start:stop] for start, stop in ranges]


def weights(files: Files, model: Model) -> RangedWeights:
    return RangedWeights(cast(Remote, files), files.folder, model)


def test_what_is_expected_comes_together(tmp_path: Path) -> None:
    trio = write_trio(tmp_path)
    model = tv.open(trio.target)
    names = [info.name for info in model.tensors.values() if info.nbytes > 64][:6]
    wanted = [(name, start, 5) for name in names for start in (0, 7)]
    files = Files(trio.target, together=4)
    far = weights(files, model)
    far.expect(wanted)
    assert len(files.asked) == 12
    local = Reader(str(trio.target))
    files.barrier = threading.Barrier(1)
    for each in wanted:
        assert far.sample(*each) == local.sample(*each)
    assert len(files.asked) == 12
    other = (names[0], 3, 4)
    assert far.sample(*other) == local.sample(*other)
    assert len(files.asked) == 13


def test_a_large_tensor_comes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranged, "_PIECE", 100)
    trio = write_trio(tmp_path)
    model = tv.open(trio.donor)
    name = max(model.tensors.values(), key=lambda info: info.nbytes).name
    files = Files(trio.donor)
    data = weights(files, model).read(name)
    assert data == Reader(str(trio.donor)).read(name)
    assert len(files.asked) == -(-len(data) // 100)


@pytest.mark.parametrize("form", ["block FP8, BF16 scales", "CT NVFP4", "NF4 nested"])
def test_the_parts_of_a_packed_weight_come_once(tmp_path: Path, form: str) -> None:
    import json

    trio, _ = packed_trio(tmp_path, BY_NAME[form], shards=2)
    model = tv.open(trio.target)
    name = next(iter(model.packed))
    files = Files(trio.target)
    far, local = weights(files, model), Reader(str(trio.target))
    document = json.dumps(model.packed[name].format.document()).encode()
    shape: Any = model.tensors[name].shape
    for start in (0, 8, 16):
        assert far.decode(document, name, shape, start, 8) == local.decode(document, name, shape, start, 8)
    assert len(files.asked) == len(set(files.asked))
