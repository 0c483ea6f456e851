"""Errors at the calls of the Python layer's file operations, for every verb.

Each run ends in the right bytes or in a named error with nothing that looks complete; the same command
afterwards ends in the bytes of an undisturbed run.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import taskvec as tv
from support.models import Trio, write_trio
from support.oracle import same_files
from taskvec.lazy.recipe import scratch_of

CALLS = ("open", "stat", "lstat", "listdir", "scandir", "mkdir", "replace", "link", "unlink", "rmdir")
CALLS += ("fstat", "fsync", "read", "write", "sendfile")
# Points that are tried of each verb; of the longer ones evenly, so that all take less than a minute.
MOST = {"transfer": 260, "alphas": 90, "extract": 130, "apply": 90, "merge": 90, "documents": 60}
FAULTS = (errno.EIO, errno.ENOSPC, errno.EACCES, None)  # None: an interrupt


class Injector:
    """Counts the calls on files below a folder, and lets one of them fail."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = os.fspath(root)
        self.count = 0
        self.at = self.fault = None
        self.hit: str | None = None
        for name in CALLS:
            monkeypatch.setattr(os, name, self.watched(getattr(os, name)))
        opened = self.watched(builtins.open)
        monkeypatch.setattr(builtins, "open", opened)
        monkeypatch.setattr(io, "open", opened)

    def watched(self, genuine: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            path = arguments[0] if arguments else None
            if self.counts(path):
                self.count += 1
                if self.count == self.at:
                    self.hit = f"{genuine.__name__} {path}"
                    if self.fault is None:
                        raise KeyboardInterrupt
                    raise OSError(self.fault, os.strerror(self.fault), path)
            return genuine(*arguments, **options)

        return call

    def counts(self, path: object) -> bool:
        if isinstance(path, int) and not isinstance(path, bool):
            with contextlib.suppress(OSError):
                path = os.readlink(f"/proc/self/fd/{path}")
        return isinstance(path, str | Path) and os.fspath(path).startswith(self.root)

    def arm(self, at: int | None, fault: int | None = None) -> None:
        self.count, self.at, self.fault, self.hit = 0, at, fault, None


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Trio, Path]]:
    root = tmp_path_factory.mktemp("faults")
    trio = write_trio(root / "in", layers=1, hidden=8, intermediate=8, heads=2, kv_heads=1, vocabulary=32)
    (trio.target / "sub").mkdir()
    (trio.target / "sub" / "notes.txt").write_text("notes")
    tv.extract(trio.donor, trio.reference, root / "in" / "vector")
    yield trio, root
    shutil.rmtree(root, ignore_errors=True)


def writers(trio: Trio, root: Path) -> dict[str, Callable[[Path], object]]:
    ties = {"merge_method": "ties", "base_model": str(trio.target), "models": [{"model": str(trio.donor)}]}
    ties["parameters"] = {"weight": 1.0, "density": 0.5}
    mean = f"merge_method: linear\nmodels: [{{model: {trio.donor}, parameters: {{weight: 1}}}}]\nname: mean\n"
    last = f"merge_method: linear\nmodels: [{{model: {trio.target}, parameters: {{weight: 1}}}}, "
    last += "{model: mean, parameters: {weight: 1}}]\n"
    return {
        "transfer": lambda out: tv.transfer(*trio, out, alpha=0.5),
        "alphas": lambda out: tv.transfer(*trio, out, alpha=[0, 1]),
        "extract": lambda out: tv.extract(trio.donor, trio.reference, out),
        "apply": lambda out: tv.apply(trio.target, root / "in" / "vector", out=out),
        "merge": lambda out: tv.merge(ties, out),
        "documents": lambda out: tv.merge(f"{mean}---\n{last}", out),
    }


def points(count: int, most: int) -> Iterator[tuple[int, int | None]]:
    """Every call with one of the faults in turn, or evenly as many as there is time for."""
    step = max(1.0, count / most)
    for number in range(min(count, most)):
        yield int(number * step) + 1, FAULTS[number % len(FAULTS)]


@pytest.mark.parametrize("verb", ["transfer", "alphas", "extract", "apply", "merge", "documents"])
def test_every_call_of_a_verb_that_writes(
    small: tuple[Trio, Path], verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trio, root = small
    job, out = writers(trio, root)[verb], root / verb / "out"
    out.parent.mkdir()
    job(out)
    good = root / f"{verb}-undisturbed"
    shutil.copytree(out, good)
    injector = Injector(root, monkeypatch)
    shutil.rmtree(out)
    injector.arm(None)
    job(out)
    total = injector.count
    assert total > 40
    for at, fault in points(total, MOST[verb]):
        for folder in (out, scratch_of(out)):
            injector.arm(None)
            shutil.rmtree(folder, ignore_errors=True)
        injector.arm(at, fault)
        try:
            job(out)
        except tv.Error:
            assert fault is not None, injector.hit
        except KeyboardInterrupt:
            assert fault is None, injector.hit
        injector.arm(None)
        for manifest in out.rglob("taskvec.json"):
            assert tv.verify(manifest.parent).ok, injector.hit
        job(out)
        same_files(out, good)
        assert not scratch_of(out).exists(), injector.hit


@pytest.mark.parametrize("verb", ["inspect", "check", "diff", "verify"])
def test_every_call_of_a_verb_that_reads(
    small: tuple[Trio, Path], verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trio, root = small
    out = root / "verified"
    if not out.exists():
        tv.transfer(*trio, out)
    result = {
        "inspect": lambda: tv.inspect(out).to_dict(),
        "check": lambda: [finding.to_dict() for finding in tv.check(*trio)],
        "diff": lambda: tv.diff(trio.donor, trio.reference).to_dict(),
        "verify": lambda: tv.verify(out).to_dict()["files"],
    }[verb]

    def told() -> object:
        found = result()
        return {k: v for k, v in found.items() if k != "seconds"} if isinstance(found, dict) else found

    expected = told()
    injector = Injector(root, monkeypatch)
    injector.arm(None)
    told()
    for at in range(1, injector.count + 1):
        for fault in FAULTS:
            injector.arm(at, fault)
            try:
                assert told() == expected, injector.hit
            except tv.Error:
                assert fault is not None, injector.hit
            except KeyboardInterrupt:
                assert fault is None, injector.hit
