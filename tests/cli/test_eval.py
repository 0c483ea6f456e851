"""``taskvec eval`` and ``taskvec sweep``: options, output, and every mistake on one line."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import yaml

from support.command_line import PLAIN, Outcome, invoke, on_terminal
from support.evaluation_models import tiny
from taskvec.cli.eval_options import settings_given
from taskvec.evaluation import settings
from taskvec.evaluation.experiment import Evaluation
from taskvec.extras import install


def local(*tasks: str) -> list[object]:
    """The options that every run here has."""
    names = ",".join(tasks or ("tiny_gen",))
    return ["--tasks", names, "--include-path", tiny().tasks, "--device", "cpu", "--batch-size", "16"]


def trio() -> list[object]:
    models = tiny()
    return ["--target", models.target, "--donor", models.donor, "--reference", models.reference]


def assert_plain_error(found: Outcome, message: str, hint: str | None = None) -> None:
    assert found.code == 2
    assert found.out == ""
    lines = found.err.strip().splitlines()
    assert any(line.startswith("error: ") and message in line for line in lines), found.err
    assert "Traceback" not in found.err
    if hint is not None:
        assert any(line.startswith("  hint: ") and hint in line for line in lines), found.err


# --- eval


def test_eval_prints_a_table_and_writes_a_report(capsys, tmp_path):
    out = tmp_path / "out"
    found = invoke(
        capsys, "eval", tiny().target, *local("tiny_gen", "tiny_choice"), "--perturb", "typo,numbers",
        "--limit", 8, "--think", "-o", out,
    )  # fmt: skip
    assert found.code == 0, found.err
    header, *rows = found.out.splitlines()
    assert header.split() == [
        "arm", "task", "score", "difference", "p", "(Holm)", "verdict", "tokens", "cut",
    ]  # fmt: skip
    assert [row.split()[0] for row in rows[:5]] == [
        "target+think", "target+think~typo", "target+think~numbers", "target+think", "target+think~typo",
    ]  # fmt: skip
    assert str(out / "report.html") in found.out
    assert "`tiny_choice` has no answer text" in found.err
    assert "done in" in found.err
    record = json.loads((out / "arms" / "target+think.json").read_text())
    assert record["think"] == settings.THINK
    report = json.loads((out / "report.json").read_text())
    assert report["settings"]["think"] == settings.THINK
    assert report["commands"][0].split()[0] == "taskvec"


def test_eval_as_json_prints_json_alone(capsys, tmp_path):
    found = invoke(
        capsys, "eval", tiny().target, *local(), "--limit", 3, "-o", tmp_path / "out", "--json", "-q"
    )
    assert found.code == 0
    content = json.loads(found.out)
    assert content["command"] == "eval"
    assert content["schema"] == 1
    assert content["report"]["arms"][0]["name"] == "target"
    assert found.err == ""


def test_a_second_eval_compares(capsys, tmp_path):
    out = tmp_path / "out"
    invoke(capsys, "eval", tiny().target, *local("tiny_choice"), "-o", out)
    found = invoke(
        capsys,
        "eval",
        tiny().donor,
        *local("tiny_choice"),
        "-o",
        out,
        "--as",
        "vector",
        "--alpha",
        1,
        "--name",
        "mine",
    )
    assert found.code == 0
    assert "Nothing is claimed of the vector on tiny_choice" in found.out
    said = (*local("tiny_choice"), "-o", out, "--name", "other")
    again = invoke(capsys, "eval", tiny().donor, *said, "--as", "baseline")
    assert_plain_error(again, "both are baselines", "--as vector")
    kept = {path.stem for path in (out / "arms").glob("*.json")}
    assert kept == {"target", "mine"}  # before anything was asked
    # of itself it is the model of a vector, and compared with the first
    third = invoke(capsys, "eval", tiny().donor, *said)
    assert third.code == 0
    arms = {arm["name"]: arm["kind"] for arm in json.loads((out / "report.json").read_text())["arms"]}
    assert arms == {"target": "baseline", "mine": "vector", "other": "vector"}


def test_eval_names_its_folder_after_the_model(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert invoke(capsys, "eval", tiny().target, *local(), "--limit", 2).code == 0
    assert (tmp_path / "eval-target" / "report.html").is_file()


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        (["--tasks", "tiny_gne"], "knows no task `tiny_gne`", "`tiny_gen`"),
        ([], "no task was named", "--paper"),
        (["--tasks", ""], "`--tasks`: the text is empty", "not set"),
        (["--tasks", "tiny_gen", "--perturb", ","], "`--perturb`: `,` names nothing", "leave the option out"),
        (["--tasks", "tiny_gen", "--think", ""], "`--think`: the text is empty", "not set"),
        (["--tasks", "tiny_gen", "--include-path", ""], "`--include-path`: the text is empty", "not set"),
        (["--tasks", "tiny_gen,tiny_gen"], "named twice", None),
        (["--tasks", "tiny_gen", "--limit", "0"], "limit 0", None),
        (["--tasks", "tiny_gen", "--limit", "x"], "`--limit`", None),
        (["--tasks", "tiny_gen", "--perturb", "typos"], "`typos` is not a perturbation", None),
        (["--tasks", "tiny_gen", "--batch-size", "big"], "neither a number nor `auto`", None),
        (["--tasks", "tiny_gen", "--model-arg", "dtype"], "is not KEY=VALUE", None),
        (["--tasks", "tiny_gen", "--backend", "onnx"], "`--backend`", None),
        (["--tasks", "tiny_gen", "--max-gen-toks", "5000"], "the model holds 512", "--max-gen-toks"),
        (["--tasks", "tiny_gen", "--model-arg", "dtype=float3"], "cannot load", None),
    ],
)
def test_mistakes_of_eval_are_one_line(capsys, tmp_path, options, message, hint):
    found = invoke(
        capsys,
        "eval",
        tiny().target,
        "--include-path",
        tiny().tasks,
        "--device",
        "cpu",
        *options,
        "-o",
        tmp_path / "o",
    )
    assert_plain_error(found, message, hint)


@pytest.mark.parametrize("below", [".", "results", "deep/results"])
def test_an_output_among_the_tasks_is_refused_before_anything_is_run(capsys, tmp_path, below):
    tasks = tmp_path / "tasks"
    shutil.copytree(tiny().tasks, tasks)
    before = {path: path.read_bytes() for path in tasks.rglob("*") if path.is_file()}
    common = ["--include-path", tasks, "--tasks", "tiny_gen", "--device", "cpu", "--limit", "2"]
    models = ["--target", tiny().target, "--donor", tiny().donor, "--reference", tiny().reference]
    space = tmp_path / "space.yaml"
    space.write_text(
        yaml.safe_dump(
            {
                "transfer": {
                    "target": str(tiny().target),
                    "donor": str(tiny().donor),
                    "reference": str(tiny().reference),
                    "alpha": {"search": {"low": 0, "high": 2}},
                },
                "tasks": ["tiny_gen"],
                "optimiser": {"budget": 2},
                "evaluation": {"include_path": str(tasks), "device": "cpu", "limit": 2},
            }
        )
    )
    for verb in (
        ["eval", tiny().target, *common],
        ["sweep", *models, *common],
        ["importance", tiny().target, *common],
        ["search", space],
    ):
        found = invoke(capsys, *verb, "-o", tasks / below)
        assert_plain_error(found, "lies in the folder of tasks", "a folder of their own")
    found = invoke(capsys, "sweep", *models, *common, "-o", tmp_path / "out", "--scratch", tasks / below)
    assert_plain_error(found, "lies in the folder of tasks", "a folder of their own")
    assert {path: path.read_bytes() for path in tasks.rglob("*") if path.is_file()} == before


def test_models_and_folders_that_are_not_there(capsys, tmp_path):
    found = invoke(capsys, "eval", tmp_path / "nothing", *local(), "-o", tmp_path / "o")
    assert_plain_error(found, "nothing")
    options = ["--tasks", "a", "--include-path", tmp_path / "none", "-o", tmp_path / "o"]
    assert_plain_error(invoke(capsys, "eval", tiny().target, *options), "is not a folder of YAML tasks")


def test_code_is_run_with_consent_alone(capsys, tmp_path):
    found = invoke(capsys, "eval", tiny().target, "--tasks", "humaneval", "-o", tmp_path / "o")
    assert_plain_error(found, "runs Python code that the model writes", "--confirm-run-unsafe-code")


def test_without_the_extra_one_line_says_what_to_install(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    for verb in (
        ["eval", "model", "--tasks", "a"],
        ["sweep", "--target", "t", "--vector", "v", "-o", tmp_path],
    ):
        found = invoke(capsys, *verb)
        assert_plain_error(found, "evaluation needs the extra `eval`", install("eval"))


def test_a_terminal_sees_how_far_an_arm_has_come(tmp_path):
    found = on_terminal(
        ["eval", tiny().target, *local(), "--limit", 4, "-o", tmp_path / "out"],
        environment=PLAIN,
        timeout=180,
    )
    assert found.code == 0, found.out
    assert "target: tiny_gen 0 of 4 requests" in found.out
    assert "it/s" not in found.out  # no bar of another library


def test_ctrl_c_ends_in_order(tmp_path):
    out = tmp_path / "out"
    arguments = ["eval", tiny().target, *local(), "--max-gen-toks", 300, "--batch-size", 1, "-o", out]
    process = subprocess.Popen(
        [sys.executable, "-m", "taskvec", *map(str, arguments)],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "TERM": "dumb"},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None and not (out / ".lock").exists():
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not (out / "arms" / "target.json").exists()


# --- sweep


def test_an_interrupt_while_a_class_is_made_gives_the_exit_code(tmp_path):
    # A dataclass is made by executing a text; CPython takes an interrupt that leaves one as unhandled.
    (tmp_path / "interrupted.py").write_text(
        "from taskvec import cli\n"
        "cli.cli.main = lambda *_, **__: exec('raise KeyboardInterrupt')\n"
        "cli.main()\n"
    )
    process = subprocess.run(
        [sys.executable, "-m", "interrupted", "sweep"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert process.returncode == 130
    assert process.stderr.splitlines()[0] == "error: interrupted"


def test_ctrl_c_ends_a_sweep_and_its_workers(tmp_path):
    out = tmp_path / "out"
    arguments = [*trio(), *local(), "--max-gen-toks", 300, "--batch-size", 1, "--jobs", 2, "-o", out]
    process = subprocess.Popen(
        [sys.executable, "-m", "taskvec", "sweep", *map(str, arguments)],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None and not (out / "experiment.yaml").exists():
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers, too, which are getting ready
    _, err = process.communicate(timeout=60)  # stderr ends when the workers, who have it too, have ended
    assert process.returncode == 130, err
    assert err.splitlines()[-2:] == [
        "error: interrupted",
        "  hint: run the same command again to go on where it stopped",
    ]
    assert "Traceback" not in err


@pytest.mark.parametrize("arms", ["place", "merged"])
def test_a_sweep_from_the_command_line(capsys, tmp_path, arms):
    out = tmp_path / "out"
    arguments = [
        "sweep", *trio(), *local("tiny_choice"), "--alpha", "0,1", "--random", 1, "--permuted", 1,
        "--limit", 12, "-o", out, *(["--arms", arms] if arms == "merged" else []),
    ]  # fmt: skip
    found = invoke(capsys, *arguments)
    assert found.code == 0, found.err
    names = ["baseline", "alpha=0", "alpha=1", "donor", "reference", "random-1", "permuted-1"]
    assert [line.split()[0] for line in found.out.splitlines()[1:8]] == names
    assert "Nothing is claimed of the vector on tiny_choice" in found.out
    assert ("merging alpha=0, alpha=1" in found.err) is (arms == "merged")
    content = json.loads((out / "report.json").read_text())
    assert content["survival"]["alpha=1"]["changed"] > 0
    assert content["checks"][0]["different"] == 0
    again = invoke(capsys, "sweep", out / "experiment.yaml", "-o", out, "--json")
    assert again.code == 0
    assert json.loads(again.out)["report"]["comparisons"] == content["comparisons"]
    assert again.err.count("evaluated before under the same settings") == len(names)
    plan = invoke(capsys, "sweep", out / "experiment.yaml", "-o", out, "--dry-run", "--limit", 24)
    rows = {line.split()[0]: line for line in plan.out.splitlines() if line.strip()}
    assert rows["donor"].endswith("this arm, n = 12")
    assert "still to do" in plan.out


def test_the_command_line_goes_before_the_file(capsys, tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "target: t\nvector: v\ntasks: [gsm8k]\nalphas: [1]\nevaluation: {limit: 5, chat_template: true}\n"
        "controls: {random: 7}\nthink: true\n"
    )
    found = invoke(
        capsys, "sweep", path, "--alpha", "-1,0.25", "--limit", 9, "--permuted", 0, "--exclude", "lm_head",
        "--dry-run", "--json", "-o", tmp_path / "out",
    )  # fmt: skip
    assert found.code == 0, found.err
    content = json.loads(found.out)
    whole = content["experiment"]
    assert whole["alphas"] == [-1.0, 0.25]
    assert whole["tasks"] == ["gsm8k"]
    assert whole["evaluation"]["limit"] == 9
    assert whole["evaluation"]["chat_template"] is True
    assert whole["controls"] == {"random": 7, "permuted": 0}
    assert whole["merge"]["exclude"] == ["lm_head"]
    assert whole["think"] == settings.THINK
    assert content["arms"][:3] == ["baseline", "alpha=-1", "alpha=0.25"]
    (power,) = content["power"]["rows"]
    assert (power["task"], power["documents"]) == ("gsm8k", 9)
    assert content["power"]["tests"] == 8  # against the baseline and 7 random vectors
    assert {cost["source"] for cost in content["costs"]} == {"not measured"}
    assert power["claim"] is None  # of nine documents none would be enough
    assert not (tmp_path / "out").exists()


def test_a_preset_of_the_paper_is_a_layer_below_what_is_named(capsys, tmp_path):
    models = ("--target", "T", "--donor", "D", "--reference", "R")
    found = invoke(
        capsys, "sweep", *models, "--paper", "7b", "--alpha", "0.5", "--samples", 4, "--pass-at", "1,4",
        "--dry-run", "--json", "--confirm-run-unsafe-code", "--limit", 30, "-o", tmp_path / "out",
    )  # fmt: skip
    plan = json.loads(found.out)["experiment"]
    assert (plan["paper"], plan["alphas"], plan["think"]) == ("7b", [0.5], "Think step by step.")
    assert (plan["evaluation"]["pass_at"], plan["evaluation"]["chat_template"]) == ([1, 4], True)
    assert "bbh_cot_fewshot" in plan["tasks"]


def test_a_dry_run_shows_a_shipped_sweep(capsys, tmp_path):
    found = invoke(capsys, "sweep", "qwen2.5-math-1.5b", "--dry-run", "-o", tmp_path / "out")
    assert found.code == 0
    assert "michaelbzhu/Qwen2.5-Math-1.5B-GSM8K-GRPO" in found.out
    assert "alpha=1+think" in found.out
    waiting = "3 random vectors, 1 permuted vector and sft at the norm of +v"
    assert f"{waiting}, at the alpha chosen for all tasks" in found.out
    assert "not measured" in found.out
    assert "after correction for" in found.out
    (row,) = (line.split() for line in found.out.splitlines() if line.startswith("gsm8k_cot_zeroshot"))
    assert row[1:4] == ["396", "+", "923"]


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        (
            ["--target", "t"],
            "name `--donor` and `--reference`, or a saved `--vector`",
            "taskvec sweep --help",
        ),
        (["--vector", "v"], "`--target`: is needed, and not named", "taskvec sweep --help"),
        ([""], "`FILE`: the text is empty", "not set"),
        (["--target", "t", "--vector", "v", "--tasks", ""], "`--tasks`: the text is empty", "not set"),
        (["--target", "t", "--vector", "v", "--devices", ""], "`--devices`: the text is empty", "not set"),
        (["--target", "t", "--vector", "v", "--ray", ""], "`--ray`: the text is empty", "not set"),
        (["qwen2.5-math"], "neither a sweep file nor one that ships", "`qwen2.5-math-1.5b`"),
        (["missing.yaml"], "sweep file `missing.yaml` is not found", "qwen2.5-math-1.5b"),
        (
            ["--target", "t", "--vector", "v", "--alpha", "1,1"],
            "`--alpha`: alpha `1` is given twice",
            "--help",
        ),
        (["--target", "t", "--vector", "v", "--alpha", "x"], "`x` is not a number", None),
        (["--target", "t", "--vector", "v", "--development", "1"], "`--development`", None),
        (["--target", "t", "--vector", "v", "--think-only"], "`--think-only` needs `--think`", "--help"),
        (["--target", "t", "--vector", "v", "--rival", "r"], "`--rival`: `--reference` is needed", "--help"),
        (
            ["--target", "t", "--vector", "v", "--sft-alpha", "2"],
            "`--sft-alpha`: `--reference` and `--base` are needed",
            "--help",
        ),
        (
            ["--target", "t", "--donor", "d", "--reference", "r", "--rival", "x", "--rival", "x"],
            "`--rival`: `x` is named twice",
            "--help",
        ),
        (
            ["--target", "t", "--vector", "v", "--without-sft"],
            "`--without-sft` needs `--reference` and `--base`",
            "--help",
        ),
        (["--target", "t", "--vector", "v", "--top", "0"], "`--top`: the largest elements", "--help"),
        (["--target", "t", "--vector", "v", "--scratch-budget", "much"], "not a size", None),
        (["--target", "t", "--vector", "v", "--tasks", "gsm8kk", "--device", "cpu"], "`gsm8kk`", "`gsm8k`"),
    ],
)
def test_mistakes_of_sweep_are_one_line(capsys, tmp_path, monkeypatch, options, message, hint):
    monkeypatch.chdir(tmp_path)
    assert_plain_error(invoke(capsys, "sweep", *options, "-o", tmp_path / "out"), message, hint)


def test_models_that_do_not_fit_are_refused_by_name(capsys, tmp_path):
    other = shutil.copytree(tiny().donor, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    models = tiny()
    found = invoke(
        capsys, "sweep", "--target", models.target, "--donor", other, "--reference", models.reference,
        *local("tiny_choice"), "--limit", 2, "-o", tmp_path / "out",
    )  # fmt: skip
    assert found.code == 1  # a failed check, as in every other verb
    assert "rms_norm_eps" in found.err
    assert "Traceback" not in found.err


# --- help


@pytest.mark.parametrize("verb", ["eval", "sweep"])
def test_help_has_examples_and_imports_nothing_heavy(verb):
    code = (
        "import sys; from taskvec import cli; cli.run([sys.argv[1], '--help']);"
        "heavy = {'torch', 'lm_eval', 'transformers', 'matplotlib', 'numpy', 'pydantic'} & set(sys.modules);"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    found = subprocess.run([sys.executable, "-c", code, verb], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "Examples:" in found.stdout
    assert "--tasks" in found.stdout
    assert "--confirm-run-unsafe-code" in found.stdout


def test_every_setting_is_an_option_and_a_key_of_a_sweep_file():
    from taskvec.cli import eval as eval_module
    from taskvec.cli import sweep as sweep_module

    assert [item.name for item in dataclasses.fields(settings.Settings)] == list(settings.OPTIONS)
    flags = set(map(settings.flag_of, settings.OPTIONS))
    assert flags <= options_of(eval_module.command)
    assert flags <= options_of(sweep_module.command)
    keys = set(map(settings.key_of, settings.OPTIONS))
    assert keys == {"tasks", *Evaluation.model_fields}
    assert {name for name, declared in settings.OPTIONS.items() if declared.compared} == {
        "tasks", "backend", "batch_size", "limit", "chat_template", "max_gen_toks", "seed", "model_args",
    }  # fmt: skip
    nothing = settings_given(eval_module.command.make_context("eval", ["model"]).params)
    assert not any(nothing.values())  # what a command line does not name, a sweep file may


def options_of(verb: Any) -> set[str]:
    return {name for parameter in verb.params for name in parameter.opts}


def test_options_are_those_of_the_design():
    from taskvec.cli import eval as eval_module
    from taskvec.cli import sweep as sweep_module

    shared = {
        "--tasks", "--include-path", "--backend", "--device", "--batch-size", "--limit", "--think",
        "--chat-template", "--max-gen-toks", "--seed", "--paper", "--perturb",
    }  # fmt: skip
    assert shared <= options_of(eval_module.command)
    more = {"--target", "--vector", "--alpha", "--base", "--jobs", "--devices", "--keep"}
    assert shared | more <= options_of(sweep_module.command)
