"""In which batches requests are asked: all that an arm has to answer, sorted by length over every task.

A batch lasts as long as its longest answer, and every row of it is as wide as its longest prompt. Requests
of like length in one batch, whatever their task, waste least of both; the longest come first, so that memory
that does not suffice is found at once. The order follows from the requests alone: a run that goes on forms
the same batches.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def batches(attribute: str, requests: Sequence[Any], *, batch: int, block: int) -> list[list[int]]:
    """The positions of requests, batch by batch.

    Parameters
    ----------
    attribute : str
        The method of an lm-eval model that answers them.
    requests : sequence of Instance
        Of any tasks.
    batch : int
        Generating requests at once; those that differ in their arguments are never in one batch.
    block : int
        Other requests at once, which lm-eval batches itself; those of one document stay together, since it
        answers several continuations of one context in one pass.
    """
    if attribute == "generate_until":
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(index)
        found = []
        for group in groups.values():
            group.sort(key=lambda index: -length_of(requests[index]))
            found += [group[start : start + batch] for start in range(0, len(group), batch)]
        return found
    documents: dict[tuple[str, Any], list[int]] = {}
    for index, request in enumerate(requests):
        documents.setdefault((str(request.task_name), request.doc_id), []).append(index)
    longest = [(max(length_of(requests[index]) for index in group), group) for group in documents.values()]
    longest.sort(key=lambda each: -each[0])
    filled: list[list[int]] = []
    for _, group in longest:
        for start in range(0, len(group), block):
            part = group[start : start + block]
            if not filled or len(filled[-1]) + len(part) > block:
                filled.append([])
            filled[-1] += part
    return filled


def length_of(request: Any) -> int:
    """Characters of a request: the prompt, with a continuation where that is given."""
    return sum(len(part) for part in request.args if isinstance(part, str))
