"""The rows of tokens that a model lacks, computed before the rest of a run reads them.

They are found chunk by chunk, and kept in the scratch folder until the output is whole: a run that is killed
goes on with the next chunk.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from taskvec._core import blake3_hex, write_atomic
from taskvec.errors import Error
from taskvec.files.json import read_bytes
from taskvec.host import cores
from taskvec.models.model import Model
from taskvec.models.state_dict import COMPUTED, Buffers, bytes_of, is_computed
from taskvec.plan.plan import PlanRecord
from taskvec.plan.token_rows import Approximation
from taskvec.plan.token_work import chunk_of
from taskvec.progress import meter
from taskvec.report.tokens import figures
from taskvec.run.atoms import Atoms, Crew, crew
from taskvec.run.evaluate import stored
from taskvec.run.inputs import InputRow
from taskvec.run.job import Job
from taskvec.run.pursuit import Combination, combined, nearest, pursue
from taskvec.run.scratch import forget, kept_folder

_MAXIMUM = 1 << 32
# Elements below 2 to this have sums of products in float32, of as many columns as there are.
_EXPONENT = 40


@contextmanager
def with_rows(job: Job) -> Iterator[tuple[Job, dict[str, Any]]]:
    """The job with the rows that it computes, and what is to be told of them; kept until its end."""
    made = job.plan.tokens
    assert made is not None
    if not made.tokens:
        yield job, figures(made, {})
        return
    place = kept_rows(job.plan, job.out, job.rows)
    keep = place if job.rows is not None and job.settings.resume and _is_made(place) else None
    target, model = (each for each in job.checkpoints if isinstance(each, Model) and not is_computed(each))
    arrays, residuals = _arrays(job, made, target, model, keep)
    job.inputs.hold()
    checkpoints = [_filled(each, arrays) if is_computed(each) else each for each in job.checkpoints]
    yield replace(job, checkpoints=checkpoints), figures(made, residuals)
    forget(place)


def kept_rows(plan: PlanRecord, out: Path, rows: Sequence[InputRow] | None) -> Path:
    """The folder where the rows of a run lie until its output is whole."""
    key = blake3_hex(plan.json + json.dumps(rows).encode())
    return kept_folder(str(out.absolute()), f"rows {key}")


def _is_made(place: Path) -> bool:
    """Whether there is such a folder now; without one nothing is kept, which only costs time."""
    try:
        os.makedirs(place, exist_ok=True)
    except OSError:
        return False
    return True


def _filled(source: Any, arrays: dict[str, np.ndarray]) -> Model:
    data = {name: bytes_of(name, array) for name, array in arrays.items()}
    return replace(source, weights=Buffers(MappingProxyType(data), COMPUTED))


class _Steps:
    """Tells the progress: the terms of all rows."""

    def __init__(self, job: Job, total: int) -> None:
        self._tell = meter(job.progress, "approximate")
        self._done, self._total = 0, total

    def add(self, steps: int) -> None:
        """So many are done for good."""
        self._done += steps
        self._say(0)

    def of(self, tokens: int) -> Callable[[int], None]:
        """What is told of a chunk that is at work."""
        return lambda steps: self._say(tokens * steps)

    def _say(self, more: int) -> None:
        if self._tell is not None:
            self._tell(self._done + more, self._total)


def _arrays(
    job: Job, made: Approximation, target: Model, model: Model, keep: Path | None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The computed rows of every matrix of the target, and the residuals of each of the other model."""
    arrays: dict[str, np.ndarray] = {}
    residuals: dict[str, np.ndarray] = {}
    spaces = list(dict.fromkeys(made.spaces.values()))
    told = _Steps(job, len(spaces) * len(made.wanted) * made.k)
    for number, space in enumerate(spaces):
        names = [name for name, of in made.spaces.items() if of == space]
        usable = np.ones(len(made.shared), bool)
        for name in names:
            usable &= np.isfinite(_own(target, name, made)).reshape(len(usable), -1).all(axis=1)
        found = _found(made, model, space, number, usable, keep, job.settings.threads or cores(), told)
        residuals[space] = np.where(found.atoms[:, 0] >= 0, found.residual, np.nan)
        for name in names:
            arrays[name] = _rounded(found, _own(target, name, made))
    return arrays, residuals


def _own(target: Model, name: str, made: Approximation) -> np.ndarray:
    """The rows of a matrix of the target that others are made of."""
    dtype = "F64" if target.tensors[name].dtype == "F64" else "F32"
    return stored(target, name, dtype, rows=[row for _, row in made.shared])


def _rounded(found: Combination, own: np.ndarray) -> np.ndarray:
    """The rows, in the type of those that they are made of; computed in float64, a block at a time."""
    rows = np.empty((len(found.atoms), *own.shape[1:]), own.dtype)
    step = max(1, (1 << 23) // max(1, own[0].size))
    for at in range(0, len(rows), step):
        block = slice(at, at + step)
        rows[block] = combined(found.atoms[block], found.weights[block], own)
    return rows


def _found(
    made: Approximation,
    model: Model,
    space: str,
    number: int,
    usable: np.ndarray,
    keep: Path | None,
    threads: int,
    told: _Steps,
) -> Combination:
    """The combinations in the space of one matrix of the other model, of all tokens.

    Shared tokens are taken where their rows are ``usable``, finite in the target.
    """
    dtype = "F64" if model.tensors[space].dtype == "F64" else "F32"
    shared = stored(model, space, dtype, rows=[row for row, _ in made.shared]).copy()
    wanted = stored(model, space, dtype, rows=made.wanted).copy()
    wanted[~np.isfinite(wanted).all(axis=1)] = 0.0
    shared[~usable] = 0.0
    step = chunk_of(wanted.shape[1], made.k)
    find = pursue if made.method == "omp" else nearest
    parts: list[Combination] = []
    with crew(threads) as workers:
        atoms, wanted = _in_range(shared, wanted, workers)
        for at in range(0, len(wanted), step):
            path = None if keep is None else keep / f"{number}-{at:08}.npz"
            done = None if path is None else _kept(path, len(wanted[at : at + step]), made.k)
            if done is None:
                done = find(wanted[at : at + step], atoms, made.k, told.of(len(wanted[at : at + step])))
                if path is not None:
                    _keep(path, done)
            parts.append(done)
            told.add(len(done.atoms) * made.k)
    return _joined(parts)


def _in_range(shared: np.ndarray, wanted: np.ndarray, workers: Crew) -> tuple[Atoms, np.ndarray]:
    """Both by one power of two, where products of their elements would leave the type."""
    atoms = Atoms(shared, workers)
    largest = max(float(np.abs(each).max(initial=0.0)) for each in (atoms.rows, wanted))
    exponent = math.frexp(largest)[1]
    if abs(exponent) <= _EXPONENT:
        return atoms, wanted
    return Atoms(np.ldexp(atoms.rows, -exponent), workers), np.ldexp(wanted, -exponent)


def _joined(parts: Sequence[Combination]) -> Combination:
    return Combination(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def _keep(path: Path, found: Combination) -> None:
    body = io.BytesIO()
    np.savez(body, **found._asdict())
    data = body.getvalue()
    with suppress(Error, OSError):  # as above
        write_atomic(path, blake3_hex(data).encode() + data)


def _kept(path: Path, rows: int, k: int) -> Combination | None:
    """What an earlier run has found; ``None`` where it has not, or the file cannot be read or is damaged."""
    try:
        data = read_bytes(path, maximum=_MAXIMUM)
    except (Error, OSError):
        return None
    if len(data) < 64 or blake3_hex(data[64:]).encode() != data[:64]:
        return None
    with np.load(io.BytesIO(data[64:]), allow_pickle=False) as arrays:
        found = Combination(*(arrays[name] for name in Combination._fields))
    return found if found.atoms.shape == (rows, k) else None
