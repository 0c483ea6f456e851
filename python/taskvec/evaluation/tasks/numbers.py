"""Working out a word problem again with other numbers, from the arithmetic that its answer writes down.

Answers of the GSM8K kind hold their steps as equations (``<<48/2=24>>`` or ``18+7=25``) and end in ``####
N``. A number of the question may change if it can be followed without doubt: it stands once in the question,
is neither a result of an equation nor a share, and enters the equations once, or is not a constant that an
answer brings in itself. Anything less certain, and the document is left out.
"""

from __future__ import annotations

import ast
import operator
import random
import re
from dataclasses import dataclass
from fractions import Fraction

_NUMBER = re.compile(r"(?<![\w.,])\d{1,3}(?:,\d{3})+(?!\d)|(?<![\w.])\d+(?:\.\d+)?(?!\w)")
# numbers that touch operators and letters too, as in `48/2` and `24clips`
_ANY_NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?!\d)|\d+(?:\.\d+)?|\.\d+")
_IN_EQUATION = re.compile(r"\d+(?:\.\d+)?|\.\d+")
_SIDE = r"[-+*/()\d.\s]*"
_MARKED = re.compile(r"<<([-+*/().\d\s]+)=([-+.\d\s]+)>>")
_PLAIN = re.compile(rf"((?:\d|\(){_SIDE}[-+*/]{_SIDE}[\d)])\s*=\s*\$?(-?\d+(?:\.\d+)?)")
_FINAL = re.compile(r"####\s*\$?(-?[\d,]+(?:\.\d+)?)")
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_SHARE = re.compile(r"\s*(?:%|percent)")
# numbers that an answer may bring in itself: days, hours, dozens, halves, cents
CONSTANTS = frozenset(
    map(Fraction, (2, 3, 4, 5, 6, 7, 8, 10, 12, 24, 30, 31, 36, 50, 52, 60, 100, 360, 365, 1000))
)
ATTEMPTS = 40
MOST_EQUATIONS = 40


@dataclass(frozen=True, slots=True)
class Equation:
    """One step: an expression and the result that the answer states."""

    expression: str
    result: Fraction


def rework(question: str, answer: str, rng: random.Random) -> tuple[str, str, str, str] | None:
    """Question and answer with other numbers, and the final answer before and after; None where in doubt."""
    final = _FINAL.search(answer)
    steps = equations(answer)
    if final is None or not steps:
        return None
    before = Fraction(final.group(1).replace(",", ""))
    if steps[-1].result != before:
        return None
    free = changeable(question, steps)
    if not free:
        return None
    for _ in range(ATTEMPTS):
        changed = {old: _other(old, rng) for old in free}
        mapping = follow(steps, changed)
        if mapping is None or mapping.get(before, before) == before or not _alike(mapping):
            continue
        after = mapping[before]
        new_question = _replace(question, changed, _NUMBER)
        # prose and equations of the answer alike; numbers outside of the mapping are constants of the problem
        new_answer = _replace(answer, mapping)
        found = _FINAL.search(new_answer)
        if found is None or Fraction(found.group(1).replace(",", "")) != after:
            continue
        return new_question, new_answer, _text(before), _text(after)
    return None


def equations(answer: str) -> list[Equation]:
    """The steps of an answer; empty if one of them is wrong or cannot be read."""
    found = _MARKED.findall(answer) or _PLAIN.findall(answer)
    steps = []
    for expression, result in found[: MOST_EQUATIONS + 1]:
        try:
            step = Equation(expression.strip(), Fraction(result.strip()))
            if evaluate(step.expression) != step.result:
                return []
        except (ValueError, ZeroDivisionError):
            return []
        steps.append(step)
    return steps if len(steps) <= MOST_EQUATIONS else []


def evaluate(expression: str) -> Fraction:
    """The exact value of an expression of numbers, + - * / and parentheses.

    Raises
    ------
    ValueError
        It is anything else.
    """
    if len(expression) > 200:
        raise ValueError("too long")
    try:
        # zeros in front (`007`) are not Python
        tree = ast.parse(re.sub(r"\b0+(?=\d)", "", expression.strip()), mode="eval")
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(expression) from error
    return _value(tree.body)


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError(ast.dump(node))


def changeable(question: str, steps: list[Equation]) -> list[Fraction]:
    """The numbers of a question that can be followed through the equations without doubt."""
    stand = list(_NUMBER.finditer(question))
    asked = [Fraction(found.group().replace(",", "")) for found in stand]
    shares = {value for value, found in zip(asked, stand, strict=True) if _SHARE.match(question, found.end())}
    results = {step.result for step in steps}
    entering = [Fraction(found) for step in steps for found in _IN_EQUATION.findall(step.expression)]

    def certain(number: Fraction) -> bool:
        if number <= 1 or number.denominator != 1 or number in shares or number in results:
            return False
        uses = entering.count(number)
        return asked.count(number) == 1 and (uses == 1 or (uses > 1 and number not in CONSTANTS))

    return [number for number in dict.fromkeys(asked) if certain(number)]


def follow(steps: list[Equation], changed: dict[Fraction, Fraction]) -> dict[Fraction, Fraction] | None:
    """Every number's new value, results included; None if a value would have two."""
    mapping, constants = dict(changed), set()
    for step in steps:
        entering = {Fraction(found) for found in _IN_EQUATION.findall(step.expression)}
        constants |= entering - set(mapping)
        try:
            new = evaluate(_replace(step.expression, mapping))
        except (ValueError, ZeroDivisionError):
            return None
        if mapping.setdefault(step.result, new) != new:
            return None
    return None if constants & set(mapping) else mapping


def _alike(mapping: dict[Fraction, Fraction]) -> bool:
    """Whether whole numbers stay whole, and positive ones positive."""
    return all(
        (new > 0 or old <= 0) and (new.denominator == 1 or old.denominator != 1)
        for old, new in mapping.items()
    )


def _other(number: Fraction, rng: random.Random) -> Fraction:
    """Another whole number, larger, of the same order of size."""
    value = int(number)
    if value % 10 == 0 and value >= 10:
        return Fraction(value + 10 * rng.randint(1, max(2, value // 20)))
    return Fraction(value + rng.randint(1, max(4, value)))


def _text(number: Fraction) -> str:
    """A number as the problems write it."""
    if number.denominator == 1:
        return str(number.numerator)
    return f"{float(number):.10g}"


def _replace(text: str, mapping: dict[Fraction, Fraction], pattern: re.Pattern[str] = _ANY_NUMBER) -> str:
    """`text` with every number that `pattern` finds and `mapping` knows replaced."""

    def new(found: re.Match[str]) -> str:
        value = Fraction(found.group().replace(",", ""))
        return _text(mapping[value]) if value in mapping else found.group()

    return pattern.sub(new, text)
