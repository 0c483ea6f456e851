"""The command line: parsing, help, errors, exit codes, streams and start-up."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.command_line import PLAIN, as_seen, invoke, on_terminal, spawn
from support.models import Trio, edit_json
from taskvec import cli
from taskvec.errors import CompatibilityError, OutputError
from taskvec.files.json import jsonable
from taskvec.text import duration, percent, printable, size

FAST_VERBS = [verb for verb in cli.VERBS if verb not in {"eval", "sweep"}]


def transfer(trio: Trio, out: Path, *options: object) -> list[object]:
    """The command that merges the three models into `out`."""
    models = ["--target", trio.target, "--donor", trio.donor, "--reference", trio.reference]
    return ["transfer", *models, "-o", out, *options]


# --- help


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    done = invoke(capsys, "--help")
    assert done.code == 0
    for section, verbs in cli.SECTIONS.items():
        assert f"{section}:" in done.out
        for verb in verbs:
            assert re.search(rf"^  {verb} ", done.out, re.MULTILINE)


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_every_command_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = invoke(capsys, verb, "--help")
    assert done.code == 0
    assert done.err == ""
    assert f"Usage: taskvec {verb}" in done.out
    for option in ("--json", "--quiet", "--verbose", "--progress", "--log"):
        assert option in done.out
    usage = done.out.partition("\n\n")[0].partition("[OPTIONS]")[2].split()
    explained = done.out.partition("\nArguments:\n")[2].partition("\n\n")[0]
    assert all(re.search(rf"^  {re.escape(word)}  +\S", explained, re.MULTILINE) for word in usage)


@pytest.mark.parametrize("verb", FAST_VERBS)
def test_help_gives_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = invoke(capsys, verb, "--help")
    assert f"  taskvec {verb}" in done.out.partition("Examples:")[2]


@pytest.mark.parametrize("verb", ["transfer", "extract", "apply", "merge"])
def test_options_mean_the_same_everywhere(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = invoke(capsys, verb, "--help").out
    for option in ("--threads", "--max-shard-size", "--dry-run", "--force", "--overwrite", "--no-resume"):
        assert option in text
    if verb != "merge":  # whose recipe has them
        for option in ("--include", "--exclude", "--preset", "--layers"):
            assert option in text


def test_help_explains_each_option() -> None:
    for verb in FAST_VERBS:
        command = cli.cli.get_command(None, verb)  # type: ignore[arg-type]
        assert command is not None
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert getattr(parameter, "help", None), (verb, parameter.name)


def test_no_command_shows_help_and_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    done = invoke(capsys)
    assert done.code == 2
    assert done.out == ""
    assert "Usage: taskvec" in done.err


# --- errors


def test_a_mistyped_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    done = invoke(capsys, "tranfer")
    assert done.code == 2
    assert done.err == "error: no such command `tranfer`\n  hint: did you mean `taskvec transfer`?\n"


def test_an_unknown_command_points_at_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert "hint: `taskvec --help` lists the commands" in invoke(capsys, "xyzzy").err


def test_a_mistyped_option_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    done = invoke(capsys, "transfer", "--tagret", "x")
    assert done.code == 2
    assert done.err == "error: no such option `--tagret`\n  hint: did you mean `--target`?\n"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["transfer", "--dtype"], "did you mean `--out-dtype`?"),
        (["transfer", "--output"], "did you mean `--out`?"),
        (["transfer", "--strength"], "`taskvec transfer --help` explains the options"),  # not `--target`
        (["transfer", "--rank"], "`taskvec transfer --help` explains the options"),  # not `--ray`
        (["--verison"], "did you mean `--version`?"),
        (["--alpha"], "options follow the command: `taskvec transfer ... --alpha`"),  # not `--help`
        (["--json"], "options follow the command: `taskvec transfer ... --json`"),
        (["--xyzzy"], "`taskvec --help` lists the commands"),
    ],
)
def test_suggestions_are_right_or_not_made(
    capsys: pytest.CaptureFixture[str], arguments: list[str], hint: str
) -> None:
    done = invoke(capsys, *arguments)
    assert done.code == 2
    assert done.err.endswith(f"  hint: {hint}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["transfer"], "error: missing option `--target`"),
        (["check", "one"], "error: missing argument `DONOR`"),
        (["transfer", "--target"], "error: option `--target` requires an argument"),
        (["check", "a", "b", "c", "d"], "error: got unexpected extra argument (d)"),
        (["check", "a", "b", "c", "--preset", "half"], "error: `--preset`: `half` is not one of"),
        (["transfer", "--alpha", "much"], "error: `--alpha`: `much` is not a number"),
        (["transfer", "--alpha", "1,inf"], "error: `--alpha`: `inf` is not finite"),
        (["transfer", "--max-memory", "5 apples"], "error: `--max-memory`: `5 apples` is not a size"),
    ],
)
def test_usage_errors_are_in_our_words(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done = invoke(capsys, *arguments)
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith(message)
    assert "  hint: " in done.err
    assert "Traceback" not in done.err


def test_a_negative_first_alpha_is_a_value(
    trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = invoke(capsys, *transfer(trio, tmp_path / "out", "--alpha", "-1,0.5", "--dry-run", "--json"))
    assert done.code == 0, done.err
    outputs = json.loads(done.out)["plan"]["outputs"]
    assert [entry["alpha"] for entry in outputs] == [-1.0, 0.5]
    assert [entry["folder"] for entry in outputs] == ["alpha=-1", "alpha=0.5"]


def test_a_missing_folder_is_an_error_with_a_way_out(
    trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = invoke(capsys, "check", tmp_path / "absent", trio.donor, trio.reference)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert "absent" in done.err
    assert "  hint: " in done.err


def test_errors_are_json_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = invoke(capsys, "inspect", tmp_path / "absent", "--json")
    record = json.loads(done.out)
    assert record["schema"] == 1
    assert record["command"] == "inspect"
    assert record["error"]["exit_code"] == done.code == 2
    assert record["error"]["type"] == "NotFoundError"
    assert record["error"]["message"] in done.err
    assert record["error"]["hint"]


def test_usage_errors_are_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads(invoke(capsys, "transfer", "--json").out)
    assert record["error"]["type"] == "UsageError"


def test_incompatible_checkpoints_exit_with_one(
    trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_json(trio.donor / "config.json", rope_theta=10000.0)
    common = transfer(trio, tmp_path / "out")
    done = invoke(capsys, *common, "--json")
    assert done.code == 1
    record = json.loads(done.out)["error"]
    assert record["type"] == "CompatibilityError"
    names = [finding["id"] for finding in record["findings"] if finding["level"] == "error"]
    assert names
    assert f"error[{names[0]}]: " in done.err
    assert not (tmp_path / "out").exists()
    forced = invoke(capsys, *common, "--force", ",".join(names))
    assert forced.code == 0, forced.err
    assert f"warning[{names[0]}]: " in forced.err


def test_check_exits_with_one_where_something_does_not_fit(
    trio: Trio, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(capsys, "check", *trio).code == 0
    edit_json(trio.donor / "config.json", rope_theta=10000.0)
    done = invoke(capsys, "check", *trio)
    assert done.code == 1
    assert "error[" in done.out
    assert "  hint: " in done.out
    assert done.err == ""
    record = json.loads(invoke(capsys, "check", *trio, "--json").out)
    assert record["ok"] is False
    assert {"level", "id", "subject", "expected", "found", "fix", "message"} <= set(record["findings"][0])


class UnexpectedError(Exception):
    pass


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def fall(*_: object, **__: object) -> None:
        raise UnexpectedError("the floor gave way")

    monkeypatch.setattr("taskvec.api.check", fall)


@pytest.mark.usefixtures("broken")
def test_a_defect_is_one_line_and_says_how_to_see_more(capsys: pytest.CaptureFixture[str]) -> None:
    done = invoke(capsys, "check", "a", "b", "c")
    assert done.code == 2
    assert done.err.startswith("error: internal error: UnexpectedError: the floor gave way\n  hint: ")
    assert "--verbose" in done.err
    assert "Traceback" not in done.err


@pytest.mark.usefixtures("broken")
def test_verbose_shows_the_traceback_of_a_defect(capsys: pytest.CaptureFixture[str]) -> None:
    done = invoke(capsys, "check", "a", "b", "c", "--verbose")
    assert done.code == 2
    assert "Traceback (most recent call last)" in done.err
    assert "error: internal error" in done.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CompatibilityError("they do not fit"), 1),
        (OutputError("the disk is full", "make room"), 2),
        (PermissionError(13, "Permission denied", "/some/file"), 2),
        (MemoryError(), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fall(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("taskvec.api.check", fall)
    done = invoke(capsys, "check", "a", "b", "c")
    assert done.code == code
    assert "error: " in done.err
    assert "Traceback" not in done.err


def test_an_interrupted_run_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("taskvec.api.plan_transfer", interrupt)
    done = invoke(capsys, "transfer", "--target", "a", "--donor", "b", "--reference", "c", "-o", "out")
    assert done.code == 130
    assert done.err.strip().endswith(
        "error: interrupted\n  hint: run the same command again to go on where it stopped"
    )


# --- streams


def test_results_go_to_stdout_and_talk_to_stderr(
    trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    done = invoke(capsys, *transfer(trio, out))
    assert done.code == 0, done.err
    assert done.out == f"{out}\n"
    assert "target + 1 * (donor - reference)" in done.err
    assert "written" in done.err
    assert "survival" in done.err


def test_several_alphas_print_one_path_each(
    trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    done = invoke(capsys, *transfer(trio, out, "--alpha", "0.5", "--alpha", "-1"))
    assert done.code == 0, done.err
    assert done.out.splitlines() == [f"{out}/alpha=0.5", f"{out}/alpha=-1"]
    assert "rounded away" in done.err


def test_quiet_says_nothing(trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = invoke(capsys, *transfer(trio, tmp_path / "out", "--quiet"))
    assert done.code == 0
    assert done.err == ""
    assert done.out == f"{tmp_path / 'out'}\n"


def test_json_is_one_object_of_schema_one(
    trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = invoke(capsys, *transfer(trio, tmp_path / "out", "--json"))
    record = json.loads(done.out)
    assert record["schema"] == 1
    assert record["command"] == "transfer"
    assert record["dry_run"] is False
    assert record["out"] == str(tmp_path / "out")
    assert record["outputs"][0]["shards"][0]["digest"]
    assert record["outputs"][0]["survival"]["changed_share"] > 0


def test_a_dry_run_writes_nothing(trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = invoke(capsys, *transfer(trio, tmp_path / "out", "--dry-run"))
    assert done.code == 0
    assert "nothing was written" in done.out
    assert done.err == ""
    assert not (tmp_path / "out").exists()


def test_names_from_files_cannot_move_the_cursor() -> None:
    assert printable("a\x1b[2Jb\nc") == "a\\x1b[2Jb\\nc"
    assert printable("模型.weight") == "模型.weight"


@pytest.mark.parametrize("redirection", ["| head -c 1 >/dev/null", ">&-", "2>&-", ">/dev/full"])
def test_a_stream_that_is_gone_is_no_traceback(redirection: str) -> None:
    command = f"{sys.executable} -m taskvec --help {redirection}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30, check=False)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.returncode == (2 if "full" in redirection else 0)


def test_colour_is_for_terminals_that_want_it(trio: Trio) -> None:
    edit_json(trio.donor / "config.json", rope_theta=10000.0)
    arguments = ["check", *trio]
    environment = {"TERM": "xterm-256color", "COLUMNS": "80"}
    colour = re.compile(r"\x1b\[[\d;]*m")  # a slow run draws a bar too, and moves the cursor for it
    assert colour.search(on_terminal(arguments, environment=environment).out)
    assert not colour.search(on_terminal(arguments, environment={**environment, "NO_COLOR": "1"}).out)
    assert "\x1b[" not in spawn(arguments, environment=environment).out


def test_a_terminal_gets_lines_that_fit(trio: Trio, tmp_path: Path) -> None:
    done = on_terminal(
        transfer(trio, tmp_path / "out", "--alpha", "0.3"), environment={"TERM": "xterm", **PLAIN}
    )
    assert done.code == 0, done.out
    for line in as_seen(done.out).splitlines():  # a slow run draws a bar
        assert len(line) <= 80 or str(tmp_path) in line


# --- Ctrl-C

SLOW = """
import sys, time
import taskvec.api
def slow(*_, **__):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        {after}
taskvec.api.check = slow
sys.argv = ["taskvec", "check", "a", "b", "c"]
from taskvec.cli import main
main()
"""


def start_slow(after: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW.format(after=after)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_ctrl_c_ends_in_order_and_at_once() -> None:
    process = start_slow("pass")  # which sleeps for a minute
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "error: interrupted" in err
    assert "Traceback" not in err


def test_a_second_ctrl_c_ends_at_once() -> None:
    process = start_slow("print('cleaning', flush=True); time.sleep(60)")
    assert process.stdout is not None
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "cleaning\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode in (130, -signal.SIGINT)


# --- start-up

FAILING = """
import builtins, sys
genuine = builtins.__import__
def failing(name, *args, **kwargs):
    if name == "click":
        raise {error}
    return genuine(name, *args, **kwargs)
builtins.__import__ = failing
sys.argv = ["taskvec", "check", "a", "b", "c"]
from taskvec.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [("KeyboardInterrupt", 130, "error: interrupted"), ("MemoryError", 2, "error: out of memory")],
)
def test_what_happens_during_the_first_imports_is_told_in_order(error: str, code: int, words: str) -> None:
    command = [sys.executable, "-c", FAILING.format(error=error)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == code
    assert done.stderr.splitlines()[0] == words
    assert "Traceback" not in done.stderr


def test_no_memory_for_the_message_either() -> None:
    code = (
        "import sys, taskvec.cli\n"
        "def fail(*_, **__): raise MemoryError\n"
        "taskvec.cli.fail = fail\n"
        "sys.argv = ['taskvec', 'check', 'nothing', 'nothing', 'nothing']\n"
        "from taskvec.__main__ import main\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: out of memory\n  hint: ")


@pytest.mark.parametrize("words", ["can't start new thread", "can't allocate lock"])
def test_a_thread_that_python_cannot_start_is_no_defect(
    words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import taskvec.api

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError(words)

    monkeypatch.setattr(taskvec.api, "check", refuse)
    done = invoke(capsys, "check", "a", "b", "c")
    assert done.code == 2
    assert done.err.startswith("error: no further thread can be started\n")
    assert "defect" not in done.err


@pytest.mark.parametrize(
    ("words", "is_defect"),
    [
        ("error return without exception set", False),
        ("<method 'read' of '_io.BytesIO' objects> returned NULL without setting an exception", False),
        ("bad argument to internal function", True),
    ],
)
def test_a_call_of_python_that_fails_without_a_word_may_have_lacked_memory(
    words: str, is_defect: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.11 says the first of these where the system refuses memory for a frame."""
    import taskvec.api

    def refuse(*_: object, **__: object) -> None:
        raise SystemError(words)

    monkeypatch.setattr(taskvec.api, "check", refuse)
    done = invoke(capsys, "check", "a", "b", "c")
    assert (done.code, "defect" in done.err) == (2, is_defect)
    assert words in done.err
    assert ("hint: free memory" in done.err) != is_defect


HEAVY = {"numpy", "rich", "pydantic", "huggingface_hub", "yaml", "torch", "ml_dtypes"}
HEAVY_OF_PYTHON = {"email", "http", "ssl", "asyncio", "sqlite3", "xml", "multiprocessing", "concurrent"}


def imported(arguments: list[str]) -> set[str]:
    """The top-level modules that a command imports."""
    code = (
        "import sys, io, contextlib\n"
        "from taskvec import cli\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        f"    code = cli.run({arguments!r})\n"
        "print(code, *sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    code_text, *names = done.stdout.split()
    assert code_text == "0", done.stderr
    return set(names)


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["transfer", "--help"]])
def test_nothing_heavy_is_imported_to_start(arguments: list[str]) -> None:
    assert not imported(arguments) & HEAVY


def test_a_local_transfer_imports_nothing_heavy(trio: Trio, tmp_path: Path) -> None:
    arguments = [str(word) for word in transfer(trio, tmp_path / "out")]
    assert not imported(arguments) & (HEAVY | HEAVY_OF_PYTHON)


def test_a_local_extract_imports_nothing_heavy(trio: Trio, tmp_path: Path) -> None:
    arguments = ["extract", str(trio.donor), str(trio.reference), "-o", str(tmp_path / "vector")]
    assert not imported(arguments) & (HEAVY | HEAVY_OF_PYTHON)


def test_a_merge_imports_yaml_and_pydantic_alone(trio: Trio, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"merge_method: task_arithmetic\nbase_model: {trio.target}\n"
        f"models: [{{model: {trio.donor}, parameters: {{weight: 0.5}}}}]\n"
    )
    assert imported(["merge", str(recipe), str(tmp_path / "out")]) & HEAVY == {"yaml", "pydantic"}


def test_the_version_loads_few_modules_of_ours() -> None:
    code = (
        "import sys\nfrom taskvec import cli\ncli.run(['--version'])\n"
        "print(*(name for name in sys.modules if name.startswith('taskvec.')), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert len(done.stderr.split()) <= 17, done.stderr


def test_the_version_is_that_of_the_engine(capsys: pytest.CaptureFixture[str]) -> None:
    from taskvec import _core

    done = invoke(capsys, "--version")
    assert done.out == f"taskvec {_core.__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_as_click_gives_it(shell: str) -> None:
    command = [sys.executable, "-c", "from taskvec.cli import main; main()"]
    environment = {**os.environ, "_TASKVEC_COMPLETE": f"{shell}_source"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=30, check=False)
    assert done.returncode == 0
    assert "_TASKVEC_COMPLETE" in done.stdout
    ours = spawn(["completion", shell])
    assert (ours.code, ours.out.strip()) == (0, done.stdout.strip())


def completed(words: str, **environment: str) -> list[str]:
    """What bash is offered at the end of a line: kinds and words."""
    environment |= {
        "_TASKVEC_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    command = [sys.executable, "-c", "from taskvec.cli import main; main()"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=60, check=True
    )
    return done.stdout.splitlines()


def test_completion_knows_commands_and_choices() -> None:
    assert completed("taskvec in") == ["plain,inspect"]
    assert completed("taskvec transfer --preset ") == ["plain,full", "plain,no-embed", "plain,no-embed-norm"]
    assert completed("taskvec methods ti") == ["plain,ties"]


@pytest.mark.parametrize(
    "words", ["taskvec verify ou", "taskvec merge re", "taskvec transfer --target t", "taskvec diff a b"]
)
def test_completion_offers_files(words: str, tmp_path: Path) -> None:
    kind, _, word = completed(words, HF_HOME=str(tmp_path))[0].partition(",")
    assert (kind, word) == ("file", words.rpartition(" ")[2])


def test_completion_offers_models_of_the_cache(tmp_path: Path) -> None:
    for name in ("models--org--one", "models--org--two", "datasets--org--three", "models--gpt2"):
        (tmp_path / "hub" / name).mkdir(parents=True)
    offered = completed("taskvec transfer --donor org/", HF_HOME=str(tmp_path), HF_HUB_CACHE="")
    assert offered == ["file,org/", "plain,org/one", "plain,org/two"]


def test_completion_offers_findings_and_layers(trio: Trio) -> None:
    offered = completed("taskvec transfer --force config-function,vocab")
    assert "plain,config-function,vocabulary-rows" in offered
    count = json.loads((trio.target / "config.json").read_text())["num_hidden_layers"]
    words = f"taskvec transfer --target {trio.target} --layers "
    assert completed(words) == [f"plain,0-{count - 1}"]


# --- figures in words


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (988_097_536, "988 MB"), (2_964_000_000, "2.96 GB"),
     (999_950_000, "1.00 GB")],
)  # fmt: skip
def test_sizes(value: int, text: str) -> None:
    assert size(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0%"), (1, "100%"), (0.148, "14.8%"), (0.9999, "99.99%"), (0.00001, "0.001%"),
     (1e-9, "<0.001%"), (1 - 1e-9, ">99.999%")],
)  # fmt: skip
def test_shares_never_round_to_none_or_all(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.612, "0.61 s"), (12.34, "12.3 s"), (245, "4 min 05 s"), (7440, "2 h 04 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_json_has_no_nan() -> None:
    assert jsonable({"a": [float("nan"), 1.5], "b": Path("x")}) == {"a": [None, 1.5], "b": "x"}
