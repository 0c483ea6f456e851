"""The documents of lm-eval's tasks as prompts with their reference answers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from taskvec.errors import EvaluationError
from taskvec.evaluation.settings import Settings


@dataclass(frozen=True, slots=True)
class Example:
    """A document of a task.

    Attributes
    ----------
    task : str
    number : int
        Its position in the task.
    context : str
        The prompt; empty where a text is scored as a whole.
    answer : str or None
        The reference answer; ``None`` where the document names none of its choices.
    """

    task: str
    number: int
    context: str
    answer: str | None


@dataclass(frozen=True, slots=True)
class Tokens:
    """An example as the model reads it: all tokens, and how many of the last are the answer's."""

    ids: tuple[int, ...]
    answer: int


def examples(tasks: Any, settings: Settings, lm: Any) -> Iterator[Example]:
    """The documents of all tasks, task by task, with the prompts that lm-eval gives them.

    Parameters
    ----------
    tasks : PreparedTasks
    settings : Settings
    lm : lm-eval model

    Raises
    ------
    EvaluationError
        A task does not say which answer is right.
    """
    chat = settings.chat_template
    for name, task in tasks.tasks.items():
        task.set_fewshot_seed(seed=settings.seed)
        task.build_all_requests(
            rank=0,
            world_size=1,
            apply_chat_template=chat,
            chat_template=lm.apply_chat_template if chat else None,
            tokenizer_name=lm.tokenizer_name if chat else "",
        )
        for number, group in itertools.groupby(task.instances, key=lambda each: each.doc_id):
            context, answer = _reference(name, task, list(group), chat=chat)
            yield Example(name, number, context, answer)


def _reference(name: str, task: Any, instances: Sequence[Any], *, chat: bool) -> tuple[str, str | None]:
    first = instances[0]
    kind = task.get_config("output_type") or first.request_type
    if kind == "loglikelihood_rolling":
        return "", first.args[0]
    if kind == "multiple_choice":
        return _chosen(task, instances)
    if kind == "loglikelihood" and len(instances) == 1:
        return first.args[0], first.args[1]
    if kind == "generate_until" and hasattr(task, "doc_to_target"):
        return first.args[0], _target(task, first.doc, chat=chat)
    raise EvaluationError(
        f"task `{name}` ({kind}) does not say which answer is the reference",
        "leave it out, or draw the answers from the model where it generates: `--labels model`",
    )


def _chosen(task: Any, instances: Sequence[Any]) -> tuple[str, str | None]:
    """The prompt with the right one of several choices."""
    gold = task.doc_to_target(instances[0].doc)
    gold = gold[0] if isinstance(gold, list) and gold else gold
    if isinstance(gold, str):
        choices = task.doc_to_choice(instances[0].doc)
        gold = choices.index(gold) if gold in choices else None
    if not isinstance(gold, int):
        return instances[0].args[0], None
    found = next((each for each in instances if each.idx == gold and gold >= 0), None)
    return (instances[0].args[0], None) if found is None else (found.args[0], found.args[1])


def _target(task: Any, document: Any, *, chat: bool) -> str | None:
    """The reference answer of a generating task, as it follows the prompt."""
    target = task.doc_to_target(document)
    target = target[0] if isinstance(target, list) and target else target
    if isinstance(target, int) and task.get_config("doc_to_choice") is not None:
        target = task.doc_to_choice(document)[target]
    text = "" if target is None or isinstance(target, list) else str(target)
    if not text.strip():
        return None
    delimiter = "" if chat or text[:1].isspace() else task.get_config("target_delimiter") or ""
    return delimiter + text


def tokens_of(lm: Any, example: Example) -> Tokens | None:
    """The tokens of an example; ``None`` where it has no answer, or one without tokens.

    What is longer than the model's context loses its beginning, as in lm-eval.
    """
    if example.answer is None:
        return None
    if example.context:
        context, answer = lm._encode_pair(example.context, example.answer)
    else:
        context, answer = [lm.prefix_token_id], lm.tok_encode(example.answer, add_special_tokens=False)
    if not answer:
        return None
    ids = (context + answer)[-(int(lm.max_length) + 1) :]
    return Tokens(tuple(ids), min(len(answer), len(ids) - 1))
