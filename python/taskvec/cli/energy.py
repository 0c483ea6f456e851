"""What an adapter keeps of its vector, as ``taskvec extract`` prints it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskvec.cli.console import Page
from taskvec.report.energy_words import energy_words
from taskvec.text import percent, printable


def write_energy(page: Page, adapter: Mapping[str, Any], *, verbose: bool) -> None:
    """What an adapter keeps, in a few lines; module by module where all is told."""
    for label, words in zip(("energy", "", "", ""), energy_words(adapter), strict=False):
        page.fact(label, words)
    if not verbose:
        return
    page.line()
    rows = [
        (printable(name), str(row["rank"]), percent(row["energy"]), f"{row['norm']:.4g}")
        for name, row in adapter["modules"].items()
    ]
    page.table(("module", "rank", "energy", "norm"), rows, right=(1, 2, 3))
    left = [(printable(name), printable(row["reason"])) for name, row in adapter["left"].items()]
    if left:
        page.line()
        page.table(("left out", "because"), left)
