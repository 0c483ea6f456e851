"""Options that follow from the fields of a record: one of every kind, parsed, recorded and repeated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click
import pytest

from taskvec.cli.options import Command, declared_options
from taskvec.option import flag, option, options_of, recorded
from taskvec.report import reproduce


@dataclass(frozen=True, slots=True, kw_only=True)
class Toy:
    """A record with an option of every kind."""

    name: str | None = option(
        None, section="Output", short="-n", metavar="NAME", help="A text.", recorded=True
    )
    parts: tuple[str, ...] = option((), section="Output", parse="texts", help="Texts.", recorded=True)
    force: tuple[str, ...] = option((), section="Checks", parse="names", help="Names.", recorded=True)
    toy_level: int = option(
        3, section="Machine", parse="number", metavar="N", help="A number.", recorded=True
    )
    room: int | None = option(None, section="Machine", parse="size", help="A size.")
    mode: str = option("a", section="Machine", parse="choice", choices=("a", "b"), help="A choice.")
    loud: bool = option(False, section="Machine", parse="switch", help="Off.", recorded=True)
    safe: bool = option(True, section="Machine", parse="switch", help="On.", recorded=True)


def parsed(*words: str) -> dict[str, Any]:
    """What a command with the options of the toy gets."""
    command = Command("toy", callback=lambda **options: options)
    declared_options(Toy)(command)
    return command.main(list(words), standalone_mode=False)


def test_nothing_given_is_the_record_of_defaults() -> None:
    assert Toy(**parsed()) == Toy()
    assert recorded(Toy()) == {}


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["-n", "x"], "name", "x"),
        (["--parts", "x,y", "--parts", "z"], "parts", ("x,y", "z")),
        (["--force", "x, y", "--force", "z"], "force", ("x", "y", "z")),
        (["--toy-level", "-1"], "toy_level", -1),
        (["--room", "2KiB"], "room", 2048),
        (["--mode", "b"], "mode", "b"),
        (["--loud"], "loud", True),
        (["--no-safe"], "safe", False),
    ],
)
def test_every_kind_is_parsed_and_repeated(
    words: list[str], field: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = Toy(**parsed(*words))
    assert getattr(toy, field) == value
    if options_of(Toy)[field].recorded:
        monkeypatch.setattr(reproduce, "OPTIONS", {name: flag(name) for name in options_of(Toy)})
        assert list(recorded(toy)) == [field]
        assert Toy(**parsed(*reproduce._options(recorded(toy)))) == toy


def test_help_shows_defaults_that_are_not_empty() -> None:
    command = Command("toy", callback=lambda **options: options)
    declared_options(Toy)(command)
    text = command.get_help(click.Context(command))
    assert "-n, --name NAME" in text
    assert "A number.  [default: 3]" in text
    assert "[default: safe]" in text
    assert "Off.\n" in text
