"""The data sets whose files can be fetched for a machine without a network, and the tasks that use them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from taskvec.errors import EvaluationError

# The metric of HumanEval is a script of the hub as well.
CODE_EVAL = "spaces/evaluate-metric/code_eval"


@dataclass(frozen=True, slots=True)
class Data:
    """The repositories of the hub that a task needs.

    Attributes
    ----------
    repositories : tuple of str
        With their kind in front: ``datasets/openai/gsm8k``.
    tasks : tuple of str
        lm-eval's names of tasks and groups that use them, besides the data set's own.
    text : str
        What it is, in a line.
    """

    repositories: tuple[str, ...]
    tasks: tuple[str, ...]
    text: str


KNOWN = {
    "gsm8k": Data(
        ("datasets/openai/gsm8k",),
        ("gsm8k_cot", "gsm8k_cot_zeroshot", "gsm8k_cot_llama"),
        "grade-school word problems, 1 319 in the test",
    ),
    "humaneval": Data(
        ("datasets/openai/openai_humaneval", CODE_EVAL),
        ("humaneval_instruct", "humaneval_64", "humaneval_64_instruct"),
        "164 functions to write, and the metric that runs them",
    ),
    "sciq": Data(("datasets/allenai/sciq",), (), "science questions of four choices, 1 000 in the test"),
    "bbh": Data(
        ("datasets/SaylorTwift/bbh",),
        ("bbh_cot_fewshot", "bbh_cot_zeroshot", "bbh_fewshot", "bbh_zeroshot", "leaderboard_bbh"),
        "BIG-bench Hard, 27 tasks with 6 511 questions",
    ),
}


def data_of(name: str) -> str:
    """The data set of a task.

    Raises
    ------
    EvaluationError
        It is not known; the nearest names are given.
    """
    for data, row in KNOWN.items():
        if name == data or name in row.tasks:
            return data
    names = [name for data, row in KNOWN.items() for name in (data, *row.tasks)]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    raise EvaluationError(
        f"no data set is known for `{name}`",
        f"did you mean {', '.join(f'`{each}`' for each in near)}?"
        if near
        else "`taskvec tasks` lists what is known; give other tasks as YAML with --include-path",
    )


def repositories(names: Iterable[str]) -> list[str]:
    """The repositories that some tasks need, each once."""
    return list(dict.fromkeys(each for name in names for each in KNOWN[data_of(name)].repositories))
