"""Where the request to reason goes in a prompt.

The text is put at the end of the question that is asked, never into worked examples, so that a prompt with
and one without it differ in this sentence alone:

- with a chat template it closes the last user turn, on a line of its own;
- in a completion prompt it stands before the cue that the answer follows (``Answer:``, ``A:``), so that the
  model does not read it as the beginning of its own answer; without such a cue it closes the prompt;
- in a completion prompt of program code, where a sentence would be a syntax error, it is a comment in the
  first line.
"""

from __future__ import annotations

import re

# the last line of a prompt that asks for the answer: "Answer:", "A:", "Solution:"
_CUE = re.compile(r"\n[^\n:]{1,40}:[ \t]*\Z")


def with_think(question: str, text: str, *, chat: bool, code: bool) -> str:
    """`question` with the request to reason in its place.

    Parameters
    ----------
    question : str
        What the task asks, without worked examples.
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
