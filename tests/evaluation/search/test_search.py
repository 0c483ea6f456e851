"""Whole searches through real lm-eval on tiny models."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

import taskvec as tv
from support.evaluation_models import tiny
from support.search_spaces import recipe_space, transfer_space
from taskvec.errors import EvaluationError, RecipeError
from taskvec.evaluation.analysis.compare import Split
from taskvec.evaluation.backend.evaluate import document_hashes, evaluate
from taskvec.evaluation.record import read_record
from taskvec.evaluation.search.result import SearchResult
from taskvec.evaluation.search.space import load_space
from taskvec.evaluation.sweep.events import Event


def told(out: Path) -> list[dict[str, Any]]:
    """The trace of a search, without what differs from run to run."""
    report = json.loads((out / "report.json").read_text())
    rows = [*report["trace"], *report["random"], *report["plain"], report["baseline"]]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchResult, Path, list[Event]]:
    out = tmp_path_factory.mktemp("search") / "out"
    events: list[Event] = []
    result = tv.search(transfer_space(), out, keep=True, progress=events.append)
    return result, out, events


def test_a_search_ends_in_a_report(found: tuple[SearchResult, Path, list[Event]]) -> None:
    result, out, events = found
    assert [trial.name for trial in result.trace] == [f"candidate-{number:04d}" for number in range(1, 9)]
    assert [trial.generation for trial in result.trace] == [1] * 4 + [2] * 4
    assert len(result.random) == 2
    assert [trial.name for trial in result.plain] == ["alpha=0.5", "alpha=1"]
    assert result.best.score == max(trial.score or 0 for trial in result.trace)
    assert [row.role for row in result.held_out] == ["best", "baseline", "random", "plain"]
    assert [verdict.against for verdict in result.verdicts] == ["baseline", "random", "plain"]
    report = json.loads((out / "report.json").read_text())
    assert report["best"]["name"] == result.best.name
    assert report["failed"] == 0
    assert report["settings"]["optimiser"]["budget"] == 8
    page = (out / "report.html").read_text()
    assert "What did the search find?" in page
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http://www.w3.org", "")
    assert [event.done for event in events if event.kind == "done"] == list(range(1, 14))


def test_candidates_are_judged_on_the_development_part_alone(
    found: tuple[SearchResult, Path, list[Event]],
) -> None:
    result, out, _ = found
    settings = load_space(transfer_space()).settings()
    hashes = set(document_hashes(settings)["tiny_choice"])
    split = Split(0.5, settings.seed)
    inside = {each for each in hashes if split.is_development(each)}
    for folder, expected in (("development", inside), ("held-out", hashes - inside)):
        records = list((out / folder / "arms").glob("*.json"))
        assert len(records) == (13 if folder == "development" else 4)
        for path in records:
            samples = read_record(path).samples["tiny_choice"]
            assert {sample.doc_hash for sample in samples} == expected
    # the answers are those of a run over all documents
    whole = {sample.doc_hash: sample for sample in evaluate(tiny().target, settings).samples["tiny_choice"]}
    parts = [read_record(out / part / "arms" / "baseline.json") for part in ("development", "held-out")]
    for sample in (sample for record in parts for sample in record.samples["tiny_choice"]):
        other = whole[sample.doc_hash]
        # other documents in a batch, other last digits of a likelihood
        assert sample.output.split()[0] == other.output.split()[0]
        assert (sample.question, sample.target, sample.metrics) == (
            other.question,
            other.target,
            other.metrics,
        )
    value = np.mean([whole[each].metrics["acc,none"] for each in inside])
    assert result.baseline.score == pytest.approx(float(value))


def test_the_best_recipe_makes_the_bytes_that_were_evaluated(
    found: tuple[SearchResult, Path, list[Event]], tmp_path: Path
) -> None:
    result, out, _ = found
    tv.merge(result.recipe, tmp_path / "merged")
    evaluated = out / "scratch" / result.best.name / "model.safetensors"
    assert (tmp_path / "merged" / "model.safetensors").read_bytes() == evaluated.read_bytes()
    # a plain alpha is what `transfer` makes, and a factor per group what NumPy makes
    models = tiny()
    tv.transfer(models.target, models.donor, models.reference, tmp_path / "alpha", alpha=0.5)
    plain = load_file(out / "scratch" / "alpha=0.5" / "model.safetensors")
    for name, value in load_file(tmp_path / "alpha" / "model.safetensors").items():
        assert np.array_equal(plain[name], value), name
    first, last = (result.best.values[f"alpha[{at}]"] for at in (0, 1))
    t, d, r = (
        load_file(Path(model) / "model.safetensors")
        for model in (models.target, models.donor, models.reference)
    )
    for name, value in load_file(evaluated).items():
        factor = last if ".layers.1." in name else first
        expected = t[name].astype(np.float64) + factor * (d[name].astype(np.float64) - r[name])
        assert np.allclose(value, expected, rtol=1e-6, atol=1e-7), name


def test_the_verdict_is_that_of_the_paired_documents(found: tuple[SearchResult, Path, list[Event]]) -> None:
    from scipy import stats

    result, out, _ = found
    best, *rivals = result.held_out
    for verdict, rival in zip(result.verdicts, rivals, strict=True):
        columns = [
            {
                s.doc_hash: s.metrics["acc,none"]
                for s in read_record(out / "held-out" / "arms" / f"{row.trial.name}.json").samples[
                    "tiny_choice"
                ]
            }
            for row in (best, rival)
        ]
        gained = sum(columns[0][key] > columns[1][key] for key in columns[0])
        lost = sum(columns[0][key] < columns[1][key] for key in columns[0])
        assert (verdict.gained, verdict.lost, verdict.n) == (gained, lost, len(columns[0]))
        assert verdict.difference == pytest.approx((gained - lost) / len(columns[0]))
        p = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        assert verdict.p == pytest.approx(p)
        assert verdict.p <= verdict.p_holm <= min(1, 3 * p)
        assert verdict.word == "does not beat"  # a dozen questions show nothing
        assert f"n = {verdict.n}" in verdict.text
        assert "95 % interval" in verdict.text


def test_a_finished_search_is_not_run_again_and_goes_on_with_a_larger_budget(
    found: tuple[SearchResult, Path, list[Event]], tmp_path: Path
) -> None:
    import shutil

    out = Path(shutil.copytree(found[1], tmp_path / "out"))
    before = {path: path.stat().st_mtime_ns for path in (out / "development").rglob("*.json")}
    events: list[Event] = []
    tv.search(transfer_space(), out, keep=True, progress=events.append)
    assert {event.kind for event in events} == {"known", "held-out"}
    assert {path: path.stat().st_mtime_ns for path in (out / "development").rglob("*.json")} == before
    more = tv.search(transfer_space(), out, budget=12, keep=True)
    assert [trial.to_json() for trial in more.trace[:8]] == [trial.to_json() for trial in found[0].trace]
    assert len(more.trace) == 12
    assert len(more.random) == 3
    assert more.looks == (1 if more.best.name == found[0].best.name else 2)


def test_another_search_in_the_folder_is_refused(
    found: tuple[SearchResult, Path, list[Event]], tmp_path: Path
) -> None:
    import shutil

    out = Path(shutil.copytree(found[1], tmp_path / "out"))
    with pytest.raises(EvaluationError, match="of another search: optimiser differs") as caught:
        tv.search(transfer_space(), out, seed=2)
    assert "--overwrite" in str(caught.value.hint)
    with pytest.raises(EvaluationError, match="of another search: models, recipe differs"):
        tv.search(recipe_space(), out)
    few = transfer_space(compare={"random": 0, "alphas": [1]})
    again = tv.search(few, out, seed=2, budget=2, overwrite=True)
    assert len(again.trace) == 2


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import yaml
import taskvec as tv

at = int(sys.argv[4])
count = 0

def progress(event):
    global count
    count += event.kind in ("done", "merge", "held-out")
    if count == at:
        os.kill(os.getpid(), signal.SIGKILL)

tv.search(yaml.safe_load(open(sys.argv[2])), sys.argv[3], progress=progress)
"""


@pytest.mark.parametrize("at", [8, 12, 27])
def test_a_search_that_is_killed_goes_on_to_the_same_trace(
    at: int, found: tuple[SearchResult, Path, list[Event]], tmp_path: Path
) -> None:
    space, out = tmp_path / "space.yaml", tmp_path / "out"
    space.write_text(yaml.safe_dump(transfer_space()))
    tests = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tests, space, out, str(at)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    journal = out / "journal.jsonl"
    if at == 12:  # the line that was being written is cut short
        journal.write_bytes(journal.read_bytes()[:-9])
    tv.search(transfer_space(), out)
    assert told(out) == told(found[1])
    assert (out / "best.yaml").read_bytes() == (found[1] / "best.yaml").read_bytes()
    assert not list(Path("/dev/shm").glob(f"taskvec-search-{os.getuid()}-*/candidate*"))


def test_several_workers_come_to_the_same_trace(
    found: tuple[SearchResult, Path, list[Event]], tmp_path: Path
) -> None:
    tv.search(transfer_space(), tmp_path / "out", jobs=2, threads=1)
    assert told(tmp_path / "out") == told(found[1])


def test_methods_as_choices_and_weights_of_tasks(tmp_path: Path) -> None:
    space = recipe_space(
        tasks=["tiny_choice", "tiny_last"], weights={"tiny_choice": 3}, compare={"random": 0, "alphas": [1]},
        evaluation={**recipe_space()["evaluation"], "metrics": {"tiny_last": "acc"}},
    )  # fmt: skip
    result = tv.search(space, tmp_path / "out", budget=2)
    assert {trial.values["merge_method"] for trial in result.trace} <= {"ties", "task_arithmetic"}
    for trial in result.trace:
        assert trial.score is not None
        assert trial.score == pytest.approx((3 * trial.tasks["tiny_choice"] + trial.tasks["tiny_last"]) / 4)
    assert len(result.comparisons) == 4
    assert all(math.isfinite(verdict.p) for verdict in result.verdicts)


def test_equal_weights_are_evaluated_once(tmp_path: Path) -> None:
    space = transfer_space(compare={"random": 0, "alphas": [0.5]})
    space["transfer"]["alpha"] = {"search": [0.5, 1]}
    result = tv.search(space, tmp_path / "out", budget=5)
    evaluated = [trial for trial in (*result.plain, *result.trace) if trial.same_as is None]
    assert len(evaluated) == len({trial.values["alpha"] for trial in (*result.plain, *result.trace)})
    scores = {(trial.values["alpha"], trial.score) for trial in (*result.plain, *result.trace)}
    assert len(scores) == len(evaluated)
    if result.best.values["alpha"] == 0.5:
        assert result.verdicts[-1].word == "equals"


def test_a_candidate_that_is_not_finite_is_the_worst_and_counted(tmp_path: Path) -> None:
    models = tiny()
    broken = tmp_path / "broken"
    import shutil

    shutil.copytree(models.donor, broken)
    values = load_file(broken / "model.safetensors")
    name = next(name for name in values if ".layers.1." in name)
    values[name][:1] = np.inf
    save_file(values, broken / "model.safetensors", {"format": "pt"})
    space = transfer_space(compare={"random": 0, "alphas": [1]})
    space["transfer"]["donor"] = {"search": [str(models.donor), str(broken)]}
    space["transfer"]["alpha"] = {"search": {"low": 0.5, "high": 1}}
    result = tv.search(space, tmp_path / "out")
    failed = [trial for trial in result.trace if trial.values["donor"] == str(broken)]
    assert failed
    assert all(trial.score is None and "finite" in str(trial.failed) for trial in failed)
    assert (
        result.failed == len(failed) == json.loads((tmp_path / "out" / "report.json").read_text())["failed"]
    )
    assert result.best.values["donor"] == str(models.donor)
    space["transfer"]["donor"] = str(broken)
    with pytest.raises(EvaluationError, match="all 8 candidates failed"):
        tv.search(
            transfer_space(transfer=space["transfer"], compare={"random": 0, "alphas": []}), tmp_path / "none"
        )


def test_a_choice_whose_models_do_not_fit_is_the_worst_and_one_that_is_not_there_an_error(
    tmp_path: Path,
) -> None:
    import shutil

    models, odd = tiny(), tmp_path / "odd"
    shutil.copytree(models.donor, odd)
    values = load_file(odd / "model.safetensors")
    name = next(name for name in values if "q_proj.weight" in name)
    save_file({**values, name: values[name][:3].copy()}, odd / "model.safetensors", {"format": "pt"})
    space = transfer_space(compare={"random": 0, "alphas": [1]})
    space["transfer"]["donor"] = {"search": [str(models.donor), str(odd)]}
    space["transfer"]["alpha"] = {"search": {"low": 0.5, "high": 1}}
    result = tv.search(space, tmp_path / "out")
    failed = [trial for trial in result.trace if trial.values["donor"] == str(odd)]
    assert failed
    assert all(trial.score is None and name in str(trial.failed) for trial in failed)
    assert result.failed == len(failed)
    assert result.best.values["donor"] == str(models.donor)
    space["transfer"]["donor"] = {"search": [str(models.donor), str(tmp_path / "absent")]}
    with pytest.raises(tv.NotFoundError, match="absent"):
        tv.search(space, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_scratch_folder_that_is_too_small_is_not_left_behind(tmp_path: Path) -> None:
    for place in ("new", "old"):
        if place == "old":
            (tmp_path / place).mkdir()
        with pytest.raises(tv.OutputError, match="the scratch budget is 10"):
            tv.search(transfer_space(), tmp_path / "out", scratch=tmp_path / place, scratch_budget=10)
        assert (tmp_path / place).exists() == (place == "old")


def test_models_that_do_not_fit_are_found_before_anything_is_evaluated(tmp_path: Path) -> None:
    space = transfer_space()
    space["transfer"]["donor"] = str(tmp_path / "absent")
    with pytest.raises(tv.Error, match="absent"):
        tv.search(space, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(EvaluationError, match="in the held-out part"):
        tv.search(transfer_space(development=0.999999), tmp_path / "out")
    with pytest.raises(RecipeError, match="a search"):
        tv.search(transfer_space(), "s3://bucket/out")
    with pytest.raises(EvaluationError, match="`ray` excludes"):
        tv.search(transfer_space(), tmp_path / "out", ray="local", jobs=2)
    assert not (tmp_path / "out" / "journal.jsonl").exists()
