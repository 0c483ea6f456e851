"""What README.md claims: every command and option it names is there, and its Python runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

import taskvec as tv
from support.command_line import invoke
from support.method_lists import BEGIN, END, table
from support.method_lists import README as PATH
from support.models import Trio, edit_json
from taskvec import cli
from taskvec.cli.options import SECTIONS
from taskvec.compat.findings import FINDINGS

README = PATH.read_text(encoding="utf-8")
OPTIONS = re.compile(r"(?<=<!-- options -->\n).*?(?=<!-- end of options -->)", re.DOTALL)


def blocks(language: str) -> list[str]:
    """The code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def command_of(verb: str) -> click.Command:
    command = cli.cli.get_command(click.Context(cli.cli), verb)
    assert command is not None
    return command


def options_of(verb: str) -> set[str]:
    command = command_of(verb)
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {
        "--help"
    }


def test_every_command_is_in_the_table() -> None:
    assert set(re.findall(r"^\| `taskvec (\w+)", README, re.MULTILINE)) == set(cli.VERBS)


def test_every_method_is_in_the_table(request: pytest.FixtureRequest) -> None:
    before, begin, rest = README.partition(BEGIN)
    _, end, after = rest.partition(END)
    wanted = before + begin + table() + end + after
    if request.config.getoption("--update-lists"):
        PATH.write_text(wanted, encoding="utf-8")
    assert begin
    assert end
    assert PATH.read_text(encoding="utf-8") == wanted, "run with --update-lists"


def test_every_option_named_exists() -> None:
    known = set().union(*map(options_of, cli.VERBS)) | {
        "--version",
        "--update-transcripts",
        "--pack",
        "--array",
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README))
    assert named <= known


def table_of_options() -> str:
    """The table of options: names and meaning as `taskvec transfer --help` has them."""
    command = command_of("transfer")
    rows = ["| option | meaning |\n", "|---|---|\n"]
    for section in SECTIONS[1:]:  # after the models
        for parameter in command.params:
            record = parameter.get_help_record(click.Context(command))
            if record is not None and getattr(parameter, "section", None) == section:
                names, meaning = (" ".join(text.replace("|", r"\|").split()) for text in record)
                rows.append(f"| `{names}` | {meaning} |\n")
    return "".join(rows)


def test_the_table_of_options_is_what_the_options_declare(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--update-transcripts"):
        PATH.write_text(OPTIONS.sub(lambda _: table_of_options(), README), encoding="utf-8")
    (table,) = OPTIONS.findall(PATH.read_text(encoding="utf-8"))
    assert table == table_of_options()


def test_every_command_line_shown_parses() -> None:
    for block in blocks("sh"):
        for line in block.splitlines():
            words = line.partition("#")[0].split()
            if words[:1] != ["taskvec"]:
                continue
            assert words[1] in cli.VERBS, line
            given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
            assert given <= options_of(words[1]), line


def test_every_finding_named_exists() -> None:
    named = set(re.findall(r"(?:error|warning|note)\[([\w-]+)\]", README))
    named |= set(re.findall(r"--force ([\w-]+)", README)) - {"ID"}
    assert named <= set(FINDINGS)
    for level, name in re.findall(r"(error|warning|note)\[([\w-]+)\]", README):
        assert FINDINGS[name].level == level


def test_the_python_example_runs(trio: Trio, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (example,) = [block for block in blocks("python") if "merged.save" in block]
    for name, path in zip(("instruct", "grpo", "sft"), trio, strict=True):
        (tmp_path / name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert tv.verify(tmp_path / "out").ok
    (second,) = [block for block in blocks("python") if "apply_" in block]
    before = {name: array.copy() for name, array in names["target"].items()}
    names["model"] = {name: array.copy() for name, array in before.items()}
    exec(compile(second.replace("8-20", "0-1"), "README.md", "exec"), names)
    for name, array in names["model"].items():
        assert array.tobytes() == before[name].tobytes()
    assert tv.verify(tmp_path / "reasoning.vec").ok


def test_the_decoder_decodes(trio: Trio, tmp_path: Path) -> None:
    (source,) = [block for block in blocks("python") if "def decode" in block]
    namespace: dict[str, Any] = {}
    exec(compile(source, "README.md", "exec"), namespace)
    decode: Callable[[Path], Iterator[tuple[str, np.ndarray]]] = namespace["decode"]
    donor, reference = tv.open(trio.donor), tv.open(trio.reference)
    tv.extract(trio.donor, trio.reference, tmp_path / "v.vec", exclude="layernorm")
    decoded = dict(decode(tmp_path / "v.vec"))
    assert decoded
    rows = json.loads((tmp_path / "v.vec" / "taskvec.json").read_text())["vector"]["tensors"]
    assert any(row.get("rounded") for row in rows.values())
    for name, delta in decoded.items():
        expected = donor[name].astype(np.float64) - reference[name].astype(np.float64)
        np.testing.assert_array_equal(delta, expected)


def test_the_error_shown_is_the_error_printed(trio: Trio, capsys: pytest.CaptureFixture[str]) -> None:
    edit_json(trio.donor / "config.json", rope_theta=10000.0)
    assert "error[config-function]: " in invoke(capsys, "check", *trio).out
