"""The experiment of arXiv 2509.01363 by model size: settings and figures, each with what states it.

What could be read is the abstract, a summary of the whole paper, and what the first author publishes of it. A
setting or a figure that none of them states is None here: it is not known, which does not say that the paper
lacks it. Where a setting is not stated, `Setting.ours` says whose value a run has instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from taskvec.evaluation.settings import PAPER_TASKS, THINK

Size = Literal["1.5b", "7b"]
Figures = Literal["vector", "vector+think", "minus"]

PAPER = "arXiv 2509.01363"
ABSTRACT = f"the abstract, {PAPER}"
SUMMARY = "the summary at medium.com/@ritvik19/papers-explained-488-reasoning-vectors-94cfbe4387bb"
AUTHOR = "the first author's notes, publication-research.md in github.com/Moe-Zbeeb/Moe-Zbeeb.github.io"
NOT_STATED = "not stated in the sources read"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of the paper.

    Attributes
    ----------
    name : str
    stated : str, optional
        What the paper had; None where no source that was read states it.
    source : str, optional
        What states it.
    ours : str
        Whose value a run under the preset has, and which, where the paper's is not known or not a setting of
        a run.
    """

    name: str
    stated: str | None
    source: str | None
    ours: str


@dataclass(frozen=True, slots=True)
class Gain:
    """One figure of the paper: points of accuracy over the baseline without a request to reason.

    Attributes
    ----------
    points : float
    source : str
    """

    points: float
    source: str


@dataclass(frozen=True, slots=True)
class Preset:
    """The paper's experiment with models of one size.

    Attributes
    ----------
    size : {"1.5b", "7b"}
    target : str
        The model that received the vector, by its name on the hub.
    settings : tuple of Setting
    gains : mapping of (str, str) to Gain
        By the paper's task and the comparison: the vector alone, the vector and the request to reason, or the
        subtracted vector, each over the baseline.
    """

    size: Size
    target: str
    settings: tuple[Setting, ...]
    gains: Mapping[tuple[str, Figures], Gain]

    def content(self) -> dict[str, Any]:
        """What the preset sets, in the layout of a sweep file; the models are not among it."""
        return {
            "tasks": list(PAPER_TASKS),
            "alphas": [-1, 1],
            "think": THINK,
            "development": 0.0,  # alpha is the paper's: nothing is chosen
            "evaluation": {"chat_template": True},
        }


# The paper's benchmarks, by the beginnings of lm-eval's names for them.
BENCHMARKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "gsm8k": ("GSM8K", ("gsm8k",)),
    "humaneval": ("HumanEval", ("humaneval",)),
    "sciq": ("SciQ", ("sciq",)),
    "bbh": ("BigBenchHard", ("bbh", "leaderboard_bbh")),
}

TASKS = ", ".join(PAPER_TASKS)

COMPARISONS: dict[Figures, str] = {
    "vector": "+ v",
    "vector+think": "+ v, think",
    "minus": "− v",
}


def _settings(target: str) -> tuple[Setting, ...]:
    return (
        Setting("target", target, SUMMARY, "yours: --target"),
        Setting(
            "donor, reference",
            "public checkpoints of this size: SFT on the training part of GSM8K, then GRPO on the same",
            SUMMARY,
            "yours: --donor, --reference; which checkpoints they were is not stated in the sources read",
        ),
        Setting("alpha", "1; subtracted: −1", f"{SUMMARY}; subtracted: {ABSTRACT}", "the paper's: −1, 1"),
        Setting("parameters", "all", SUMMARY, "the paper's: all"),
        Setting("request to reason", f"“{THINK}”", SUMMARY, "the paper's, in arms of their own"),
        Setting(
            "tasks", "GSM8K, HumanEval, SciQ, BigBenchHard", ABSTRACT, f"lm-eval's {', '.join(PAPER_TASKS)}"
        ),
        Setting("metric", "accuracy", SUMMARY, "lm-eval's own, one per task"),
        Setting("worked examples", None, None, "lm-eval's own"),
        Setting("chat template", None, None, "ours: yes, the target is tuned for chats"),
        Setting("new tokens", None, None, "ours: long enough to reason"),
        Setting("stop strings", None, None, "lm-eval's own, without those that cut a chain of thought"),
        Setting("decoding", None, None, "lm-eval's own: greedy"),
        Setting("documents", None, None, "ours: all of the test part"),
        Setting("runs", "one of each", AUTHOR, "ours: one of each, with intervals over documents"),
    )


PRESETS: dict[Size, Preset] = {
    "1.5b": Preset(
        "1.5b",
        "Qwen/Qwen2.5-1.5B-Instruct",
        _settings("Qwen/Qwen2.5-1.5B-Instruct"),
        {
            ("gsm8k", "vector"): Gain(2.6, SUMMARY),
            ("gsm8k", "vector+think"): Gain(4.9, f"{ABSTRACT}; {SUMMARY}"),
            ("gsm8k", "minus"): Gain(-11.8, f"{ABSTRACT}, which does not say of which size"),
            ("humaneval", "vector"): Gain(2.2, SUMMARY),
            ("humaneval", "vector+think"): Gain(4.3, f"{ABSTRACT}; {SUMMARY}"),
            ("sciq", "vector+think"): Gain(1.7, f"{ABSTRACT}, which does not say with which prompt"),
            ("bbh", "vector"): Gain(12.3, SUMMARY),
            ("bbh", "vector+think"): Gain(12.3, f"{ABSTRACT}; {SUMMARY}"),
        },
    ),
    "7b": Preset(
        "7b",
        "Qwen/Qwen2.5-7B-Instruct",
        _settings("Qwen/Qwen2.5-7B-Instruct"),
        {("gsm8k", "vector+think"): Gain(5.0, SUMMARY)},
    ),
}

assert set(PRESETS) == set(get_args(Size))


def benchmark_of(task: str) -> str | None:
    """The paper's benchmark that a task of lm-eval is, with any few examples or prompt; None for others."""
    for name, (_, beginnings) in BENCHMARKS.items():
        if task.startswith(beginnings):
            return name
    return None


def size_of(model: str) -> Size:
    """The size whose figures a model is held against: by its name, 1.5b where that says nothing."""
    return "7b" if "7b" in model.lower().rpartition("/")[2] else "1.5b"
