"""Survival: how much of a step is left after rounding, and whether that was measured at all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from taskvec.text import amount, percent, plural

Status = Literal["measured", "zero", "not-measured", "not-finite"]

# The method adds no step to a base, so that there is nothing of which a part could survive.
NOT_MEASURED: Status = "not-measured"

_SUMS = ("step", "moved", "dot", "error", "target")
_COUNTS = ("changed", "lost", "elements")


class Survival(NamedTuple):
    """The part of α·v that is left after rounding to the output type; norms are L2 over float64 sums.

    ``cosine`` is that of the requested and the realised update, ``relative_error`` the length of their
    difference over the length of the requested update. A figure that does not exist (a zero length, NaN) is
    ``None``.
    """

    step_norm: float | None
    moved_norm: float | None
    cosine: float | None
    relative_error: float | None
    target_norm: float | None
    changed: int
    rounded_away: int
    elements: int

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Survival:
        """From the engine's report, or from a manifest."""
        return cls(*(row[field] for field in cls._fields))

    @classmethod
    def of_sums(cls, rows: Iterable[Mapping[str, Any]]) -> Survival:
        """The figures of some tensors together, from the engine's sums of each in their order.

        ``step``, ``moved``, ``error`` and ``target`` are sums of squares, ``dot`` that of step times move;
        ``changed``, ``lost`` and ``elements`` are counts. Six significant digits, as in a run's report.
        """
        total = dict.fromkeys(_SUMS, 0.0) | dict.fromkeys(_COUNTS, 0)
        for row in rows:
            for key in total:
                total[key] += math.nan if row[key] is None else row[key]
        root = {key: math.sqrt(total[key]) for key in ("step", "moved", "error", "target")}
        length = root["step"] * root["moved"]
        cosine = _ratio(total["dot"], length)
        return cls(
            step_norm=_six_digits(root["step"]),
            moved_norm=_six_digits(root["moved"]),
            cosine=_six_digits(min(cosine, 1.0) if cosine == cosine else cosine),
            relative_error=_six_digits(math.sqrt(_ratio(total["error"], total["step"]))),
            target_norm=_six_digits(root["target"]),
            changed=int(total["changed"]),
            rounded_away=int(total["lost"]),
            elements=int(total["elements"]),
        )

    @classmethod
    def measured(cls, row: Survival | None) -> Survival | None:
        """The same, or ``None`` where no tensor took a step: then the figures are those of nothing."""
        return row if row is not None and row.elements else None

    @property
    def status(self) -> Status:
        """Whether the figures say something: ``"measured"``, ``"zero"`` (no step) or ``"not-finite"``."""
        if None in (self.step_norm, self.moved_norm, self.target_norm):
            return "not-finite"
        if not self.step_norm:
            return "zero"
        return "not-finite" if self.relative_error is None else "measured"

    @property
    def changed_share(self) -> float:
        """Share of the elements where the vector is not zero."""
        return self.changed / self.elements if self.elements else 0.0

    @property
    def rounded_away_share(self) -> float:
        """Share of those whose value in the output is the target's all the same."""
        return self.rounded_away / self.changed if self.changed else 0.0

    @property
    def format_error(self) -> float | None:
        """How far the output's format alone has moved the weights, over their norm; ``None`` where a step
        did."""
        if self.status != "zero" or not self.target_norm or self.moved_norm is None:
            return None
        return self.moved_norm / self.target_norm

    def to_dict(self) -> dict[str, Any]:
        """The fields and the two shares."""
        return {
            **self._asdict(),
            "changed_share": self.changed_share,
            "rounded_away_share": self.rounded_away_share,
        }


def _ratio(value: float, divisor: float) -> float:
    """A quotient, NaN or infinite where the engine's is."""
    if divisor:
        return value / divisor
    return math.copysign(math.inf, value) if value else math.nan


def _six_digits(value: float) -> float | None:
    """Six significant digits of a number; None of one that does not exist."""
    return float(f"{value:.5e}") if math.isfinite(value) else None


def status_of(survival: Survival | None) -> Status:
    """The status of an output's survival; without figures it was not measured."""
    return NOT_MEASURED if survival is None else survival.status


def survival_summary(survival: Survival | None) -> str:
    """The same in a few words, for a line."""
    if survival is None:
        return "not measured"
    if survival.status != "measured":
        return {"zero": "the update is zero", "not-finite": "not finite"}[survival.status]
    if not survival.relative_error:
        return "complete"
    return f"error {percent(survival.relative_error)}, {percent(survival.rounded_away_share)} rounded away"


def survival_words(survival: Survival | None, unmeasured: int = 0) -> list[str]:
    """The survival of a step in a few lines: what is left of it, how close it is to the requested update, and
    how many merged tensors it says nothing of."""
    words = _words(survival, unmeasured)
    if survival is not None and unmeasured:
        words.append(unmeasured_words(unmeasured))
    return words


def unmeasured_words(unmeasured: int) -> str:
    """That some merged tensors of an output take no step, and the figures are not theirs."""
    return f"not measured for {plural(unmeasured, 'tensor')} without a step from a base, such as means"


def _words(survival: Survival | None, unmeasured: int) -> list[str]:
    if survival is None:
        return ["not measured: no tensor takes a step from a base"]
    if survival.status == "zero":
        error = survival.format_error
        if error:
            return [f"no step: the output's format moved the weights by {percent(error)} of their norm"]
        which = "tensors that take one" if unmeasured else "merged tensors"
        return [f"the step is zero: the {which} are the target's"]
    changed = f"{amount(survival.changed)} of {amount(survival.elements)} elements change"
    rounded = f"{changed}; {percent(survival.rounded_away_share)} of these were rounded away"
    if survival.status == "not-finite":
        return [rounded, "the step as a whole has no length: values of it are NaN or infinite"]
    if not survival.relative_error:
        return [f"complete: {changed}, each exactly as requested"]
    error, cosine = percent(survival.relative_error), survival.cosine
    figure = "undefined" if cosine is None else f"{cosine:.4f}"
    return [rounded, f"requested and realised update: error {error}, cosine {figure}"]
