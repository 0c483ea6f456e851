"""The paper's experiment as presets: what is stated has a source, what is not is said to be so."""

from __future__ import annotations

import click
import pytest

from support.evaluation_records import outcomes, record
from taskvec.cli.eval_options import tasks_given
from taskvec.cli.sweep import command as sweep_command
from taskvec.errors import RecipeError
from taskvec.evaluation.arms import Arm
from taskvec.evaluation.experiment import experiment
from taskvec.evaluation.paper import BENCHMARKS, PRESETS, benchmark_of, size_of
from taskvec.evaluation.report.report import build_report
from taskvec.evaluation.report.write import write_report
from taskvec.evaluation.settings import PAPER_TASKS, THINK

MODELS = {"target": "T", "donor": "D", "reference": "R"}


def parsed(*words: str) -> dict[str, object]:
    context = sweep_command.make_context("sweep", ["--out", "o", *words])
    return context.params


# --- the data


def test_the_abstract_s_figures_are_those_of_the_smaller_model():
    """Figures as the abstract of arXiv 2509.01363 has them."""
    gains = {key: gain.points for key, gain in PRESETS["1.5b"].gains.items()}
    assert {task: gains[task, "vector+think"] for task in BENCHMARKS} == {
        "gsm8k": 4.9, "humaneval": 4.3, "sciq": 1.7, "bbh": 12.3,
    }  # fmt: skip
    assert gains["gsm8k", "minus"] == -11.8
    assert PRESETS["7b"].gains["gsm8k", "vector+think"].points == 5.0


@pytest.mark.parametrize("size", PRESETS)
def test_all_that_is_stated_has_a_source_and_all_else_a_value_with_an_owner(size):
    preset = PRESETS[size]
    for setting in preset.settings:
        assert (setting.stated is None) == (setting.source is None), setting
        if setting.stated is None:
            assert setting.ours.startswith(("ours: ", "lm-eval's own")), setting
    assert all(gain.source for gain in preset.gains.values())
    assert {name for name, _ in preset.gains} <= set(BENCHMARKS)


def test_every_task_of_the_paper_is_one_of_its_benchmarks():
    assert [benchmark_of(task) for task in PAPER_TASKS] == list(BENCHMARKS)
    assert benchmark_of("gsm8k_cot_zeroshot") == "gsm8k"
    assert benchmark_of("leaderboard_bbh") == "bbh"
    assert benchmark_of("sums") is None
    assert size_of("org/Qwen2.5-7B-Instruct") == "7b"
    assert size_of("7b-things/small") == "1.5b"


# --- as the settings of an experiment


def test_a_preset_goes_before_the_defaults_and_what_is_named_before_it():
    whole = experiment({**MODELS, "paper": "1.5b"})
    assert (whole.tasks, whole.alphas, whole.think) == (PAPER_TASKS, (-1.0, 1.0), THINK)
    assert whole.settings().chat_template is True
    assert whole.development == 0  # the alpha is the paper's: every document is reported on
    own = experiment({**MODELS, "paper": "7b", "alphas": [0.5], "evaluation": {"limit": 3}})
    assert own.alphas == (0.5,)
    assert (own.settings().limit, own.settings().chat_template) == (3, True)
    again = experiment(whole.model_dump(mode="json", exclude_defaults=True))
    assert again == whole


def test_a_size_that_the_paper_lacks_is_refused():
    with pytest.raises(RecipeError, match="`paper`"):
        experiment({**MODELS, "paper": "3b"})


@pytest.mark.parametrize(
    ("words", "size", "file"),
    [
        (["--paper"], "tasks", None),
        (["--paper", "my.yaml"], "tasks", "my.yaml"),
        (["--paper", "--think"], "tasks", None),
        (["--paper", "7b", "my.yaml"], "7b", "my.yaml"),
        (["my.yaml", "--paper=1.5b"], "1.5b", "my.yaml"),
        (["my.yaml"], None, "my.yaml"),
        (["--", "--paper"], None, "--paper"),
    ],
)
def test_the_option_takes_none_but_its_own_words(words, size, file):
    found = parsed(*words)
    assert (found["paper"], found["file"]) == (size, file)


@pytest.mark.parametrize("paper", ["--paper", "--paper=1.5b"])
def test_tasks_that_are_named_go_before_the_papers(paper):
    assert tasks_given(parsed(paper)) == PAPER_TASKS
    assert tasks_given(parsed(paper, "--tasks", "gsm8k,mine")) == ("gsm8k", "mine")


def test_a_size_that_the_option_lacks_is_refused():
    with pytest.raises(click.BadParameter, match=r"1\.5b"):
        parsed("--paper=3b")


def test_the_help_names_every_setting_that_is_not_stated():
    text = " ".join(sweep_command.get_help(click.Context(sweep_command)).split())
    for setting in PRESETS["1.5b"].settings:
        if setting.stated is None:
            assert setting.name in text.partition("Not stated in the sources read")[2][:400], setting.name


# --- in the report


def arms(tasks):
    for name, kind, alpha, think, share in (
        ("baseline", "baseline", None, None, 0.5),
        ("baseline+think", "baseline", None, THINK, 0.5),
        ("alpha=1", "vector", 1.0, None, 0.6),
        ("alpha=1+think", "vector", 1.0, THINK, 0.7),
    ):
        yield record(
            Arm(name, kind, alpha, think),
            {task: outcomes(200, share) for task in tasks},
        )


def test_the_report_has_the_paper_s_table_with_what_is_not_stated_and_not_measured(tmp_path):
    report = build_report(list(arms(["gsm8k", "sciq"])), size="7b")
    page = report.paper()
    assert page is not None
    assert (page.size, page.asked) == ("7b", True)
    rows = {(row.benchmark, row.what): row for row in page.rows}
    assert len(rows) == 12
    gain = rows["GSM8K", "+ v, think"]
    assert gain.paper is not None
    assert gain.paper.points == 5.0
    assert gain.here is not None
    assert (gain.here.arm, gain.here.against) == ("alpha=1+think", "baseline")
    assert rows["GSM8K", "− v"].here is None
    assert rows["GSM8K", "− v"].paper is None
    assert rows["SciQ", "+ v"].here is not None
    assert rows["SciQ", "+ v"].paper is None
    assert rows["HumanEval", "+ v"].task is None
    write_report(report, tmp_path)
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert all(words in text for words in ("not measured", "not stated", "+5.0"))
        assert "not the paper's full text" in " ".join(text.split())


def test_a_report_of_other_tasks_has_no_page_of_the_paper_unless_it_is_asked_for():
    assert build_report(list(arms(["sums"]))).paper() is None
    asked = build_report(list(arms(["sums"])), size="1.5b").paper()
    assert asked is not None
    assert all(row.here is None for row in asked.rows)


def test_the_page_says_what_the_run_had():
    page = build_report(list(arms(["gsm8k"])), size="1.5b").paper()
    assert page is not None
    here = {setting.name: text for setting, text in page.settings}
    assert here["alpha"] == "1"
    assert here["tasks"] == "gsm8k"
    assert here["request to reason"] == f"“{THINK}”"
    assert here["worked examples"].startswith("gsm8k: ")
