"""Options: how a field of a record of settings is given on the command line, declared at the field itself.

The command line, the command that repeats a run, what a manifest records and the table in the pages
all follow from the declaration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from taskvec.text import nearest

Section = Literal["Arithmetic", "Selection", "Output", "Checks", "Machine"]
Parse = Literal["text", "texts", "names", "number", "size", "choice", "switch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """The part of an option's declaration that settings of every kind have.

    Attributes
    ----------
    default : object
        Of the field; ``MISSING`` where it has none. The help shows it unless it is empty.
    section : str
        The section of the help in which the option stands.
    help : str
        One sentence; where the default is empty, ``[default: ...]`` at its end may explain it.
    metavar : str, optional
        What the value is called in the help.
    """

    default: Any
    section: str
    help: str
    metavar: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared(Declaration):
    """The command-line option of one field of a run's settings, as the field declares it.

    Attributes
    ----------
    parse : {"text", "texts", "names", "number", "size", "choice", "switch"}
        How words become the value: ``texts`` is repeatable, ``names`` are repeatable and separated by commas,
        a ``switch`` takes no value.
    short : str, optional
        A letter for the option: ``-i``.
    choices : tuple of str
        The values of a ``choice``.
    recorded : bool or callable
        Whether the value changes what is written: a recipe in a manifest has it, and the command that repeats
        a run gives it, where it is not the default or where the function of the record says so.
    for_vectors : bool
        Whether saving a vector takes the option too.
    """

    section: Section
    parse: Parse = "text"
    short: str | None = None
    choices: tuple[str, ...] = ()
    recorded: bool | Callable[[Any], bool] = False
    for_vectors: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether the default is nothing, a switch that is off, or no text at all."""
        return self.default is None or self.default is False or self.default == ()

    def is_recorded(self, record: Any, value: Any) -> bool:
        """Whether a recipe has the value, which is that of a field of the record."""
        return self.recorded(record) if callable(self.recorded) else self.recorded and value != self.default


def option(default: Any, **declaration: Any) -> Any:
    """A field of a dataclass with the option of the same attributes; see :class:`Declared`."""
    return declared(Declared(default=default, **declaration))


def declared(declaration: Declaration) -> Any:
    """A field of a dataclass with its declaration."""
    return field(default=declaration.default, metadata={"option": declaration})


def options_of(record: Any) -> Mapping[str, Any]:
    """The options that the fields of a dataclass, or of an instance of one, declare, by the field's name."""
    return {each.name: each.metadata["option"] for each in fields(record) if "option" in each.metadata}


def recorded(record: Any) -> dict[str, Any]:
    """The values of a record that change what is written, as a recipe in a manifest has them."""
    values = {
        name: getattr(record, name)
        for name, declared in options_of(record).items()
        if declared.is_recorded(record, getattr(record, name))
    }
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def flag(name: str) -> str:
    """The option of a field: ``--max-memory`` of ``max_memory``."""
    return f"--{name.replace('_', '-')}"


def no_flag(name: str) -> str:
    """The option that turns off a switch which is on by default: ``--no-resume`` of ``resume``."""
    return f"--no-{name.replace('_', '-')}"


def near_flag(name: str, known: Iterable[str]) -> str | None:
    """The option that a misspelt one is probably meant to be; the dashes, which all have, say nothing."""
    near = nearest(name.lstrip("-"), [each.lstrip("-") for each in known], cutoff=0.65)
    return near and f"--{near}"
