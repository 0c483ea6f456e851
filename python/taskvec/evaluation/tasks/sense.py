"""Which perturbations mean something on which of lm-eval's tasks.

A mistyped word, a useless sentence or another order asks the same question only where the text is prose
about the matter. In a task about the text itself (sorting words, matching brackets), in one whose names are
all that tells its parts apart, or in code, they ask another question, or none. The list is of what is known
to keep its question; what is not in it is left alone. A task of the user's own is the user's to judge.
"""

from __future__ import annotations

import re

# families of word problems; the longest prefix decides
WORD_PROBLEMS = ("gsm8k", "gsm_plus", "asdiv", "mgsm_direct_en", "mgsm_native_cot_en", "mgsm_en_cot_en")
# questions in prose, answered from knowledge or a passage
QUESTIONS = (
    "sciq", "arc_easy", "arc_challenge", "openbookqa", "boolq", "commonsense_qa", "triviaqa", "nq_open",
)  # fmt: skip
# parts of BIG-bench Hard, by the end of their names
BBH_TYPO = ("causal_judgement", "date_understanding", "navigate", "object_counting")
BBH_DISTRACTOR = (
    "causal_judgement", "date_understanding", "navigate", "object_counting",
    "reasoning_about_colored_objects", "temporal_sequences", "web_of_lies",
    "logical_deduction_three_objects", "logical_deduction_five_objects",
    "logical_deduction_seven_objects", "tracking_shuffled_objects_three_objects",
    "tracking_shuffled_objects_five_objects", "tracking_shuffled_objects_seven_objects",
)  # fmt: skip

_BBH = re.compile(r"(?:leaderboard_)?bbh_(?:(?:cot_)?(?:few|zero)shot_)?")

WHY = {
    "typo": "its words, names or symbols are what it asks about, or a typo could change the right answer",
    "distractor": "one sentence more would be a part of the matter, or of text that is not prose",
    "order": "its text is not a story whose sentences can change places",
}


def makes_sense(task: str, kind: str) -> bool:
    """Whether a perturbation of a kind keeps the question of one of lm-eval's own tasks.

    Parameters
    ----------
    task : str
        A leaf task.
    kind : {"typo", "distractor", "order", "numbers"}
        Of ``numbers`` each document decides: its answer is worked out again, or it is left out.
    """
    if kind == "numbers":
        return True
    bbh = _BBH.match(task)
    if bbh is not None:
        part = task[bbh.end() :]
        return part in {"typo": BBH_TYPO, "distractor": BBH_DISTRACTOR}.get(kind, ())
    if _is_of(task, WORD_PROBLEMS):
        return True
    return kind in ("typo", "distractor") and _is_of(task, QUESTIONS)


def is_listed(task: str) -> bool:
    """Whether a task's name alone says what it is, wherever its file lies."""
    return _BBH.match(task) is not None


def _is_of(task: str, families: tuple[str, ...]) -> bool:
    """Whether a task is one of some, or a variant of it: ``gsm8k_cot`` of ``gsm8k``."""
    return any(task == family or task.startswith(f"{family}_") for family in families)
