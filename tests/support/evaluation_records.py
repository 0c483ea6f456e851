"""Arm records with known outcomes, made without a model."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskvec.evaluation.analysis import statistics
from taskvec.evaluation.arms import Arm
from taskvec.evaluation.record import ArmRecord, Sample, Score, TaskFacts

METRIC = "exact_match,strict"


def samples(
    values: Sequence[float], *, seed: int = 0, metric: str = METRIC, limit: int = 200
) -> list[Sample]:
    """One sample per value, with a plausible output."""
    rng = random.Random(seed)
    found = []
    for index, value in enumerate(values):
        a, b = index % 37 + 3, index % 11 + 2
        tokens = rng.randint(40, limit)
        answer = a + b if value == 1 else a + b + rng.randint(1, 9)
        found.append(
            Sample(
                doc_id=index,
                doc_hash=f"document-{index}",
                subtask=None,
                question=f"Question: Tom has {a} apples and gets {b} more. How many has he?\nAnswer:",
                target=f"{a}+{b}={a + b}. #### {a + b}",
                output=f" {a}+{b}={answer}. #### {answer}",
                extracted={"strict": str(answer)},
                metrics={metric: float(value)},
                tokens=float(tokens),
                cut=tokens == limit,
            )
        )
    return found


def record(
    arm: Arm,
    values: Mapping[str, Sequence[float]],
    *,
    metric: str = METRIC,
    settings: Mapping[str, Any] | None = None,
    higher_is_better: bool = True,
    seed: int = 0,
) -> ArmRecord:
    """The record of an arm that scored `values`, by task."""
    rows = {task: samples(scores, seed=seed, metric=metric) for task, scores in values.items()}
    facts = {
        task: TaskFacts(
            metric=metric,
            higher_is_better=higher_is_better,
            output_type="generate_until",
            version="1.0",
            num_fewshot=0,
            max_gen_toks=200,
            stop=["</s>"],
            dropped_stops=["\n\n"],
            documents=len(scores),
            left_out=0,
            subtasks=[],
        )
        for task, scores in values.items()
    }
    scores = {
        task: {metric: Score(sum(row) / len(row), *statistics.interval(list(row)), len(row))}
        for task, row in values.items()
    }
    tokens = {
        task: {
            "mean": sum(s.tokens or 0 for s in row) / len(row),
            "cut": sum(bool(s.cut) for s in row) / len(row),
        }
        for task, row in rows.items()
    }
    return ArmRecord(
        name=arm.name,
        kind=arm.kind,
        alpha=arm.alpha,
        think=arm.think,
        perturb=arm.perturb,
        seed=arm.seed,
        origin=arm.origin,
        part=arm.part,
        identity=f"identity of {arm.name}",
        model="models/target" if arm.kind == "baseline" else f"scratch/{arm.weights}",
        weights=f"weights of {arm.weights}",
        settings=dict(settings or {"tasks": list(values), "backend": "hf", "chat_template": False}),
        versions={"lm_eval": "0.4.13", "torch": "2.15.0", "transformers": "5.23.0"},
        environment={"device": "cpu", "threads": 1},
        tasks=facts,
        scores=scores,
        output_tokens=tokens,
        samples=rows,
        warnings=[],
        batch_size=16,
        seconds=1.0,
    )


def outcomes(
    count: int, share: float, *, like: Sequence[float] = (), moved: int = 0, seed: int = 0
) -> list[float]:
    """Right and wrong answers: a share right, or those of another arm with `moved` wrong ones right."""
    if not like:
        rng = random.Random(seed)
        return [1.0 if rng.random() < share else 0.0 for _ in range(count)]
    rng, changed = random.Random(seed), list(like)
    wanted = 0.0 if moved > 0 else 1.0
    for index in rng.sample([i for i, value in enumerate(like) if value == wanted], abs(moved)):
        changed[index] = 1.0 - wanted
    # a few go either way, as between any two models
    for value in (0.0, 1.0):
        for index in rng.sample([i for i, old in enumerate(changed) if old == value], len(like) // 50):
            changed[index] = 1.0 - value
    return changed


def experiment(
    *,
    gain: int = 90,
    donor_gain: int = 110,
    count: int = 1000,
    tasks: Sequence[str] = ("gsm8k",),
    sft: bool = True,
    rival: int | None = 8,
) -> list[ArmRecord]:
    """The arms of a whole experiment in which the vector turns `gain` of 1000 answers right at 0.5."""
    think = "Think step by step."
    base = {task: outcomes(count, 0.6, seed=11 + i) for i, task in enumerate(tasks)}

    def arm(arm: Arm, moved: int, seed: int) -> ArmRecord:
        values = {
            task: outcomes(count, 0, like=row, moved=moved * count // 1000, seed=seed)
            for task, row in base.items()
        }
        return record(arm, values, seed=seed)

    records = [
        record(Arm("baseline", "baseline"), base),
        arm(Arm("alpha=-1", "vector", -1.0), -240, 1),
        record(Arm("alpha=0", "vector", 0.0), base),
        arm(Arm("alpha=0.5", "vector", 0.5), gain, 2),
        arm(Arm("alpha=1", "vector", 1.0), gain // 2, 3),
        arm(Arm("baseline+think", "baseline", think=think), 10, 4),
        arm(Arm("alpha=0.5+think", "vector", 0.5, think), gain + 10, 5),
        arm(Arm("alpha=1+think", "vector", 1.0, think), gain // 2 + 10, 6),
        arm(Arm("donor", "donor"), donor_gain, 7),
        record(Arm("reference", "reference"), base),
        *(arm(Arm(f"random-{n}", "random", 0.5, seed=n), 2, 10 + n) for n in (1, 2, 3)),
        arm(Arm("permuted-1", "permuted", 0.5, seed=1), -2, 20),
        arm(Arm("baseline~typo", "baseline", perturb="typo"), -150, 21),
        arm(Arm("alpha=0.5~typo", "vector", 0.5, perturb="typo"), -90, 22),
    ]
    if sft:
        records.append(arm(Arm("sft", "sft", 1.0), 8, 23))
    if rival is not None:
        records.append(arm(Arm("rival-more", "rival", 1.0, origin="more"), rival, 24))
        records.append(arm(Arm("rival-more@norm", "rival", 0.4, origin="more"), rival, 25))
    return records


def arms_of(out: Path) -> dict[str, Any]:
    """Every record of a folder, less what differs from run to run."""
    found = {}
    for path in sorted((out / "arms").glob("*.json")):
        record = json.loads(path.read_text())
        found[path.stem] = {k: v for k, v in record.items() if k not in ("seconds", "model")}
    return found
