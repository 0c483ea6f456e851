"""The record of one arm: settings, versions, scores, samples; written as soon as the arm is done.

``arms/NAME.json`` is one JSON object, written under another name and renamed, so a file of that name is
complete or was damaged later; a damaged one is an error that says so, never half a result.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from taskvec._core import digest_file, write_atomic
from taskvec.errors import Error, EvaluationError
from taskvec.evaluation.arms import Arm, Kind
from taskvec.files import look
from taskvec.files.place import make_folders

SCHEMA = 1
AGAIN = "delete the file; the next run evaluates the arm again"

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_STRICT)
class Score:
    """A metric's value with its 95 % interval; None where it cannot be given."""

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, config=_STRICT)
class Draw:
    """One sampled answer.

    Attributes
    ----------
    value : float
        Of the metric that is compared.
    answer : str, optional
        What the metric's filter found in it; None where nothing is extracted.
    tokens, cut : optional
        As those of a sample.
    """

    output: str
    value: float
    answer: str | None
    tokens: float | None = None
    cut: bool | None = None


@dataclass(frozen=True, config=_STRICT)
class Sample:
    """One document: the question, the answer, and what each metric made of it.

    Attributes
    ----------
    doc_id : int
        Position in the task's evaluation split.
    doc_hash : str
        lm-eval's hash of the clean document; samples of two arms are paired by it, perturbed ones too.
    subtask : str, optional
        The task of a group.
    metrics : dict
        ``{metric: value}`` of the metrics that are means over samples.
    tokens, cut : optional
        New tokens, and whether the length limit ended them; None where nothing was generated.
    draws : list of Draw
        Sampled answers to the same question, besides this one.
    """

    doc_id: int
    doc_hash: str
    subtask: str | None
    question: str
    target: str
    output: str
    extracted: dict[str, str]
    metrics: dict[str, float]
    tokens: float | None = None
    cut: bool | None = None
    draws: list[Draw] = field(default_factory=list)


@dataclass(frozen=True, config=_STRICT)
class TaskFacts:
    """How one task was run.

    Attributes
    ----------
    metric : str, optional
        The metric that comparisons use.
    higher_is_better : bool
        Direction of that metric.
    max_gen_toks : int, optional
        New tokens allowed; the largest of a group.
    stop, dropped_stops : list of str
        Stop strings in force, and those of the task that were dropped because they cut chains of thought.
    left_out : int
        Documents that the perturbation left out.
    removed_requests : list of str
        The task's own requests to reason, which were taken out of its prompts.
    """

    metric: str | None
    higher_is_better: bool
    output_type: str
    version: str
    num_fewshot: int
    max_gen_toks: int | None
    stop: list[str]
    dropped_stops: list[str]
    documents: int
    left_out: int
    subtasks: list[str]
    removed_requests: list[str] = field(default_factory=list)


@dataclass(frozen=True, config=_STRICT)
class ArmRecord:
    """Everything that is known of one evaluated arm; the content of ``arms/NAME.json``."""

    name: str
    kind: Kind
    alpha: float | None
    think: str | None
    perturb: str | None
    seed: int | None
    identity: str
    model: str
    weights: str
    settings: dict[str, Any]
    versions: dict[str, str]
    environment: dict[str, Any]
    tasks: dict[str, TaskFacts]
    scores: dict[str, dict[str, Score]]
    output_tokens: dict[str, dict[str, float]]
    samples: dict[str, list[Sample]] = field(repr=False)
    warnings: list[str]
    batch_size: int | str
    seconds: float
    origin: str | None = None
    schema: int = SCHEMA
    part: str | None = None

    @property
    def arm(self) -> Arm:
        """The arm that this records."""
        return Arm(
            self.name, self.kind, self.alpha, self.think, self.perturb, self.seed, self.origin, self.part
        )


_ADAPTER = TypeAdapter(ArmRecord)


def identity(settings: Mapping[str, Any], versions: Mapping[str, str], weights: str, arm: Arm) -> str:
    """A digest of all that decides an arm's samples; the same digest means that it need not be run again."""
    content = {
        "schema": SCHEMA,
        "settings": dict(settings),
        "versions": dict(versions),
        "weights": weights,
        "think": arm.think,
        "perturb": arm.perturb,
    }
    return digest_json(content)


def digest_json(content: Any) -> str:
    """BLAKE2 of `content` as canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def digest_files(paths: Iterable[Path], root: Path) -> str:
    """BLAKE2 over the names of files and the engine's digests of their contents."""
    whole = hashlib.blake2b(digest_size=16)
    for path in sorted(paths):
        _, part = digest_file(path)
        whole.update(f"{path.relative_to(root).as_posix()}\0{part}\n".encode())
    return whole.hexdigest()


def record_path(folder: Path, name: str) -> Path:
    """Where the record of an arm lies in an output folder."""
    return folder / "arms" / f"{name}.json"


def write_record(path: Path, record: ArmRecord) -> None:
    """Write a record so that it is whole or absent under `path`."""
    content = asdict(record)  # type: ignore[call-overload]
    text = json.dumps(finite(content), ensure_ascii=False, allow_nan=False, indent=1)
    write_whole(path, text)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file as a whole or not at all; its folder is made if need be.

    Raises
    ------
    EvaluationError
        It cannot be written.
    """
    with writing(path):
        make_folders(path.parent)
        write_atomic(path, content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what makes, changes or removes a file or folder.

    Raises
    ------
    EvaluationError
        In place of an error of the file system, with the way out.
    """
    try:
        yield
    except Error:
        raise
    except OSError as error:
        raise EvaluationError(
            f"cannot write `{path}`: {error.strerror or error}", look.way_out(error)
        ) from error


def read_record(path: Path, again: str = AGAIN) -> ArmRecord:
    """Read ``arms/NAME.json``.

    Parameters
    ----------
    path : Path
    again : str
        The way out where it is damaged.

    Raises
    ------
    EvaluationError
        The file is not found, cut short, or of another schema.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EvaluationError(
            f"cannot read the results of an arm: `{path}`: {error.strerror}", look.way_out(error)
        ) from error
    try:
        content = json.loads(data)
    except ValueError as error:
        raise EvaluationError(
            f"`{path}` is cut short or damaged: {len(data):,} bytes that are not a JSON object ({error})",
            again,
        ) from error
    found = content.get("schema") if isinstance(content, dict) else None
    if found != SCHEMA:
        raise EvaluationError(f"`{path}` has schema {found}, this version reads {SCHEMA}", again)
    try:
        record = _ADAPTER.validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise EvaluationError(f"`{path}` is damaged: `{where}`: {first['msg'].lower()}", again) from error
    for task, samples in record.samples.items():
        expected = record.tasks[task].documents if task in record.tasks else None
        if expected != len(samples):
            raise EvaluationError(
                f"`{path}` is damaged: task `{task}` holds {len(samples)} of {expected} samples", again
            )
    return record


def finite(value: Any) -> Any:
    """`value` as plain JSON data: NaN and infinities become None, NumPy scalars become numbers."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if hasattr(value, "item"):
        return finite(value.item())
    return str(value)


def setting_differences(one: ArmRecord, other: ArmRecord) -> list[str]:
    """The settings in which two arms differ, as ``name: here X, there Y``; none if they compare."""

    def difference(label: str, here: Any, there: Any) -> str:
        return f"{label}: `{one.name}` has {here}, `{other.name}` has {there}"

    tables = (("", one.settings, other.settings), ("version of ", one.versions, other.versions))
    found = [
        difference(f"{label}{key}", left.get(key), right.get(key))
        for label, left, right in tables
        for key in sorted({*left, *right})
        if left.get(key) != right.get(key)
    ]
    for task in sorted({*one.tasks, *other.tasks}):
        if task not in one.tasks or task not in other.tasks:
            lacking = other if task in one.tasks else one
            if lacking.perturb is None:  # a perturbed arm leaves out the tasks that it does not apply to
                found.append(f"tasks: `{lacking.name}` lacks task `{task}`")
            continue
        here, there = one.tasks[task], other.tasks[task]
        found += [
            difference(f"{field} of task `{task}`", getattr(here, field), getattr(there, field))
            for field in ("metric", "version", "num_fewshot", "max_gen_toks", "stop")
            if getattr(here, field) != getattr(there, field)
        ]
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class Merged:
    """One merged model, with the engine's measurements of its merge.

    Attributes
    ----------
    folder : str
        Where it lies.
    survival : dict, optional
        The engine's figures for the whole model; see `taskvec.Survival`.
    norms : dict of str to float
        L2 norm of the vector itself, per tensor.
    findings : list of dict
        Compatibility findings of the merge.
    command : str
        The command line that makes the same weights.
    part : dict, optional
        Figures of a part of the vector: see `taskvec.evaluation.sweep.part_vectors.facts`.
    """

    folder: str
    survival: dict[str, Any] | None
    norms: dict[str, float]
    findings: list[dict[str, Any]]
    command: str
    part: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return finite(asdict(self))
