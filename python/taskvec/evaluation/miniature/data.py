"""Generated texts: word problems with written steps, and the small talk that surrounds them.

A problem is a start value and a chain of additions and subtractions. The chain alone decides whether it
belongs to training, selection (when to stop) or test: splits cannot share a problem, whatever its wording.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Split = Literal["train", "select", "test"]

LARGEST = 20
STEPS = 3
"""Additions and subtractions in a selection or test problem; training also sees shorter ones."""

_NAMES = ("Mia", "Tom", "Ana", "Leo", "Eva", "Max", "Zoe", "Sam", "Ida", "Ben", "Uma", "Kai")
_ITEMS = ("apples", "pears", "coins", "books", "cards", "stones", "shells", "pens", "cups", "keys")
_GAIN = (
    "{p} finds {n} more.",
    "{p} buys {n} more.",
    "{f} gives {p} {n} more.",
    "{p} gets {n} from {f}.",
    "{p} picks up {n}.",
)
_OPENINGS = ("The", "A", "One", "There are", "It is", "Some")
_LOSS = (
    "{p} loses {n}.",
    "{p} sells {n}.",
    "{p} gives {f} {n} of them.",
    "{p} throws away {n}.",
    "{f} takes {n} from {p}.",
)
# fmt: off
_WORDS = (
    "apple", "bread", "chair", "cloud", "dance", "eagle", "flame", "grape", "house", "juice", "knife",
    "lemon", "mouse", "night", "ocean", "paper", "queen", "river", "snake", "table", "uncle", "voice",
    "water", "zebra", "bird", "cake", "door", "fish", "gold", "hand", "iron", "jump", "king", "lamp",
    "moon", "nest", "oven", "pink", "rain", "ship", "tree", "wind", "yard",
)
# fmt: on
_CHAT = (
    ("Hello!", "Hello, {p}! How can I help you?"),
    ("Good morning!", "Good morning, {p}! What shall we do today?"),
    ("How are you?", "I am well, thank you, {p}."),
    ("Thank you!", "You are welcome, {p}."),
    ("Goodbye!", "Goodbye, {p}! See you soon."),
    ("Who are you?", "I am a small model that likes {i}."),
    ("What do you like?", "I like {i} and long walks, {p}."),
    ("Tell me something.", "{p} once had many {i}."),
)


@dataclass(frozen=True, slots=True)
class Document:
    """A prompt and the text that should follow it."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A word problem: sentences, their chain of numbers, and the final value.

    ``chain`` is the start value followed by the signed changes; ``sentences`` is one sentence for each, and
    an aside among them if there is one.
    """

    person: str
    item: str
    chain: tuple[int, ...]
    sentences: tuple[str, ...]

    @property
    def final(self) -> int:
        return sum(self.chain)

    @property
    def question(self) -> str:
        return " ".join((*self.sentences, f"How many {self.item} does {self.person} have?"))

    @property
    def solution(self) -> str:
        value, steps = self.chain[0], []
        for change in self.chain[1:]:
            steps.append(_step(value, change))
            value += change
        return f"{' '.join(steps)} #### {value}"

    @property
    def document(self) -> Document:
        return Document(prompt(self.question), f" {self.solution}")


def prompt(question: str) -> str:
    """The text that a model continues with its answer."""
    return f"Question: {question}\nAnswer:"


def split_of(chain: Sequence[int]) -> Split:
    """The one split that may use this chain: 10 % of all chains for selection, 20 % for test."""
    digest = hashlib.blake2b(repr(tuple(chain)).encode(), digest_size=4).digest()
    bucket = int.from_bytes(digest, "big") % 10
    return "select" if bucket == 0 else "test" if bucket < 3 else "train"


def problems(split: Split, seed: int, steps: int = STEPS) -> Iterator[Problem]:
    """Endless problems of one split, always the same for the same arguments."""
    source = random.Random(f"problems {split} {seed} {steps}")
    while True:
        chain = _chain(source, steps)
        if split_of(chain) == split:
            yield _tell(source, chain)


def distinct(split: Split, seed: int, count: int) -> list[Problem]:
    """``count`` problems of full length whose chains all differ."""
    found: dict[tuple[int, ...], Problem] = {}
    for problem in problems(split, seed):
        found.setdefault(problem.chain, problem)
        if len(found) == count:
            break
    return list(found.values())


def with_asides(problems: Sequence[Problem], seed: int) -> list[Problem]:
    """The same problems; every second one has a sentence that changes nothing."""
    source = random.Random(f"asides {seed}")
    return [_with_aside(source, problem) if i % 2 else problem for i, problem in enumerate(problems)]


def documents(kinds: dict[str, float], seed: int) -> Iterator[Document]:
    """Endless training documents drawn from a weighted mixture.

    Parameters
    ----------
    kinds : dict
        Weight of ``problem1``, ``problem2``, ``problem3`` (steps), ``aside`` (a problem with a sentence that
        changes nothing), ``fact``, ``letters``, ``chat``.
    """
    source = random.Random(f"documents {sorted(kinds.items())} {seed}")
    streams = {f"problem{steps}": problems("train", seed, steps) for steps in range(1, STEPS + 1)}
    names, weights = list(kinds), list(kinds.values())
    while True:
        kind = source.choices(names, weights)[0]
        if kind in streams:
            yield next(streams[kind]).document
        elif kind == "aside":
            steps = source.randint(1, STEPS)
            yield _with_aside(source, next(streams[f"problem{steps}"])).document
        else:
            yield {"fact": _fact, "letters": _letters, "chat": _chat}[kind](source)


def _chain(source: random.Random, steps: int) -> tuple[int, ...]:
    value = source.randint(1, LARGEST)
    chain = [value]
    for _ in range(steps):
        target = source.choice([other for other in range(LARGEST + 1) if other != value])
        chain.append(target - value)
        value = target
    return tuple(chain)


def _tell(source: random.Random, chain: Sequence[int]) -> Problem:
    person, friend = source.sample(_NAMES, 2)
    item = source.choice(_ITEMS)
    sentences = [f"{person} has {chain[0]} {item}."]
    for change in chain[1:]:
        template = source.choice(_GAIN if change > 0 else _LOSS)
        sentences.append(template.format(p=person, f=friend, n=abs(change)))
    return Problem(person, item, tuple(chain), tuple(sentences))


def _with_aside(source: random.Random, problem: Problem) -> Problem:
    """The problem with a sentence that changes nothing, somewhere after the first.

    The sentence is a number among random words, half of them made up: what there is to learn of it is that a
    sentence about nobody does not count. Models that never saw one are at a loss when a test adds one, and
    such a test measures nothing.
    """
    count = source.randint(4, 6)
    words = [_made_up(source) if source.random() < 0.5 else source.choice(_WORDS) for _ in range(count)]
    words.insert(source.randint(1, len(words)), str(source.randint(1, LARGEST)))
    sentences = list(problem.sentences)
    sentences.insert(source.randint(1, len(sentences)), f"{source.choice(_OPENINGS)} {' '.join(words)}.")
    return replace(problem, sentences=tuple(sentences))


def _made_up(source: random.Random) -> str:
    """A word of one to three syllables."""
    syllables = source.randint(1, 3)
    return "".join(source.choice("bcdfghklmnprstvw") + source.choice("aeiou") for _ in range(syllables))


def _fact(source: random.Random) -> Document:
    value, change = _chain(source, 1)
    return Document("Fact:", f" {_step(value, change)}")


def _step(value: int, change: int) -> str:
    return f"{value} {'+' if change > 0 else '-'} {abs(change)} = {value + change}."


def _letters(source: random.Random) -> Document:
    word = source.choice(_WORDS)
    question, answer = source.choice(
        (
            (f"What is the first letter of {word}?", word[0]),
            (f"What is the last letter of {word}?", word[-1]),
            (f"Spell {word}.", " ".join(word)),
            (f"Write {word} twice.", f"{word} {word}"),
        )
    )
    return Document(prompt(question), f" {answer}")


def _chat(source: random.Random) -> Document:
    question, answer = source.choice(_CHAT)
    return Document(prompt(question), " " + answer.format(p=source.choice(_NAMES), i=source.choice(_ITEMS)))
