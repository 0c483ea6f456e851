"""Seeded perturbations of a question whose right answer stays known.

========== =============================================================================================
typo       letters swapped, dropped, doubled or mistyped in some words; no word of the answer is touched
distractor a true but useless sentence before the question that is asked
order      the sentences between the first and the question in another order, where none depends on the order
numbers    other numbers in the question, the answer worked out again from the arithmetic written in it
========== =============================================================================================

A question to which a perturbation cannot be applied safely is left out: None is returned, and the caller
counts it. The same seed, kind and document always give the same text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection

from taskvec.evaluation.tasks.numbers import rework

_WORD = re.compile(r"[A-Za-z]{4,}")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'(])")
_DIGIT = re.compile(r"\d")
# neighbouring keys on a QWERTY keyboard
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEIGHBOURS = {
    letter: [row[i + step] for step in (-1, 1) if 0 <= i + step < len(row)]
    for row in _ROWS
    for i, letter in enumerate(row)
}
# words by which a sentence leans on the one before it
_SEQUENCE = re.compile(
    r"\b(then|after|afterwards?|before|later|next|finally|first|second|third|last|now|remaining|remainder|"
    r"rest|left|leftover|again|another|still|also|each of|this|that|these|those|it|they|them|the same|"
    r"former|latter|total|however|so|thus|twice|half|double|triple)\b",
    re.IGNORECASE,
)
_DISTRACTORS = (
    "A shop across the street sells {n} kinds of tea.",
    "The nearest station has {n} platforms.",
    "A calendar on the wall shows a picture of {n} boats.",
    "The library nearby opened {n} years ago.",
    "A neighbour's garden has {n} rose bushes.",
    "There are {n} benches in the park.",
)
_PLAIN_DISTRACTORS = (
    "A shop across the street sells several kinds of tea.",
    "The nearest station was painted blue last spring.",
    "A calendar on the wall shows a picture of boats.",
    "The library nearby is closed on Sundays.",
)
TYPO_SHARE = 0.15  # of the words that may be touched
# words that say how much: none may come of a mistyped one, as `none` of `nine`
_QUANTITY = re.compile(
    r"none|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)"
    r"teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|hundred|thousand|million|half|thirds?|quarters?|"
    r"fourths?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?|once|twice|thrice|double|triple|dozen|more|"
    r"less|fewer|most|least|all|both|each|every",
    re.IGNORECASE,
)
_OPTIONS = re.compile(r"\s*\n\s*(?:Options|Choices|Answer choices)\s*:", re.IGNORECASE)


def draws(seed: int, kind: str, key: str) -> random.Random:
    """The random numbers of one document: independent of every other document and of their order."""
    return random.Random(f"{seed}:{kind}:{key}")


def typo(
    question: str, rng: random.Random, *, protected: Collection[str] = (), rate: float = TYPO_SHARE
) -> str | None:
    """`question` with mistyped words; at least one, or None where no word may be touched.

    Parameters
    ----------
    question : str
    rng : random.Random
    protected : collection of str
        Words that stay as they are: those of the answer and of the choices.
    rate : float
        Share of the words that may be touched.
    """
    question, options = _without_options(question)
    protected = [*protected, options]
    kept = {word.lower() for text in protected for word in _WORD.findall(text)}
    words = [found for found in _WORD.finditer(question) if found.group().lower() not in kept]
    if not words:
        return None
    count = max(1, round(rate * len(words)))
    text = question
    for found in sorted(rng.sample(words, count), key=lambda word: -word.start()):
        text = text[: found.start()] + _mistype(found.group(), rng) + text[found.end() :]
    return text + options


def _without_options(question: str) -> tuple[str, str]:
    """A question, and the list of options that follows it, if one does."""
    found = _OPTIONS.search(question)
    return (question[: found.start()], question[found.start() :]) if found is not None else (question, "")


def _mistype(word: str, rng: random.Random) -> str:
    """`word` with one mistake after its first letter; never the same word, nor one that says how much."""
    for _ in range(8):
        at = rng.randrange(1, len(word) - 1)
        slip = rng.choice(("swap", "drop", "double", "beside"))
        if slip == "swap":
            changed = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        elif slip == "drop":
            changed = word[:at] + word[at + 1 :]
        elif slip == "double":
            changed = word[:at] + word[at] + word[at:]
        else:
            changed = word[:at] + rng.choice(_NEIGHBOURS[word[at].lower()]) + word[at + 1 :]
        if changed != word and not _QUANTITY.fullmatch(changed):
            return changed
    return word + word[-1]


def distractor(question: str, rng: random.Random, *, rate: float | None = None) -> str | None:
    """`question` with useless sentences before its last one; they have numbers if the question has any.

    Parameters
    ----------
    question : str
    rng : random.Random
    rate : float, optional
        Useless sentences for each sentence of the question, at least one and each at most once; by default
        one in all.
    """
    question, options = _without_options(question)
    sentences = _DISTRACTORS if _DIGIT.search(question) else _PLAIN_DISTRACTORS
    parts = _SENTENCE.split(question)
    if rate is None:
        chosen = [rng.choice(sentences)]
    else:
        chosen = rng.sample(sentences, min(len(sentences), max(1, round(rate * len(parts)))))
    text = " ".join(sentence.format(n=rng.randrange(2, 20)) for sentence in chosen)
    if len(parts) == 1:
        return f"{text} {question}{options}"
    cut = len(question) - len(parts[-1])
    return f"{question[:cut]}{text} {parts[-1]}{options}"


def order(question: str, rng: random.Random) -> str | None:
    """`question` with its middle sentences reordered, or None where that could change what is meant."""
    parts = _SENTENCE.split(question.strip())
    middle = parts[1:-1]
    if len(middle) < 2 or any(_SEQUENCE.search(sentence) for sentence in middle):
        return None
    for _ in range(8):
        shuffled = rng.sample(middle, len(middle))
        if shuffled != middle:
            return " ".join([parts[0], *shuffled, parts[-1]])
    return None


def numbers(question: str, answer: str, rng: random.Random) -> tuple[str, str, str, str] | None:
    """Question and answer with other numbers.

    Returns
    -------
    (question, answer, before, after), or None
        The new texts and the final answer before and after; None where the arithmetic that the answer writes
        down does not explain its final number, or a number of the question cannot be followed through it.
    """
    return rework(question, answer, rng)
