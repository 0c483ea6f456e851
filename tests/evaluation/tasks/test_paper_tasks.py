"""The paper's tasks score what a model answers: all of a right one, nothing of a wrong one."""

from __future__ import annotations

import collections
import itertools
import re
from typing import Any

import pytest

from support import paper_tasks
from support.paper_tasks import Scripted, run, scores
from taskvec.errors import EvaluationError
from taskvec.evaluation.settings import PAPER_TASKS, Settings
from taskvec.evaluation.tasks.datasets import loaded_once
from taskvec.evaluation.tasks.find import find_tasks
from taskvec.evaluation.tasks.programs import continued, program
from taskvec.evaluation.tasks.think import OwnRequests

THINK = "Think step by step."
TASKS = (*PAPER_TASKS, "gsm8k_cot_zeroshot")
COT = ("bbh_cot_fewshot", "gsm8k_cot_zeroshot")

NEXT = "A farmer has 5 cows and buys 3 more. How many cows are there?"
# What a model without a turn of its own writes after an answer.
RUNS_ON = (
    "",
    f"\n\nQ: {NEXT}\nA: 5+3=8. So the answer is 8. #### 8",
    f"\n\nQuestion: {NEXT}\nAnswer: 5+3=8. So the answer is 8. #### 8",
    f"\nQ: {NEXT}\nA: #### 8",
)
PROGRAM_RUNS_ON = (
    "",
    "\n\nprint(add(1, '2'))\n",
    "\n```\n\nThis function gives what was asked for.",
    "\n\nassert 1 == 2\n",
    "\n\n# tests\nassert 1 == 2\n",
    "\n\n@unknown\ndef other():\n    pass\n",
    "\n\nThis function gives what was asked for: it's done.\n\n    print(1)\n",
)
# What a model with a turn of its own writes before an answer.
BEGINS = (
    "",
    "Question: what is asked for?\n\n",
    "Q: what is asked for?\n\nThe Queen's way:\n\n",
    "Quite so.\n\n",
)


@pytest.fixture(autouse=True)
def data(monkeypatch):
    return paper_tasks.install(monkeypatch)


def completions() -> Any:
    """Answers to prompts without a template, each with another ending."""
    number = collections.defaultdict(itertools.count)

    def write(task: str, answer: str, _doc: Any) -> str:
        turn = next(number[task])
        if task == "humaneval":
            return answer.rstrip("\n") + PROGRAM_RUNS_ON[turn % len(PROGRAM_RUNS_ON)]
        begin = "The Queen's way.\n\n" if turn % 3 == 0 and "bbh" in task else ""
        return f" {begin}{answer}{RUNS_ON[turn % len(RUNS_ON)]}"

    return write


def turns() -> Any:
    """Answers to chat prompts, each in another form."""
    number = collections.defaultdict(itertools.count)

    def write(task: str, answer: str, doc: Any) -> str:
        turn = next(number[task])
        if task == "humaneval":
            return forms_of_a_program(doc["prompt"], answer)[turn % 7]
        return f"{BEGINS[turn % len(BEGINS)]}{answer}"

    return write


def forms_of_a_program(prompt: str, body: str) -> list[str]:
    """One program as chat models write it after a prompt that has begun its block."""
    return [
        body,
        f"{body}```\n\nIt is used so:\n\n```python\nprint(1 / 0)\n```\n",
        f"```python\n{prompt}{body}```",
        f"Here is the completed function:\n\n```python\n{prompt}{body}```\nThis is it.",
        f"```\n{prompt}{body}",
        f"{body}\nThis function gives what was asked for.\n",
        f"# the solution\nHere it is:\n```py\nclass Unused:\n    pass\n\n\n{prompt}{body}```",
    ]


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("think", [None, THINK])
@pytest.mark.parametrize("chat", [False, True])
def test_scores_are_those_of_the_answers(monkeypatch, chat, think, right):
    model = Scripted(turns() if chat else completions(), right=right)
    record = run(monkeypatch, model, *TASKS, think=think, chat_template=chat)
    assert scores(record) == dict.fromkeys(TASKS, 100.0 if right else 0.0)
    for task, prompts in model.prompts.items():
        asked = [len(re.findall("step by step", prompt, re.IGNORECASE)) for prompt in prompts]
        assert set(asked) == {1 if think else 0}, (task, prompts[0])


@pytest.mark.parametrize("number", range(7))
def test_every_form_of_a_program_is_found(number):
    for row in paper_tasks.humaneval():
        for body, works in ((row["canonical_solution"], True), ("    return None\n", False)):
            answer = forms_of_a_program(row["prompt"], body)[number]
            code = program(row["prompt"], row["entry_point"], answer)
            space: dict[str, Any] = {}
            exec(code + row["test"], space)
            try:
                space["check"](space[row["entry_point"]])
            except AssertionError:
                assert not works, code
            else:
                assert works, code


def test_a_continued_program_stays_as_it_is_where_it_is_one():
    prompt = "def f():\n"
    assert continued(prompt, "f", "    return 1\nX = 2\n") == f"{prompt}    return 1\nX = 2\n"
    assert continued(prompt, "f", '    return """\na\n"""\n') == f'{prompt}    return """\na\n"""\n'
    assert continued(prompt, "f", "    return 1\nIt is done.") == f"{prompt}    return 1"
    assert continued(prompt, "f", "    return (\nIt is done.") == f"{prompt}    return (\nIt is done."
    assert continued(prompt, "f", "\0") == f"{prompt}\0"


def test_programs_are_asked_for_in_the_form_of_the_prompt(monkeypatch):
    model = Scripted(turns())
    record = run(monkeypatch, model, "humaneval", chat_template=True)
    for row in paper_tasks.humaneval():  # prompts are asked by their lengths
        begun = f"<|assistant|>Here is the completed function:\n```python\n{row['prompt']}\n"
        prompts = [prompt for prompt in model.prompts["humaneval"] if prompt.endswith(begun)]
        assert prompts
        for prompt in prompts:
            assert prompt.startswith("<|user|>Write a solution to the following problem")
            assert prompt.count(row["prompt"]) == 2
    assert record.tasks["humaneval"].version == "4.0"
    assert "task `humaneval` was run as `humaneval_instruct`" in record.warnings[0]
    plain = run(monkeypatch, Scripted(completions()), "humaneval")
    assert plain.tasks["humaneval"].version == "1.0"
    assert plain.warnings == []


def test_programs_without_a_form_for_a_chat_are_refused():
    asked = Settings(tasks=("gsm8k", "humaneval_plus"), chat_template=True, allow_unsafe_code=True)
    with pytest.raises(EvaluationError, match="`humaneval_plus` has no form for chat templates"):
        find_tasks(asked)
    find_tasks(Settings(tasks=("humaneval_instruct",), chat_template=True, allow_unsafe_code=True))
    find_tasks(Settings(tasks=("humaneval_plus",), allow_unsafe_code=True))


def test_data_sets_are_asked_for_once_for_all_arms(monkeypatch, data):
    with loaded_once():
        for _ in range(2):
            run(monkeypatch, Scripted(completions()), *TASKS)
    assert len(data) == len(set(data)) == 3 + 27


def test_a_perturbation_that_fits_no_part_of_a_group_is_one_warning(monkeypatch):
    record = run(monkeypatch, Scripted(completions()), "gsm8k", "bbh_cot_fewshot", perturb="numbers")
    assert list(record.tasks) == ["gsm8k"]
    (warning,) = record.warnings
    assert warning.startswith("left out of this arm: 27 of the 27 tasks of `bbh_cot_fewshot`: task `bbh_cot_")


def test_a_perturbation_that_fits_no_task_says_so_of_each(monkeypatch):
    with pytest.raises(EvaluationError, match="`numbers` applies to none of the tasks") as error:
        run(monkeypatch, Scripted(completions()), "sciq", "humaneval", perturb="numbers")
    assert "task `sciq`" in error.value.message
    assert "task `humaneval` asks for program code" in error.value.message
    assert "another perturbation" in (error.value.hint or "")


# --- the request to reason


def test_the_tasks_own_request_is_taken_out_and_recorded(monkeypatch):
    model = Scripted(completions())
    record = run(monkeypatch, model, "gsm8k", *COT)
    assert record.tasks["gsm8k"].removed_requests == []
    for task in COT:
        assert record.tasks[task].removed_requests == ["Let's think step by step."]
    assert model.prompts["gsm8k_cot_zeroshot"][0].endswith("How many pens are left?\nA:")
    (prompt, *_) = model.prompts["bbh_cot_fewshot_navigate"]
    assert prompt.endswith("\nA:")
    assert prompt.count("\nA: We start at the origin") == 3
    assert len(re.findall(r"^A:", prompt, re.MULTILINE)) == 4


def test_the_request_stands_before_the_cue(monkeypatch):
    model = Scripted(completions())
    run(monkeypatch, model, "gsm8k_cot_zeroshot", think="Reason slowly.")
    assert model.prompts["gsm8k_cot_zeroshot"][0].endswith("How many pens are left? Reason slowly.\nA:")


class Prompted:
    """As much of a task as its prompts are made of."""

    def __init__(self, text: Any, **config: Any) -> None:
        self.config = {"doc_to_text": text, **config}
        self.eval_docs = [
            {"question": "How do you learn a dance? Go on step by step.", "choices": ["a", "b"]}
        ]

    def get_config(self, key: str) -> Any:
        return self.config.get(key)


@pytest.mark.parametrize(
    ("text", "before", "after"),
    [
        ("{{q}}\nA: Let's think step by step.", "How?\nA: Let's think step by step.", "How?\nA:"),
        ("{{q}} Please reason step-by-step.\nA:", "How? Please reason step-by-step.\nA:", "How?\nA:"),
        ("Think step by step.\n\n{{q}}", "Think step by step.\n\nHow?", "How?"),
        ("{{q}} Let us work this out step by step!", "How? Let us work this out step by step!", "How?"),
        ("{{q}}\nSolve it step by step. Then say A.", "How?\nSolve it step by step. Then say A.",
         "How?\nThen say A."),
        ("{{q}}\nAnswer:", "Walk step by step. How?\nAnswer:", "Walk step by step. How?\nAnswer:"),
    ],
)  # fmt: skip
def test_requests_are_whole_sentences_of_the_prompt(text, before, after):
    own = OwnRequests(Prompted(text))
    assert not own.stays
    assert own.without(before) == after


def test_a_prompt_in_python_is_looked_at_without_its_document():
    own = OwnRequests(Prompted(lambda doc: f"Q: {doc['question']}\nA: Let's think step by step."))
    assert own.found == ("Let's think step by step.",)
    assert OwnRequests(Prompted(lambda doc: f"Q: {doc['question']}\nA:")).found == ()


@pytest.mark.parametrize(
    "text",
    [
        '{{q}} Think step by step and then finish with "the answer is (X)".',
        "Given a step by step solution, judge it.",
    ],
)
def test_a_request_that_cannot_be_taken_out_is_known(text):
    own = OwnRequests(Prompted(text))
    assert own.stays
    assert own.without(text) == text
