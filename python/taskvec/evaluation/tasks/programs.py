"""Tasks in which the model writes a program: which form of them fits the prompt, and where the program is.

A chat model answers with a fenced block, not with the continuation of a function, so such a task has to be
run in its form for chat templates. lm-eval ships these under another name (``humaneval_instruct``); scores
keep the name that was asked for.
"""

from __future__ import annotations

import re
from typing import Any

from lm_eval.filters import build_filter_ensemble
from lm_eval.tasks import TaskManager

from taskvec.evaluation.tasks.find import chat_form, is_shipped


def is_program(task: Any) -> bool:
    """Whether the answer of a task is a program."""
    return bool(getattr(task, "UNSAFE_CODE", False)) and task.OUTPUT_TYPE == "generate_until"


def continues_code(task: Any) -> bool:
    """Whether the prompt itself is program code that the model continues."""
    return is_program(task) and not task.get_config("gen_prefix")


def in_chat_form(manager: TaskManager, name: str, task: Any) -> tuple[Any, str | None]:
    """A task in the form that fits a chat template, and the name that lm-eval has for it."""
    if not is_program(task) or not is_shipped(manager, name):
        return task, None
    other = chat_form(manager, name)
    if other is not None:
        task = manager.load([other])["tasks"][other]
        task.set_config("task", name)
    if name.startswith("humaneval"):
        task._filters = [build_filter_ensemble("create_test", [("custom", {"filter_fn": programs})])]
    return task, other


def programs(answers: Any, documents: Any) -> list[list[str]]:
    """The programs in the answers to HumanEval's documents."""
    return [
        [program(document["prompt"], document["entry_point"], answer) for answer in found]
        for found, document in zip(answers, documents, strict=True)
    ]


def program(prompt: str, entry_point: str, answer: str) -> str:
    """The program of an answer to a chat prompt that has begun a fenced block with `prompt`.

    That is the last block of the answer's own that defines the function, after what the prompt has before
    the function; without one, the prompt continued by the answer up to the end of the block.
    """
    defines = re.compile(rf"^(?:async )?def {re.escape(entry_point)}\b", re.MULTILINE)
    whole = [block for block in _blocks(answer) if defines.search(block)]
    if not whole:
        return prompt + answer.partition("```")[0]
    return f"{defines.split(prompt)[0]}\n{whole[-1]}"


def _blocks(answer: str) -> list[str]:
    """The fenced blocks that an answer opens itself, the last one perhaps without its end."""
    inside, blocks = True, [list[str]()]  # the prompt has opened the first
    for line in answer.split("\n"):
        mark = line.strip()
        if not mark.startswith("```"):
            blocks[-1].append(line)
        elif inside and mark == "```" and any(map(str.strip, blocks[-1])):
            inside = False
            blocks.append([])
        else:
            inside = True
            blocks.append([])
    return ["\n".join(block) for block in blocks[1:]]
