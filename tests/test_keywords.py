"""Hints in the words of Python: an option that one names has its keyword, and switches are those of click."""

from __future__ import annotations

import ast
import inspect
import re
import traceback
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest

import taskvec as tv
from taskvec import cli, errors, keywords
from taskvec.evaluation import keywords as evaluation
from taskvec.evaluation.settings import Settings as EvaluationSettings
from taskvec.settings import Settings

ROOT = Path(__file__).parents[1]
# Of other programs, of the command line alone, or of what is made for the command line.
ELSEWHERE = {"configuration", "editable", "modeling", "pack", "html", "set", "verbose"}


def literals() -> Iterator[str]:
    """The texts of the library, docstrings and the command line left out, and those of the engine."""
    for path in (ROOT / "python" / "taskvec").rglob("*.py"):
        if {"cli", "integrations"} & set(path.parts) or path.name in (
            "option.py",
            "reproduce.py",
            "merge.py",
        ):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        firsts = [node.body[0] for node in ast.walk(tree) if isinstance(node, kinds) and node.body]
        docs = {id(first.value) for first in firsts if isinstance(first, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
                yield node.value
    for path in (ROOT / "rust" / "core").rglob("*.rs"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.lstrip().startswith("//"):
                yield from re.findall(r'"([^"]*)"', line)


def named() -> set[str]:
    """The options that texts of the library name outside of commands."""
    found: set[str] = set()
    for text in literals():
        spans = [span for span in re.findall(r"`[^`]*`|[^`]+", text) if not re.match("`(?!--)", span)]
        found |= {name for span in spans for name in re.findall(r"(?<![\w-])--([a-z][a-z-]*)", span)}
    return found - ELSEWHERE


def arguments() -> set[str]:
    """The keyword arguments of the public calls."""
    found = {each.name for record in (Settings, EvaluationSettings) for each in fields(record)}
    for each in vars(evaluation).values():  # the typed dictionaries of keyword arguments
        found |= set(getattr(each, "__annotations__", {}))
    for name in tv.__all__:
        public = getattr(tv, name)
        owners = [public, *(getattr(public, part) for part in dir(public) if not part.startswith("_"))]
        for each in filter(callable, owners if inspect.isclass(public) else [public]):
            try:
                found |= set(inspect.signature(each).parameters)
            except (TypeError, ValueError):
                continue
    return found


def options() -> dict[str, bool]:
    """Every option of the command line, and whether it may stand without a value wherever it is one."""
    found: dict[str, bool] = {}
    for verb in cli.VERBS:
        command = cli.cli.get_command(click.Context(cli.cli), verb)
        for each in getattr(command, "params", ()):
            for text in getattr(each, "opts", ()):
                name = text.removeprefix("--")
                may_stand_alone = (
                    each.is_flag or each._flag_needs_value if isinstance(each, click.Option) else False
                )
                found[name] = may_stand_alone and found.get(name, True)
    return found


def test_every_option_of_a_hint_has_its_keyword() -> None:
    known, lacking = arguments(), set()
    for name in named() - {"storage-option"}:
        keyword = keywords.in_python(f"`--{name}`").strip("`").partition("=")[0]
        if keyword not in known and keyword.removeprefix("no_") not in known:
            lacking.add(f"--{name}: {keyword}")
    assert not lacking


def test_switches_are_those_of_the_command_line() -> None:
    known = options()
    used = {name for name in named() - {"ray"} if not name.startswith("no-")}  # of `ray` a cluster may follow
    assert {name for name in used if known.get(name)} <= keywords.SWITCHES
    assert not {name for name in keywords.SWITCHES if not known.get(name)}


@pytest.mark.parametrize(
    ("hint", "shown"),
    [
        ("use --overwrite to begin again", "use `overwrite=True` to begin again"),
        ("begin again with --no-resume", "begin again with `resume=False`"),
        ("raise `--max-memory`, to 3 MB at least", "raise `max_memory`, to 3 MB at least"),
        ("go on with `--force a --force b`", 'go on with `force=["a", "b"]`'),
        ("`--out-dtype float32` or --stream", '`out_dtype="float32"` or `stream=True`'),
        ("`--lora auto`, `--best 5`", '`rank="auto"`, `best=5`'),
        ("`--model-arg dtype=bfloat16`", '`model_args={"dtype": "bfloat16"}`'),
        ("`--storage-option region=eu`", '`taskvec.storage({"region": "eu"})`'),
        ("`taskvec check A B --force ID`, `x --merge`", "`taskvec check A B --force ID`, `x --merge`"),
        ("did you mean `a--b`?", "did you mean `a--b`?"),
        ("nothing", "nothing"),
    ],
)
def test_a_hint_in_the_words_of_python(hint: str, shown: str) -> None:
    assert keywords.in_python(hint) == shown
    error = errors.Error("subject", hint)
    assert error.hint == hint  # what the command line prints
    assert f"hint: {shown}" in "".join(traceback.format_exception(error))


def test_an_output_that_is_there_is_told_of_a_keyword(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    with pytest.raises(errors.Error) as caught:
        tv.demo(tmp_path)
    text = "".join(traceback.format_exception(caught.value))
    assert "--" not in "".join(caught.value.__notes__), text
