"""Options that ``taskvec eval`` and ``taskvec sweep`` share; those of a setting follow from its field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click

from taskvec.cli.options import option, split_names, together
from taskvec.errors import RecipeError
from taskvec.evaluation.paper import NOT_STATED, PRESETS
from taskvec.evaluation.settings import (
    OPTIONS,
    PAPER_TASKS,
    PERTURBATIONS,
    THINK,
    Option,
    Pairs,
    Settings,
    flag_of,
    key_of,
    parse_perturbation,
)

Function = TypeVar("Function", bound=Callable[..., Any])


# --- values
class CountOrShare(click.types.FloatParamType):
    """A number; a whole one is a count."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | float:
        number = super().convert(value, param, ctx)
        return int(number) if number >= 1 and number.is_integer() else number


class NumberOrWord(click.ParamType):
    """A whole number, or one word such as ``auto``."""

    name = "number or word"

    def __init__(self, word: str) -> None:
        self.word = word

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == self.word or isinstance(value, int):
            return value
        try:
            return int(value)
        except ValueError:
            self.fail(f"`{value}` is neither a number nor `{self.word}`", param, ctx)


def pairs(_ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """``KEY=VALUE`` options as a dict."""
    found = {}
    for value in values:
        key, sign, text = value.partition("=")
        if not sign or not key:
            raise click.BadParameter(f"`{value}` is not KEY=VALUE", param=param)
        found[key] = text
    return found


def counts(_ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> list[int] | None:
    """Whole numbers, several separated by commas; None where none is given."""
    words = [word.strip() for value in values for word in value.split(",")]
    wrong = next((word for word in words if not word.isdecimal()), None)
    if wrong is not None:
        raise click.BadParameter(f"`{wrong}` is not a whole number: write 1,5,10", param=param)
    return list(map(int, words)) or None


def perturbations(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
    """Kinds of perturbations, some with a rate."""
    names = split_names(ctx, param, values)
    for name in names:
        try:
            parse_perturbation(name)
        except RecipeError as error:
            raise click.BadParameter(error.message, param=param) from None
    return names


# --- the options of settings
def setting(name: str) -> Callable[[Function], Function]:
    """The option of one of evaluation's settings."""
    declared, kind = OPTIONS[name], get_type_hints(Settings)[name]
    return option(
        flag_of(name), key_of(name), section=declared.section, metavar=declared.metavar,
        help=_help(declared), **_reading(kind, declared.least),
    )  # fmt: skip


def settings_of(section: str, *, but: Sequence[str] = ()) -> list[Callable[[Function], Function]]:
    """The options of all settings in a section of the help, without those that stand there already."""
    names = [name for name, declared in OPTIONS.items() if declared.section == section]
    return [setting(name) for name in names if name not in but]


def _help(declared: Option) -> str:
    """The help of a setting, with its value where it is left out."""
    shown = declared.default if type(declared.default) in (str, int, float) else None
    unset = declared.unset or shown
    return declared.help + (f"  [default: {unset}]" if unset is not None else "")


def _reading(kind: Any, least: int | None) -> dict[str, Any]:
    """How the command line reads a setting of this type; None stands for one that is not given."""
    if kind == tuple[str, ...]:
        return {"multiple": True, "callback": split_names}
    if kind == tuple[int, ...]:
        return {"multiple": True, "callback": counts}
    if kind == Pairs:
        return {"multiple": True, "callback": pairs}
    if kind is bool:
        return {"is_flag": True, "default": None}
    if get_origin(kind) is Literal:
        return {"type": click.Choice(get_args(kind))}
    kinds = [one for one in get_args(kind) or (kind,) if one is not type(None)]
    words = [word for one in kinds if get_origin(one) is Literal for word in get_args(one)]
    if words:
        return {"type": NumberOrWord(words[0])}
    if float in kinds:
        return {"type": CountOrShare()}
    if Path in kinds:
        return {"type": click.Path(file_okay=False)}
    return {"type": kinds[0] if least is None else click.IntRange(least)}


def settings_given(options: dict[str, Any]) -> dict[str, Any]:
    """The settings that a command line names, but for the tasks, under their keys in a sweep file."""
    return {key_of(name): options[key_of(name)] for name in OPTIONS if name != "tasks"}


def tasks_given(options: dict[str, Any]) -> tuple[str, ...]:
    """The tasks that a command line names; those of ``--paper`` where it names none."""
    return options["tasks"] or (PAPER_TASKS if options["paper"] else ())


def preset_given(options: dict[str, Any]) -> dict[str, Any]:
    """What the size of ``--paper`` sets, in the layout of a sweep file, but for the tasks."""
    size = options["paper"]
    if size not in PRESETS:
        return {}
    return {key: value for key, value in PRESETS[size].content().items() if key != "tasks"} | {"paper": size}


def _not_stated() -> str:
    """Every setting that no source states, with whose value a preset has, for the help."""
    found: dict[str, list[str]] = {}
    for setting in PRESETS["1.5b"].settings:
        if setting.stated is None:
            whose = "ours" if setting.ours.startswith("ours") else "lm-eval's own"
            found.setdefault(whose, []).append(setting.name)
    return ", ".join(f"{', '.join(names)} ({whose})" for whose, names in found.items())


TASKS_ALONE = "tasks"  # of `--paper` without a size

# Help shows these first; a setting that is not named here follows them.
FIRST = ("tasks", "include_path", "data", "chat_template", "max_gen_toks")

task_options = together(
    setting("tasks"),
    option("--paper", metavar="[SIZE]", is_flag=False, flag_value=TASKS_ALONE,
           type=click.Choice((TASKS_ALONE, *PRESETS)), section="Evaluation",
           help=f"The paper's tasks: {', '.join(PAPER_TASKS)}, with room for reasoning. With "
                f"{' or '.join(PRESETS)} its settings too. {NOT_STATED.capitalize()}: {_not_stated()}."),
    setting("include_path"),
    setting("data"),
    option("--think", metavar="[TEXT]", is_flag=False, flag_value=THINK, section="Evaluation",
           help=f"Ask for reasoning in the prompt.  [without TEXT: {THINK}]"),
    option("--perturb", multiple=True, callback=perturbations, metavar="KIND[=RATE][,...]",
           section="Evaluation",
           help=f"Perturbed questions as further arms: {', '.join(PERTURBATIONS)}; RATE is the "
                "share of words mistyped, or of useless sentences for each sentence."),
    setting("chat_template"),
    setting("max_gen_toks"),
    *settings_of("Evaluation", but=FIRST),
)  # fmt: skip

backend_options = together(*settings_of("Machine"))
