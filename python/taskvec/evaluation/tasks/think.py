"""The request to reason: once in a prompt that asks for it, and in none that does not.

Several tasks ask for steps in their own prompt (``A: Let's think step by step.``). An arm without a request
would then have one and an arm with a request two, so the task's own is taken out of every prompt, and an arm
that asks has its own alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

# A whole sentence that asks for steps.
_REQUEST = re.compile(
    r"(?:(?<=[\n.:?!}] )|(?<=[\n:}])|^)"
    r"(?:(?:please|now|so|first),? )?(?:let[’']?s |let us )?(?:please )?"
    r"(?:think|reason|work|solve|answer|explain|go)\b[^\n.:?!{}]{0,60}?\bstep[ -]by[ -]step\b[.!]?(?=\s|$)"
    r"(?! (?-i:[a-z]))",
    re.IGNORECASE | re.MULTILINE,
)
_STEPS = re.compile(r"\bstep[ -]by[ -]step\b", re.IGNORECASE)

# The last line of a prompt that asks for the answer: "Answer:", "A:", "Solution:".
_CUE = re.compile(r"\n[^\n:]{1,40}:[ \t]*\Z")


class OwnRequests:
    """The requests to reason that the prompt of a task brings along.

    Parameters
    ----------
    task : lm_eval ConfigurableTask

    Attributes
    ----------
    found : tuple of str
        The sentences, which `without` takes out.
    stays : bool
        Whether the prompt asks for steps in words that are a part of another sentence, and stay.
    """

    def __init__(self, task: Any) -> None:
        texts = list(_templates(task))
        self.found = tuple(
            dict.fromkeys(match.group() for text in texts for match in _REQUEST.finditer(text))
        )
        self.stays = any(_STEPS.search(_REQUEST.sub("", text)) for text in texts)

    def without(self, text: str) -> str:
        """`text` without the requests; a cue that they follow (``A:``) stays and ends without a space."""
        for request in self.found:
            before, found, after = text.rpartition(request)
            if found:
                text = _joined(before.rstrip(" \t"), after.lstrip(" \t"))
        return text


def _joined(before: str, after: str) -> str:
    """Two parts of a text, without the line or the space that was between them for a sentence's sake."""
    if not after.strip():
        return before
    if not before or before.endswith("\n"):
        return before + after.lstrip()
    return before + after if after.startswith("\n") else f"{before} {after}"


def _templates(task: Any) -> Iterator[str]:
    """The texts that a task's prompt is made of, as its author wrote them."""
    examples = task.get_config("fewshot_config")
    for source in (task.config, examples):
        for key in ("description", "doc_to_text", "gen_prefix"):
            text = source.get(key) if isinstance(source, dict) else getattr(source, key, None)
            if isinstance(text, str):
                yield text
            elif callable(text) and key == "doc_to_text":
                yield from _written(task, text)


def _written(task: Any, write: Any) -> Iterator[str]:
    """A prompt that is built in Python, without the texts of its document."""
    try:
        document = task.eval_docs[0]
        text = str(write(document))
    except Exception:  # a prompt that cannot be built is an error of the evaluation, and comes there
        return
    for value in sorted((v for v in document.values() if isinstance(v, str) and v), key=len, reverse=True):
        text = text.replace(value, "{}")
    yield text


def with_think(question: str, text: str, *, chat: bool, code: bool) -> str:
    """`question` with the request to reason in its place.

    The request closes the question that is asked and never enters worked examples, so that a prompt with and
    one without it differ in this sentence alone:

    - with a chat template it closes the last user turn, on a line of its own;
    - in a completion prompt it stands before the cue that the answer follows (``Answer:``, ``A:``), so that
      the model does not read it as the beginning of its own answer; without such a cue it closes the prompt;
    - in a completion prompt of program code, where a sentence would be a syntax error, it is a comment in the
      first line.

    Parameters
    ----------
    question : str
        The question of the task, without worked examples.
    text : str
        The request, such as "Think step by step.".
    chat : bool
        Whether the question becomes a chat turn.
    code : bool
        Whether the question is program code that the model completes.
    """
    if chat:
        return f"{question.rstrip()}\n{text}"
    if code:
        return f"# {text}\n{question}"
    cue = _CUE.search(question)
    if cue is None:
        return f"{question.rstrip()}\n{text}"
    return f"{question[: cue.start()].rstrip()} {text}{question[cue.start() :]}"
