"""Defaults of options in the environment: ``TASKVEC_THREADS`` for ``--threads``, in every command."""

from __future__ import annotations

import os

import click

from taskvec.text import nearest

PREFIX = "TASKVEC_"

# Variables that are not the default of an option: of the engine, of completion, of tests and benchmarks.
_OTHERS = ("CPU", "COMPLETE", "BENCH", "MERGEKIT_PYTHON", "TEST_OUTPUT", "TEST_RUNNER", "TEST_VICTIM")


def variable(option: str) -> str:
    """The variable that holds an option's default."""
    return PREFIX + option.removeprefix("--").replace("-", "_").upper()


def is_set(option: str) -> bool:
    """Whether a switch is on in the environment; what is not a truth value is refused when it is parsed."""
    return os.environ.get(variable(option), "").strip().lower() in ("1", "true", "t", "yes", "y", "on")


def unknown(group: click.Context | None, command: click.Command) -> list[tuple[str, str | None]]:
    """Variables that look like an option's default and are of no command, each with the name that is nearest.

    Parameters
    ----------
    group : click.Context, optional
        Of the program, which knows every command; they are loaded only where a name is not one of `command`.
    command : click.Command
    """
    given = [name for name in os.environ if name.startswith(PREFIX)]
    left = set(given).difference(_of(command), (PREFIX + other for other in _OTHERS))
    if not left or group is None or not isinstance(group.command, click.Group):
        return []
    commands = (group.command.get_command(group, verb) for verb in group.command.list_commands(group))
    known = {name for each in commands if each is not None for name in _of(each)}
    return [(name, nearest(name, sorted(known))) for name in sorted(left - known)]


def _of(command: click.Command) -> set[str]:
    """The variables of a command's options."""
    return {str(each.envvar) for each in command.params if isinstance(each, click.Option) and each.envvar}
