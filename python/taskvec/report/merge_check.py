"""The outcome of a look at a merged model: was the step really added, tensor by tensor?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from taskvec.report.tables import Tabled, table_html
from taskvec.text import plural

Status = Literal["added", "base", "rounded-away", "no-step", "other", "missing", "shape"]
Verdict = Literal["added", "partly-added", "several-alphas", "not-added", "wrong-alpha", "other"]

SCHEMA = 1
# Relative distance of two factors that count as one: what is left of a fit after rounding to bfloat16.
SAME = 0.01


@dataclass(frozen=True, slots=True)
class TensorCheck:
    """One tensor.

    Attributes
    ----------
    status : str
        ``added``: base + alpha * step, rounded. ``base``: as in the base, though the step is not zero.
        ``rounded-away``: as in the base, because the step is too small for the type. ``no-step``: neither the
        step nor the merged model changes it. ``other``: none of these. ``missing``, ``shape``: not in the
        merged model, or of another shape.
    alpha : float or None
        The factor of the step, by least squares; ``None`` where there is no step.
    unexplained : float
        Share of the elements that rounding does not explain at that factor.
    step_norm, moved_norm, left_norm : float
        L2 norms of the step, of merged - base, and of what is left of that after alpha * step.
    """

    status: Status
    alpha: float | None = None
    unexplained: float = 0.0
    step_norm: float = 0.0
    moved_norm: float = 0.0
    left_norm: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "status": self.status,
            "alpha": self.alpha,
            "unexplained": self.unexplained,
            "step_norm": self.step_norm,
            "moved_norm": self.moved_norm,
            "left_norm": self.left_norm,
        }


@dataclass(frozen=True, slots=True, repr=False)
class MergeCheck(Tabled):
    """The outcome of :func:`taskvec.check_merge`.

    Attributes
    ----------
    base, step, merged : str
        As they were given.
    tensors : mapping of str to TensorCheck
        Of each tensor of the base.
    alpha : float or None
        The factor over all tensors in which the step was added, by least squares.
    expected : float or None
        The factor that was asked for.
    extra : tuple of str
        Tensors of the merged model that the base does not have.
    guesses : tuple of str
        What may have happened, in words.
    """

    base: str
    step: str
    merged: str
    tensors: Mapping[str, TensorCheck]
    alpha: float | None
    expected: float | None = None
    extra: tuple[str, ...] = ()
    guesses: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many tensors have each status."""
        return dict(Counter(each.status for each in self.tensors.values()))

    @property
    def verdict(self) -> Verdict:
        """All in one word."""
        counts = self.counts
        if any(counts.get(status) for status in ("other", "missing", "shape")):
            return "other"
        if not counts.get("added"):
            return "not-added"
        if counts.get("base"):
            return "partly-added"
        if any(is_apart(each.alpha, self.alpha) for each in self.tensors.values() if each.status == "added"):
            return "several-alphas"
        return "wrong-alpha" if self.expected is not None and is_apart(self.alpha, self.expected) else "added"

    @property
    def ok(self) -> bool:
        """Whether the step was added to every tensor, with one factor: the one asked for, if there is one."""
        return self.verdict == "added"

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        return WORDS[self.verdict] + ("" if self.alpha is None else f", alpha = {self.alpha:.6g}")

    def _subject(self) -> str:
        return self.merged

    def _facts(self) -> dict[str, str]:
        facts = {"verdict": str(self), "base": self.base, "step": self.step}
        facts |= {status: plural(count, "tensor") for status, count in self.counts.items()}
        if self.extra:
            facts["not in the base"] = plural(len(self.extra), "tensor")
        return facts

    def _tables(self) -> Mapping[str, Any]:
        return {
            "tensors": lambda: [{"tensor": name, **each.to_dict()} for name, each in self.tensors.items()]
        }

    def _more_html(self) -> str:
        odd = [
            {"tensor": name, "status": each.status, "alpha": each.alpha}
            for name, each in self.tensors.items()
            if each.status not in ("added", "no-step")
        ]
        guesses = [{"what may have happened": words} for words in self.guesses]
        return table_html(odd) + table_html(guesses)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "schema": SCHEMA,
            "base": self.base,
            "step": self.step,
            "merged": self.merged,
            "ok": self.ok,
            "verdict": self.verdict,
            "alpha": self.alpha,
            "expected_alpha": self.expected,
            "counts": self.counts,
            "extra": list(self.extra),
            "guesses": list(self.guesses),
            "tensors": {name: each.to_dict() for name, each in self.tensors.items()},
        }


WORDS: dict[str, str] = {
    "added": "the step was added to every tensor",
    "partly-added": "the step was added to some tensors only",
    "several-alphas": "the step was added with different factors",
    "not-added": "the step was not added",
    "wrong-alpha": "the step was added with another factor than expected",
    "other": "the merged model is not base + alpha * step",
}


def is_apart(one: float | None, other: float | None) -> bool:
    """Whether two factors are different ones."""
    if one is None or other is None:
        return False
    return not math.isclose(one, other, rel_tol=SAME, abs_tol=1e-6)
