"""The vLLM backend, with lm-eval's own class on an engine that transformers stands in for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support import fake_vllm
from support.evaluation_models import small, tiny
from taskvec.evaluation.arms import Arm
from taskvec.evaluation.backend import engine as engines
from taskvec.evaluation.backend import foreseen
from taskvec.evaluation.backend.evaluate import evaluate
from taskvec.evaluation.record import ArmRecord
from taskvec.evaluation.settings import Settings
from taskvec.evaluation.sweep import ram
from taskvec.evaluation.sweep.sweep import run_sweep

TASKS = ("tiny_gen", "tiny_choice")


@pytest.fixture(autouse=True)
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    fake_vllm.install(tmp_path / "packages", monkeypatch)
    monkeypatch.setattr(engines, "_engines", [])
    monkeypatch.setattr(engines, "_refused", [])
    return fake_vllm


def settings(**more: Any) -> Settings:
    given = {"tasks": TASKS, "include_path": tiny().tasks, "device": "cpu", "backend": "vllm", "limit": 8}
    return Settings(**{**given, **more})


def asked(**more: Any) -> ArmRecord:
    return evaluate(tiny().target, settings(), arm=Arm("t", "baseline"), **more)


def rows(record: ArmRecord) -> list[Any]:
    return [
        (task, s.doc_id, s.output, s.extracted, s.metrics, s.tokens, s.cut)
        for task, samples in record.samples.items()
        for s in samples
    ]


def test_answers_are_those_of_transformers():
    here = asked()
    there = evaluate(tiny().target, settings(backend="hf"), arm=Arm("t", "baseline"))
    assert rows(here) == rows(there)


def test_the_engine_gets_all_that_is_generated_at_once(vllm, monkeypatch):
    calls: list[int] = []
    generate = vllm.LLM.generate

    def counted(self, prompts, **rest):
        calls.append(len(prompts))
        return generate(self, prompts, **rest)

    monkeypatch.setattr(vllm.LLM, "generate", counted)
    asked()
    assert sorted(calls) == [8, 32]  # eight answers; eight questions of four choices


def test_every_answer_survives_an_end_in_the_middle(vllm, tmp_path, monkeypatch):
    whole = asked()
    book = tmp_path / "j"
    engines.let_go()
    monkeypatch.setattr(vllm.LLM, "dies_after", 5)
    with pytest.raises(KeyboardInterrupt):
        asked(journal=book)
    kept = len(book.read_bytes().splitlines()) - 1
    assert kept == 6  # two steps of three were ended before the third began
    monkeypatch.setattr(vllm.LLM, "dies_after", None)
    engines.let_go()
    told: list[tuple[str, int, int]] = []
    resumed = asked(journal=book, progress=lambda *step: told.append(step))
    assert len(vllm.made[-1].asked) == 8 - kept + 32
    assert rows(resumed) == rows(whole)
    assert {("tiny_gen", 6, 8), ("tiny_gen", 8, 8)} <= set(told)


def test_drawn_answers_have_seeds_of_their_own_and_come_again(vllm, tmp_path, monkeypatch):
    drawing = settings(tasks=("tiny_gen",), samples=3, limit=4)

    def drawn(**more: Any) -> list[list[str]]:
        engines.let_go()
        record = evaluate(tiny().target, drawing, arm=Arm("t", "baseline"), **more)
        return [[draw.output for draw in sample.draws] for sample in record.samples["tiny_gen"]]

    whole = drawn()
    assert any(len(set(texts)) > 1 for texts in whole)  # the draws of one question are not one answer
    monkeypatch.setattr(vllm.LLM, "dies_after", 9)
    with pytest.raises(KeyboardInterrupt):
        drawn(journal=tmp_path / "j")
    monkeypatch.setattr(vllm.LLM, "dies_after", None)
    assert drawn(journal=tmp_path / "j") == whole


def test_draws_go_to_the_engine_with_what_is_scored(vllm, monkeypatch):
    calls: list[int] = []
    generate = vllm.LLM.generate

    def counted(self, prompts, **rest):
        calls.append(len(prompts))
        return generate(self, prompts, **rest)

    monkeypatch.setattr(vllm.LLM, "generate", counted)
    drawing = settings(samples=3, limit=4)
    together = evaluate(tiny().target, drawing, arm=Arm("t", "baseline"))
    assert sorted(calls) == [16, 16]  # four questions of four choices; four scored answers and twelve drawn
    calls.clear()
    engines.let_go()
    monkeypatch.setattr(foreseen.Foreseen, "follow", lambda *_: None)
    apart = evaluate(tiny().target, drawing, arm=Arm("t", "baseline"))
    assert sorted(calls) == [4, 4, 4, 4, 16]
    assert rows(together) == rows(apart)
    drawn = [
        [
            [(draw.output, draw.tokens, draw.cut) for draw in sample.draws]
            for sample in record.samples["tiny_gen"]
        ]
        for record in (together, apart)
    ]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("dies_after", [1, 10, 17, 29])
def test_every_likelihood_survives_an_end_in_the_middle(vllm, tmp_path, monkeypatch, dies_after):
    choice = settings(tasks=("tiny_choice",))

    def scored(**more: Any) -> ArmRecord:
        return evaluate(tiny().target, choice, arm=Arm("t", "baseline"), **more)

    whole = scored()
    engines.let_go()
    monkeypatch.setattr(vllm.LLM, "dies_after", dies_after)
    with pytest.raises(KeyboardInterrupt):
        scored(journal=tmp_path / "j")
    lines = (tmp_path / "j").read_bytes().splitlines()
    ended = len(vllm.made[-1].asked)
    assert len(lines) - 1 == ended
    kept = [json.loads(line.partition(b" ")[2])[1] for line in lines[1:]]
    assert max(map(len, kept)) < min(map(len, vllm.made[-1].asked)) / 2  # of the answers' own tokens alone
    monkeypatch.setattr(vllm.LLM, "dies_after", None)
    engines.let_go()
    resumed = scored(journal=tmp_path / "j")
    assert len(vllm.made[-1].asked) == 32 - ended
    assert rows(resumed) == rows(whole)


def sweep_of(limit: int, **more: Any) -> Any:
    evaluation = {"device": "cpu", "include_path": str(tiny().tasks), "limit": limit}
    evaluation |= more.pop("evaluation", {})
    return small(**{"perturb": [], "base": None, **more, "evaluation": evaluation})


def test_one_engine_is_kept_over_all_arms_and_its_weights_are_those_of_each(vllm, tmp_path):
    content = {"tasks": list(TASKS), "alphas": [0, 1], "controls": {"random": 1, "permuted": 0}}
    run_sweep(sweep_of(4, **content, evaluation={"backend": "vllm"}), tmp_path / "out")
    # one for donor and reference, whose tokenizer files are others, and one for the target and its arms
    assert [len(set(engine.reloads)) for engine in vllm.made] == [1, 3]
    run_sweep(sweep_of(4, **content, arms="merged"), tmp_path / "hf")
    paths = sorted((tmp_path / "hf" / "arms").glob("*.json"))
    assert len(paths) == 6
    for path in paths:
        ours, theirs = (
            [
                [(s["output"], s["metrics"], s["tokens"]) for s in json.loads(text)["samples"][task]]
                for task in TASKS
            ]
            for text in ((tmp_path / "out" / "arms" / path.name).read_text(), path.read_text())
        )
        assert ours == theirs, path.name


def test_without_a_weight_update_each_arm_has_an_engine_of_its_own(vllm, monkeypatch):
    def lacks(*_, **__):
        raise TypeError("reload_weights() got an unexpected keyword argument 'weights_path'")

    monkeypatch.setattr(vllm.LLM, "collective_rpc", lacks)
    for model in (tiny().reference, tiny().donor, tiny().reference):
        evaluate(model, settings(limit=2), arm=Arm("t", "baseline"))
    assert len(vllm.made) == 3
    assert "weights_path" in str(engines.refusal())


def test_an_argument_that_may_change_weights_gets_an_engine_for_each_model(vllm):
    for arguments, engines_made in (((("enforce_eager", "true"),), 1), ((("quantization", "fp8"),), 2)):
        engines.let_go()
        vllm.made.clear()
        for model in (tiny().reference, tiny().donor):
            evaluate(model, settings(limit=1, model_args=arguments), arm=Arm("t", "baseline"))
        assert len(vllm.made) == engines_made


def test_merged_arms_of_an_engine_lie_in_memory_and_go(vllm, tmp_path, monkeypatch):
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setattr(ram, "RAM", memory)
    monkeypatch.setattr(ram, "file_system", lambda _path: "tmpfs")
    content = {"tasks": ["tiny_gen"], "alphas": [1], "controls": {"random": 0, "permuted": 0}}
    run_sweep(sweep_of(2, **content, evaluation={"backend": "vllm"}), tmp_path / "out")
    assert any(str(memory) in path for engine in vllm.made for path in engine.reloads)
    assert not list(memory.iterdir())
    assert not (tmp_path / "out" / "scratch").exists()
