"""Options that mean the same in every command, and the command class that groups them in its help."""

from __future__ import annotations

import functools
import inspect
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import click

from taskvec.cli.completers import complete
from taskvec.cli.console import EXIT_FAILED, Console, UsageError
from taskvec.cli.help_format import Context
from taskvec.cli.log import open_log
from taskvec.cli.variables import unknown, variable
from taskvec.errors import Error, FindingWarning
from taskvec.models.selection import Selection
from taskvec.option import Declared, Parse, flag, no_flag, options_of
from taskvec.resolve.storage import VARIABLE, parse_options, storage
from taskvec.settings import Settings, parse_size
from taskvec.text import printable

Function = TypeVar("Function", bound=Callable[..., Any])

SECTIONS = (
    "Models", "Evaluation", "Parts of the vector", "Arithmetic", "Selection", "Output", "Checks", "Machine",
    "General",
)  # fmt: skip


class Option(click.Option):
    """An option that knows the help section it belongs to, and the variable that holds its default.

    ``TASKVEC_THREADS`` for ``--threads``, in every command that has the option. What is given several times
    is separated by spaces there.
    """

    def __init__(self, declarations: Sequence[str], *, section: str = "General", **attributes: Any) -> None:
        attributes.setdefault("shell_complete", complete(attributes.get("metavar")))
        super().__init__(declarations, **attributes)
        self.section = section
        self.envvar = variable(self.opts[-1])

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        _hold_named(value, ctx, self)
        return super().process_value(ctx, value)


class Argument(click.Argument):
    """An argument that help explains."""

    def __init__(self, declarations: Sequence[str], *, help: str, **attributes: Any) -> None:  # noqa: A002
        attributes.setdefault("shell_complete", complete(attributes.get("metavar")))
        super().__init__(declarations, **attributes)
        self.explanation = help  # `help` is of newer releases of click, which show it themselves

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        _hold_named(value, ctx, self)
        return super().process_value(ctx, value)


def _hold_named(value: Any, ctx: click.Context, parameter: click.Parameter) -> None:
    """Return if no text of a value is empty, as that of a variable of a script may be."""
    for each in value if isinstance(value, list | tuple) else (value,):
        if isinstance(each, str) and not each.strip():
            raise BadValue(
                Error("the text is empty", "is a variable of the script not set?"),
                ctx,
                parameter,
            )


class Command(click.Command):
    """A command whose help shows its options in sections and its examples as they are written."""

    context_class = Context

    def __init__(self, *arguments: Any, examples: str = "", **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.examples = inspect.cleandoc(examples)

    def invoke(self, ctx: click.Context) -> Any:
        warnings.simplefilter("ignore", FindingWarning)  # verbs print the findings of their reports
        return super().invoke(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(_with_own_words(args, self.params)))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        explained = [
            (each.make_metavar(ctx), each.explanation) for each in self.params if isinstance(each, Argument)
        ]
        if explained:
            with formatter.section("Arguments"):
                formatter.write_dl(explained)
        sections: dict[str, list[tuple[str, str]]] = {section: [] for section in SECTIONS}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):  # arguments stand in the usage
                sections.setdefault(getattr(parameter, "section", "General"), []).append(record)
        for section, records in sections.items():
            if records:
                with formatter.section(section):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples.splitlines():
                    is_command = line.startswith(" ")  # which is to be copied, and stays on one line
                    for part in [line] if is_command else textwrap.wrap(line, formatter.width - 2) or [""]:
                        formatter.write(f"  {part}".rstrip() + "\n")


def _with_own_words(words: Sequence[str], parameters: Sequence[click.Parameter]) -> Iterator[str]:
    """A command line in which an option that may stand alone takes none but its own words as its value.

    Click gives ``--paper MODEL`` the model as the value of ``--paper``, which may have one of a few words or
    none.
    """
    alone = {
        name: each
        for each in parameters
        if isinstance(each, click.Option) and isinstance(each.type, click.Choice) and not each.is_flag
        and isinstance(each.flag_value, str)
        for name in each.opts
    }  # fmt: skip
    following = [*words[1:], ""][: len(words)]
    for at, (word, after) in enumerate(zip(words, following, strict=True)):
        if word == "--":
            yield from words[at:]
            return
        found = alone.get(word)
        is_alone = found is not None and after not in found.type.choices  # type: ignore[attr-defined]
        yield f"{word}={found.flag_value}" if found is not None and is_alone else word


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


def argument(name: str, *, help: str, **attributes: Any) -> Callable[[Function], Function]:  # noqa: A002
    """`click.argument` that help explains."""
    return click.argument(name, cls=Argument, help=help, **attributes)


def together(*decorators: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Several decorators as one, in the order in which help shows them."""

    def decorate(function: Function) -> Function:
        return functools.reduce(
            lambda decorated, decorator: decorator(decorated), reversed(decorators), function
        )

    return decorate


# --- values
class BadValue(click.BadParameter):
    """A value that the library refuses, with its way out."""

    def __init__(self, error: Error, ctx: click.Context | None, param: click.Parameter | None) -> None:
        super().__init__(error.message, ctx, param)
        self.hint = error.hint


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
        try:
            return parse_size(str(value))
        except Error as error:
            raise BadValue(error, ctx, param) from None


def flatten(
    _ctx: click.Context, _param: click.Parameter, values: Sequence[Sequence[float]]
) -> tuple[float, ...]:
    """The numbers of an option given several times, in order."""
    return tuple(number for group in values for number in group)


def split_names(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
    """Names separated by commas, of an option given several times; each value has to hold one."""
    for value in values:
        if not value.replace(",", " ").strip():
            raise BadValue(Error(f"`{value}` names nothing", "leave the option out"), ctx, param)
    return tuple(name.strip() for value in values for name in value.split(",") if name.strip())


def split_options(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """Options of object stores, ``KEY=VALUE``."""
    try:
        return parse_options(values)
    except Error as error:
        raise BadValue(error, ctx, param) from None


# --- the options
def alpha_option(help_text: str) -> Callable[[Function], Function]:
    """``--alpha``: one number or several."""
    return option(
        "--alpha", type=Alphas(), multiple=True, callback=flatten, section="Arithmetic",
        metavar="A[,A...]", help=help_text,
    )  # fmt: skip


out_option = option(
    "-o", "--out", required=True, type=click.Path(path_type=str), section="Output", metavar="OUT",
    help="Folder to write, created if it does not exist; or hf://org/name, s3://bucket/prefix, gs://, az://.",
)  # fmt: skip

_PARSED: dict[Parse, dict[str, Any]] = {
    "text": {},
    "texts": {"multiple": True},
    "names": {"multiple": True, "callback": split_names},
    "number": {"type": int},
    "size": {"type": Size()},
    "choice": {},
    "switch": {"is_flag": True},
}


def declared_option(name: str, declared: Declared) -> Callable[[Function], Function]:
    """The option that a field of a record of settings declares."""
    given: dict[str, Any] = {**_PARSED[declared.parse], "metavar": declared.metavar}
    if declared.choices:
        given["type"] = click.Choice(declared.choices)
    if not declared.is_empty:
        given |= {"default": declared.default, "show_default": True}
    words = f"{flag(name)}/{no_flag(name)}" if declared.default is True else flag(name)
    short = (declared.short,) if declared.short else ()
    return option(*short, words, section=declared.section, help=declared.help, **given)


def declared_options(
    record: type, *, only: Callable[[Declared], bool] = bool
) -> Callable[[Function], Function]:
    """The options that the fields of a record declare, or some of them."""
    return together(*(declared_option(name, each) for name, each in options_of(record).items() if only(each)))


def worded(options: Callable[[Function], Function], **helps: str) -> Callable[[Function], Function]:
    """The same options, some with a help of their own, by the names of their parameters."""

    def decorate(function: Function) -> Function:
        declared = options(function)
        for parameter in declared.__click_params__:  # type: ignore[attr-defined]
            if parameter.name in helps:
                parameter.help = helps[parameter.name]
        return declared

    return decorate


def selecting(verb: str, others: str = "the others are left out") -> Callable[[Function], Function]:
    """The options of a selection for a command that does not merge: what it does with the tensors."""
    return worded(
        selection_options,
        include=f"{verb} only tensors whose name matches (repeatable); {others}.",
        exclude=f"Leave out tensors whose name matches (repeatable); {others}."
        if others != "the others are left out"
        else "Leave out tensors whose name matches (repeatable).",
        preset="Leave out embeddings and output head, or those and the norms.",
        layers=f"{verb} only these layers, counted from 0: `8-20`, `0,2,4-6`.",
    )


selection_options = declared_options(Selection)
threads_option = declared_option("threads", options_of(Settings)["threads"])
force_option = declared_option("force", options_of(Settings)["force"])
strict_option = declared_option("strict", options_of(Settings)["strict"])

layer_scale_option = option(
    "--layer-scale", type=Alphas(), metavar="S[,S...]", section="Arithmetic",
    help="Factors spread evenly over the layers, times alpha: `0,0.5,1` rises from the first to the last.",
)  # fmt: skip

control_option = option(
    "--control", type=click.Choice(["random", "permute"]), section="Arithmetic",
    help="Instead of the vector, a random one of the same norm per tensor, or its own values shuffled.",
)  # fmt: skip

tokenizer_option = option(
    "--tokenizer", type=click.Choice(["union", "base", "target", "donor"]), section="Arithmetic",
    help="Where vocabularies differ: whose the output has, row by row by token (base: the target's).",
)  # fmt: skip

dry_run_option = option(
    "--dry-run", is_flag=True, section="Output", help="Print the plan and stop; nothing is written.",
)  # fmt: skip

part_option = option(
    "--part", section="Output", metavar="I/N",
    help="Write part I of N alone, counted from 0: several processes or machines share one output folder.",
)  # fmt: skip

ray_option = option(
    "--ray", section="Machine", metavar="[ADDRESS]", is_flag=False, flag_value="local",
    help="Run on a Ray cluster, which is started here without an address. Its nodes share a file system, or "
    "models and output are at addresses.",
)  # fmt: skip

run_options = together(declared_options(Settings), ray_option, part_option, dry_run_option)
"""The options of every command that writes weights."""

unparted_options = together(
    *(declared_option(name, each) for name, each in options_of(Settings).items() if name != "stream"),
    dry_run_option,
)
"""Those of them that a command takes which one process runs, from whole models."""

vector_options = together(
    declared_options(Settings, only=lambda each: each.for_vectors), ray_option, part_option, dry_run_option
)
"""Those of them that a command takes which saves a vector."""


def storage_option(function: Function) -> Function:
    """``--storage-option``, which holds while the command runs."""

    @functools.wraps(function)
    def with_options(*arguments: Any, storage_option: dict[str, str], **rest: Any) -> Any:
        with storage(storage_option):
            return function(*arguments, **rest)

    declared = option(
        "--storage-option", multiple=True, callback=split_options, section="Models", metavar="KEY=VALUE",
        help="An option of the object store of s3://, gs:// or az://, such as `region=eu-west-1` or "
        "`endpoint=https://...` (repeatable).",
    )  # fmt: skip
    return declared(with_options)  # type: ignore[return-value]


def scratch_option(function: Function) -> Function:
    """``--scratch``, which holds while the command runs."""

    @functools.wraps(function)
    def with_scratch(*arguments: Any, scratch: str | None, **rest: Any) -> Any:
        with storage(scratch=scratch):
            return function(*arguments, **rest)

    declared = option(
        "--scratch", type=click.Path(file_okay=False), section="Machine", metavar="DIR",
        help="Folder that models at s3://, gs://, az:// and https:// are fetched into, and stay in; streamed "
        "ones, and outputs that go to an address, are there for a while.  "
        f"[default: ${VARIABLE}, or taskvec in the user's cache]",
    )  # fmt: skip
    return declared(with_scratch)  # type: ignore[return-value]


def variant_option(function: Function) -> Function:
    """``--variant``, which holds while the command runs."""

    @functools.wraps(function)
    def with_variant(*arguments: Any, variant: str | None, **rest: Any) -> Any:
        with storage(variant=variant):
            return function(*arguments, **rest)

    declared = option(
        "--variant", section="Models", metavar="TAG",
        help="Take the weights with this tag in their names, as `fp16` of `model.fp16.safetensors`, where a "
        "folder has them; of one model alone by `MODEL?variant=TAG`.",
    )  # fmt: skip
    return declared(with_variant)  # type: ignore[return-value]


storage_options = together(storage_option, scratch_option)
"""The options of every command that names a model."""

reading_options = worded(
    storage_options,
    scratch="Folder that models at s3://, gs://, az:// and https:// are fetched into, and stay in.  "
    f"[default: ${VARIABLE}, or taskvec in the user's cache]",
)
"""Those of a command that writes no model."""

# Commands whose reports have figures of each tensor.
_MEASURING = frozenset({"transfer", "apply", "merge", "average", "convert", "moe", "tokens", "run", "finish"})


def talk_options(verb: str) -> Callable[[Function], Function]:
    """How a command talks: the command receives these options as one `console`."""

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def with_console(
            *arguments: Any,
            as_json: bool,
            quiet: bool,
            verbose: bool,
            progress: str,
            log: str | None,
            **rest: Any,
        ) -> Any:
            if log is not None:
                open_log(log)
            console = Console(verb, as_json=as_json, quiet=quiet, verbose=verbose, progress=progress)
            context = click.get_current_context(silent=True)
            for name, near in unknown(context.parent, context.command) if context else ():
                words = f"`{printable(name)}` in the environment belongs to no option"
                hint = f"did you mean `{near}`?" if near else None
                if rest.get("strict"):
                    raise UsageError(words, hint or "unset it: --strict makes a warning an error")
                page = console.talk()
                page.level("warning", words)
                if hint:
                    page.level("hint", hint)
                console.say(page)
            code = function(*arguments, console=console, **rest)
            return EXIT_FAILED if console.has_failed and not code else code

        figures = "every tensor's survival, " if verb in _MEASURING else ""
        options = together(
            option("--json", "as_json", is_flag=True, section="General",
                   help="Print the result as JSON to stdout (also errors)."),
            option("-q", "--quiet", is_flag=True, section="General",
                   help="Print nothing to stderr but errors."),
            option("-v", "--verbose", is_flag=True, section="General",
                   help=f"Say more: notes, {figures}tracebacks."),
            option("--progress", type=click.Choice(["auto", "bar", "plain", "none"]), default="auto",
                   show_default=True, section="General",
                   help="How progress is shown: auto is a bar on a terminal, and elsewhere a line every 30 "
                   "seconds or 10 per cent."),
            option("--log", type=click.Path(dir_okay=False), section="General", metavar="FILE",
                   help="Append everything that is said to this file too, with times."),
        )  # fmt: skip
        return options(with_console)  # type: ignore[return-value]

    return decorate
