"""The paper's table (arXiv 2509.01363) and settings, next to the figures and settings of this run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from taskvec.evaluation.analysis.compare import Comparison
from taskvec.evaluation.analysis.pairs import baselines
from taskvec.evaluation.paper import (
    BENCHMARKS,
    COMPARISONS,
    PRESETS,
    Figures,
    Gain,
    Setting,
    Size,
    benchmark_of,
    size_of,
)
from taskvec.evaluation.record import ArmRecord
from taskvec.text import minus

Find = Callable[[str, str, str], Comparison | None]

_ARMS: dict[Figures, tuple[float, bool]] = {
    "vector": (1.0, False),
    "vector+think": (1.0, True),
    "minus": (-1.0, False),
}


@dataclass(frozen=True, slots=True)
class PaperRow:
    """One figure of the paper's table and the same comparison here.

    Attributes
    ----------
    benchmark : str
        As the paper names it.
    task : str, optional
        The task of lm-eval that was run; None where none was.
    what : str
        The arm that is held against the baseline without a request to reason.
    paper : Gain, optional
        In points; None where no source that was read states it.
    here : Comparison, optional
        On the report part; None where it was not measured.
    """

    benchmark: str
    task: str | None
    what: str
    paper: Gain | None
    here: Comparison | None


@dataclass(frozen=True, slots=True)
class PaperPage:
    """The paper's table and settings next to the measured ones.

    Attributes
    ----------
    size : {"1.5b", "7b"}
        Whose figures stand there.
    asked : bool
        Whether the size was named; otherwise it is taken from the target's name.
    rows : tuple of PaperRow
    settings : tuple of (Setting, str)
        Each with what this run had; an empty text where the records do not say.
    """

    size: Size
    asked: bool
    rows: tuple[PaperRow, ...]
    settings: tuple[tuple[Setting, str], ...]


def paper_page(records: Sequence[ArmRecord], find: Find, size: Size | None) -> PaperPage | None:
    """The page; None where nothing of the paper was run and no size is named.

    Parameters
    ----------
    records : sequence of ArmRecord
    find : callable
        The comparison of two arms on a task, by their names.
    size : {"1.5b", "7b"}, optional
        The preset that was asked for.
    """
    baseline = baselines(records).get((None, None))
    target = baseline.model if baseline is not None else records[0].model
    preset = PRESETS[size or size_of(target)]
    rows = []
    for name, (title, _) in BENCHMARKS.items():
        tasks: list[str | None] = [task for task in records[0].tasks if benchmark_of(task) == name]
        for task in tasks or [None]:
            for what, words in COMPARISONS.items():
                arm = _vector(records, *_ARMS[what])
                here = (
                    find(arm.name, baseline.name, task)
                    if arm is not None and baseline is not None and task is not None
                    else None
                )
                rows.append(PaperRow(title, task, words, preset.gains.get((name, what)), here))
    if size is None and not any(row.here is not None for row in rows):
        return None
    settings = tuple((setting, _here(setting.name, records)) for setting in preset.settings)
    return PaperPage(preset.size, size is not None, tuple(rows), settings)


def _vector(records: Sequence[ArmRecord], alpha: float, think: bool) -> ArmRecord | None:
    """The unperturbed vector arm of an alpha, with or without a request to reason."""
    vectors = (record for record in records if record.kind == "vector" and not record.perturb)
    return next((r for r in vectors if (r.alpha, r.think is not None) == (alpha, think)), None)


def _here(name: str, records: Sequence[ArmRecord]) -> str:
    """What a setting of the paper was in this run, as far as the records of the arms say."""
    first = records[0]
    facts = {task: each for task, each in first.tasks.items() if each is not None}
    written = [task for task in facts if facts[task].max_gen_toks is not None]
    if name == "target":
        return next((r.model for r in records if r.kind == "baseline"), "")
    if name == "donor, reference":
        return ", ".join(dict.fromkeys(r.model for r in records if r.kind in ("donor", "reference")))
    if name == "alpha":
        alphas = dict.fromkeys(r.alpha for r in records if r.kind == "vector" and r.alpha is not None)
        return ", ".join(minus(f"{alpha:g}") for alpha in alphas)
    if name == "request to reason":
        return ", ".join(f"“{text}”" for text in dict.fromkeys(r.think for r in records) if text) or "none"
    if name == "tasks":
        return ", ".join(facts)
    if name == "metric":
        return ", ".join(f"{task}: {each.metric}" for task, each in facts.items())
    if name == "worked examples":
        return ", ".join(f"{task}: {each.num_fewshot}" for task, each in facts.items())
    if name == "chat template":
        return {True: "yes", False: "no"}.get(first.settings.get("chat_template"), "")  # type: ignore[call-overload]
    if name == "new tokens":
        return ", ".join(f"{task}: {facts[task].max_gen_toks:,}" for task in written)
    if name == "stop strings":
        return "; ".join(f"{task}: {_quoted(facts[task].stop)}" for task in written)
    if name == "decoding":
        return {"neutral": "as the task asks", "model": "as each model's generation_config.json says"}.get(
            str(first.settings.get("decoding")), ""
        )
    if name == "documents":
        return ", ".join(f"{task}: {each.documents:,}" for task, each in facts.items())
    return ""


def _quoted(texts: Sequence[str]) -> str:
    return ", ".join(repr(text) for text in texts) or "none"
