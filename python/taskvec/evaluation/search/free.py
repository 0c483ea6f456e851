"""Free values of a recipe: ``{search: ...}`` in the place of a value, and a value put in its place."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from taskvec.recipe.document import Document, Node, dotted
from taskvec.text import Key, kind_of, nearest, shown

WORD = "search"
KEYS = ("low", "high", "log", "integer", "init", "groups", "choices")
HINT = "write `{search: {low: 0, high: 1}}`, or the choices: `{search: [ties, dare_ties]}`"
MAXIMUM_GROUPS = 1000
DIGITS = 6  # of a number in a recipe: more would say nothing, and fewer would be seen

Kind = Literal["number", "integer", "choice"]
# A number between 0 and 1, a whole number, or the position of a choice.
Coordinate = float | int


@dataclass(frozen=True, slots=True)
class Free:
    """One dimension of a search.

    Attributes
    ----------
    name : str
        Its place in the recipe, as messages write places; ``[2]`` at its end is the place in a gradient.
    path : tuple
        The same as keys, without the place in a gradient.
    kind : {"number", "integer", "choice"}
    low, high : float
        The range of a number.
    log : bool
        Whether the number is searched by its logarithm.
    choices : tuple of Node
        Of a choice.
    init : float or int
        The value to begin with; of a choice its position.
    group : int, optional
        The place in a gradient over the layers.
    """

    name: str
    path: tuple[Key, ...]
    kind: Kind
    low: float
    high: float
    log: bool
    choices: tuple[Node, ...]
    init: float | int
    group: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        ends = {"choices": [node.plain() for node in self.choices]}
        if self.kind != "choice":
            ends = {"low": self.low, "high": self.high, "log": self.log}  # type: ignore[dict-item]
        return {"name": self.name, "kind": self.kind, **ends, "start": self.value(self.start)}

    def value(self, coordinate: Coordinate) -> Any:
        """The value at a coordinate: as it is written into a recipe."""
        if self.kind == "choice":
            return self.choices[int(coordinate)].plain()
        if self.kind == "integer":
            return int(coordinate)
        if self.log:
            number = math.exp(math.log(self.low) + coordinate * (math.log(self.high) - math.log(self.low)))
        else:
            number = self.low + coordinate * (self.high - self.low)
        return min(max(float(f"{number:.{DIGITS}g}"), self.low), self.high)

    def text(self, coordinate: Coordinate) -> str:
        """The value at a coordinate for a reader."""
        value = self.value(coordinate)
        return f"{value:.4g}" if isinstance(value, float) else shown(value)

    @property
    def range_text(self) -> str:
        """The range, or the choices, for a reader."""
        if self.kind == "choice":
            return ", ".join(self.text(at) for at in range(len(self.choices)))
        return f"{self.low:g} to {self.high:g}" + (", by its logarithm" if self.log else "")

    @property
    def start(self) -> Coordinate:
        """The coordinate of the value to begin with."""
        if self.kind != "number":
            return int(self.init)
        if self.log:
            return math.log(self.init / self.low) / math.log(self.high / self.low)
        return (self.init - self.low) / (self.high - self.low)

    @property
    def plain(self) -> Coordinate:
        """The same, but 1 for a weight that is never negative: the factor of a plain vector."""
        if "weight" not in self.path and self.path != ("alpha",):
            return self.start
        if self.kind == "choice":
            found = [at for at, node in enumerate(self.choices) if node.value == 1 and node.value is not True]
            return found[0] if found else self.start
        if self.kind == "integer" or not 0 <= self.low <= 1 <= self.high:
            return self.start
        return replace(self, init=1.0).start


def find(document: Document, at: tuple[Key, ...] = ()) -> list[Free]:
    """Every free value at or below a place of a document, in the order in which they are written.

    Their paths begin at that place.

    Raises
    ------
    RecipeError
        A free value that is not written as one; the message names the line.
    """
    node = document.root
    for step in at:
        below = node.below(step)
        assert below is not None
        node = below
    _hold_alone(document, node, at)
    return [free for path, found in _marked(node, ()) for free in _parsed(document, at, path, found)]


def _hold_alone(document: Document, node: Node, path: tuple[Key, ...]) -> None:
    """Return if no mapping has other keys next to the one that marks a free value."""
    items = node.value
    if isinstance(items, dict):
        if WORD in items and len(items) > 1:
            other = next(key for key in items if key != WORD)
            raise document.error(
                (*path, other),
                f"`{shown(other)}` next to `{WORD}` in `{dotted(path)}`",
                f"a free value is `{{{WORD}: ...}}` and nothing else; bounds and choices stand within it",
                key=True,
            )
        pairs = items.items()
    else:
        pairs = enumerate(items) if isinstance(items, list) else ()
    for key, item in pairs:
        _hold_alone(document, item, (*path, key))


def _marked(node: Node, path: tuple[Key, ...]) -> Iterator[tuple[tuple[Key, ...], Node]]:
    if isinstance(node.value, dict):
        if node.value.keys() == {WORD}:
            yield path, node.value[WORD]
            return
        for key, item in node.value.items():
            yield from _marked(item, (*path, key))
    elif isinstance(node.value, list):
        for index, item in enumerate(node.value):
            yield from _marked(item, (*path, index))


def _parsed(document: Document, at: tuple[Key, ...], path: tuple[Key, ...], node: Node) -> list[Free]:
    """The dimensions of one free value: several where it is a gradient."""
    here = (*at, *path, WORD)

    def wrong(message: str, hint: str | None = HINT, key: str | None = None) -> Any:
        return document.error((*here, key) if key else here, f"`{dotted(path)}`: {message}", hint)

    if isinstance(node.value, list):
        return [_choice(path, node.value, None, wrong)]
    if not isinstance(node.value, dict):
        raise wrong(f"a free value is a range or a list of choices, found {kind_of(node.plain())}")
    given: Mapping[str, Node] = node.value
    unknown = next((key for key in given if key not in KEYS), None)
    if unknown is not None:
        near = nearest(unknown, KEYS)
        known = ", ".join(f"`{key}`" for key in KEYS)
        hint = f"did you mean `{near}`?" if near else f"known here: {known}"
        raise document.error(
            (*here, unknown), f"unknown key `{shown(unknown)}` in `{dotted(path)}`", hint, key=True
        )
    if "choices" in given:
        other = next((key for key in given if key not in ("choices", "init")), None)
        if other is not None:
            raise wrong(f"`choices` and `{other}` together", "a choice has `choices`, and `init`", other)
        if not isinstance(given["choices"].value, list):
            raise wrong("`choices` is a list", HINT, "choices")
        return [_choice(path, given["choices"].value, given.get("init"), wrong)]
    return _range(path, {key: each.plain() for key, each in given.items()}, wrong)


def _choice(path: tuple[Key, ...], nodes: Sequence[Node], init: Node | None, wrong: Any) -> Free:
    values = [node.plain() for node in nodes]
    if len(nodes) < 2:
        raise wrong("a choice has at least two values", HINT)
    for position, value in enumerate(values):
        if any(_same(value, other) for other in values[:position]):
            raise wrong(f"the choice {kind_of(value)} is listed twice", "keep one of them")
    start = 0
    if init is not None:
        found = [at for at, value in enumerate(values) if _same(value, init.plain())]
        if not found:
            found_words = f"`init` is not one of the choices: {kind_of(init.plain())}"
            raise wrong(found_words, "name one of them", "init")
        start = found[0]
    return Free(dotted(path), path, "choice", 0.0, 0.0, False, tuple(nodes), start)


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other


def _range(path: tuple[Key, ...], given: Mapping[str, Any], wrong: Any) -> list[Free]:
    for key in ("low", "high"):
        if key not in given:
            raise wrong(f"`{key}` is missing")
        _hold_number(given[key], key, wrong)
    for key in ("log", "integer"):
        if not isinstance(given.get(key, False), bool):
            raise wrong(f"`{key}` is true or false, found {kind_of(given[key])}", None, key)
    low, high = given["low"], given["high"]
    log, whole = given.get("log", False), given.get("integer", False)
    if not low < high:
        raise wrong(f"`low` is {low:g} and `high` is {high:g}", "`low` is the smaller one", "low")
    if log and (low <= 0 or whole):
        why = "takes numbers above 0" if low <= 0 else "is not for whole numbers"
        raise wrong(f"`log` {why}", "remove `log`, or raise `low`" if low <= 0 else "remove `log`", "log")
    if whole and not (isinstance(low, int) and isinstance(high, int)):
        raise wrong("the range of a whole number has whole ends", "`{low: 1, high: 8, integer: true}`", "low")
    groups = given.get("groups")
    if groups is not None and (
        isinstance(groups, bool) or not isinstance(groups, int) or not 2 <= groups <= MAXIMUM_GROUPS or whole
    ):
        raise wrong(
            f"`groups` is a whole number from 2 to {MAXIMUM_GROUPS}, for numbers that are not `integer`",
            "`groups: 4` searches four factors, spread over the layers as a gradient", "groups",
        )  # fmt: skip
    middle = (low + high) // 2 if whole else math.sqrt(low * high) if log else (low + high) / 2
    starts = _starts(given.get("init", middle), groups, low, high, whole, wrong)
    kind: Kind = "integer" if whole else "number"
    name = dotted(path)
    if groups is None:
        return [Free(name, path, kind, low, high, log, (), starts[0])]
    return [
        Free(f"{name}[{at}]", path, kind, float(low), float(high), log, (), start, at)
        for at, start in enumerate(starts)
    ]


def _starts(init: Any, groups: int | None, low: float, high: float, whole: bool, wrong: Any) -> list[Any]:
    """The values to begin with, one for each place of a gradient."""
    values: list[Any] = (
        list(init) if isinstance(init, list) and groups is not None else [init] * (groups or 1)
    )
    if groups is not None and len(values) != groups:
        raise wrong(f"`init` has {len(values)} values for {groups} groups", "give one each, or one", "init")
    for value in values:
        _hold_number(value, "init", wrong)
        if not low <= value <= high or (whole and not isinstance(value, int)):
            raise wrong(
                f"`init` is {value:g}, which is not in the range", f"from {low:g} to {high:g}", "init"
            )
    return values


def _hold_number(value: Any, key: str, wrong: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise wrong(f"`{key}` is a number, found {kind_of(value)}", HINT, key)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def placed(root: Node, free: Sequence[Free], point: Sequence[Coordinate]) -> Node:
    """A recipe with a value in each free place, on the line where the free value was written."""
    gradients: dict[tuple[Key, ...], list[Any]] = {}
    for each, coordinate in zip(free, point, strict=True):
        if each.group is not None:
            gradients.setdefault(each.path, []).append(each.value(coordinate))
        elif each.kind == "choice":
            root = _with(root, each.path, each.choices[int(coordinate)])
        else:
            root = _with(root, each.path, Node(each.value(coordinate)))
    for path, values in gradients.items():
        root = _with(root, path, Node([Node(value) for value in values]))
    return root


def _with(node: Node, path: Sequence[Key], value: Node) -> Node:
    if not path:
        return value if value.origin is not None else replace(value, origin=node.origin)
    if isinstance(node.value, dict):
        key = str(path[0])
        return replace(node, value={**node.value, key: _with(node.value[key], path[1:], value)})
    items = list(node.value)
    items[int(path[0])] = _with(items[int(path[0])], path[1:], value)
    return replace(node, value=items)
