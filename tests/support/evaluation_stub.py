"""An evaluation without lm-eval: a model that answers by its weights, and the records of its answers.

Journals, records, merges, scratch folder and report are the package's own.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import hashlib
import importlib.metadata
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import taskvec as tv
from support.evaluation_records import record
from taskvec.evaluation.backend import evaluate, gather
from taskvec.evaluation.report import figures, render
from taskvec.evaluation.tasks import find, prepare

DOCUMENTS = 130  # three blocks of a batch of one


class Answers:
    """A model in place of lm-eval's: whether an answer is right depends on the weights and the document."""

    rank, world_size, device, batch_size, max_length, tokenizer_name = 0, 1, "cpu", 1, 64, "stub"
    tokenizer = None

    def __init__(self, model: str) -> None:
        opened = tv.open(model)
        sums = [float(np.asarray(opened[name], np.float64).sum()) for name in sorted(opened)]
        self.key = repr(sums).encode()

    def loglikelihood(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        digests = [hashlib.blake2b(self.key + request.args[0].encode()).digest() for request in requests]
        return [(-digest[1] / 16, digest[0] % 2 == 1) for digest in digests]


def _requests(settings: Any) -> list[Any]:
    return [
        SimpleNamespace(task_name=task, doc_id=number, args=(f"document {number}", " yes"))
        for task in settings.tasks
        for number in range(DOCUMENTS)
    ]


def _simple_evaluate(lm: Any, _tasks: Any, settings: Any) -> dict[str, Any]:
    requests = _requests(settings)
    values: dict[str, list[float]] = {task: [] for task in settings.tasks}
    for request, (_, is_right) in zip(requests, lm.loglikelihood(requests), strict=True):
        values[request.task_name].append(float(is_right))
    return values


def _gather(
    arm: Any, model: str, weights: str, key: str, settings: Any, versions: Any, values: Any, *_: Any
) -> Any:
    made = record(arm, values, settings=settings)
    return dataclasses.replace(made, identity=key, model=model, weights=weights, versions=versions)


class _Prepared:
    """Tasks of which only the hashes of the documents are known, as the records have them."""

    def __init__(self, settings: Any, **_: Any) -> None:
        self.tasks = settings.tasks

    def hashes(self) -> dict[str, list[str]]:
        return {task: [f"document-{number}" for number in range(DOCUMENTS)] for task in self.tasks}


def _draw(_: Any) -> dict[str, figures.Figure]:
    return {"scores": figures.Figure("Scores", "scores", b"png", "<svg></svg>")}


def without_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the model that answers by its weights, and its records, in lm-eval's place."""
    monkeypatch.setattr(evaluate, "load_model", lambda model, _: Answers(str(model)))
    monkeypatch.setattr(evaluate, "_simple_evaluate", _simple_evaluate)
    monkeypatch.setattr(gather, "gather", _gather)
    monkeypatch.setattr(find, "find_tasks", lambda _: None)
    monkeypatch.setattr(prepare, "PreparedTasks", _Prepared)
    monkeypatch.setattr(figures, "draw", _draw)
    # what takes most of the time of a report and has nothing to do with files
    monkeypatch.setattr(gc, "collect", lambda *_: 0)
    monkeypatch.setattr(render, "_environment", functools.cache(render._environment))
    monkeypatch.setattr(importlib.metadata, "version", functools.cache(importlib.metadata.version))


def results(out: Path) -> dict[str, Any]:
    """The arms, their merges and the report of an output folder, without what differs from run to run."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file() and path.name != ".lock"):
        name = str(path.relative_to(out))
        found[name] = path.read_text(errors="replace")
        if path.parent.name == "arms" and path.suffix == ".json":
            content = json.loads(found[name])
            content.pop("seconds")
            found[name] = content
    return found
