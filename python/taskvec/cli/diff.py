"""``taskvec diff``: how far two checkpoints, or two vectors, lie apart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from taskvec.cli.console import Console, Page
from taskvec.cli.options import (
    argument,
    option,
    reading_options,
    selecting,
    talk_options,
    threads_option,
    variant_option,
    verb,
)
from taskvec.text import amount, percent, plural, printable

if TYPE_CHECKING:
    from taskvec.report.difference import Difference, Pair

EXAMPLES = """
What did GRPO change, and where?
  taskvec diff qwen-sft qwen-grpo

The same as a heat map of layers and modules:
  taskvec diff qwen-sft qwen-grpo --html diff.html --png diff.png

Do two vectors point the same way?
  taskvec diff math.vec code.vec
"""


@verb("diff", examples=EXAMPLES)
@argument("left", metavar="A", help="A checkpoint or a saved vector.")
@argument("right", metavar="B", help="Another one of the same kind.")
@selecting("Compare")
@option("--tensors", "every_tensor", is_flag=True, section="Output", help="Also list every tensor.")
@option(
    "--html",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    section="Output",
    help="Write a heat map of layers and modules as one HTML file.",
)
@option(
    "--png",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    section="Output",
    help="Write the heat map as a picture (extra `plot`).",
)
@threads_option
@reading_options
@variant_option
@talk_options("diff")
def command(
    console: Console,
    left: str,
    right: str,
    every_tensor: bool,
    html: str | None,
    png: str | None,
    **options: Any,
) -> int:
    """Measure how far A and B lie apart, in one streamed pass.

    A and B are two checkpoints, or two task vectors that taskvec saved. Of checkpoints: the norm of B - A
    over the norm of A, their cosine, the share of elements that differ, the largest difference. Of vectors:
    their cosine, the overlap of their supports, the share of common elements whose signs agree. All of it in
    total, per kind of module, per layer and, with --tensors, per tensor.
    """
    from taskvec.api import diff

    if png is not None:
        from taskvec.report.heatmap import require_matplotlib

        require_matplotlib()  # before the work, not after it
    with console.progress() as progress:
        result = diff(left, right, progress=progress, **options)
    page = console.data()
    write_result(page, result, every_tensor or console.verbose)
    if html is not None or png is not None:
        from taskvec.report import heatmap

        if html is not None:
            heatmap.write_html(result, html)
        if png is not None:
            heatmap.write_png(result, png)
        page.line()
        page.fact("written", printable(", ".join(filter(None, (html, png)))))
    console.show(page)
    record = {key: value for key, value in result.to_dict().items() if key != "schema"}
    console.emit({**record, "html": html, "png": png})
    return 0


def write_result(page: Page, result: Difference, every_tensor: bool) -> None:
    """Totals, modules, layers and, if asked for, tensors."""
    page.line(page.paint(printable(f"{result.left} and {result.right}"), bold=True))
    elements = amount(result.total.elements)
    page.fact("compared", f"{plural(len(result.tensors), 'tensor')}, {elements} elements")
    broken = [name for name, pair in result.tensors.items() if pair.non_finite]
    if broken:
        count = f"{plural(result.total.non_finite, 'element')} of {plural(len(broken), 'tensor')}"
        page.fact(
            "not finite", printable(f"{count}, `{broken[0]}` first: figures with these are not known (-)")
        )
    if result.unmatched:
        shown = ", ".join(f"{name} ({why})" for name, why in list(result.unmatched.items())[:3])
        more = len(result.unmatched) - 3
        page.fact("left out", printable(shown) + (f" and {more:,} more" if more > 0 else ""))
    tables: list[tuple[str, list[tuple[str, Pair]]]] = [
        ("module", [*result.modules.items(), ("all", result.total)]),
        ("layer", [("outside" if at is None else str(at), pair) for at, pair in result.layers.items()]),
    ]
    if every_tensor:
        tables.append(("tensor", list(result.tensors.items())))
    header, cells = _COLUMNS[result.kind]
    for label, rows in tables:
        page.line()
        page.table(
            (label, *header),
            ((printable(name), *cells(pair)) for name, pair in rows),
            right=range(1, len(header) + 1),
        )


def _checkpoint_cells(pair: Pair) -> tuple[str, ...]:
    return (
        _figure(pair.relative_norm, ".3e"),
        _figure(pair.cosine, ".6f"),
        percent(pair.changed_share),
        _figure(pair.largest, ".3e"),
    )


def _vector_cells(pair: Pair) -> tuple[str, ...]:
    return (
        _figure(pair.cosine, ".4f"),
        _share(pair.overlap),
        _share(pair.sign_agreement),
        _figure(pair.left_norm, ".3e"),
        _figure(pair.right_norm, ".3e"),
    )


_COLUMNS: dict[str, Any] = {
    "checkpoints": (("relative norm", "cosine", "changed", "largest"), _checkpoint_cells),
    "vectors": (("cosine", "overlap", "signs agree", "norm of A", "norm of B"), _vector_cells),
}


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, form)


def _share(value: float | None) -> str:
    return "-" if value is None else percent(value)
