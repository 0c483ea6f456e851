"""What each arm of a sweep will cost in tokens and time, as far as a sample was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from taskvec.errors import EvaluationError
from taskvec.evaluation.arms import Arm
from taskvec.evaluation.backend.identity import settings_identity, versions
from taskvec.evaluation.record import ArmRecord, read_record
from taskvec.evaluation.settings import Settings
from taskvec.files import look

# what may differ between a sample and the sweep: how many documents, and what a model's file says of decoding
FREE = frozenset({"limit", "generation_config"})

Source = Literal["done", "this arm", "other arms", "not measured"]


@dataclass(frozen=True, slots=True)
class Cost:
    """One arm.

    Attributes
    ----------
    arm : str
    documents : int, optional
        Of all tasks; None where they could not be counted.
    tokens, seconds : float, optional
        New tokens, and the time to load the model and to answer; None where nothing was measured.
    source : str
        ``done``: the arm is finished, these are its own figures. ``this arm`` and ``other arms``: scaled by
        documents from a sample of it, or from the mean of those that were measured. ``not measured``.
    sample : int
        Documents of the sample.
    """

    arm: str
    documents: int | None
    tokens: float | None
    seconds: float | None
    source: Source
    sample: int


def costs(
    arms: Sequence[Arm], settings: Settings, out: Path | None, documents: Mapping[str, int]
) -> list[Cost]:
    """The cost of every arm, from the arms that an output folder holds under these settings.

    A sample is any arm there that was evaluated under the same settings and versions, on fewer documents
    (``--limit``) or all. Merging is not in it.

    Parameters
    ----------
    arms : sequence of Arm
    settings : Settings
    out : Path, optional
        Folder of the sample; nothing is measured without one.
    documents : mapping of str to int
        Documents of each task; a task whose number is not known is not in it.
    """
    measured = _sample(settings, out) if out is not None else {}
    whole = sum(documents.values()) if set(documents) >= set(settings.tasks) else None
    return [_cost(arm, measured, whole, settings.limit) for arm in arms]


def _cost(arm: Arm, measured: Mapping[str, ArmRecord], documents: int | None, limit: float | None) -> Cost:
    own = measured.get(arm.name)
    if own is not None and own.settings.get("limit") == limit:
        return Cost(arm.name, documents, _tokens([own]), own.seconds, "done", _documents(own))
    used = [own] if own is not None else _alike(arm, measured)
    size = sum(map(_documents, used))
    if not used or documents is None:
        return Cost(arm.name, documents, None, None, "not measured", 0)
    source: Source = "other arms" if own is None else "this arm"
    share, seconds = documents / size, math.fsum(record.seconds for record in used)
    return Cost(arm.name, documents, share * _tokens(used), share * seconds, source, size)


def _alike(arm: Arm, measured: Mapping[str, ArmRecord]) -> list[ArmRecord]:
    """The measured arms under the prompt of an arm, or all where there is none: a prompt decides lengths."""
    found = [record for record in measured.values() if record.think == arm.think]
    return found or list(measured.values())


def _tokens(records: Sequence[ArmRecord]) -> float:
    """New tokens of all answers; answers that are chosen, and not written, have none."""
    rows = (sample for record in records for samples in record.samples.values() for sample in samples)
    return math.fsum(sample.tokens for sample in rows if sample.tokens is not None)


def _documents(record: ArmRecord) -> int:
    return sum(map(len, record.samples.values()))


def _sample(settings: Settings, out: Path) -> dict[str, ArmRecord]:
    """The arms of a folder that were evaluated under these settings, but for the number of documents."""
    if not look.is_folder(out / "arms"):
        return {}
    here, own = settings_identity(settings), versions(settings)
    found = {}
    for name in look.listing(out / "arms"):
        if not name.endswith(".json") or name.startswith("."):
            continue
        try:
            record = read_record(out / "arms" / name)
        except EvaluationError:
            continue  # a damaged one is evaluated again
        if record.versions == own and _fixed(record.settings) == _fixed(here):
            found[record.name] = record
    return found


def _fixed(settings: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in settings.items() if key not in FREE}
