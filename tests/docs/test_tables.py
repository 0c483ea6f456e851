"""Tables of the pages that follow from the code: the commands, the options of a transfer, the methods."""

from __future__ import annotations

import re

import click
import pytest

from support.method_lists import BEGIN, END, table
from support.method_lists import PAGE as METHODS
from support.pages import DOCS, README, text_of
from taskvec import cli
from taskvec.cli.options import SECTIONS
from taskvec.methods.catalogue import METHODS as CATALOGUE

COMMANDS = DOCS / "commands.md"
OPTIONS = re.compile(r"(?<=<!-- options -->\n).*?(?=<!-- end of options -->)", re.DOTALL)


def test_every_command_is_in_the_table() -> None:
    assert set(re.findall(r"^\| `taskvec ([\w-]+)", text_of(COMMANDS), re.MULTILINE)) == set(cli.VERBS)


def test_every_method_is_in_the_table(request: pytest.FixtureRequest) -> None:
    before, begin, rest = text_of(METHODS).partition(BEGIN)
    _, end, after = rest.partition(END)
    wanted = before + begin + table() + end + after
    if request.config.getoption("--update-lists"):
        METHODS.write_text(wanted, encoding="utf-8")
    assert begin
    assert end
    assert text_of(METHODS) == wanted, "run with --update-lists"


def test_the_number_of_methods_is_that_of_the_catalogue() -> None:
    (number,) = re.findall(r"(\d+) methods", text_of(README))
    assert int(number) == len(CATALOGUE)


def table_of_options() -> str:
    """The table of options: names and meaning as `taskvec transfer --help` has them."""
    command = cli.cli.get_command(click.Context(cli.cli), "transfer")
    assert command is not None
    rows = ["| option | meaning |\n", "|---|---|\n"]
    for section in SECTIONS[1:]:  # after the models
        for parameter in command.params:
            record = parameter.get_help_record(click.Context(command))
            if record is not None and getattr(parameter, "section", None) == section:
                names, meaning = (" ".join(text.replace("|", r"\|").split()) for text in record)
                rows.append(f"| `{names}` | {meaning} |\n")
    return "".join(rows)


def test_the_table_of_options_is_what_the_options_declare(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--update-transcripts"):
        COMMANDS.write_text(OPTIONS.sub(lambda _: table_of_options(), text_of(COMMANDS)), encoding="utf-8")
    (found,) = OPTIONS.findall(text_of(COMMANDS))
    assert found == table_of_options(), "run with --update-transcripts"


def test_the_row_of_speed_is_one_of_the_benchmarks() -> None:
    (name, *told) = re.findall(
        r"^\| (`\w+`) \| ([\d.]+) s \| ([\d.]+) s \| ([\d.]+) s \|$", text_of(README), re.MULTILINE
    )[0]
    row = next(
        line for line in text_of(DOCS / "benchmarks.md").splitlines() if line.startswith(f"| {name} |")
    )
    floor, ours, _, theirs, _ = (cell.strip() for cell in row.strip("| ").split("|")[1:])
    assert told == [floor, ours, theirs]
