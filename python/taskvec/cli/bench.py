"""``taskvec bench``: merge throughput next to the machine's own floor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from taskvec.cli.console import Console, Page
from taskvec.cli.options import option, talk_options, verb
from taskvec.text import amount, plural, printable, size

if TYPE_CHECKING:
    from taskvec.selftest.bench import BenchResult, Measure

EXAMPLES = """
Three checkpoints of 0.5 B parameters, made in memory:
  taskvec bench

Your own checkpoints, on your own disk, two threads:
  taskvec bench --target T --donor D --reference R --dir /data/scratch --threads 2

Keep the result, in benches/record/<processor>/<date>.json:
  taskvec bench --record benches/record
"""


@verb("bench", examples=EXAMPLES)
@option("--target", section="Models", metavar="MODEL", help="Measure with these three instead of made ones.")
@option("--donor", section="Models", metavar="MODEL", help="See --target.")
@option("--reference", section="Models", metavar="MODEL", help="See --target.")
@option(
    "--size",
    "scale",
    type=click.Choice(["0.1b", "0.5b", "1.5b"]),
    default="0.5b",
    show_default=True,
    section="Models",
    help="Parameters of the checkpoints that are made; 0.5b needs 4.5 GB of room.",
)
@option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False),
    metavar="DIR",
    section="Machine",
    help="Where to work.  [default: memory if it has room, else the temporary folder]",
)
@option("--threads", type=int, metavar="N", section="Machine", help="Worker threads.  [default: all cores]")
@option(
    "--runs",
    type=click.IntRange(1, None),
    default=5,
    show_default=True,
    metavar="N",
    section="Machine",
    help="Measured rounds, after one that is discarded.",
)
@option(
    "--record",
    type=click.Path(file_okay=False),
    metavar="DIR",
    section="Output",
    help="Also write the result to DIR/<processor>/<date>.json.",
)
@talk_options("bench")
def command(console: Console, scale: Any, record: str | None, **options: Any) -> int:
    """Measure a transfer next to this machine's floor and memcpy.

    The floor reads the same files and writes one of them, with no arithmetic. Rounds of both are interleaved,
    the first is discarded, and medians are printed.
    """
    from taskvec.selftest.bench import bench

    result = bench(size=scale, progress=console.step, **options)
    path = result.record(record) if record is not None else None
    page = console.data()
    write_result(page, result)
    if path is not None:
        page.fact("recorded", str(path))
    console.show(page)
    console.emit({**result.to_dict(), "record": path})
    return 0


def write_result(page: Page, result: BenchResult) -> None:
    """The machine, the work, and the table."""
    machine, work = result.machine, result.workload
    page.fact(
        "machine",
        f"{printable(machine['cpu'])}, {plural(machine['threads'], 'thread')}, {machine['cpu_level']}",
    )
    page.fact("files", f"{machine['file_system']}; {machine['system']}, Python {machine['python']}")
    page.fact(
        "work",
        f"transfer of {amount(work['parameters'])} parameters, {work['tensors']} tensors: reads "
        f"{size(work['bytes_read'])}, writes {size(work['bytes_written'])}",
    )
    page.line()
    rows = [
        _row("transfer, whole call", result.transfer),
        _row("  of it, the engine", result.engine),
        _row("floor", result.floor),
        ("memcpy", "", "", "", f"{result.memcpy / 1e9:.2f}"),
    ]
    page.table(("", "median s", "min", "max", "GB/s"), rows, right=range(1, 5))
    page.line()
    page.words(f"transfer takes {result.ratio:.2f} x the floor")


def _row(name: str, measure: Measure) -> tuple[str, ...]:
    runs = measure.runs
    return (
        name,
        f"{measure.seconds:.3f}",
        f"{min(runs):.3f}",
        f"{max(runs):.3f}",
        f"{measure.bytes_per_second / 1e9:.2f}",
    )
