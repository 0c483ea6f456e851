"""Help and tables at every width, what is said of mistakes in names, and what each help is about."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest

import taskvec as tv
from support.command_line import as_seen, invoke, on_terminal
from support.models import Trio
from taskvec import cli
from taskvec.cli import ELSEWHERE, VERBS
from taskvec.cli.console import Page

COMMANDS = ["", *VERBS]


@pytest.mark.parametrize("width", [30, 40, 80, 200])
def test_no_line_of_a_help_is_longer_than_the_terminal(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for verb in COMMANDS:
        text = invoke(capsys, *filter(None, [verb]), "--help").out
        body, _, examples = text.partition("\nExamples:\n")
        for line in body.splitlines():
            is_term = line.startswith("  ") and len(line.split()) <= 3  # an option with its choices
            assert len(line) <= width or (is_term and width < 60), (verb, line)
        for line in examples.splitlines():
            is_command = line.startswith("    ")  # to be copied: never cut
            assert is_command or len(line) <= width, (verb, line)
        assert "…" not in text


@pytest.mark.parametrize("width", [40, 200])
def test_every_argument_is_explained(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for verb in VERBS:
        text = invoke(capsys, verb, "--help").out
        usage = " ".join(text.split("\n\n")[0].split()).partition("[OPTIONS]")[2].split()
        arguments = text.partition("\nArguments:\n")[2].partition("\n\n")[0]
        for name in usage:
            if name != "ARGS]...":
                assert name in arguments or name.strip("[].") in arguments, (verb, name)


@pytest.mark.parametrize("verb", ["check", "diff", "extract", "analyse"])
def test_verbs_that_do_not_merge_say_so(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(invoke(capsys, verb, "--help").out.split())
    assert "Merge only" not in text
    assert "every tensor's survival" not in text
    if verb != "extract":
        assert "before anything is written" not in text


def test_tables_on_a_narrow_terminal(trio: Trio) -> None:
    for width in ("40", "200"):
        seen = on_terminal(["diff", trio.donor.name, trio.reference.name, "--quiet"], environment={
            "COLUMNS": width, "NO_COLOR": "1", "PWD": str(trio.donor.parent),
        }, program=["-c", f"import os; os.chdir({str(trio.donor.parent)!r})\n" + RUN]).out  # fmt: skip
        lines = [line for line in as_seen(seen).splitlines() if line.strip()]
        assert max(map(len, lines)) <= int(width), seen
        assert "relative norm" in seen
        assert "mlp.down_proj" in seen


@pytest.mark.parametrize("verb", ["check-merge", "check", "methods"])
def test_sentences_on_a_narrow_terminal(trio: Trio, verb: str) -> None:
    names = [trio.reference.name, trio.donor.name, trio.donor.name]
    words = {"check-merge": names, "check": [trio.target.name, *names[1::-1]], "methods": []}[verb]
    seen = on_terminal([verb, *words], environment={
        "COLUMNS": "40", "NO_COLOR": "1", "PWD": str(trio.donor.parent),
    }, program=["-c", f"import os; os.chdir({str(trio.donor.parent)!r})\n" + RUN]).out  # fmt: skip
    long = [line for line in as_seen(seen).splitlines() if len(line.rstrip()) > 40]
    assert all(" " not in line.strip() for line in long), long  # a name or an address may be longer


RUN = "import sys\nfrom taskvec import cli\nsys.exit(cli.run(sys.argv[1:]))"


def test_a_table_keeps_every_cell() -> None:
    header, rows = ("module", "relative norm", "largest"), [("self_attn.q_proj", "4.5e-03", "1.0e-02")]
    for width in (20, 30, 40, 80, 200):
        page = Page(None)
        page.width = width
        page.table(header, rows)
        for word in ("4.5e-03", "1.0e-02", "largest"):
            assert word in page.text(), (width, page.text())


# --- mistakes


@pytest.mark.parametrize("name", ELSEWHERE)
@pytest.mark.parametrize("prefix", ["", "mergekit-"])
def test_a_command_of_another_tool(name: str, prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    if prefix + name in VERBS:
        return
    done = invoke(capsys, prefix + name, "x", "y")
    verb = ELSEWHERE[name].split()[0]
    assert f"`taskvec {ELSEWHERE[name]}` does that" in done.err
    assert verb in VERBS or verb.startswith("--")


def test_what_does_the_same_here_is_a_whole_command() -> None:
    for words in ELSEWHERE.values():
        verb, *rest = words.split()
        if verb in VERBS:
            command = cli.cli.get_command(click.Context(cli.cli), verb)
            assert command is not None
            values, left, _ = command.make_parser(click.Context(command)).parse_args(list(rest))
            assert not left, words
            missing = [p.name for p in command.params if p.required and not values.get(p.name or "")]
            assert not missing, words


def test_a_mistyped_command_and_one_like_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean `taskvec extract`?" in invoke(capsys, "extrct", "a").err
    assert "`taskvec --help` lists the commands" in invoke(capsys, "zzzz").err


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", ""], ["diff", "", "b"], ["apply", "t", "", "-o", "x"], ["merge", "", "x"],
        ["transfer", "--target", "", "--donor", "d", "--reference", "r", "-o", "x"],
        ["transfer", "--target", "t", "--donor", "d", "--reference", "r", "-o", ""],
        ["verify", ""], ["convert", "", "-o", "x"], ["run", ""], ["finish", ""], ["eval", "", "--tasks", "a"],
        ["report", ""], ["average", "", "-o", "x"], ["extract", "d", "", "-o", "x"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_an_empty_name_is_not_this_folder(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoke(capsys, *arguments)
    assert done.code == 2
    assert "the text is empty" in done.err
    assert not os.listdir(tmp_path)


def test_an_empty_name_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (tv.open, tv.verify, tv.inspect, tv.load_vector, tv.open_recipe, tv.finish):
        with pytest.raises(tv.RecipeError, match="is an empty text") as caught:
            call("")
        assert caught.value.hint


# --- one kind of thing in the place of another


def test_a_saved_vector_in_the_place_of_a_checkpoint(
    sharded_trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vector = tmp_path / "v.vec"
    target, donor, reference = sharded_trio
    tv.extract(donor, reference, vector)
    out = tmp_path / "out"
    for arguments in (
        ["transfer", "--target", target, "--donor", vector, "--reference", reference, "-o", out],
        ["transfer", "--target", vector, "--donor", donor, "--reference", reference, "-o", out],
        ["check", target, vector, reference],
        ["extract", vector, reference, "-o", out],
        ["apply", vector, vector, "-o", out],
        ["average", target, vector, "-o", out],
        ["convert", vector, "-o", out, "--out-dtype", "float32"],
    ):
        done = invoke(capsys, *arguments)
        said = done.out + done.err
        assert done.code == 1, said
        assert said.count("error[") == 1, said
        assert "error[saved-vector]" in said
        assert "is a saved task vector, expected a checkpoint" in said
        assert "taskvec apply" in said
    done = invoke(capsys, "apply", target, donor, "-o", out)
    assert "is a checkpoint, expected a saved task vector" in done.err
    assert "taskvec extract" in done.err
    assert not out.exists()


def test_layers_that_do_not_exist(
    sharded_trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, donor, reference = sharded_trio
    roles = ["--target", target, "--donor", donor, "--reference", reference]
    done = invoke(capsys, "transfer", *roles, "-o", tmp_path / "out", "--layers", "7-9")
    assert "layers `7-9` do not exist: the layers are 0 to 1" in done.err
    done = invoke(capsys, "transfer", *roles, "-o", tmp_path / "out", "--layers", "1-5", "--dry-run")
    assert "warning[selection-unused]: layers `2-5`: matches no tensor" in done.err + done.out
    assert "the layers are 0 to 1" in done.err + done.out
