"""In which form the packed weights of a target are written: plain, or in their own format.

====================================  =================  ===============================================
target                                other models       output, unless a type is asked for
====================================  =================  ===============================================
packed, no packed weight is computed  any                its own format: the stored bytes
packed                                the same format    its own format
packed                                plain, or another  plain: the format's rounding would take the step
GPTQ, AWQ, bitsandbytes               any                plain: their codes cannot be made again
MLX                                   any                an error: the output type has to be chosen
plain                                 any                plain
====================================  =================  ===============================================

Where the type `touched` is asked for, packed weights that take a step are plain, and the others stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from taskvec.compat.findings import Finding, finding
from taskvec.dtypes import TORCH_NAMES
from taskvec.errors import RecipeError
from taskvec.plan.touched import touched
from taskvec.settings import TARGET, TOUCHED, Settings
from taskvec.text import listed

if TYPE_CHECKING:
    from taskvec.models.model import Model
    from taskvec.models.quantised.format import Packed

# The engine's kinds of which codes and scales can be made.
ENCODABLE = frozenset({"scaled", "e2m1", "packed_int", "mlx"})


class Computed(NamedTuple):
    """A packed weight that is computed: its record in the target, and in each other model that it takes.

    ``is_first`` says that the target's is the first of the weights that are combined.
    """

    name: str
    own: Packed
    others: Sequence[Packed | None]
    is_first: bool = True


class OutputForm(NamedTuple):
    """Whether packed weights are written in their own format, and what there is to say about it.

    ``plain`` are those of a packed output that are plain all the same, by the target's names.
    """

    is_packed: bool
    findings: tuple[Finding, ...] = ()
    plain: frozenset[str] = frozenset()


PLAIN = OutputForm(False)


def output_form(
    target: Model,
    computed: Iterable[Computed],
    settings: Settings,
    survival: Callable[[], float | None] = lambda: None,
) -> OutputForm:
    """The form of the packed weights of an output.

    ``survival`` says, from a sample, which part of a vector of plain weights would be left in the target's
    format.

    Raises
    ------
    RecipeError
        The target's format is asked for, and cannot be written.
    """
    if not target.packed or settings.out_dtype not in (None, TARGET, TOUCHED):
        return PLAIN
    rows = list(computed)
    if settings.out_dtype == TOUCHED:
        return _touched_form(target, rows)
    fixed = [row for row in rows if not is_encodable(row.own, is_first=row.is_first)]
    if settings.out_dtype == TARGET:
        if fixed:
            raise RecipeError(
                f"{listed([row.name for row in fixed])} cannot be written as {fixed[0].own.format.words}: "
                "its codes can be read, and not made again",
                "leave out the output type, or write `bfloat16`, `float16` or `float32`",
            )
        return OutputForm(True, (_said(target, rows, ""),) if rows else ())
    if not rows:
        return OutputForm(True)
    unasked = [row for row in rows if row.own.format.words.startswith("MLX")]
    if unasked:
        return OutputForm(False, (_unasked(target, unasked),))
    why = _why_plain(rows, fixed, survival)
    return OutputForm(not why, (_said(target, rows, why),))


def _touched_form(target: Model, rows: Sequence[Computed]) -> OutputForm:
    plain = touched(target, (row.name for row in rows))
    left = len(target.packed) - len(plain)
    if plain and not left:
        return PLAIN
    form = next((target.packed[name].format for name in target.packed if name in plain), None)
    if form is None:
        return OutputForm(True)
    more = len(plain) - len({row.name for row in rows} & plain)
    beside = f", {more:,} of them because others of their layers change" if more else ""
    found = (
        f"{len(plain):,} weights that are stored as {form.words} are written as {form.dtype}{beside}; "
        f"{left:,} keep their bytes"
    )
    said = finding("quantised-output", f"`{target.spec}`", "", found)
    return OutputForm(True, (said,), plain)


def is_encodable(packed: Packed, *, is_first: bool = True) -> bool:
    """Whether codes and scales of a packed weight can be made.

    Where the columns of a group are not neighbours, the engine finds out from the first input which they are.
    """
    form = packed.format
    has_more = {part for part, _ in form.parts} - {"codes", "scales", "zeros", "biases", "global"}
    has_more -= {"order"} if form.kind == "packed_int" and is_first else set()
    return form.kind in ENCODABLE and not has_more and "factor" not in dict(form.parameters)


def _why_plain(
    rows: Sequence[Computed], fixed: Sequence[Computed], survival: Callable[[], float | None]
) -> str:
    if fixed:
        return "the codes of this format can be read, and not made again"
    if any(None in row.others for row in rows):
        share = survival()
        left = "little" if share is None else f"{min(max(share, 0.0), 1.0):.0%} by a sample"
        return f"the difference is of plain weights, of which rounding to the format would leave {left}"
    if any(
        each.format.sort != row.own.format.sort for row in rows for each in row.others if each is not None
    ):
        return "the other models are stored in another format"
    return ""


def _unasked(target: Model, rows: Sequence[Computed]) -> Finding:
    form = rows[0].own.format
    return finding(
        "quantised",
        f"`{target.spec}`",
        "",
        f"{len(rows):,} weights are quantised as {form.words}: the output type has to be chosen",
        "`--out-dtype target` writes their own format, "
        f"`--out-dtype {TORCH_NAMES[form.dtype]}` plain weights",
    )


def _said(target: Model, rows: Sequence[Computed], why: str) -> Finding:
    form = rows[0].own.format
    if why:
        found = f"{len(rows):,} weights that are stored as {form.words} are written as {form.dtype}: {why}"
        fix = "" if "made again" in why else "`--out-dtype target` writes the target's own format"
        return finding("quantised-output", f"`{target.spec}`", "", found, fix)
    found = f"{len(rows):,} weights are written as {form.words}, as the target has them"
    return finding(
        "quantised-output",
        f"`{target.spec}`",
        "",
        found,
        f"`--out-dtype {TORCH_NAMES[form.dtype]}` writes them plain",
    )
