"""OUT of commands that take a recipe: the second argument, as mergekit has it, or ``-o``, an alias."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from taskvec.cli.console import UsageError
from taskvec.cli.execute import is_planning
from taskvec.cli.options import Function, argument, option, together


def place_options(verb: str) -> Callable[[Function], Function]:
    """OUT, once: the command receives it as `out`.

    Raises
    ------
    UsageError
        It is not given, or both ways are used.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def with_place(*arguments: Any, out: str | None, place: str | None, **rest: Any) -> Any:
            if (out is None) == (place is None):
                way = f"name it once: `taskvec {verb} RECIPE OUT`, or `-o OUT` as in other commands"
                raise UsageError(
                    "no output is given" if out is None else "the output is given twice",
                    "`taskvec plan` takes it by `--to` alone" if is_planning() else way,
                )
            return function(*arguments, out=place if out is None else out, **rest)

        declared = together(
            argument("out", metavar="[OUT]", required=False,
                     help="Folder to write, created if it does not exist; or hf://org/name, "
                     "s3://bucket/prefix, gs://, az://."),
            option("-o", "--out", "place", type=click.Path(path_type=str), section="Output", metavar="OUT",
                   help="An alias of the argument OUT, as other commands have it."),
        )  # fmt: skip
        return declared(with_place)  # type: ignore[return-value]

    return decorate
