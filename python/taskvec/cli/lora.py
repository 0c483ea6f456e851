"""The part of ``taskvec extract`` that makes an adapter of the vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from taskvec.cli.console import Console, UsageError
from taskvec.cli.execute import execute
from taskvec.cli.job import plan_options
from taskvec.cli.options import option, together
from taskvec.option import flag

if TYPE_CHECKING:
    from taskvec.report.report import Report

# Options that an adapter alone has, with their defaults.
LORA: Mapping[str, Any] = {
    "energy": None, "max_rank": None, "embeddings": "lora", "others": "leave", "html": None, "png": None,
}  # fmt: skip

lora_options = together(
    option("--lora", "--rank", "lora", metavar="RANK", section="Arithmetic",
           help="Write a LoRA adapter of this rank instead of a vector; `auto` chooses the rank of every "
           "module by --energy."),
    option("--energy", type=float, metavar="SHARE", section="Arithmetic",
           help="With --lora auto: the share of a module's squared norm to keep.  [default: 0.95]"),
    option("--max-rank", type=int, metavar="RANK", section="Arithmetic",
           help="With --lora auto: the largest rank.  [default: 256]"),
    option("--embeddings", type=click.Choice(["lora", "whole", "leave"]), default="lora", show_default=True,
           section="Selection", help="With --lora: embedding and head by factors, held whole, or left out."),
    option("--others", type=click.Choice(["leave", "whole"]), default="leave", show_default=True,
           section="Selection",
           help="With --lora: norms, biases and the like left out, or held whole as in the donor."),
    option("--html", type=click.Path(dir_okay=False), metavar="FILE", section="Output",
           help="With --lora: write a heat map of the energy kept as one HTML file."),
    option("--png", type=click.Path(dir_okay=False), metavar="FILE", section="Output",
           help="With --lora: write the heat map as a picture (extra `plot`)."),
)  # fmt: skip
"""The options of an adapter."""


def hold_none(options: Mapping[str, Any]) -> None:
    """Return if no option of an adapter is given.

    Raises
    ------
    UsageError
        One is, and `--lora` is not.
    """
    for name, default in LORA.items():
        if options[name] != default:
            raise UsageError(
                f"`{flag(name)}` is given without `--lora`", "give `--lora RANK` too, or leave it out"
            )


def write_adapter(
    console: Console, donor: str, reference: str | None, out: str, rank: str, options: Mapping[str, Any]
) -> int:
    """Plan the adapter, run it, print what it keeps."""
    from taskvec.lazy.lora import plan_extract_lora

    if options["max_shard_size"] is not None:
        raise UsageError("`--max-shard-size` is given with `--lora`", "an adapter is one file: leave it out")
    if options["png"] is not None:
        from taskvec.report.heatmap import require_matplotlib

        require_matplotlib()  # before the work, not after it
    given = {name: value for name, value in options.items() if name not in ("html", "png")}
    plan = plan_extract_lora(donor, reference, rank=_rank(rank), **plan_options(given))
    difference = "the vector" if reference is None else "donor - reference"
    report = execute(
        console, plan, out, f"{difference} as a LoRA adapter of rank {plan.recipe['rank']}", given
    )
    if report is not None:
        _write_maps(report, donor, options)
    return 0


def _rank(word: str) -> Any:
    return int(word) if word.isdecimal() else word


def _write_maps(report: Report, donor: str, options: Mapping[str, Any]) -> None:
    if report.adapter is None or not (options["html"] or options["png"]):
        return
    from taskvec.report import heatmap
    from taskvec.report.energy import energy_map

    shown = energy_map(report.adapter, f"LoRA of {donor}")
    if options["html"] is not None:
        heatmap.write_html(shown, options["html"])
    if options["png"] is not None:
        heatmap.write_png(shown, options["png"])
