"""Without a terminal: plain progress, a log, defaults in the environment, SIGTERM, standard input."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.command_line import invoke, spawn
from support.models import Trio, edit_json
from taskvec import bar as progress
from taskvec import cli
from taskvec.cli.console import Console
from taskvec.cli.log import close_log, open_log
from taskvec.progress import Progress


def transfer(trio: Trio, out: Path, *options: object) -> list[object]:
    models = ["--target", trio.target, "--donor", trio.donor, "--reference", trio.reference]
    return ["transfer", *models, "-o", out, *options]


@pytest.fixture(autouse=True)
def no_log_is_left():
    yield
    close_log()


# --- progress
@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
    return time


def reports(clock: list[float], callback: object, seconds: int, most: int = 10**9) -> None:
    """A report every second of something that goes on evenly."""
    for second in range(seconds + 1):
        clock[0] = float(second)
        callback(Progress("merge", most * second // seconds, most, float(second)))  # type: ignore[operator]


def test_a_line_for_every_tenth(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Console("transfer").progress() as callback:
        reports(clock, callback, 100)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"merging: {tenth} %" for tenth in range(10, 100, 10)]
    assert lines[4] == "merging: 50 %, 500 MB of 1.00 GB, 0.01 GB/s, 50.0 s left"


def test_a_line_every_thirty_seconds_where_a_tenth_takes_longer(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Console("transfer").progress() as callback:
        reports(clock, callback, 3600)
    lines = capsys.readouterr().err.splitlines()
    assert 3600 / 30 - 1 <= len(lines) <= 3600 / 30 + 10


def test_a_short_job_says_nothing_of_its_progress_unless_asked(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Console("transfer").progress() as callback:
        reports(clock, callback, 1)
    assert capsys.readouterr().err == ""
    with Console("transfer", progress="plain").progress() as callback:
        for step in range(101):
            callback(Progress("merge", step, 100, 0.0))
    assert len(capsys.readouterr().err.splitlines()) == 9


@pytest.mark.parametrize(
    "options", [{"progress": "none"}, {"quiet": True}, {"quiet": True, "progress": "plain"}]
)
def test_none_where_none_is_wanted(
    clock: list[float], capsys: pytest.CaptureFixture[str], options: dict[str, object]
) -> None:
    with Console("transfer", **options).progress() as callback:  # type: ignore[arg-type]
        reports(clock, callback, 100)
    assert capsys.readouterr().err == ""


def test_every_command_that_talks_takes_them(trio: Trio, tmp_path: Path) -> None:
    done = spawn(transfer(trio, tmp_path / "out", "--progress", "bar"))
    assert done.code == 0
    assert spawn(["check", *trio, "--progress", "tape"]).code == 2


# --- the log
def test_the_log_has_all_that_was_said_with_times(
    trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "run.log"
    loud = invoke(capsys, *transfer(trio, tmp_path / "a", "--log", log))
    quiet = invoke(capsys, *transfer(trio, tmp_path / "b", "--log", log, "--quiet"))
    assert (loud.code, quiet.code, quiet.err) == (0, 0, "")
    close_log()
    lines = log.read_text().splitlines()
    stamp = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} ")
    assert all(stamp.match(line) for line in lines)
    said = [stamp.sub("", line) for line in lines]
    wanted = [line for line in loud.err.splitlines() if line]
    assert said[: len(wanted)] == wanted
    assert sum(line.startswith("written ") for line in said) == 2


def test_errors_and_progress_are_logged(
    trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    log = tmp_path / "run.log"
    edit_json(trio.donor / "config.json", rope_theta=1.0)
    assert invoke(capsys, *transfer(trio, tmp_path / "a", "--log", log)).code == 1
    assert "error[config-function]" in log.read_text()
    open_log(str(log))
    with Console("transfer", progress="none").progress() as callback:
        reports(clock, callback, 100)
    assert "merging: 50 %" in log.read_text()


def test_a_log_that_cannot_be_written_is_an_error_at_the_start(
    trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = invoke(capsys, *transfer(trio, tmp_path / "out", "--log", tmp_path / "none" / "log"))
    assert done.code == 2
    assert "--log" in done.err
    assert not (tmp_path / "out").exists()


# --- colour
def test_colour_can_be_forced_and_no_color_wins(trio: Trio) -> None:
    edit_json(trio.donor / "config.json", rope_theta=1.0)
    assert "\x1b[" in spawn(["check", *trio], environment={"FORCE_COLOR": "1", "NO_COLOR": ""}).out
    assert "\x1b[" not in spawn(["check", *trio], environment={"FORCE_COLOR": "1", "NO_COLOR": "1"}).out
    assert "\x1b[" not in spawn(["check", *trio], environment={"FORCE_COLOR": "0", "NO_COLOR": ""}).out


# --- the environment
def test_defaults_come_from_the_environment(
    trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKVEC_ALPHA", "0.25")
    monkeypatch.setenv("TASKVEC_THREADS", "1")
    monkeypatch.setenv("TASKVEC_JSON", "1")
    monkeypatch.setenv("TASKVEC_EXCLUDE", "embed norm")
    assert invoke(capsys, *transfer(trio, tmp_path / "a")).code == 0
    recipe = json.loads((tmp_path / "a" / "taskvec.json").read_text())["recipe"]
    assert (recipe["alpha"], recipe["exclude"]) == (0.25, ["embed", "norm"])
    done = invoke(capsys, *transfer(trio, tmp_path / "b", "--alpha", "0.5"))
    assert json.loads(done.out)["outputs"][0]["alpha"] == 0.5  # what is written in the command goes before it


def test_an_error_in_the_environment_names_its_variable(
    trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKVEC_THREADS", "many")
    done = invoke(capsys, *transfer(trio, tmp_path / "out"))
    assert done.code == 2
    assert "`TASKVEC_THREADS` in the environment: `many` is not a valid integer" in done.err


def test_a_variable_of_no_option_is_a_warning(
    trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKVEC_THREAD", "1")
    monkeypatch.setenv("TASKVEC_SCHEDULE", "ema")  # of another command
    monkeypatch.setenv("TASKVEC_CPU", "scalar")  # of the engine
    done = invoke(capsys, *transfer(trio, tmp_path / "out"))
    assert done.code == 0
    assert "`TASKVEC_THREAD` in the environment belongs to no option" in done.err
    assert "did you mean `TASKVEC_THREADS`?" in done.err
    assert done.err.count("in the environment") == 1


def test_a_variable_of_no_option_is_an_error_under_strict(
    trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKVEC_THREAD", "1")
    done = invoke(capsys, *transfer(trio, tmp_path / "out"), "--strict")
    assert done.code == 2
    assert "`TASKVEC_THREAD` in the environment belongs to no option" in done.err
    assert "did you mean `TASKVEC_THREADS`?" in done.err
    assert not (tmp_path / "out").exists()


def test_every_option_has_one_variable_and_no_two_options_share_it() -> None:
    meanings: dict[str, set[str]] = {}
    context = cli.cli.make_context("taskvec", ["--help"], resilient_parsing=True)
    for verb in cli.VERBS:
        command = cli.cli.get_command(context, verb)
        assert command is not None
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert isinstance(parameter.envvar, str)
                assert re.fullmatch(r"TASKVEC_[A-Z_]+", parameter.envvar)
                meanings.setdefault(parameter.envvar, set()).add(parameter.opts[-1])
    assert all(len(options) == 1 for options in meanings.values())


# --- SIGTERM
SLOW = """
import sys, time
from taskvec.run import execute
inner = execute._execute
def slow(*arguments, **named):
    print("begun", flush=True)
    time.sleep(600)
execute._execute = slow
from taskvec.cli import main
main()
"""


def test_sigterm_says_how_to_go_on(trio: Trio, tmp_path: Path) -> None:
    command = [str(word) for word in transfer(trio, tmp_path / "out", "--json")]
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "error: ended by SIGTERM\n  hint: run the same command again to go on where it stopped\n" in err
    assert json.loads(out)["error"]["exit_code"] == 143
    assert spawn(command).code == 0
    assert invoke_digest(tmp_path / "out") == invoke_digest(undisturbed(trio, tmp_path))


def undisturbed(trio: Trio, tmp_path: Path) -> Path:
    assert spawn(transfer(trio, tmp_path / "other")).code == 0
    return tmp_path / "other"


def invoke_digest(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


# --- standard input
def recipe_of(trio: Trio) -> str:
    return (
        f"merge_method: linear\nmodels:\n- {{model: '{trio.target}', parameters: {{weight: 0.5}}}}\n"
        f"- {{model: '{trio.donor}', parameters: {{weight: 0.5}}}}\n"
    )


def piped(text: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "taskvec", *map(str, arguments)],
        input=text,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
        check=False,
    )


def test_a_recipe_comes_from_standard_input(trio: Trio, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe_of(trio))
    assert piped(recipe_of(trio), "merge", "-", tmp_path / "a").returncode == 0
    assert spawn(["merge", file, tmp_path / "b"]).code == 0
    assert invoke_digest(tmp_path / "a") == invoke_digest(tmp_path / "b")
    wrong = piped(recipe_of(trio).replace("weight", "wieght"), "merge", "-", tmp_path / "c")
    assert wrong.returncode == 2
    assert "error: standard input:3: `wieght` is not a parameter of `linear`" in wrong.stderr


def test_a_standard_input_that_is_closed_is_an_error(tmp_path: Path) -> None:
    command = f"exec {sys.executable} -m taskvec merge - {tmp_path / 'out'} <&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "error: there is no standard input" in done.stderr
    assert "defect" not in done.stderr


# --- results that can be made again
def test_the_manifest_is_repeatable(trio: Trio, tmp_path: Path) -> None:
    for name in ("a", "b"):
        done = piped(recipe_of(trio), "merge", "-", tmp_path / name, SOURCE_DATE_EPOCH="1700000000")
        assert done.returncode == 0
    for name in ("taskvec.json", "README.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    run = json.loads((tmp_path / "a" / "taskvec.json").read_text())["run"]
    assert run["finished"] == "2023-11-14T22:13:20+00:00"
    assert "inputs" not in run  # the times of files differ from machine to machine
    again = piped(recipe_of(trio), "merge", "-", tmp_path / "a", SOURCE_DATE_EPOCH="1700000000")
    assert again.returncode == 0  # the inputs are known by their content
    assert "already done" in again.stderr
    assert spawn(["verify", tmp_path / "a"]).code == 0


@pytest.mark.parametrize("how", ["whole", "last part"])
def test_strict_fails_for_what_only_the_result_shows(
    trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    """A step of which nothing is left is a warning; with ``--strict`` the output stays, the command fails."""
    out = tmp_path / "out"
    words = ["transfer", "--target", trio.target, "--donor", trio.donor, "--reference", trio.reference]
    words += ["-o", out, "--alpha", "1e-6", *(() if how == "whole" else ("--part", "0/1"))]
    plain = invoke(capsys, *words)
    assert (plain.code, "warning[rounded-away]" in plain.err) == (0, True)
    written = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    strict = invoke(capsys, *words, "--strict")  # given again, it is no better
    assert (strict.code, "error[rounded-away]" in strict.err, strict.out) == (1, True, f"{out}\n")
    assert "--force rounded-away --overwrite" in strict.err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == written
    found = json.loads(invoke(capsys, *words, "--strict", "--json").out)["findings"]
    assert {each["id"]: each["level"] for each in found}["rounded-away"] == "error"
    if how == "whole":
        again = invoke(capsys, *words, "--strict", "--overwrite", "--force", "rounded-away")
        assert (again.code, "warning[rounded-away]" in again.err) == (0, True)


def test_strict_speaks_of_findings_and_not_of_incompatible_models(
    trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.yaml"
    models = f"models: [{{model: {trio.donor}, parameters: {{weight: 1}}}}]"
    recipe.write_text(f"merge_method: linear\nrandom_seed: 3\nlicense: mit\n{models}\n")
    done = invoke(capsys, "merge", recipe, "-o", tmp_path / "out", "--strict")
    assert done.code == 1
    assert done.err.endswith(
        "error: 2 findings stop a run that is strict\n  hint: go on with `--force recipe-ignored`\n"
    )
    assert not (tmp_path / "out").exists()
