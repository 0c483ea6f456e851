"""One arm through real lm-eval, offline, on a tiny model."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from support.evaluation_models import tiny, word_problems, write_jsonl, write_model, write_task, write_tasks
from taskvec.errors import EvaluationError, RecipeError
from taskvec.evaluation.arms import Arm
from taskvec.evaluation.backend.evaluate import evaluate, evaluate_into, finished, require_extra
from taskvec.evaluation.backend.identity import weights_digest
from taskvec.evaluation.record import ArmRecord, read_record, record_path
from taskvec.evaluation.settings import PAPER_TASKS, Settings, paper_settings
from taskvec.evaluation.tasks.defaults import primary_metric, task_defaults
from taskvec.evaluation.tasks.find import find_tasks
from taskvec.evaluation.tasks.prepare import PreparedTasks, with_think
from taskvec.extras import install

BASE = Arm("baseline", "baseline")


def settings(*tasks: str, **more) -> Settings:
    options = {"device": "cpu", "batch_size": 8, "include_path": tiny().tasks, **more}
    return Settings(tasks=tasks or ("tiny_gen",), **options)


def samples_of(record: ArmRecord) -> dict[str, list[tuple[str, dict[str, float]]]]:
    return {task: [(s.output, s.metrics) for s in rows] for task, rows in record.samples.items()}


@pytest.fixture(scope="module")
def whole() -> ArmRecord:
    return evaluate(tiny().target, settings("tiny_gen", "tiny_choice", "tiny_last"))


def test_a_record_holds_what_was_run(whole):
    assert set(whole.samples) == {"tiny_gen", "tiny_choice", "tiny_last"}
    assert all(len(rows) == tiny().documents for rows in whole.samples.values())
    assert whole.versions["lm_eval"]
    assert whole.settings["device"] == "cpu"
    assert whole.settings["chat_template"] is False
    assert whole.environment["device"] == "cpu"
    assert whole.weights.startswith("files:")
    assert whole.tasks["tiny_gen"].metric == "exact_match,strict"
    assert whole.tasks["tiny_gen"].max_gen_toks == 12
    assert whole.tasks["tiny_gen"].stop == ["\n\n"]
    assert whole.tasks["tiny_choice"].output_type == "multiple_choice"


def test_scores_are_means_of_samples_with_intervals(whole):
    for task, metric in (
        ("tiny_choice", "acc,none"),
        ("tiny_gen", "exact_match,any"),
        ("tiny_last", "acc,none"),
    ):
        score = whole.scores[task][metric]
        values = [sample.metrics[metric] for sample in whole.samples[task]]
        assert score.value == pytest.approx(sum(values) / len(values))
        assert score.n == tiny().documents
        assert score.low is not None
        assert score.high is not None
        assert score.low <= score.value <= score.high
    # a perplexity is no mean over samples: lm-eval's figure and error, nothing per sample
    assert whole.scores["tiny_last"]["perplexity,none"].value > 1
    assert "perplexity,none" not in whole.samples["tiny_last"][0].metrics


def test_samples_show_question_answer_and_output(whole):
    sample = whole.samples["tiny_gen"][0]
    row = word_problems(1)[0]
    assert sample.question == f"Question: {row['question']}\nAnswer:"
    assert sample.target == row["answer"]
    assert set(sample.extracted) == {"strict", "any"}
    assert sample.tokens is not None
    assert 0 < sample.tokens <= 12
    choice = whole.samples["tiny_choice"][1]
    assert choice.target == "seventeen"
    assert "log-likelihood" in choice.output
    assert choice.tokens is None


def test_output_lengths_are_reported(whole):
    rows = whole.samples["tiny_gen"]
    lengths = whole.output_tokens["tiny_gen"]
    assert lengths["mean"] == pytest.approx(sum(s.tokens for s in rows) / len(rows))
    assert lengths["cut"] == pytest.approx(sum(s.cut for s in rows) / len(rows))
    assert set(whole.output_tokens) == {"tiny_gen"}


def test_the_same_run_gives_the_same_samples(whole):
    again = evaluate(tiny().target, settings("tiny_gen", "tiny_choice", "tiny_last"))
    assert samples_of(again) == samples_of(whole)
    assert again.identity == whole.identity


def test_limits():
    five = evaluate(tiny().target, settings("tiny_choice", limit=5))
    assert [s.doc_id for s in five.samples["tiny_choice"]] == list(range(5))
    quarter = evaluate(tiny().target, settings("tiny_choice", limit=0.25))
    assert len(quarter.samples["tiny_choice"]) == 6


def test_lengths_can_be_asked_for():
    record = evaluate(tiny().target, settings(limit=3, max_gen_toks=5))
    assert record.tasks["tiny_gen"].max_gen_toks == 5
    assert max(s.tokens for s in record.samples["tiny_gen"]) <= 5
    assert record.identity != evaluate(tiny().target, settings(limit=3)).identity


def test_model_arguments_reach_the_backend():
    record = evaluate(
        tiny().target, settings(limit=2, model_args=(("max_length", "200"), ("dtype", "bfloat16")))
    )
    assert record.settings["model_args"] == {"dtype": "bfloat16", "max_length": "200"}


# --- prompts


@pytest.mark.parametrize(
    ("question", "chat", "code", "expected"),
    [
        ("Question: How many?\nAnswer:", False, False, "Question: How many? T.\nAnswer:"),
        ("Q: How many?\nA:", False, False, "Q: How many? T.\nA:"),
        ("How many?", False, False, "How many?\nT."),
        ("Question: How many?\nAnswer:", True, False, "Question: How many?\nAnswer:\nT."),
        ("def f():\n", False, True, "# T.\ndef f():\n"),
        ("Complete:\ndef f():\n", True, True, "Complete:\ndef f():\nT."),
        ("A list: a, b\nwhich is it", False, False, "A list: a, b\nwhich is it\nT."),
    ],
)
def test_where_the_request_to_reason_goes(question, chat, code, expected):
    assert with_think(question, "T.", chat=chat, code=code) == expected


def prompts(lm_settings: Settings, **more) -> list[str]:
    tasks = PreparedTasks(lm_settings, think=more.get("think"), perturb=more.get("perturb"))
    task = tasks.tasks["tiny_gen"]
    task.set_fewshot_seed(1234)  # as simple_evaluate does
    task.build_all_requests(
        **({} if "chat" not in more else {"apply_chat_template": True, "chat_template": more["chat"]})
    )
    return [instance.args[0] for instance in task.instances]


def test_prompts_differ_in_the_request_alone():
    plain, think = prompts(settings(limit=3)), prompts(settings(limit=3), think="Think.")
    assert [text.replace(" Think.", "") for text in think] == plain
    assert all(text.endswith("? Think.\nAnswer:") for text in think)


def test_the_chat_template_closes_with_the_request():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny().target)

    def chat(messages, add_generation_prompt=True):
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    (text,) = prompts(settings(limit=1, chat_template=True), think="Think.", chat=chat)
    assert text.endswith("Answer:\nThink.<|end|><|assistant|>")


def test_chat_runs_are_other_runs():
    plain, chat = (evaluate(tiny().target, settings(limit=4, chat_template=chat)) for chat in (False, True))
    assert plain.identity != chat.identity
    assert samples_of(plain) != samples_of(chat)


def test_worked_examples_stay_untouched(tmp_path):
    folder = write_tasks(tmp_path / "tasks")
    path = folder / "tiny_gen.yaml"
    config = json.loads(path.read_text())
    config |= {"num_fewshot": 2, "fewshot_split": "test"}
    write_task(path, config)
    with_examples = settings(limit=6, include_path=folder)
    plain, think = prompts(with_examples), prompts(with_examples, think="Think.")
    assert all(text.count("Answer:") == 3 for text in plain)
    assert all(text.count("Think.") == 1 for text in think)
    assert [text.replace(" Think.", "") for text in think] == plain


# --- perturbations


@pytest.mark.parametrize("kind", ["typo", "distractor", "order", "numbers"])
def test_perturbed_samples_are_paired_with_clean_ones(whole, kind):
    record = evaluate(tiny().target, settings("tiny_gen"), arm=Arm(f"b~{kind}", "baseline", perturb=kind))
    clean = {s.doc_hash: s for s in whole.samples["tiny_gen"]}
    rows = record.samples["tiny_gen"]
    assert len(rows) + record.tasks["tiny_gen"].left_out == tiny().documents
    assert len(rows) >= tiny().documents // 2
    for sample in rows:
        twin = clean[sample.doc_hash]
        assert twin.doc_id == sample.doc_id
        assert twin.question != sample.question
        assert (twin.target == sample.target) is (kind != "numbers")


def test_a_task_that_cannot_be_perturbed_is_left_out_of_the_arm():
    arm = Arm("b~numbers", "baseline", perturb="numbers")
    record = evaluate(tiny().target, settings("tiny_gen", "tiny_choice", limit=6), arm=arm)
    assert list(record.tasks) == ["tiny_gen"]
    assert "`tiny_choice` has no answer text" in record.warnings[0]
    with pytest.raises(EvaluationError, match="`tiny_choice` has no answer text"):
        evaluate(tiny().target, settings("tiny_choice", limit=6), arm=arm)


def test_documents_left_out_do_not_move_the_examples_of_others(tmp_path):
    folder = tmp_path / "tasks"
    write_tasks(folder)
    rows = word_problems(12)
    rows[2]["answer"] = rows[7]["answer"] = "I do not know. #### 1"
    write_jsonl(folder / "problems.jsonl", rows)
    config = json.loads((folder / "tiny_gen.yaml").read_text())
    config |= {"num_fewshot": 2, "fewshot_split": "test"}
    write_task(folder / "tiny_gen.yaml", config)
    local = settings(include_path=folder)
    tasks = PreparedTasks(local, think=None, perturb="numbers")
    kept = tasks.setups["tiny_gen"].doc_ids
    assert {2, 7}.isdisjoint(kept)
    clean, changed = prompts(local), prompts(local, perturb="numbers")
    examples = [text.rsplit("Question:", 1)[0] for text in clean]
    assert [text.rsplit("Question:", 1)[0] for text in changed] == [examples[i] for i in kept]
    # none sees its own clean self among its examples
    assert all(rows[i]["question"] not in text for i, text in zip(kept, changed, strict=True))


# --- resuming


def test_a_finished_arm_is_not_run_again(tmp_path):
    out, weights = tmp_path / "out", weights_digest(tiny().target)
    first = evaluate_into(out, tiny().target, settings(limit=4), BASE, weights)
    path = record_path(out, "baseline")
    stamp = path.stat().st_mtime_ns
    assert evaluate_into(out, "not/there", settings(limit=4), BASE, weights) == first
    assert path.stat().st_mtime_ns == stamp
    assert finished(out, settings(limit=5), BASE, weights) is None
    assert finished(out, settings(limit=4), BASE, "other weights") is None
    assert finished(out, settings(limit=4), replace(BASE, think="T"), weights) is None
    path.write_bytes(path.read_bytes()[:100])
    assert finished(out, settings(limit=4), BASE, weights) is None
    assert evaluate_into(out, tiny().target, settings(limit=4), BASE, weights).samples == first.samples


KILLED = """
import sys, time
sys.path[:0] = {path!r}
from pathlib import Path
from support.evaluation_models import tiny
from taskvec.evaluation.backend import blocks, evaluate as backend
from taskvec.evaluation.arms import Arm
from taskvec.evaluation.settings import Settings
import torch
torch.set_num_threads(1)

whole, asked = blocks.BlockedLM._ask, []
def ask(self, attribute, requests):
    asked.append(attribute)
    if len(asked) > 4:
        time.sleep(600)  # until it is killed
    return whole(self, attribute, requests)
blocks.BlockedLM._ask = ask
settings = Settings(tasks=("tiny_gen",), device="cpu", batch_size=2, include_path=Path({tasks!r}))
backend.evaluate_into(Path({out!r}), {model!r}, settings, Arm("baseline", "baseline"), "weights")
"""


def test_a_killed_run_goes_on_where_it_was_and_ends_the_same(tmp_path, monkeypatch):
    out = tmp_path / "out"
    script = KILLED.format(
        path=sys.path,
        tasks=str(tiny().tasks),
        out=str(out),
        model=str(tiny().target),
    )
    journal = out / "arms" / ".baseline.partial.jsonl"
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and journal.read_bytes().count(b"\n") >= 3:  # the identity and two batches
            break
        time.sleep(0.02)
    assert process.poll() is None, process.stderr.read().decode()
    process.kill()
    process.wait()
    process.stderr.close()
    done = journal.read_bytes().count(b"\n") - 1
    assert 2 <= done < 12
    assert not record_path(out, "baseline").exists()

    local = settings(batch_size=2)
    asked = []
    from taskvec.evaluation.backend import blocks

    ask = blocks.BlockedLM._ask
    monkeypatch.setattr(blocks.BlockedLM, "_ask", lambda self, *a: asked.append(len(a[1])) or ask(self, *a))
    resumed = evaluate_into(out, tiny().target, local, BASE, "weights")
    assert asked == [2] * (12 - done)
    assert not journal.exists()
    undisturbed = evaluate(tiny().target, local, arm=BASE, weights="weights")
    assert resumed.samples == undisturbed.samples
    assert resumed.scores == undisturbed.scores
    assert resumed.identity == undisturbed.identity
    assert read_record(record_path(out, "baseline")) == resumed


# --- what cannot be run


def test_an_unknown_task_is_named_with_its_neighbours():
    with pytest.raises(EvaluationError, match="knows no task `tiny_gne`") as error:
        evaluate(tiny().target, settings("tiny_gne"))
    assert "`tiny_gen`" in (error.value.hint or "")


def test_lm_evals_own_tasks_are_known():
    find_tasks(Settings(tasks=("gsm8k", "sciq", "bbh_cot_fewshot", "gsm_plus")))
    with pytest.raises(EvaluationError, match="`gsm8kk`") as error:
        find_tasks(Settings(tasks=("gsm8kk",)))
    assert "`gsm8k`" in (error.value.hint or "")


@pytest.mark.parametrize("task", ["humaneval", "humaneval_instruct", "mbpp"])
def test_tasks_that_run_code_ask_for_consent(task):
    with pytest.raises(EvaluationError, match="runs Python code that the model writes") as error:
        find_tasks(Settings(tasks=(task,)))
    assert "--confirm-run-unsafe-code" in (error.value.hint or "")
    find_tasks(Settings(tasks=(task,), allow_unsafe_code=True))


def test_data_that_cannot_be_had_is_said():
    with pytest.raises(EvaluationError, match="`sciq`"):
        PreparedTasks(Settings(tasks=("sciq",)), think=None, perturb=None)


def test_a_model_without_tokenizer_is_named(tmp_path):
    folder = shutil.copytree(tiny().target, tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(EvaluationError, match="has no tokenizer") as error:
        evaluate(folder, settings(limit=1))
    assert "--model-arg tokenizer=" in (error.value.hint or "")
    record = evaluate(folder, settings(limit=1, model_args=(("tokenizer", str(tiny().target)),)))
    assert record.scores["tiny_gen"]


def test_a_pipeline_is_no_language_model(tmp_path):
    folder = shutil.copytree(tiny().target, tmp_path / "pipeline")
    (folder / "model_index.json").write_text("{}")
    with pytest.raises(EvaluationError, match="is a pipeline of several models"):
        evaluate(folder, settings(limit=1))


def test_models_that_are_none_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match="has no tokenizer"):
        evaluate(tmp_path / "empty", settings(limit=1))
    shutil.copy(tiny().target / "tokenizer.json", tmp_path / "empty")
    with pytest.raises(EvaluationError, match=r"config\.json is not found"):
        evaluate(tmp_path / "empty", settings(limit=1))
    broken = shutil.copytree(tiny().target, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(EvaluationError, match="cannot load"):
        evaluate(broken, settings(limit=1))


def test_a_missing_chat_template_is_named(tmp_path):
    model = write_model(tmp_path / "model", chat=False)
    with pytest.raises(EvaluationError, match="has no chat template"):
        evaluate(model, settings(limit=1, chat_template=True))


def test_lengths_beyond_the_model_are_refused():
    with pytest.raises(EvaluationError, match="512") as error:
        evaluate(tiny().target, settings(limit=1, max_gen_toks=512))
    assert "--max-gen-toks" in (error.value.hint or "")


def test_an_empty_data_set_is_no_result(tmp_path):
    folder = write_tasks(tmp_path / "tasks")
    (folder / "problems.jsonl").write_text("")
    with pytest.raises(EvaluationError, match="tiny_gen"):
        evaluate(tiny().target, settings(include_path=folder))


def test_a_gpu_that_is_not_there_is_said(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EvaluationError, match="no GPU"):
        evaluate(tiny().target, settings(limit=1, device="0"))


def test_a_backend_that_is_not_there_is_said(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "vllm" else find(name))
    with pytest.raises(EvaluationError, match="`vllm` is not installed"):
        evaluate(tiny().target, settings(limit=1, backend="vllm"))


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(EvaluationError, match="`lm_eval` is not installed") as error:
        evaluate("model", settings())
    assert error.value.hint == install("eval")


def test_an_old_lm_eval_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda _name: "0.4.9")
    with pytest.raises(EvaluationError, match=r"0\.4\.13"):
        require_extra()


def test_another_rank_is_told_so(monkeypatch):
    from lm_eval import evaluator

    monkeypatch.setattr(evaluator, "simple_evaluate", lambda **_: None)
    with pytest.raises(EvaluationError, match="distributed launch"):
        evaluate(tiny().target, settings(limit=1))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"limit": 0}, "limit 0"),
        ({"limit": -3}, "limit -3"),
        ({"limit": 2.5}, "neither a count nor a share"),
        ({"limit": float("nan")}, "neither a count nor a share"),
        ({"batch_size": 0}, "batch size 0"),
        ({"batch_size": "many"}, "`many`"),
        ({"max_gen_toks": 0}, "max_gen_toks 0"),
        ({"backend": "onnx"}, "`onnx`"),
    ],
)
def test_settings_that_cannot_be_honoured(options, said):
    with pytest.raises(RecipeError, match=said):
        Settings(tasks=("a",), **options)


def test_tasks_are_named_once_and_at_least_one():
    with pytest.raises(RecipeError, match="no task"):
        Settings(tasks=())
    with pytest.raises(RecipeError, match="named twice"):
        Settings(tasks=("a", "b", "a"))


# --- defaults


def test_known_tasks_leave_room_to_reason():
    for task in ("gsm8k", "gsm8k_cot_zeroshot", "humaneval", "bbh_cot_fewshot_navigate", "gsm_plus"):
        assert task_defaults(task).max_gen_toks >= 2048
    assert "Q" in task_defaults("bbh_cot_fewshot_navigate").cutting_stops
    assert task_defaults("something_else").max_gen_toks is None


def test_metrics_to_compare():
    strict, flexible = "exact_match,strict-match", "exact_match,flexible-extract"
    assert primary_metric("gsm8k", [strict, flexible]) == flexible
    assert primary_metric("gsm8k", [strict, flexible], strict) == strict
    assert primary_metric("other", ["acc_norm,none", "acc,none"]) == "acc,none"
    assert primary_metric("other", ["bleu,none"]) == "bleu,none"
    assert primary_metric("other", []) is None


@pytest.mark.parametrize(
    ("metrics", "said", "way_out"),
    [
        ((("tiny_gen", "acc"),), "no metric `acc`", "it has exact_match,strict, exact_match,any"),
        ((("tiny_gen", "exact_match,lax"),), "no metric `exact_match,lax`", "it has exact_match,strict"),
        ((("tiny_gem", "exact_match"),), "task `tiny_gem`, which is not evaluated", "mean `tiny_gen`"),
    ],
)
def test_a_metric_that_a_task_lacks_is_named_before_anything_is_asked(metrics, said, way_out):
    with pytest.raises(EvaluationError, match=said) as error:
        PreparedTasks(settings(metrics=metrics), think=None, perturb=None)
    assert way_out in (error.value.hint or "")


def test_another_metric_is_honoured_of_an_arm_that_is_done(tmp_path):
    def run(*metrics: tuple[str, str], **more) -> ArmRecord:
        return evaluate_into(
            tmp_path, tiny().target, settings(limit=4, metrics=metrics, **more), BASE,
            weights_digest(tiny().target),
        )  # fmt: skip

    first = run()
    assert first.tasks["tiny_gen"].metric == "exact_match,strict"
    second = run(("tiny_gen", "exact_match,any"))
    assert second.tasks["tiny_gen"].metric == "exact_match,any"
    assert second == replace(first, tasks=second.tasks)  # nothing was asked again
    assert run() == first
    with pytest.raises(EvaluationError, match="no metric `acc`"):
        run(("tiny_gen", "acc"))
    # the values of drawn answers are those of one metric
    drawn = run(samples=2)
    other = run(("tiny_gen", "exact_match,any"), samples=2)
    assert drawn.tasks["tiny_gen"].metric == "exact_match,strict"
    assert other.tasks["tiny_gen"].metric == "exact_match,any"
    fresh = evaluate(tiny().target, settings(limit=4, metrics=(("tiny_gen", "exact_match,any"),), samples=2))
    assert [s.draws for s in other.samples["tiny_gen"]] == [s.draws for s in fresh.samples["tiny_gen"]]


def test_the_papers_tasks():
    chosen = paper_settings(settings())
    assert chosen.tasks == PAPER_TASKS == ("gsm8k", "humaneval", "sciq", "bbh_cot_fewshot")
    assert chosen.batch_size == 8


def test_digests_of_models_hold_what_computes(tmp_path):
    folder = Path(shutil.copytree(tiny().target, tmp_path / "model"))
    first = weights_digest(folder)
    (folder / "README.md").write_text("words")
    (folder / "taskvec.json").write_text("{}")
    assert weights_digest(folder) == first
    (folder / "generation_config.json").write_text("{}")
    assert weights_digest(folder) != first
