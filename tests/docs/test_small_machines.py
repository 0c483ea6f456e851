"""The table of large models follows from the figures that were measured."""

from __future__ import annotations

import json
import re

import pytest

from support.pages import DOCS, ROOT, text_of

PAGE = text_of(DOCS / "small-machines.md")
ROWS = re.findall(r"^\| (\d+) B, (\w+) \| (.+) \|$", PAGE, re.MULTILINE)
BYTES = {"bfloat16": 2, "FP8": 1}


def gigabytes(cell: str) -> float:
    number, unit = cell.split()
    return float(number) * {"GB": 1, "TB": 1000}[unit]


@pytest.mark.parametrize(("billions", "form", "rest"), ROWS)
def test_a_row_follows_from_the_formula(billions: str, form: str, rest: str) -> None:
    one, read, written, arithmetic, disk = (cell.strip() for cell in rest.split("|"))
    size = int(billions) * BYTES[form]
    nanoseconds = {"bfloat16": 2.4, "FP8": 5.3}[form]
    assert f"{nanoseconds} ns an element" in text_of(DOCS / "many-machines.md")  # where it was measured
    assert gigabytes(one) == gigabytes(written) == size
    assert gigabytes(read) == pytest.approx(3 * size, rel=0.005)
    assert arithmetic == f"{int(billions) * nanoseconds / 8:.0f} s"
    assert disk == f"{4 * size / 2:.0f} s"


def test_there_are_both() -> None:
    assert [row[0] for row in ROWS] == ["70", "671"]


def test_what_planning_takes_is_what_was_recorded() -> None:
    record = sorted((ROOT / "benches" / "record").rglob("*-large.json"))[-1]
    for name, found in json.loads(record.read_text())["models"].items():
        row = f"| {name} | {found['tensors']} "
        row += "".join(f"| {found[key] / 1e9:.0f} GB " for key in ("bytes_in", "bytes_out"))
        row += f"| {found['memory_of_a_run'] / 1e6:.0f} MB | {found['cpu_seconds']:.1f} s "
        assert f"{row}| {found['peak_bytes'] / 1e6:.0f} MB |" in PAGE
