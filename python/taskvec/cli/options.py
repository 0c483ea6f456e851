"""Options that mean the same in every command, and the command class that groups them in its help."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from taskvec.cli.console import Console

Function = TypeVar("Function", bound=Callable[..., Any])

SECTIONS = ("Models", "Evaluation", "Arithmetic", "Selection", "Output", "Checks", "Machine", "General")


class Option(click.Option):
    """An option that knows the help section it belongs to."""

    def __init__(self, *declarations: Any, section: str = "General", **attributes: Any) -> None:
        super().__init__(*declarations, **attributes)
        self.section = section


class Command(click.Command):
    """A command whose help shows its options in sections and its examples as they are written."""

    def __init__(self, *arguments: Any, examples: str = "", **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.examples = inspect.cleandoc(examples)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {section: [] for section in SECTIONS}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(parameter, "section", "General"), []).append(record)
        for section, records in sections.items():
            if records:
                with formatter.section(section):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples.splitlines():
                    formatter.write(f"  {line}".rstrip() + "\n")


def verb(name: str, *, examples: str) -> Callable[[Callable[..., Any]], Command]:
    """Declare a verb; its help is the function's docstring."""

    def declare(function: Callable[..., Any]) -> Command:
        parameters = getattr(function, "__click_params__", [])
        parameters.reverse()
        return Command(
            name, callback=function, params=parameters, help=inspect.getdoc(function), examples=examples
        )

    return declare


def option(*declarations: str, section: str, **attributes: Any) -> Callable[[Function], Function]:
    """`click.option` with a help section."""
    return click.option(*declarations, cls=Option, section=section, **attributes)


def together(*decorators: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Several decorators as one, in the order in which help shows them."""

    def decorate(function: Function) -> Function:
        return functools.reduce(
            lambda decorated, decorator: decorator(decorated), reversed(decorators), function
        )

    return decorate


# --- values
class Alphas(click.ParamType):
    """Numbers separated by commas; the option may also be given several times."""

    name = "float[,float...]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        numbers = []
        for word in str(value).split(","):
            try:
                number = float(word)
            except ValueError:
                self.fail(
                    f"`{word.strip()}` is not a number; several are separated by commas: -1,0.5,1", param, ctx
                )
            if number - number != 0:
                self.fail(f"`{word.strip()}` is not finite", param, ctx)
            numbers.append(number)
        return tuple(numbers)


class Size(click.ParamType):
    """Bytes: a number with an optional unit."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        from taskvec.errors import Error
        from taskvec.settings import parse_size

        try:
            return parse_size(str(value))
        except Error as error:
            self.fail(str(error), param, ctx)


def flatten(
    _ctx: click.Context, _param: click.Parameter, values: Sequence[Sequence[float]]
) -> tuple[float, ...]:
    """The numbers of an option given several times, in order."""
    return tuple(number for group in values for number in group)


def split_names(_ctx: click.Context, _param: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
    """Names separated by commas, of an option given several times."""
    return tuple(name.strip() for value in values for name in value.split(",") if name.strip())


# --- the options
def alpha_option(help_text: str) -> Callable[[Function], Function]:
    """``--alpha``: one number or several."""
    return option(
        "--alpha", type=Alphas(), multiple=True, callback=flatten, section="Arithmetic",
        metavar="A[,A...]", help=help_text,
    )  # fmt: skip


out_option = option(
    "-o", "--out", required=True, type=click.Path(path_type=str), section="Output", metavar="OUT",
    help="Folder to write; made if it is not there.",
)  # fmt: skip

selection_options = together(
    option("-i", "--include", multiple=True, metavar="REGEX", section="Selection",
           help="Merge only tensors whose name matches (repeatable); the others are the target's bytes."),
    option("-e", "--exclude", multiple=True, metavar="REGEX", section="Selection",
           help="Leave tensors whose name matches as they are in the target (repeatable)."),
    option("--preset", type=click.Choice(["full", "no-embed", "no-embed-norm"]), default="full",
           show_default=True, section="Selection",
           help="Leave out embeddings and output head, or those and the norms."),
    option("--layers", metavar="A-B[,C...]", section="Selection",
           help="Merge only these layers, counted from 0: `8-20`, `0,2,4-6`."),
)  # fmt: skip

layer_scale_option = option(
    "--layer-scale", type=Alphas(), metavar="S[,S...]", section="Arithmetic",
    help="Factors spread evenly over the layers, times alpha: `0,0.5,1` rises from the first to the last.",
)  # fmt: skip

control_option = option(
    "--control", type=click.Choice(["random", "permute"]), section="Arithmetic",
    help="Instead of the vector, a random one of the same norm per tensor, or its own values shuffled.",
)  # fmt: skip

rounding_options = together(
    option("--out-dtype", metavar="DTYPE", section="Arithmetic",
           help="Type of the float tensors written: bfloat16, float32, ...  [default: the target's]"),
    option("--rounding", type=click.Choice(["nearest", "stochastic"]), default="nearest", show_default=True,
           section="Arithmetic", help="How results are rounded to the output type; stochastic is unbiased."),
    option("--seed", type=int, default=0, show_default=True, metavar="N",
           section="Arithmetic", help="Seed of everything random; the same seed gives the same bytes."),
)  # fmt: skip

threads_option = option(
    "--threads", type=int, metavar="N", section="Machine",
    help="Worker threads; the result does not depend on them.  [default: all cores]",
)  # fmt: skip

machine_options = together(
    threads_option,
    option("--max-memory", type=Size(), metavar="SIZE", section="Machine",
           help="Upper limit for buffers, such as `512MB` or `2GiB`."),
)  # fmt: skip

output_options = together(
    option("--max-shard-size", type=Size(), metavar="SIZE", section="Output",
           help="Largest weight file, such as `5GB`.  [default: the target's own layout]"),
    option("--overwrite", is_flag=True, section="Output", help="Replace what the output folder holds."),
    option("--resume/--no-resume", default=True, show_default=True, section="Output",
           help="Go on with an unfinished output of the same plan, or begin again."),
    option("--rehash", is_flag=True, section="Output",
           help="When resuming, read finished files again and compare their hashes."),
    option("--dry-run", is_flag=True, section="Output", help="Print the plan and stop; nothing is written."),
)  # fmt: skip

force_option = option(
    "--force", multiple=True, metavar="ID[,ID...]", callback=split_names, section="Checks",
    help="Go on in spite of the findings named here, one by one (`taskvec check` shows the names).",
)  # fmt: skip

run_options = together(rounding_options, output_options, force_option, machine_options)
"""What every command that writes weights shares."""


def talk_options(verb: str) -> Callable[[Function], Function]:
    """``--json``, ``--quiet``, ``--verbose``; the command receives them as one `console`."""

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def with_console(*arguments: Any, as_json: bool, quiet: bool, verbose: bool, **rest: Any) -> Any:
            console = Console(verb, as_json=as_json, quiet=quiet, verbose=verbose)
            return function(*arguments, console=console, **rest)

        options = together(
            option("--json", "as_json", is_flag=True, section="General",
                   help="Print the result as JSON to stdout (also errors)."),
            option("-q", "--quiet", is_flag=True, section="General",
                   help="Print nothing to stderr but errors."),
            option("-v", "--verbose", is_flag=True, section="General",
                   help="Say more: notes, every tensor's survival, tracebacks."),
        )  # fmt: skip
        return options(with_console)  # type: ignore[return-value]

    return decorate
