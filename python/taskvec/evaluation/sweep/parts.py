"""Whether a sweep will have documents to choose on and to report on, before its first arm is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from taskvec.errors import EvaluationError
from taskvec.evaluation.analysis.compare import Part, Split
from taskvec.text import plural


def check_parts(hashes: Mapping[str, Sequence[str]], split: Split, parts: Sequence[Part]) -> list[str]:
    """What a division of documents leaves without a claim, in words.

    Parameters
    ----------
    hashes : mapping of str to sequence of str
        lm-eval's hashes of every task's documents.
    split : Split
        The division.
    parts : sequence of str
        The parts that the sweep needs.

    Returns
    -------
    list of str
        A sentence for each task of which nothing can be claimed, since a part has none of its documents.

    Raises
    ------
    EvaluationError
        That is so of every task.
    """
    if not split.share:
        return []
    lacking = {
        task: part for task, found in hashes.items() if (part := _empty(found, split, parts)) is not None
    }
    hint = "raise --limit, or set the development share to 0"
    for task, part in lacking.items():
        if len(lacking) == len(hashes):
            raise EvaluationError(
                f"of the {plural(len(hashes[task]), 'document')} of task `{task}` none is in the {part} part",
                hint,
            )
    return [
        f"nothing will be claimed of task `{task}`: of its {plural(len(hashes[task]), 'document')} none is "
        f"in the {part} part; {hint}"
        for task, part in lacking.items()
    ]


def _empty(hashes: Sequence[str], split: Split, parts: Sequence[Part]) -> Part | None:
    return next((part for part in parts if not any(map(split.keep(part), hashes))), None)
