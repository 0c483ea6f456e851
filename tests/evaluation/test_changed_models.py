"""A model that changes while it is evaluated, or another is made of it: an error, and nothing is kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import taskvec as tv
from support.evaluation_jobs import JOBS, World, importance, search, settings, sweep, worlds
from support.evaluation_stub import BLOCK, results, without_lm_eval
from taskvec.evaluation.sweep.single import evaluate_model


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    yield from worlds()


class Change:
    """Puts the weights of another model in the place of a model's at an event, and what was there back."""

    def __init__(self, model: Path, other: Path, kind: str, arm: str | None = None, done: int = 0) -> None:
        (self.path,) = model.glob("*.safetensors")
        self._bytes = next(other.glob("*.safetensors")).read_bytes()
        self._own = self.path.read_bytes()
        self._at = kind, arm, done

    def __call__(self, event: Any) -> None:
        kind, arm, done = self._at
        if event.kind == kind and (arm is None or event.arm == arm) and event.done >= done:
            self.path.write_bytes(self._bytes)

    def undo(self) -> None:
        self.path.write_bytes(self._own)


def evaluated(world: World, out: Path, progress: Any) -> None:
    evaluate_model(world.trio.donor, settings(), out, progress=progress)


CASES: dict[str, tuple[Callable[[World, Path, Any], object], str, tuple[Any, ...]]] = {
    "before it is loaded": (evaluated, "donor", ("start",)),
    "after a block": (evaluated, "donor", ("progress", None, BLOCK)),
    "a donor, before it is loaded": (
        lambda world, out, tell: sweep(world, out, progress=tell), "donor", ("start", "donor"),
    ),
    "before it is merged": (
        lambda world, out, tell: sweep(world, out, progress=tell), "donor", ("merge", "alpha=0,alpha=1"),
    ),
    "a candidate's, before it is merged": (
        lambda world, out, tell: search(world, out, progress=tell), "donor", ("merge", "candidate-0002"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_model_that_changes(world: World, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_lm_eval(monkeypatch)
    run, role, when = CASES[case]
    out = world.root / case.replace(" ", "-")
    run(world, out, None)
    good = results(out)
    shutil.rmtree(out)
    change = Change(getattr(world.trio, role), world.trio.reference, *when)
    try:
        with pytest.raises(tv.Error, match="has changed since this run began") as caught:
            run(world, out, change)
        assert caught.value.hint
        assert str(getattr(world.trio, role)) in caught.value.message
    finally:
        change.undo()
    for name, content in results(out).items():
        if name.startswith(("arms/", "development/arms/", "held-out/arms/")) and "partial" not in name:
            assert content == good.get(name), name
    run(world, out, None)  # with what was there before
    assert results(out) == good


def test_a_map_of_a_model_that_changes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    without_lm_eval(monkeypatch)
    (weights,) = world.model.glob("*.safetensors")
    own = weights.read_bytes()

    def change(*_: Any) -> None:
        weights.write_bytes(own[:-4] + bytes(4))

    out = world.root / "map"
    try:
        with pytest.raises(tv.Error, match="has changed since this run began"):
            importance(world, out, progress=change)
        assert not (out / "model.safetensors").exists()
    finally:
        weights.write_bytes(own)
    importance(world, out)
    JOBS["importance"].run(world, world.root / "map-whole")
    assert results(out) == results(world.root / "map-whole")


def test_a_model_that_is_touched_is_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    without_lm_eval(monkeypatch)
    model = world.root / "touched"
    shutil.copytree(world.trio.donor, model)

    def touch(_: Any) -> None:
        for path in model.iterdir():
            path.write_bytes(path.read_bytes())

    evaluate_model(model, settings(), world.root / "touched-out", progress=touch)
    assert (world.root / "touched-out" / "report.html").exists()
