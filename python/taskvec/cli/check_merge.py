"""``taskvec check-merge``: was the step really added?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskvec.cli.console import EXIT_FAILED, Console, Page
from taskvec.cli.options import argument, option, storage_options, talk_options, variant_option, verb
from taskvec.report.merge_check import WORDS
from taskvec.text import percent, plural, printable

if TYPE_CHECKING:
    from taskvec.report.merge_check import MergeCheck

EXAMPLES = """
Does the merged model hold what the adapter learned?
  taskvec check-merge base adapter merged

Was the vector added to the target, and to every tensor?
  taskvec check-merge target reasoning.vec merged

Was the donor's step added with the factor that was asked for?
  taskvec check-merge base donor merged --alpha 0.5

Every tensor:
  taskvec check-merge base adapter merged --verbose
"""

STATUS = {
    "added": "base + alpha * step, rounded",
    "base": "as in the base: the step is missing",
    "rounded-away": "as in the base: the step is too small for the type",
    "no-step": "no step, and unchanged",
    "other": "something else",
    "missing": "not in the merged model",
    "shape": "of another shape",
}
# Tensors that are named of those that are not as they should be.
_MOST = 12


@verb("check-merge", examples=EXAMPLES)
@argument("base", metavar="BASE", help="The model that was merged into.")
@argument(
    "step",
    metavar="DONOR|VECTOR|ADAPTER",
    help="What was to be added: a model tuned from BASE, a saved vector, or a LoRA adapter.",
)
@argument("merged", metavar="MERGED", help="The outcome, of whatever tool.")
@option(
    "--alpha", type=float, metavar="A", section="Checks",
    help="The factor that was asked for.  [default: any one factor]",
)  # fmt: skip
@storage_options
@variant_option
@talk_options("check-merge")
def command(console: Console, base: str, step: str, merged: str, alpha: float | None) -> int:
    """Say, tensor by tensor, whether MERGED is BASE + alpha * (DONOR - BASE), BASE + alpha * VECTOR, or
    BASE with ADAPTER.

    Alpha is fitted by least squares in each tensor and over all; what is left has to be what rounding to the
    type leaves. Tensors that are the base's though the step changes them, other factors, other bases and
    usual mistakes in the scale of an adapter are named. Exit code 1 if the step was not added to every
    tensor with one factor.
    """
    from taskvec.api import check_merge

    with console.progress() as progress:
        found = check_merge(base, step, merged, alpha=alpha, progress=progress)
    page = console.data()
    write_result(page, found, every_tensor=console.verbose)
    console.show(page)
    console.emit({key: value for key, value in found.to_dict().items() if key != "schema"})
    return 0 if found.ok else EXIT_FAILED


def write_result(page: Page, found: MergeCheck, *, every_tensor: bool) -> None:
    """The verdict, how many tensors are what, and those that are not as they should be."""
    factor = "" if found.alpha is None else f", alpha = {found.alpha:.6g}"
    asked = "" if found.expected is None else f" (asked for: {found.expected:g})"
    page.words(
        page.paint(f"{WORDS[found.verdict]}{factor}{asked}", fg="green" if found.ok else "red", bold=True)
    )
    for status, count in found.counts.items():
        page.fact(status, f"{plural(count, 'tensor')}: {STATUS[status]}")
    if found.extra:
        page.fact("extra", f"{plural(len(found.extra), 'tensor')} that the base does not have")
    for guess in found.guesses:
        page.level("hint", printable(guess))
    bad = [
        name
        for name, each in found.tensors.items()
        if each.status not in ("added", "no-step", "rounded-away")
    ]
    shown = list(found.tensors) if every_tensor else bad[:_MOST]
    if not shown:
        return
    page.line()
    rows = [_row(name, found) for name in shown]
    page.table(("tensor", "found", "alpha", "unexplained", "step", "moved", "left"), rows, right=range(2, 7))
    if not every_tensor and len(bad) > _MOST:
        page.line(f"and {len(bad) - _MOST:,} more (--verbose lists all)")


def _row(name: str, found: MergeCheck) -> tuple[str, ...]:
    each: Any = found.tensors[name]
    return (
        printable(name),
        each.status,
        "-" if each.alpha is None else f"{each.alpha:.4g}",
        percent(each.unexplained),
        f"{each.step_norm:.3g}",
        f"{each.moved_norm:.3g}",
        f"{each.left_norm:.3g}",
    )
