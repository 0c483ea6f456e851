"""The paper's tasks offline: lm-eval's own YAML over rows of the published schemas, and a scripted model.

The rows stand where `datasets` would bring them from the hub. The scripted model knows the right answer of
every document and writes it as a test wants it, so that a score can only be 100 or 0 per cent.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval
import yaml
from lm_eval.api.model import LM

from taskvec.evaluation.arms import Arm
from taskvec.evaluation.backend import evaluate as backend
from taskvec.evaluation.record import ArmRecord
from taskvec.evaluation.settings import Settings

ROWS = 4

Write = Callable[[str, str, dict[str, Any]], str]


# --- data


def install(monkeypatch: Any) -> list[tuple[str, str | None]]:
    """Serve the paper's data sets from here; the list names every data set that was asked for."""
    import datasets
    import evaluate

    asked: list[tuple[str, str | None]] = []

    def load_dataset(path: str, name: str | None = None, **rest: Any) -> Any:
        if path == "json":
            return real(path, name, **rest)
        asked.append((path, name))
        return datasets.DatasetDict(
            {split: datasets.Dataset.from_list(rows) for split, rows in _splits(path, name).items()}
        )

    real = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(evaluate, "load", lambda name: {"code_eval": CodeEval()}[name])
    return asked


def _splits(path: str, name: str | None) -> dict[str, list[dict[str, Any]]]:
    if path == "openai/gsm8k":
        return {"train": gsm8k(8, seed=1), "test": gsm8k(ROWS, seed=2)}
    if path == "allenai/sciq":
        return {"train": sciq(3), "validation": sciq(3), "test": sciq(ROWS)}
    if path == "openai/openai_humaneval":
        return {"test": humaneval() * 2}
    if path == "SaylorTwift/bbh":
        assert name is not None
        return {"test": [{key: row[key] for key in ("input", "target")} for row in bbh(name)]}
    raise ConnectionError(f"{path} is not served here")


def gsm8k(count: int, seed: int) -> list[dict[str, Any]]:
    rng, rows = random.Random(seed), []
    for _ in range(count):
        a, b, c = rng.randint(11, 60), rng.randint(2, 9), rng.randint(1, 20)
        rows.append(
            {
                "question": f"Mark packs {a} boxes with {b} pens each. He gives {c} pens away. "
                "How many pens are left?",
                "answer": f"Mark packs {a}*{b}=<<{a}*{b}={a * b}>>{a * b} pens.\n"
                f"There are {a * b}-{c}=<<{a * b}-{c}={a * b - c}>>{a * b - c} pens left.\n#### {a * b - c}",
            }
        )
    return rows


def sciq(count: int) -> list[dict[str, Any]]:
    return [
        {
            "question": f"What gas do plants of kind {index} take from the air?",
            "distractor3": "helium",
            "distractor1": "argon",
            "distractor2": "neon",
            "correct_answer": "carbon dioxide",
            "support": "Plants take carbon dioxide from the air." if index % 2 else "",
        }
        for index in range(count)
    ]


_PROGRAMS = (
    ("add", "import math\n\n\ndef add(a: int, b: int) -> int:\n", "    return a + b\n", "(2, 3) == 5"),
    ("largest", "def largest(values):\n", "    best = values[0]\n    for value in values:\n"
     "        if value > best:\n            best = value\n    return best\n", "([1, 9, 4]) == 9"),
    ("twice", "def half(x):\n    return x / 2\n\n\ndef twice(x):\n", "    return 2 * x\n", "(4) == 8"),
    ("vowels", "def vowels(text):\n", "    return sum(c in 'aeiou' for c in text)\n", "('banana') == 3"),
)  # fmt: skip


def humaneval() -> list[dict[str, Any]]:
    return [
        {
            "task_id": f"HumanEval/{index}",
            "prompt": f'{head}    """ What {name} gives.\n    >>> {name}{call.split(" == ")[0]}\n    """\n',
            "canonical_solution": body,
            "test": f"\n\nMETADATA = {{}}\n\n\ndef check(candidate):\n    assert candidate{call}\n",
            "entry_point": name,
        }
        for index, (name, head, body, call) in enumerate(_PROGRAMS)
    ]


@functools.cache
def bbh(name: str) -> list[dict[str, Any]]:
    """The worked examples that lm-eval ships for a part of BIG-bench Hard, as documents."""
    path = Path(lm_eval.__file__).parent / "tasks/bbh/cot_fewshot" / f"{name}.yaml"
    samples = yaml.safe_load(re.sub(r"!function \S+", "x", path.read_text()))["fewshot_config"]["samples"]
    rows = []
    for number in range(2):
        sample = samples[number]
        found = re.search(r"the answer is (.*)\.\s*$", sample["target"])
        assert found is not None, path
        rows.append(
            {"input": f"{sample['input'].rstrip()} ", "target": found[1], "chain": sample["target"].rstrip()}
        )
    return rows


class CodeEval:
    """The metric of programs: what the `evaluate` package would bring from the hub."""

    def compute(self, references: Any, predictions: Any, k: Any, **_: Any) -> Any:
        passed = [any(_passes(f"{code}\n{test}") for code in codes)
                  for codes, test in zip(predictions, references, strict=True)]  # fmt: skip
        return {f"pass@{k[0]}": sum(passed) / len(passed)}, {}


def _passes(program: str) -> bool:
    try:
        exec(compile(program, "program", "exec"), {"__name__": "program"})  # the programs are those above
    except Exception:
        return False
    return True


# --- the scripted model


class _Tokenizer:
    chat_template = "scripted"

    def encode(self, text: str, **_: Any) -> list[int]:
        return [0] * (len(text) // 4)


class Scripted(LM):
    """A model that answers as `write` says: its arguments are task, right answer and document.

    The answer ends at the first stop string of the request, as every backend of lm-eval cuts it.
    """

    max_length, batch_size, tokenizer = 32768, 16, _Tokenizer()

    def __init__(self, write: Write, *, right: bool = True) -> None:
        super().__init__()
        self.write, self.right = write, right
        self.prompts: dict[str, list[str]] = {}
        self.arguments: dict[str, dict[str, Any]] = {}

    def generate_until(self, requests: Any, **_: Any) -> list[str]:
        answers = []
        for request in requests:
            prompt, arguments = request.args
            self.prompts.setdefault(request.task_name, []).append(prompt)
            self.arguments[request.task_name] = arguments
            answer = solution(request.doc, self.right)
            text = self.write(request.task_name, answer, request.doc)
            for stop in arguments["until"]:
                text = text.split(stop)[0]
            answers.append(text)
        return answers

    def loglikelihood(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        answers = []
        for request in requests:
            prompt, choice = request.args
            self.prompts.setdefault(request.task_name, []).append(prompt)
            best = choice.strip() == request.doc["correct_answer"]
            answers.append((-1.0 if best is self.right else -50.0, best))
        return answers

    def loglikelihood_rolling(self, requests: Any, **_: Any) -> list[float]:
        raise NotImplementedError

    @property
    def tokenizer_name(self) -> str:
        return "scripted"

    @property
    def device(self) -> str:
        return "cpu"

    def chat_template(self, chat_template: Any = False) -> str | None:
        return "scripted" if chat_template else None

    def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
        text = "".join(f"<|{turn['role']}|>{turn['content']}<|end|>" for turn in chat_history)
        return f"{text}<|assistant|>" if add_generation_prompt else text.removesuffix("<|end|>")


def solution(doc: dict[str, Any], right: bool) -> str:
    """The chain of thought, or the body of the function, that solves a document, or fails to."""
    if "canonical_solution" in doc:
        return doc["canonical_solution"] if right else "    return None\n"
    if "answer" in doc:
        steps, _, value = doc["answer"].rpartition("\n#### ")
        value = value if right else str(int(value) + 1)
        return f"{re.sub('<<.*?>>', '', steps)}\n#### {value}"
    chain = _chains()[doc["input"], doc["target"]]
    return chain if right else re.sub(r"the answer is .*", "the answer is none of these.", chain)


@functools.cache
def _chains() -> dict[tuple[str, str], str]:
    folder = Path(lm_eval.__file__).parent / "tasks/bbh/cot_fewshot"
    names = [path.stem for path in folder.glob("*.yaml") if not path.stem.startswith("_")]
    return {(row["input"], row["target"]): row["chain"] for name in names for row in bbh(name)}


def run(
    monkeypatch: Any,
    model: Scripted,
    *tasks: str,
    think: str | None = None,
    perturb: str | None = None,
    **more: Any,
) -> ArmRecord:
    """The record of the scripted model under the given settings."""
    monkeypatch.setattr(backend, "load_model", lambda *_: model)
    settings = Settings(tasks=tasks, device="cpu", allow_unsafe_code=True, **more)
    return backend.evaluate(
        "scripted", settings, arm=Arm("a", "baseline", think=think, perturb=perturb), weights="scripted"
    )


def scores(record: ArmRecord) -> dict[str, float | None]:
    """The compared metric of every task, in per cent."""
    found = {}
    for task, facts in record.tasks.items():
        value = record.scores[task][facts.metric].value if facts.metric else None
        found[task] = None if value is None else 100 * value
    return found
