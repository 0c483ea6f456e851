"""Perturbing the documents of an lm-eval task: where the question stands, how the answer is kept right."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, TemplateSyntaxError, meta

from taskvec.errors import EvaluationError
from taskvec.evaluation.settings import parse_perturbation
from taskvec.evaluation.tasks import perturb
from taskvec.evaluation.tasks.sense import WHY, is_listed, makes_sense


class NotPerturbableError(EvaluationError):
    """A perturbation does not apply to a task."""


QUESTION_FIELDS = ("question", "input", "problem", "query", "prompt", "text", "sentence")


def perturb_documents(
    name: str,
    task: Any,
    documents: list[dict[str, Any]],
    perturbation: str,
    seed: int,
    *,
    shipped: bool = False,
) -> list[dict[str, Any] | None]:
    """One perturbed document for each, or None where it is left out.

    Parameters
    ----------
    name : str
        Of the task.
    task : lm_eval task
    documents : list of dict
    perturbation : str
        Its kind, with a rate or without: ``typo=0.3``.
    seed : int
    shipped : bool
        Whether it is one of lm-eval's own tasks, of which it is known which perturbations make sense.

    Raises
    ------
    NotPerturbableError
        The task's questions cannot be perturbed at all, or the perturbation would ask another question.
    """
    kind, rate = parse_perturbation(perturbation)
    if getattr(task, "UNSAFE_CODE", False):
        raise NotPerturbableError(
            f"task `{name}` asks for program code: perturbed code is another program",
            "leave the task out of a perturbed run",
        )
    if (shipped or is_listed(name)) and not makes_sense(name, kind):
        raise NotPerturbableError(
            f"`{kind}` makes no sense on task `{name}`: {WHY[kind]}, or nothing is known of it",
            "leave the task out of a perturbed run, or name another perturbation",
        )
    if not documents:
        return []
    asked = question_field(name, task, documents[0])
    answered = answer_field(task, documents[0]) if kind == "numbers" else None
    if kind == "numbers" and answered is None:
        raise NotPerturbableError(
            f"task `{name}` has no answer text whose arithmetic could be worked out again",
            "`numbers` needs answers that show their steps, as GSM8K's do",
        )
    return [
        _perturbed(task, doc, kind, rate, asked, answered, perturb.draws(seed, kind, _key(doc, asked, i)))
        for i, doc in enumerate(documents)
    ]


def _key(document: dict[str, Any], asked: str, index: int) -> str:
    return f"{index}:{document[asked]}"


def _perturbed(
    task: Any,
    document: dict[str, Any],
    kind: str,
    rate: float | None,
    asked: str,
    answered: str | None,
    rng: Any,
) -> dict[str, Any] | None:
    question = document[asked]
    if kind == "numbers":
        assert answered is not None
        found = perturb.numbers(question, document[answered], rng)
        if found is None:
            return None
        new_question, new_answer, before, after = found
        new = {**document, asked: new_question, answered: new_answer}
        # further fields that hold the bare answer follow it
        for field, value in document.items():
            if field not in (asked, answered):
                if isinstance(value, str) and value.strip().replace(",", "") == before:
                    new[field] = after
                elif isinstance(value, (int, float)) and not isinstance(value, bool) and str(value) == before:
                    new[field] = type(value)(float(after))
        return new
    if kind == "typo":
        share = perturb.TYPO_SHARE if rate is None else rate
        text = perturb.typo(question, rng, protected=_answers(task, document), rate=share)
    elif kind == "distractor":
        text = perturb.distractor(question, rng, rate=rate)
    else:
        text = perturb.order(question, rng)
    return None if text is None or text == question else {**document, asked: text}


def _answers(task: Any, document: dict[str, Any]) -> list[str]:
    """The texts that a right answer may be made of."""
    texts = []
    target = task.doc_to_target(document)
    texts += [str(item) for item in target] if isinstance(target, list) else [str(target)]
    if task.get_config("doc_to_choice") is not None:
        texts += [str(choice) for choice in task.doc_to_choice(document)]
    return texts


def question_field(name: str, task: Any, document: dict[str, Any]) -> str:
    """The field of a document that holds its question, as the task's prompt uses it."""
    template = task.get_config("doc_to_text")
    texts = {key for key, value in document.items() if isinstance(value, str)}
    used = _fields(template, texts)
    if not isinstance(template, str):
        used = texts & set(QUESTION_FIELDS)
    for field in QUESTION_FIELDS:
        if field in used:
            return field
    if used and isinstance(template, str):
        return max(sorted(used), key=lambda field: len(document[field]))
    raise NotPerturbableError(
        f"task `{name}` does not say which field of its documents is the question",
        f"perturbations look for a field used in doc_to_text, or one of {', '.join(QUESTION_FIELDS)}",
    )


def answer_field(task: Any, document: dict[str, Any]) -> str | None:
    """The field that holds an answer with its steps, as the task's target uses it."""
    texts = {key for key, value in document.items() if isinstance(value, str)}
    used = _fields(task.get_config("doc_to_target"), texts) or texts & {"answer", "solution"}
    asked = {field for field in used if "####" in document[field]}
    # a target that is the bare number may accompany a worked answer
    asked = asked or {
        field for field in texts & {"answer", "solution", "rationale"} if "####" in document[field]
    }
    return max(sorted(asked), key=lambda field: len(document[field]), default=None)


def _fields(template: Any, known: set[str]) -> set[str]:
    if not isinstance(template, str):
        return set()
    if template in known:
        return {template}
    try:
        return meta.find_undeclared_variables(Environment(autoescape=False).parse(template)) & known
    except TemplateSyntaxError:
        return set()
