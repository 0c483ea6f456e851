"""Packed weights of several models together: do their differences mean something?

Rounding to a format adds noise of its own to a difference of two models. It is the same sort of noise, and
much of it cancels, only where both are stored in one format; where one is not, all of it is in the vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from taskvec.compat.findings import Finding, finding
from taskvec.text import listed, roles

if TYPE_CHECKING:
    from taskvec.models.model import Model
    from taskvec.models.quantised.format import Packed

# Methods that rank the elements of a difference by size, or drop some of them: of 4-bit weights nearly all
# are zero or one whole step, whatever the models have learned.
RANKING = frozenset({
    "ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties", "sce",
    "sar", "arcee_fusion", "consensus", "emr", "localize",
})  # fmt: skip
_ORIGINALS = "give the checkpoints from before they were quantised"


class Pair(NamedTuple):
    """One tensor of a difference: its name, and how it is stored in either model (``None``: plain)."""

    name: str
    model: Packed | None
    reference: Packed | None


def pairs_of(model: Model, reference: Model, is_wanted: Callable[[str], bool]) -> list[Pair]:
    """The tensors of `model` − `reference` of which at least one is packed."""
    if not model.packed and not reference.packed:
        return []
    return [
        Pair(name, model.packed.get(name), reference.packed.get(name))
        for name in dict.fromkeys((*reference.packed, *model.packed))
        if name in model.tensors and name in reference.tensors and is_wanted(name)
    ]


def check_difference(who: str, pairs: Iterable[Pair]) -> Iterator[Finding]:
    """Tensors of which the two sides of a difference are stored in different formats."""
    unlike = [pair for pair in pairs if _sort(pair.model) != _sort(pair.reference)]
    if unlike:
        first = unlike[0]
        is_pair = who == "donor and reference"
        one, other = ("the donor", "the reference") if is_pair else ("the one", "the other")
        yield finding(
            "quantised-mixed",
            f"{listed([pair.name for pair in unlike])} of {who}",
            f"{_words(first.model)} in both",
            f"{_words(first.model)} in {one}, {_words(first.reference)} in {other}",
            f"all of a format's rounding error would be in the vector; {_ORIGINALS}, or two of one format",
        )


def check_noise(target: Model, pairs: Sequence[Pair]) -> Iterator[Finding]:
    """A plain target that takes the difference of two quantised models."""
    noisy = [pair for pair in pairs if pair.model and pair.reference and pair.name not in target.packed]
    if noisy and noisy[0].model is not None:
        yield finding(
            "quantised-noise",
            "donor and reference",
            "",
            f"{len(noisy):,} weights of the vector are differences of {noisy[0].model.format.words}: its "
            "rounding is several times longer than what a fine-tune changes",
            f"{_ORIGINALS} where there are any",
        )


def check_basis(models: Sequence[tuple[str, Model]], selected: Iterable[str]) -> Iterator[Finding]:
    """Weights of AWQ among those that are combined: their columns are scaled by factors of the file's own."""
    who = [role for role, model in models if any(each.format.kind == "awq" for each in model.packed.values())]
    if not who or len(models) < 2:
        return
    wanted = set(selected)
    names = [
        name
        for _, model in models
        for name, each in model.packed.items()
        if each.format.kind == "awq" and name in wanted
    ]
    if names:
        yield finding(
            "quantised-basis",
            f"{listed(list(dict.fromkeys(names)))} of {roles(who)}",
            "weights of one basis",
            "AWQ has moved factors of each column into the norms before it, other ones in each file",
            _ORIGINALS,
        )


def check_ranking(method: str, pairs: Iterable[Pair]) -> Iterator[Finding]:
    """A method that ranks differences of weights of four bits or fewer."""
    if method not in RANKING:
        return
    few = [pair for pair in pairs if _has_few_bits(pair.model) or _has_few_bits(pair.reference)]
    if few:
        form = few[0].model or few[0].reference
        assert form is not None
        yield finding(
            "quantised-ranking",
            f"`{method}`",
            "",
            f"{len(few):,} differences are of {form.format.words}: each is zero or a whole step of the "
            "format, so that their size says nothing of what was learned",
            f"{_ORIGINALS}, or use a method that takes every element (`task_arithmetic`)",
        )


def _has_few_bits(packed: Packed | None) -> bool:
    if packed is None:
        return False
    kind, bits = packed.format.kind, dict(packed.format.parameters).get("bits")
    return kind in ("e2m1", "bnb4", "awq") or (bits is not None and bits <= 4)


def _sort(packed: Packed | None) -> object:
    return None if packed is None else packed.format.sort


def _words(packed: Packed | None) -> str:
    return "plain" if packed is None else packed.format.words
