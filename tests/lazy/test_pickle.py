"""Lazy objects copied, and sent to another process: the same tensors come out there."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import taskvec as tv
from support.models import Trio, read_tensors, write_weights
from support.web_server import running_web

READ = """
import pickle, sys
held = pickle.loads(open(sys.argv[1], "rb").read())
total = {name: array.astype("float64").sum() for name, array in held.items()}
print(repr(sorted((name, float(each)) for name, each in total.items())))
"""


def held(trio: Trio) -> dict[str, Any]:
    target, donor, reference = map(tv.open, trio)
    vector = donor - reference
    return {
        "checkpoint": target,
        "vector": vector,
        "selected": 0.5 * vector.select(layers="1"),
        "merge": target + 0.8 * vector,
        "ties": tv.ties([donor, target], base=reference, weight=0.5, density=0.5),
    }


@pytest.mark.parametrize("name", ["checkpoint", "vector", "selected", "merge", "ties"])
def test_another_process_computes_the_same(sharded_trio: Trio, tmp_path: Path, name: str) -> None:
    mine = held(sharded_trio)[name]
    sums = sorted((key, float(array.astype(np.float64).sum())) for key, array in mine.items())
    (tmp_path / "held.pickle").write_bytes(pickle.dumps(mine))
    command = [sys.executable, "-c", READ, str(tmp_path / "held.pickle")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert eval(done.stdout) == sums


def test_copies_are_the_same_and_compute_the_same(sharded_trio: Trio) -> None:
    for mine in held(sharded_trio).values():
        for other in (copy.copy(mine), copy.deepcopy(mine), copy.deepcopy([mine])[0]):
            assert type(other) is type(mine)
            assert repr(other) == repr(mine)
            name = next(iter(mine))
            assert (other[name] == mine[name]).all()


def test_a_plan_and_its_part_can_be_sent(sharded_trio: Trio, tmp_path: Path) -> None:
    merged = held(sharded_trio)["merge"]
    plan = merged.plan()
    again = pickle.loads(pickle.dumps(plan))
    assert again.digest == plan.digest
    assert copy.deepcopy(plan) is plan
    again.run(tmp_path / "sent")
    merged.save(tmp_path / "own")
    left, right = (read_tensors(tmp_path / name) for name in ("sent", "own"))
    assert all((left[name].view(np.uint16) == right[name].view(np.uint16)).all() for name in right)


def test_tensors_in_memory_are_sent_with_their_bytes() -> None:
    rng = np.random.default_rng(5)
    arrays = {f"layers.{k}.weight": rng.standard_normal((4, 3)).astype(np.float32) for k in range(3)}
    one = tv.from_state_dict(arrays)
    other = tv.from_state_dict({name: array + 1 for name, array in arrays.items()})
    again = pickle.loads(pickle.dumps(other - one))
    for name, array in again.items():
        assert (array == (arrays[name] + 1) - arrays[name]).all()
    with pytest.raises(tv.RecipeError, match="tensors of the process that made it"):
        pickle.dumps((one + (other - one)).plan())


def test_a_model_at_an_address_is_found_again(sharded_trio: Trio) -> None:
    with running_web() as web:
        address = web.put("donor", Path(sharded_trio.donor))
        checkpoint = tv.open(address)
        again = pickle.loads(pickle.dumps(checkpoint))
        assert again.fingerprint == checkpoint.fingerprint
        name = next(iter(checkpoint))
        assert (again.materialise()[name] == tv.open(sharded_trio.donor)[name]).all()


def test_files_that_have_changed_are_found_where_it_is_read(sharded_trio: Trio) -> None:
    checkpoint = tv.open(sharded_trio.donor)
    sent = pickle.dumps(checkpoint)
    tensors = read_tensors(sharded_trio.donor)
    for file in Path(sharded_trio.donor).glob("model*"):
        file.unlink()
    name = next(iter(tensors))
    tensors[name] = tensors[name].reshape(-1)
    write_weights(sharded_trio.donor, tensors, shards=len(checkpoint.file_sizes))
    with pytest.raises(tv.FormatError, match="is not what it was when the model was pickled"):
        pickle.loads(sent)


def test_errors_keep_their_hint_once() -> None:
    error = tv.RecipeError("wrong", "do it\nor that")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == "wrong"
    assert again.hint == "do it\nor that"
    assert again.__notes__ == ["hint: do it", "hint: or that"]
