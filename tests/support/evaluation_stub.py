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
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import taskvec as tv
from support.evaluation_records import record
from taskvec.evaluation.backend import evaluate, gather, held
from taskvec.evaluation.importance import answers
from taskvec.evaluation.report import figures, render
from taskvec.evaluation.search import evaluator
from taskvec.evaluation.search import report as search_report
from taskvec.evaluation.search.journal import NAME as JOURNAL
from taskvec.evaluation.settings import Settings
from taskvec.evaluation.sweep import place
from taskvec.evaluation.tasks import find, prepare
from taskvec.files.names import MANIFEST

BLOCK = 2  # documents; of few everything is fast: a fault is tried at thousands of places
DOCUMENTS = 5  # three blocks
EXAMPLES = 3  # of an importance map


class Answers:
    """A model in place of lm-eval's: whether an answer is right depends on the weights and the document."""

    rank, world_size, device, batch_size, max_length, tokenizer_name = 0, 1, "cpu", 1, 64, "stub"
    batch_size_per_gpu = 1
    tokenizer = None
    model = SimpleNamespace(state_dict=lambda **_: {})  # no place that the next folder's weights fit into

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


def _examples(*_: Any) -> Iterator[answers.Example]:
    for number in range(EXAMPLES):
        yield answers.Example("stub", number, f"document {number}", " yes")


def without_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the model that answers by its weights, and its records, in lm-eval's place.

    An importance map is of a model as lm-eval loads it, and of a few documents.
    """
    for module in (evaluate, held):
        monkeypatch.setattr(module, "load_model", lambda model, _: Answers(str(model)))
    monkeypatch.setattr(Settings, "block", BLOCK)
    monkeypatch.setattr(answers, "examples", _examples)
    monkeypatch.setattr(search_report, "draw", _draw)
    monkeypatch.setattr(evaluator, "time", SimpleNamespace(monotonic=lambda: 0.0))  # the page has seconds
    monkeypatch.setattr(evaluate, "_simple_evaluate", _simple_evaluate)
    monkeypatch.setattr(gather, "gather", _gather)
    monkeypatch.setattr(find, "find_tasks", lambda _: None)
    monkeypatch.setattr(prepare, "PreparedTasks", _Prepared)
    monkeypatch.setattr(figures, "draw", _draw)
    monkeypatch.setattr(place, "_refusal", lambda *_: "its answers depend on a folder's weights")
    # what takes most of the time of a report and has nothing to do with files
    monkeypatch.setattr(gc, "collect", lambda *_: 0)
    monkeypatch.setattr(render, "environment", functools.cache(render.environment))
    monkeypatch.setattr(search_report, "templates", functools.cache(search_report.templates))
    monkeypatch.setattr(importlib.metadata, "version", functools.cache(importlib.metadata.version))


def results(out: Path) -> dict[str, Any]:
    """The arms, merges, maps and reports of an output folder, without what differs from run to run."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file() and path.name != ".lock"):
        name = str(path.relative_to(out))
        text = path.read_text(errors="replace")
        if path.name == MANIFEST:
            found[name] = {
                key: value for key, value in json.loads(text).items() if key not in ("run", "seal")
            }
        elif (path.parent.name == "arms" and path.suffix == ".json") or name == "report.json":
            found[name] = untimed(json.loads(text))
        elif name == JOURNAL:
            found[name] = untimed([json.loads(line.partition(" ")[2]) for line in text.splitlines()])
        else:
            found[name] = text
    return found


def untimed(content: Any) -> Any:
    """Plain data without how long anything took."""
    if isinstance(content, dict):
        return {key: untimed(value) for key, value in content.items() if key != "seconds"}
    return [untimed(value) for value in content] if isinstance(content, list) else content
