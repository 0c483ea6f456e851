"""The pages of the site that are written from the code: commands, methods, findings, errors, functions.

Each function gives the pages of one kind as a mapping from their path in the site to their text in Markdown.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping

import click
import schemas
import yaml

import taskvec as tv
from taskvec import cli, errors
from taskvec.cli.console import EXIT_FAILED, EXIT_USAGE
from taskvec.cli.options import SECTIONS, Argument, Command
from taskvec.compat import explanations
from taskvec.compat.findings import FINDINGS
from taskvec.methods.catalogue import FUNCTIONS, METHODS
from taskvec.methods.method import Method, Parameter

Pages = dict[str, str]

# The names of the package by subject; those of the methods are on their own page.
SUBJECTS: dict[str, tuple[str, ...]] = {
    "Models and vectors": (
        "open", "from_state_dict", "load_vector", "storage", "Checkpoint", "TaskVector", "TensorInfo",
        "Selection", "Change", "Stats",
    ),
    "Merges and plans": (
        "merge", "open_recipe", "average", "plan_average", "moe", "open_moe", "Merge", "RecipeMerge",
        "MoeMerge", "Plan", "Part", "PartReport", "finish", "Settings",
    ),
    "One call for each command": (
        "transfer", "plan_transfer", "check", "extract", "plan_extract", "extract_lora", "plan_extract_lora",
        "apply", "plan_apply", "convert", "plan_convert", "tokens", "plan_tokens", "diff", "analyse",
        "inspect", "verify", "check_merge",
        "repeat",
    ),
    "Evaluation": ("evaluate", "sweep", "search", "importance"),
    "This machine and the catalogue": ("demo", "bench", "list_methods", "MethodList"),
    "Results": (
        "Report", "Survival", "Verification", "MergeCheck", "Inspection", "Difference", "Composition",
        "Finding", "Findings", "Progress",
    ),
    "Errors": (
        "Error", "NotFoundError", "TensorNotFoundError", "FormatError", "CompatibilityError", "RecipeError",
        "OutputError", "NonFiniteError", "VerificationError", "EngineError", "HubError", "EvaluationError",
    ),
    "Warnings": ("TaskvecWarning", "FindingWarning"),
}  # fmt: skip
_LEVELS = {"error": "Errors", "warning": "Warnings", "note": "Notes"}


def pages() -> Pages:
    """All generated pages."""
    written = {**commands(), **methods(), **findings(), **raised(), **functions()}
    return {**written, "reference/manifest.md": schemas.manifest()}


# --- the command line -------------------------------------------------------------------------------------
def commands() -> Pages:
    """A page for each command, and one that lists them."""
    rows = [f"| [`taskvec {verb}`](commands/{verb}.md) | {_cell(line)} |" for verb, line in cli.VERBS.items()]
    table = "\n".join(["| command | does |", "|---|---|", *rows])
    found = {"reference/commands.md": f"# Commands\n\nEvery option, from the program itself.\n\n{table}\n"}
    for verb in cli.VERBS:
        command = cli.cli.get_command(click.Context(cli.cli), verb)
        assert isinstance(command, Command)
        found[f"reference/commands/{verb}.md"] = _command(verb, command)
    return found


def _command(verb: str, command: Command) -> str:
    context = click.Context(command, info_name=f"taskvec {verb}")
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    text = [f"# taskvec {verb}", f"```text\n{usage}\n```", _prose(command.help or "")]
    arguments = [each for each in command.params if isinstance(each, Argument)]
    if arguments:
        rows = [(each.make_metavar(context), each.explanation) for each in arguments]
        text += ["## Arguments", _table(("argument", "meaning"), rows)]
    for section in SECTIONS:
        rows = [
            each.get_help_record(context)
            for each in command.get_params(context)
            if isinstance(each, click.Option) and getattr(each, "section", "General") == section
        ]
        if any(rows):
            text += [f"## {section}", _table(("option", "meaning"), [row for row in rows if row])]
    if command.examples:
        text += ["## Examples", *_examples(command.examples)]
    return "\n\n".join(text) + "\n"


def _examples(examples: str) -> Iterable[str]:
    """The examples of a command: sentences, each with the lines below it as a block."""
    for group in re.split(r"\n\s*\n", examples.strip("\n")):
        lines = group.splitlines()
        words = [line for line in lines if not line.startswith("  ")]
        code = [line[2:] for line in lines if line.startswith("  ")]
        yield _prose(" ".join(words))
        yield "```sh\n" + "\n".join(code) + "\n```"


# --- the catalogue of methods -----------------------------------------------------------------------------
def methods() -> Pages:
    """The gallery of methods."""
    intro = (
        f"# Gallery of methods\n\nThe {len(METHODS)} merge methods, each with its formula, its parameters "
        "and a recipe to copy. In the formulas θ₀ is the base, θ_i a model, δ_i = θ_i − θ₀, w_i its weight, "
        "λ the final factor and α the factor of the output.\n"
    )
    return {"reference/methods.md": "\n\n".join([intro, *map(_method, METHODS.values())]) + "\n"}


def _method(method: Method) -> str:
    base = {"required": "and a base", "optional": "; a base is optional", "input": "; no base"}[method.base]
    facts = [
        ("models", f"{method.models} {base}".replace(" ;", ";")),
        ("survival", "measured" if method.step else "not measured: it takes no step from a base"),
        ("in mergekit", "yes" if method.mergekit else "no"),
    ]
    if not method.is_control:
        facts.append(("from Python", f"`tv.{method.name}`"))
    if method.random:
        facts.append(("random", "draws depend on the seed and the tensor's name alone"))
    if method.importance:
        facts.append(("needs", "an importance map for each model"))
    if method.paper or method.url:
        paper = method.paper or method.url
        facts.append(("source", f"[{paper}]({method.url})" if method.url else paper))
    text = [f"## {method.name}", f"**{method.title}.** {method.summary}", f"```text\n{method.formula}\n```"]
    text.append(_table(("", ""), facts, is_code=False))
    rows = [(each.name, _meaning(each)) for each in method.parameters]
    if rows:
        text.append(_table(("parameter", "meaning"), rows))
    text += [f"> {_prose(note)}" for note in method.notes]
    text.append(f"```yaml\n{method.example.strip()}\n```")
    return "\n\n".join(text)


def _meaning(parameter: Parameter) -> str:
    default = "required" if parameter.required else f"default {yaml.safe_dump(parameter.default).split()[0]}"
    scope = "of each model" if parameter.scope == "model" else "of the merge"
    return f"{parameter.text} ({parameter.range}; {default}; {scope})"


# --- findings and errors ----------------------------------------------------------------------------------
def findings() -> Pages:
    """The catalogue of findings, by level."""
    text = [
        "# Findings",
        "What a check may say, and what to do. An error stops a run before anything is written; where "
        "forcing is possible, `--force ID` goes on. With `--strict`, warnings are errors.",
    ]
    for level, title in _LEVELS.items():
        text.append(f"## {title}")
        for name, kind in FINDINGS.items():
            if kind.level == level:
                explained = explanations.FINDINGS[name]
                text += [
                    f"### {name}",
                    f"{_prose(_sentence(kind.meaning))}",
                    f"**Cause.** {explained.cause}",
                    f"**Way out.** {explained.way_out}",
                ]
                if kind.forced:
                    text.append(f"**With `--force {name}`** {kind.forced}.")
                elif level == "error":
                    text.append("It cannot be forced.")
    return {"reference/findings.md": "\n\n".join(text) + "\n"}


def raised() -> Pages:
    """The catalogue of errors."""
    text = [
        "# Errors",
        "Every error that taskvec raises on purpose is a `taskvec.Error` with the way out in `.hint`, and "
        "also of the builtin class that fits. The command line prints the hint, and ends with the exit code.",
    ]
    for name, explained in explanations.ERRORS.items():
        each = getattr(errors, name)
        builtin = next(base.__name__ for base in each.__mro__[1:] if base.__module__ == "builtins")
        code = EXIT_FAILED if cli._is_failed_check(each()) else EXIT_USAGE
        text += [
            f"## {name}",
            _prose(inspect.getdoc(each).split("\n\n")[0]),
            f"**Cause.** {explained.cause}",
            f"**Way out.** {explained.way_out}",
            f"Also a `{builtin}`; exit code {code}.",
        ]
    return {"reference/errors.md": "\n\n".join(text) + "\n"}


# --- the package ------------------------------------------------------------------------------------------
def functions() -> Pages:
    """A page for each subject of the package, which mkdocstrings fills from the docstrings."""
    found = {}
    for subject, names in subjects().items():
        text = [f"# {subject}", *(f"::: {path_of(name)}" for name in names)]
        found[f"reference/python/{slug(subject)}.md"] = "\n\n".join(text) + "\n"
    return found


def subjects() -> dict[str, list[str]]:
    """``SUBJECTS`` with the names that it does not know yet: classes among results, functions among calls."""
    listed = {subject: list(names) for subject, names in SUBJECTS.items()}
    for name in sorted(public_names().difference(*listed.values())):
        value = getattr(tv, name)
        is_error = inspect.isclass(value) and issubclass(value, Exception)
        place = "Errors" if is_error else "Results" if inspect.isclass(value) else "One call for each command"
        listed[place].append(name)
    return listed


def path_of(name: str) -> str:
    """Where a public name of the package is defined."""
    value = getattr(tv, name)
    return f"{value.__module__}.{value.__qualname__}"


def public_names() -> set[str]:
    """The names of the package that have to be on a page of :func:`functions`."""
    return {name for name in tv.__all__ if not name.startswith("_")} - set(FUNCTIONS)


# --- words ------------------------------------------------------------------------------------------------
def slug(title: str) -> str:
    """A title as the name of a file."""
    return title.lower().replace(" ", "-")


def code(text: str) -> str:
    """Code as HTML in which Markdown finds nothing to do, in a cell of a table for example."""
    return "<code>" + re.sub(r"[^\w\s.,=-]|_", lambda match: f"&#{ord(match[0])};", text) + "</code>"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _prose(text: str) -> str:
    """Text of the program in Markdown: options as code, stars as stars."""
    text = text.replace("*", r"\*").replace("<", "&lt;").replace("[", r"\[")
    return re.sub(r"(?<![\w`-])(--[a-z][a-z-]+)", r"`\1`", text)


def _cell(text: str) -> str:
    return " ".join(_prose(text).replace("|", r"\|").split())


def _table(head: tuple[str, str], rows: Iterable[tuple[str, str]], *, is_code: bool = True) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    for name, meaning in rows:
        lines.append(f"| {code(name)} | {_cell(meaning)} |" if is_code else f"| {name} | {meaning} |")
    return "\n".join(lines)


def navigation() -> Mapping[str, list[str]]:
    """The generated pages in the order of the site's menu."""
    return {
        "Commands": ["reference/commands.md", *(f"reference/commands/{verb}.md" for verb in cli.VERBS)],
        "Python": [f"reference/python/{slug(subject)}.md" for subject in SUBJECTS],
        "Catalogues": ["reference/methods.md", "reference/findings.md", "reference/errors.md"],
        "Manifest": ["reference/manifest.md"],
    }
