"""Evaluations of every verb that goes on where it stopped, and what is left where it was stopped."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import taskvec as tv
from support.evaluation_models import write_model
from support.evaluation_stub import BLOCK
from support.models import Trio, write_trio
from taskvec.evaluation.experiment import experiment
from taskvec.evaluation.miniature import build, demo
from taskvec.evaluation.settings import Settings
from taskvec.evaluation.sweep.single import evaluate_model
from taskvec.evaluation.sweep.sweep import run_sweep

SIZES = {"layers": 1, "hidden": 8, "intermediate": 8, "heads": 2, "kv_heads": 1, "vocabulary": 32}


class World(NamedTuple):
    root: Path
    trio: Trio
    archive: Path
    model: Path


def worlds() -> Iterator[World]:
    """The models that are evaluated; in memory, where there is such a place: the runs flush many times."""
    shared = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(dir=shared if os.access(shared, os.W_OK) else None)).resolve()
    trio = write_trio(root / "in", **SIZES)
    archive = write_archive(root / "in" / "archive.zip", trio)
    yield World(root, trio, archive, write_model(root / "in" / "model", chat=False))
    shutil.rmtree(root, ignore_errors=True)


def write_archive(path: Path, trio: Trio) -> Path:
    """Checkpoints as `pack` puts them into an archive."""
    folders = {
        "base": trio.reference,
        "reference": trio.reference,
        "donor": trio.donor,
        "target": trio.target,
        "continued_sft": trio.target,
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(build.MARK, json.dumps({"format": build.ARCHIVE, "seed": 1, "recipe": "none"}))
        for role, folder in folders.items():
            for file in folder.iterdir():
                archive.write(file, f"{role}/{file.name}")
    return path


def settings() -> Settings:
    return Settings(tasks=("stub",), batch_size=1, device="cpu")


def sweep(world: World, out: Path, **more: Any) -> None:
    content: dict[str, Any] = {
        **{role: str(getattr(world.trio, role)) for role in ("target", "donor", "reference")},
        "alphas": [0, 1],
        "tasks": ["stub"],
        "controls": {"random": 1, "permuted": 0},
        "evaluation": {"device": "cpu", "batch_size": 1},
    }
    run_sweep(experiment(content), out, **more)


def stopped(world: World, out: Path) -> None:
    """What a kill leaves behind in the middle of an arm whose weights were merged."""

    def stop(event: Any) -> None:
        if event.kind == "progress" and event.arm == "alpha=1" and event.done >= BLOCK:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(world, out, progress=stop)


def search(world: World, out: Path, method: Any = "task_arithmetic", **more: Any) -> None:
    """Two candidates, merged on the disk, and a plain recipe and a random one to hold them against."""
    free = {"weight": {"search": {"low": 0.1, "high": 1}}}
    recipe = {
        "merge_method": method,
        "base_model": str(world.trio.target),
        "models": [{"model": str(world.trio.donor), "parameters": free}],
    }
    space = {
        "recipe": recipe,
        "tasks": ["stub"],
        "evaluation": {"device": "cpu", "batch_size": 1},
        "optimiser": {"name": "cma", "budget": 2},
        "compare": {"random": 0.5, "alphas": [1]},
    }
    tv.search(space, out, scratch=world.root / "merged", **more)


def search_stopped(world: World, out: Path) -> None:
    """What a kill leaves behind in the middle of a candidate."""

    def stop(event: Any) -> None:
        if event.kind == "progress" and event.arm == "candidate-0002" and event.done >= BLOCK:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(world, out, progress=stop)


def importance(world: World, out: Path, **more: Any) -> None:
    tv.importance(world.model, out, tasks="stub", device="cpu", **more)


def importance_stopped(world: World, out: Path) -> None:
    """What an interrupt leaves behind after a document."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        importance(world, out, progress=stop)


class Job(NamedTuple):
    run: Callable[[World, Path], object]
    before: Callable[[World, Path], object] = lambda _world, _out: None


JOBS = {
    "eval": Job(lambda world, out: evaluate_model(world.trio.target, settings(), out)),
    "eval second": Job(
        lambda world, out: evaluate_model(world.trio.donor, settings(), out, kind="donor"),
        lambda world, out: evaluate_model(world.trio.target, settings(), out),
    ),
    "sweep": Job(sweep),
    "sweep resumed": Job(sweep, stopped),
    "search": Job(search),
    "search resumed": Job(search, search_stopped),
    "search overwrite": Job(
        lambda world, out: search(world, out, overwrite=True),
        lambda world, out: search(world, out, "ties"),
    ),
    "importance": Job(importance),
    "importance resumed": Job(importance, importance_stopped),
    "importance overwrite": Job(
        lambda world, out: importance(world, out, overwrite=True),
        lambda world, out: tv.convert(world.model, out, out_dtype="bfloat16"),
    ),
    "demo": Job(lambda world, out: demo.run(out, pretrained=world.archive)),
}


def small_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few arms and problems in the demo."""
    monkeypatch.setattr(demo, "ALPHAS", (0.0, 1.0))
    monkeypatch.setattr(demo, "PERTURBATIONS", ())
    monkeypatch.setitem(build.unpack.__kwdefaults__, "problems", 20)
