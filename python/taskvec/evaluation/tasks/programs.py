"""Tasks in which the model writes a program: which form of them fits the prompt, and where the program is.

A chat model answers with a fenced block, not with the continuation of a function, so such a task has to be
run in its form for chat templates. lm-eval ships these under another name (``humaneval_instruct``); scores
keep the name that was asked for.
"""

from __future__ import annotations

import ast
import functools
import re
import warnings
from collections.abc import Callable
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


def in_form(manager: TaskManager, name: str, task: Any, *, chat: bool) -> tuple[Any, str | None]:
    """A task in the form that fits the prompt, and lm-eval's name for it where that is another."""
    if not is_program(task) or not is_shipped(manager, name):
        return task, None
    other = chat_form(manager, name) if chat else None
    if other is not None:
        task = manager.load([other])["tasks"][other]
        task.set_config("task", name)
    if name.startswith("humaneval"):
        find = program if task.get_config("gen_prefix") else continued
        filtered: Any = functools.partial(_programs, find)
        task._filters = [build_filter_ensemble("create_test", [("custom", {"filter_fn": filtered})])]
    return task, other


def _programs(find: Callable[[str, str, str], str], answers: Any, documents: Any) -> list[list[str]]:
    """The programs in the answers to HumanEval's documents."""
    return [
        [find(document["prompt"], document["entry_point"], answer) for answer in found]
        for found, document in zip(answers, documents, strict=True)
    ]


def continued(prompt: str, _entry_point: str, answer: str) -> str:
    """The program that an answer continues, without the prose that may follow it.

    What is not a program as it stands ends before the first line of the answer that is not indented, if that
    makes it one.
    """
    lines = answer.split("\n")
    end = next((i for i, line in enumerate(lines) if i and line[:1].strip()), len(lines))
    whole, body = prompt + answer, prompt + "\n".join(lines[:end])
    return body if not _parses(whole) and _parses(body) else whole


def _parses(code: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in strings, which are the model's
        try:
            ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def program(prompt: str, entry_point: str, answer: str) -> str:
    """The program of an answer to a chat prompt that has begun a fenced block with `prompt`.

    That is the last block of the answer's own that defines the function, after what the prompt has before
    the function; without one, the prompt continued by the answer up to the end of the block.
    """
    defines = re.compile(rf"^(?:async )?def {re.escape(entry_point)}\b", re.MULTILINE)
    whole = [block for block in _blocks(answer) if defines.search(block)]
    if not whole:
        return continued(prompt, entry_point, answer.partition("```")[0])
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
