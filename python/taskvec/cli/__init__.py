"""The command line: a thin caller of the library.

Nothing is imported here that a bare ``taskvec --version`` does not need; each verb lives in a module of its
own, which is imported when the verb is called.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import re
import signal
import sys
import threading
from typing import Any, NoReturn

import click

from taskvec.cli.console import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_TERMINATED, EXIT_USAGE, UsageError, fail
from taskvec.cli.help_format import Context
from taskvec.cli.variables import is_set

# verb -> the line that `taskvec --help` shows; kept here so that help imports no verb
SECTIONS: dict[str, dict[str, str]] = {
    "Transfer": {
        "transfer": "Write target + alpha * (donor - reference), in one streamed pass.",
        "check": "Check whether three checkpoints are compatible; nothing is merged.",
    },
    "Task vectors": {
        "extract": "Save donor - reference as a task vector.",
        "apply": "Add saved task vectors to a checkpoint.",
        "analyse": "Say what a task vector is made of, and how it compares with others.",
        "diff": "Measure how far two checkpoints, or two vectors, lie apart.",
    },
    "Merging": {
        "merge": "Run a merge recipe (mergekit's YAML).",
        "moe": "Write dense models as a mixture of experts.",
        "average": "Average the checkpoints of a training run.",
        "methods": "List the merge methods, or explain one.",
    },
    "Storage": {
        "convert": "Write a checkpoint in another type or format.",
        "tokens": "Move a checkpoint to another model's tokenizer.",
    },
    "Many machines": {
        "plan": "Write the plan of a command to a file, to be run elsewhere.",
        "run": "Run a plan from a file, or a part of it.",
        "finish": "End a run in parts whose weight files are all there.",
    },
    "Inspect": {
        "inspect": "Show what a checkpoint or vector holds, from its headers.",
        "verify": "Compare an output folder with the hashes in its manifest.",
        "check-merge": "Say whether a step was really added to a model.",
    },
    "Evaluation": {
        "eval": "Run a model on benchmark tasks through lm-eval.",
        "sweep": "Merge, evaluate and compare a vector with its controls.",
        "report": "Put finished sweeps side by side, and pool what they found.",
        "search": "Search for the best values of a recipe by benchmark scores.",
        "tasks": "List the data sets of known tasks, or fetch them.",
        "importance": "Write what each element of a model matters on some tasks.",
    },
    "This machine": {
        "bench": "Measure merge throughput next to the machine's own floor.",
        "demo": "Run the main job on three small checkpoints made on the spot.",
        "completion": "Print the script that lets a shell complete commands.",
    },
}
VERBS: dict[str, str] = {verb: line for section in SECTIONS.values() for verb, line in section.items()}

# verbs whose module has another name: this one has a function `run`, and a hyphen is not one of Python's
MODULES = {"plan": "plan_file", "run": "run_plan", "check-merge": "check_merge"}

# verbs whose unfinished output the next run of the same command goes on with
RESUMABLE = frozenset(
    {
        "transfer", "extract", "apply", "merge", "moe", "average", "convert", "tokens", "run", "finish",
        "sweep", "search", "importance", "tasks",
    }
)  # fmt: skip

# modules of those who look at a process until its end in order
_WATCHERS = frozenset({"cProfile", "profile", "pdb", "trace", "coverage", "debugpy", "pydevd"})

# verbs that run other packages' code for minutes or hours, which may leave cycles of large objects behind
LONG = frozenset({"eval", "sweep", "search", "importance", "demo"})


# Commands of other tools, with and without the name of the tool, and what does the same here.
ELSEWHERE = {
    "yaml": "merge RECIPE OUT",
    "run-yaml": "merge RECIPE OUT",
    "multi": "merge RECIPE OUT",
    "mega": "merge RECIPE OUT",
    "extract-lora": "extract DONOR REFERENCE --lora RANK -o OUT",
    "lora": "extract DONOR REFERENCE --lora RANK -o OUT",
    "evolve": "search SPACE -o OUT",
    "tokensurgeon": "tokens TARGET --from MODEL -o OUT",
    "moe": "moe RECIPE OUT",
    "fill-missing-params": "convert MODEL -o OUT",
    "quantize": "convert MODEL --out-dtype FORMAT -o OUT",
    "quantise": "convert MODEL --out-dtype FORMAT -o OUT",
    "dequantize": "convert MODEL -o OUT",
    "dequantise": "convert MODEL -o OUT",
    "cast": "convert MODEL --out-dtype DTYPE -o OUT",
    "compare": "diff A B",
    "evaluate": "eval MODEL --tasks TASK",
    "analyze": "analyse VEC -o OUT",
    "info": "inspect MODEL",
    "show": "inspect MODEL",
    "add": "apply TARGET VECTOR -o OUT",
    "help": "--help",
    "version": "--version",
}


def _instead_of(name: str) -> str:
    """The way out where there is no such command."""
    plain = name.lower().replace("_", "-").removeprefix("mergekit-")
    known = ELSEWHERE.get(plain) or (plain if plain in VERBS else None)
    if known is not None:
        return f"`taskvec {known}` does that"
    from difflib import get_close_matches

    near = get_close_matches(plain, VERBS, n=1)
    return f"did you mean `taskvec {near[0]}`?" if near else "`taskvec --help` lists the commands"


class Group(click.Group):
    """A group whose commands are imported when they are called."""

    context_class = Context

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in VERBS:
            return None
        return importlib.import_module(f"{__name__}.{MODULES.get(cmd_name, cmd_name)}").command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in VERBS and not name.startswith("-") and not ctx.resilient_parsing:
            raise UsageError(f"no such command `{name}`", _instead_of(name))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        width = max(map(len, VERBS))
        for section, verbs in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl([(verb.ljust(width), line) for verb, line in verbs.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        options = click.Command.shell_complete(self, ctx, incomplete)
        verbs = [
            CompletionItem(verb, help=line) for verb, line in VERBS.items() if verb.startswith(incomplete)
        ]
        return [*verbs, *options]


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from taskvec._core import __version__

        click.echo(f"taskvec {__version__}")
        ctx.exit()


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`taskvec COMMAND --help` explains a command and gives examples.",
)
@click.option("--version", is_flag=True, is_eager=True, callback=_version, expose_value=False,
              help="Show the version and exit.")  # fmt: skip
def cli() -> None:
    """Task-vector arithmetic on model checkpoints.

    A task vector is what a fine-tune learned: donor - reference. taskvec extracts it, adds it to another
    compatible model, merges checkpoints, and measures the outcome, without training.

    Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 a check failed, 2 usage,
    configuration or input/output error, 130 interrupted, 143 ended by SIGTERM. The default of every option
    can be set in the environment: TASKVEC_THREADS=8 for --threads 8.
    """


def _on_interrupt(_signum: int, _frame: Any) -> NoReturn:
    """The first Ctrl-C unwinds in order; the second ends the process at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


_terminated: list[int] = []
_ENVIRONMENT = click.core.ParameterSource.ENVIRONMENT


def _on_terminate(signum: int, _frame: Any) -> NoReturn:
    """SIGTERM is answered as the first Ctrl-C is; the second ends the process at once."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _terminated.append(signum)
    raise KeyboardInterrupt


def _usage(error: click.ClickException, verb: str | None) -> UsageError:
    """A click error in this program's own words."""
    from taskvec.option import near_flag

    where = f"`taskvec {verb} --help` explains the options" if verb else "`taskvec --help` lists the commands"
    if isinstance(error, click.NoSuchOption):
        name = error.option_name
        other = _of_mergekit(name) if verb in ("merge", "moe") else None if verb else _behind(name)
        near = None if _is_setting(name) and verb else near_flag(name, error.possibilities or ())
        return UsageError(f"no such option `{name}`", other or (f"did you mean `{near}`?" if near else where))
    if isinstance(error, click.MissingParameter):
        names = _parameter_name(error)
        kind = "argument" if isinstance(error.param, click.Argument) else "option"
        return UsageError(f"missing {kind} {names}", where)
    if isinstance(error, click.BadParameter):
        message = _sentence(error.message)
        hint = getattr(error, "hint", None) or where
        return UsageError(f"{_parameter_name(error)}: {message}" if error.param else message, hint)
    return UsageError(_sentence(error.format_message()), where)


def _behind(name: str) -> str | None:
    """Where an option of commands goes that stands before the command."""
    program = click.Context(cli)
    found = [
        verb
        for verb in VERBS
        if (command := cli.get_command(program, verb)) is not None
        and any(name in parameter.opts for parameter in command.params)
    ]
    return f"options follow the command: `taskvec {found[0]} ... {name}`" if found else None


def _of_mergekit(option: str) -> str | None:
    """The way out for an option of mergekit-yaml that nothing has to be said for here."""
    from taskvec.cli.needless import NEEDLESS  # which few mistakes need

    why = NEEDLESS.get(option.removeprefix("--").removeprefix("no-").replace("-", "_"))
    return f"leave it out: {why}; `taskvec-yaml` takes the options of mergekit-yaml" if why else None


def _is_setting(option: str) -> bool:
    """Whether other verbs have the option: it is not a typo, and what is spelt alike means something else."""
    from taskvec.option import flag, options_of
    from taskvec.settings import Settings

    return option in map(flag, options_of(Settings))


def _parameter_name(error: click.BadParameter) -> str:
    if isinstance(error.param, click.Argument):
        return f"`{error.param.make_metavar(error.ctx or click.Context(cli)).strip('[]')}`"
    if error.param is not None:
        if error.ctx is not None and error.ctx.get_parameter_source(error.param.name or "") is _ENVIRONMENT:
            return f"`{error.param.envvar}` in the environment"
        return f"`{max(error.param.opts, key=len)}`"
    return f"`{error.param_hint}`"


def _sentence(message: str) -> str:
    """Click writes `Option 'x' is wrong.`; our errors are lowercase, quote in backticks, end bare."""
    message = re.sub(r"'([^']*)'", r"`\1`", message.strip().rstrip("."))
    return message[:1].lower() + message[1:]


def _detach(stream: Any) -> None:
    """Leave the interpreter nothing to flush into a pipe whose reader has gone."""
    try:
        stream.flush()
    except AttributeError:
        return  # closed before the start: Python has None there
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def run(arguments: list[str], program: click.Command | None = None, verb: str | None = None) -> int:
    """Run the command line and give its exit code; every error has been printed.

    Another program than `taskvec` does the work of the `verb`.
    """
    as_json = "--json" in arguments or is_set("--json")
    verbose = not {"--verbose", "-v"}.isdisjoint(arguments) or is_set("--verbose")
    verb = verb or next((word for word in arguments if word in VERBS), None)
    try:
        result = (program or cli).main(arguments, prog_name="taskvec", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except (BrokenPipeError, SystemExit):
        return 0  # the reader of stdout has gone; click ends with SystemExit then
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return EXIT_USAGE
    except click.ClickException as error:
        return fail(_usage(error, verb), EXIT_USAGE, command=verb, as_json=as_json, verbose=verbose)
    except (KeyboardInterrupt, click.Abort):
        goes_on = verb in RESUMABLE or (verb == "demo" and "--paper" in arguments)
        hint = "run the same command again to go on where it stopped" if goes_on else None
        failure = UsageError("ended by SIGTERM" if _terminated else "interrupted", hint)
        code = EXIT_TERMINATED if _terminated else EXIT_INTERRUPTED
        return fail(failure, code, command=verb, as_json=as_json, verbose=False)
    except Exception as error:
        code = EXIT_FAILED if _is_failed_check(error) else EXIT_USAGE
        return fail(error, code, command=verb, as_json=as_json, verbose=verbose)


def _is_failed_check(error: Exception) -> bool:
    from taskvec.errors import CompatibilityError, NonFiniteError, VerificationError

    return isinstance(error, (CompatibilityError, NonFiniteError, VerificationError))


def _forget_interrupt() -> None:
    """Let the exit code stand, now that the interrupt has been reported.

    CPython remembers an interrupt that leaves the execution of a text as unhandled, caught or not, and ends
    ``python -m`` by SIGINT in place of the exit code. Every dataclass is made by executing a text, so an
    interrupt during an import may be such a one. Executing another text makes CPython forget it.
    """
    exec("")


def _leaves_threads() -> bool:
    """Whether threads still wait for a server: a normal end would stop them inside of foreign code."""
    threads = sys.modules.get("taskvec.resolve.threads")
    return threads is not None and threads.are_waiting()


def _is_alone() -> bool:
    """Whether nobody waits for this process to end in order: a profiler, a debugger, a thread."""
    watched = sys.gettrace() or sys.getprofile() or not _WATCHERS.isdisjoint(sys.modules)
    return not watched and threading.active_count() == 1


def _tells_of_leaks() -> bool:
    """Whether a module of torch would write to stderr what it has not freed at a normal end."""
    return "triton._C.libtriton" in sys.modules


def main(program: click.Command | None = None, verb: str | None = None) -> NoReturn:
    """The console entry point; of another program than `taskvec`, as :func:`run` says."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _on_interrupt)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _on_terminate)
    for stream in (sys.stdout, sys.stderr):
        # a tensor name or a path that the terminal's encoding lacks is escaped, not a crash
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    is_short = LONG.isdisjoint(sys.argv)
    if is_short:
        # Nearly all that a start makes is modules, which stay: the collector found nothing in 0.01 s.
        gc.set_threshold(200_000)
    gc.enable()  # `__main__` has it off
    code = run(sys.argv[1:], program, verb)
    if code in (EXIT_INTERRUPTED, EXIT_TERMINATED):
        _forget_interrupt()
    _detach(sys.stdout)
    _detach(sys.stderr)
    if _leaves_threads():
        os._exit(code)
    if _tells_of_leaks():
        atexit._run_exitfuncs()
        os._exit(code)
    if is_short:
        if _is_alone():
            atexit._run_exitfuncs()
            os._exit(code)  # taking the interpreter apart, object by object, takes 0.005 s
        gc.freeze()  # or the end of the interpreter walks through all of it, another 0.01 s
    sys.exit(code)
