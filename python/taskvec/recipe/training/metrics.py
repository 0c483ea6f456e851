"""Which checkpoints of a training run are the best: figures from a trainer's state, a CSV or a JSON file."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from taskvec.errors import RecipeError
from taskvec.files import look
from taskvec.files.json import read_bytes
from taskvec.recipe.training.checkpoints import TrainingCheckpoint, step_of
from taskvec.regex import regex
from taskvec.text import kind_of, listed, nearest, shown

Better = Literal["lower", "higher"]
MAXIMUM_BYTES = 64 << 20

# Columns that say which checkpoint a row is about, in this order; capitals and spaces do not count (`Step` of
# TensorBoard and of exports by Weights & Biases).
_PLACES = (
    "step", "global_step", "train/global_step", "_step", "iteration", "iter", "checkpoint", "name", "path",
    "model",
)  # fmt: skip
# Columns that are of no checkpoint's quality.
_OTHERS = ("epoch", "train/epoch", "wall_time", "_runtime", "_timestamp", "relative_time_(process)")
_DECIMAL_COMMA = regex(r"[+-]?\d+,\d+(?:[eE][+-]?\d+)?")
_LOWER = regex(r"loss|perplexity|ppl|bpb|bits_per|error|wer\b|cer\b|mse|mae", re.IGNORECASE)
_HIGHER = regex(r"acc|exact_match|f1\b|bleu|rouge|pass@|reward|score|win_?rate|mcc|auc", re.IGNORECASE)

Figures = dict[str, dict[int, float]]
"""Metric -> training step -> value."""


class Best(NamedTuple):
    """Checkpoints with the best values of a metric, the oldest first, and those values."""

    checkpoints: list[TrainingCheckpoint]
    metric: str
    better: Better
    values: list[float]


def best(
    checkpoints: Sequence[TrainingCheckpoint],
    count: int,
    path: str | os.PathLike[str],
    *,
    metric: str | None = None,
    better: Better | None = None,
) -> Best:
    """The `count` checkpoints with the best values of a metric; of equal ones the newer.

    Parameters
    ----------
    checkpoints : sequence of TrainingCheckpoint
        Their steps have to be known.
    count : int
    path : path
        A ``trainer_state.json``, JSON lines, JSON (a list of rows, or a mapping of steps to values), CSV or
        TSV with a column that names the step or the checkpoint.
    metric : str, optional
        By default ``eval_loss``, or the only one in the file.
    better : {"lower", "higher"}, optional
        By default as the metric's name says.

    Raises
    ------
    NotFoundError, RecipeError
        There is no such file, or it has no such metric, or too few checkpoints have a value.
    """
    if not 1 <= count <= len(checkpoints):
        raise RecipeError(
            f"the best {count} of {len(checkpoints)} checkpoints", f"give 1 to {len(checkpoints)}"
        )
    if better not in (None, "lower", "higher"):
        raise RecipeError(f"better `{shown(better)}` is not known", "choose `lower` or `higher`")
    if metric is not None and not isinstance(metric, str):
        raise RecipeError(f"`metric` is a text, found {kind_of(metric)}", "give its name in the file")
    name, figures = os.fspath(path), read(path)
    chosen = _metric(name, figures, metric)
    direction = better or _direction(chosen)
    values = figures[chosen]
    known = [
        (each, values[each.step]) for each in checkpoints if each.step is not None and each.step in values
    ]
    if len(known) < count:
        without = [each.spec for each in checkpoints if each.step not in values]
        raise RecipeError(
            f"{len(known)} of {len(checkpoints)} checkpoints have a value of `{shown(chosen)}` in `{name}`, "
            f"and {count} are asked for: none has {listed(without)}",
            "give fewer, or a file with the figures of all",
        )
    sign = 1.0 if direction == "lower" else -1.0
    ranked = sorted(known, key=lambda pair: (sign * pair[1], -(pair[0].step or 0)))[:count]
    ranked.sort(key=lambda pair: pair[0].step or 0)
    return Best([each for each, _ in ranked], chosen, direction, [value for _, value in ranked])


def read(path: str | os.PathLike[str]) -> Figures:
    """The figures of a file; of several values at one step the last. Values that are not finite do not count.

    Raises
    ------
    NotFoundError
        There is no such file.
    RecipeError
        It cannot be read, or has no row with a step and a number.
    """
    name = os.fspath(path)
    text = read_bytes(Path(name), maximum=MAXIMUM_BYTES).decode("utf-8-sig", "replace")
    figures: Figures = {}
    for row in _rows(name, text):
        step = _step(row)
        if step is None:
            continue
        for key, value in row.items():
            number = _number(value)
            if number is not None and _word(key) not in (*_PLACES, *_OTHERS):
                figures.setdefault(key, {})[step] = number
    if not figures:
        raise RecipeError(
            f"`{name}` has no figures: no row has a step and a number",
            "give a trainer_state.json, or rows with a column `step` and one for the metric",
        )
    return figures


def _rows(name: str, text: str) -> Iterator[Mapping[str, Any]]:
    if name.lower().endswith((".csv", ".tsv")):
        head = text.partition("\n")[0]
        tabs = name.lower().endswith(".tsv")
        # spreadsheets write semicolons where commas are decimal signs
        semicolons = ";" in head and "," not in head
        table = csv.DictReader(io.StringIO(text), delimiter="\t" if tabs else ";" if semicolons else ",")
        for row in table:
            cells = {key.strip(): each for key, each in row.items() if key}
            yield {key: _with_point(each) for key, each in cells.items()} if semicolons else cells
        return
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = [json.loads(line) for line in text.splitlines() if line.strip()]
        except (ValueError, RecursionError):
            raise RecipeError(
                f"`{name}` is neither JSON nor JSON lines", "name a CSV file `.csv`, tabs `.tsv`"
            ) from None
    yield from _of_json(value)


def _of_json(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping) and isinstance(value.get("log_history"), list):
        value = value["log_history"]
    if isinstance(value, Mapping) and not set(_PLACES) & set(map(_word, value)):
        value = [
            {**(each if isinstance(each, Mapping) else {"value": each}), "checkpoint": key}
            for key, each in value.items()
        ]
    rows: Iterable[Any] = value if isinstance(value, list) else [value]
    yield from (row for row in rows if isinstance(row, Mapping))


def _step(row: Mapping[str, Any]) -> int | None:
    """The training step that a row is about."""
    given = {_word(key): each for key, each in row.items() if each not in (None, "")}
    value = next((given[key] for key in _PLACES if key in given), None)
    if isinstance(value, str) and _number(value) is None:
        return step_of(value)
    number = _number(value)
    return int(number) if number is not None and number == int(number) else None


def _with_point(cell: Any) -> Any:
    """A number with a decimal comma as one with a point; all else as it is."""
    return (
        cell.replace(",", ".") if isinstance(cell, str) and _DECIMAL_COMMA.fullmatch(cell.strip()) else cell
    )


def _word(column: Any) -> str:
    """A column's name, whatever its capitals and spaces."""
    return str(column).strip().lower().replace(" ", "_")


def _number(value: Any) -> float | None:
    """A finite number; ``None`` of all else, also of what was not measured."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _metric(name: str, figures: Figures, metric: str | None) -> str:
    if metric in figures:
        return metric
    if metric is not None:
        near = nearest(metric, figures)
        hint = f"did you mean `{near}`?" if near else f"it has {listed(list(figures), 8)}"
        raise RecipeError(f"`{name}` has no metric `{shown(metric)}`", hint)
    if "eval_loss" in figures or len(figures) == 1:
        return "eval_loss" if "eval_loss" in figures else next(iter(figures))
    raise RecipeError(
        f"`{name}` has several metrics: {listed(list(figures), 8)}", "choose one with `--metric`"
    )


def _direction(metric: str) -> Better:
    lower, higher = _LOWER.search(metric), _HIGHER.search(metric)
    if (lower is None) == (higher is None):
        raise RecipeError(
            f"whether lower or higher values of `{shown(metric)}` are better is not known",
            "say it with `--better lower` or `--better higher`",
        )
    return "lower" if lower else "higher"


def state_of(checkpoint: TrainingCheckpoint) -> Path | None:
    """The trainer's state in the folder of a checkpoint."""
    path = Path(checkpoint.spec) / "trainer_state.json"
    return path if look.exists(path) else None
