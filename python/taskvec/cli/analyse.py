"""``taskvec analyse``: what a task vector is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from taskvec.cli.console import Console, Page
from taskvec.cli.options import (
    argument,
    option,
    reading_options,
    selecting,
    split_names,
    talk_options,
    variant_option,
    verb,
)
from taskvec.text import amount, percent, plural, printable

if TYPE_CHECKING:
    from taskvec.report.composition import Composition, Figures

EXAMPLES = """
Which layers and modules hold what GRPO learned, in how many directions, and in how few elements?
  taskvec analyse qwen-grpo qwen-sft -o analysis

A saved vector next to the SFT vector and to another donor's, layer by layer:
  taskvec analyse reasoning.vec --sft sft.vec --with code.vec -o analysis

Four groups of layers; no singular values, which take most of the time:
  taskvec analyse reasoning.vec --groups 4 --no-ranks -o analysis
"""


@verb("analyse", examples=EXAMPLES)
@argument("vector", metavar="VEC|D", help="A saved vector, or the donor.")
@argument("reference", metavar="[R]", required=False, help="What the donor is compared with.")
@option("--sft", metavar="MODEL|VEC", section="Models",
        help="The SFT vector, or the model that R was tuned from.")  # fmt: skip
@option("--with", "others", multiple=True, metavar="MODEL|VEC", section="Models",
        help="Another vector, or another donor, to compare with (repeatable).")  # fmt: skip
@option("--groups", type=click.IntRange(1, 1000), metavar="N", section="Output",
        help="Figures of N groups of neighbouring layers as well.")  # fmt: skip
@option("--no-ranks", "spectra", is_flag=True, flag_value=False, default=True, section="Output",
        help="Leave out singular values.")  # fmt: skip
@selecting("Analyse")
@option("--force", multiple=True, metavar="ID[,ID...]", callback=split_names, section="Checks",
        help="Go on in spite of these compatibility findings.")  # fmt: skip
@option("-o", "--out", required=True, metavar="DIR", type=click.Path(file_okay=False), section="Output",
        help="Receives analysis.json and analysis.html.")  # fmt: skip
@reading_options
@variant_option
@talk_options("analyse")
def command(
    console: Console, vector: str, reference: str | None, out: str, others: tuple[str, ...], **options: Any
) -> int:
    """Measure what a vector is made of: a saved one, or the difference of donor D and reference R.

    Norm and share of the squared norm per layer, kind of module and group; how few of the largest elements
    hold how much; effective rank and energy at ranks of its matrices; and, against the SFT vector or others,
    cosines and the share of signs that agree. One read of the inputs, in bounded memory.
    """
    from taskvec.api import analyse
    from taskvec.report.composition_page import write
    from taskvec.run.sinks import hold_folder

    hold_folder(out, "an analysis")
    with console.progress() as progress:
        found = analyse(vector, reference, others=others, progress=progress, **options)
    paths = write(found, out)
    page = console.data()
    write_result(page, found, every_layer=console.verbose)
    page.line()
    page.fact("written", printable(", ".join(map(str, paths))))
    console.show(page)
    console.emit(
        {**{k: v for k, v in found.to_dict().items() if k != "schema"}, "out": [str(p) for p in paths]}
    )
    return 0


def write_result(page: Page, found: Composition, *, every_layer: bool) -> None:
    """The figures of the whole vector, of kinds of module and groups, and of layers."""
    total = found.total
    page.line(page.paint(printable(found.title), bold=True))
    page.fact("elements", f"{amount(total.elements)} in {plural(total.tensors, 'tensor')}, "
              f"{percent(total.changed_share)} not zero")  # fmt: skip
    page.fact("norm", f"{total.norm:.4g}")
    if total.top is not None:
        held = ", ".join(f"{share:g} %: {percent(value)}" for share, value in total.top.items())
        page.fact("largest", f"{held} of the squared norm")
    if total.spectrum is not None:
        spectrum = total.spectrum
        page.fact("rank", f"{spectrum.rank:.1f} effective, {spectrum.stable_rank:.1f} stable, of "
                  f"{spectrum.full_rank:.0f}, in the mean of the matrices")  # fmt: skip
        energy = ", ".join(f"{rank}: {percent(value)}" for rank, value in spectrum.energy.items())
        page.fact("energy", f"at rank {energy}")
    for name, alike in total.alike.items():
        signs = f"signs agree in {_share(alike.sign_agreement)} of the common elements"
        words = f"cosine {_figure(alike.cosine, '.4f')}, {signs}, norm {alike.norm:.4g}"
        page.fact(printable(name), words)
    layers = [("outside" if at is None else str(at), row) for at, row in found.layers.items()]
    tables = [("kind of module", list(found.kinds.items())), ("group", list(found.groups.items()))]
    tables += [("layer", layers)]
    if every_layer:
        tables.append(("module", list(found.modules.items())))
    for label, rows in tables:
        if rows:
            page.line()
            _table(page, label, rows, found.others)


def _table(page: Page, label: str, rows: list[tuple[str, Figures]], others: list[str]) -> None:
    head = (label, "norm", "share", "not zero", "top 1% hold", "rank", *(f"cos {name}" for name in others))
    cells = [
        (
            printable(name),
            f"{row.norm:.4g}",
            _share(row.share),
            percent(row.changed_share),
            _share(row.top[1.0] if row.top is not None else None),
            f"{row.spectrum.rank:.1f}" if row.spectrum is not None else "-",
            *(_figure(row.alike[other].cosine, ".4f") for other in others),
        )
        for name, row in rows
    ]
    page.table(tuple(map(printable, head)), cells, right=range(1, len(head)))


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _share(value: float | None) -> str:
    return "-" if value is None else percent(value)
