"""Which tensors a run touches: regular expressions, presets and layer ranges over tensor names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from taskvec.arguments import texts
from taskvec.errors import RecipeError
from taskvec.models.part_names import NO_PARTS, PartNames, StoredPart, block_name
from taskvec.models.tensor_names import is_vocabulary, layer_of
from taskvec.option import option, recorded
from taskvec.regex import regex
from taskvec.text import kind_of

Preset = Literal["full", "no-embed", "no-embed-norm"]
_NORM = regex(r"(?:^|[./])(?:[^./]*norm[^./]*|ln_[^./]+)\.(?:weight|bias)$", re.IGNORECASE)

_LAYER_RANGE = regex(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?")


def _parse_layers(text: str) -> tuple[tuple[int, int], ...]:
    ranges = []
    for part in text.split(","):
        match = _LAYER_RANGE.fullmatch(part)
        if match is None:
            raise RecipeError(
                f"layers `{text}` has a part `{part.strip()}` that is neither a number nor a range",
                "write layers as `8-20` or `0,3,5-7`",
            )
        first = int(match[1])
        last = int(match[2]) if match[2] else first
        if last < first:
            raise RecipeError(
                f"layers `{text}` has the range `{part.strip()}`, which ends before it starts",
                f"write `{last}-{first}`",
            )
        ranges.append((first, last))
    return tuple(ranges)


def _compile(patterns: tuple[str, ...], option: str) -> tuple[re.Pattern[str], ...]:
    compiled = []
    for pattern in patterns:
        if "/*" in pattern:  # as a regular expression it would mean other folders that begin so too
            raise RecipeError(
                f"{option} `{pattern}` is not a regular expression of names: `/*` is any number of slashes",
                f"`^{pattern.partition('/*')[0].lstrip('^')}/` means the tensors of a folder",
            )
        try:
            compiled.append(re.compile(pattern))
        except (re.error, OverflowError, RecursionError) as error:
            raise RecipeError(
                f"{option} `{pattern}` is not a regular expression: {error}",
                "`.` matches any character and `\\.` a dot; quote the pattern to keep the shell off it",
            ) from None
    return tuple(compiled)


@dataclass(frozen=True, slots=True)
class Selection:
    r"""Which tensors a run touches; the others are the target's bytes.

    A tensor is selected when the preset allows it, it lies in one of ``layers`` (if given), at least one of
    ``include`` is found in its name (if given), and none of ``exclude`` is. Of a tensor that holds several
    weights (experts, queries with keys and values), a pattern that is found in the name of a weight means
    that part; one that is found in the stored name alone means all of it.

    Parameters
    ----------
    include, exclude : tuple of str
        Regular expressions, searched anywhere in the name: ``self_attn``, ``layers\.(3|4)\.``, ``bias$``.
    preset : {"full", "no-embed", "no-embed-norm"}
        ``no-embed`` leaves out the input embedding and the output head, ``no-embed-norm`` the norms as well.
    layers : str, optional
        Layer numbers and inclusive ranges: ``8-20``, ``0,3,5-7``. Tensors outside any layer are then left
        out.

    Raises
    ------
    RecipeError
        A pattern is not a regular expression, the preset is unknown, or the layers cannot be read.
    """

    # fmt: off
    include: tuple[str, ...] = option(
        (), section="Selection", parse="texts", short="-i", metavar="REGEX", recorded=True, for_vectors=True,
        help="Merge only tensors whose name matches (repeatable); the others are the target's bytes.",
    )
    exclude: tuple[str, ...] = option(
        (), section="Selection", parse="texts", short="-e", metavar="REGEX", recorded=True, for_vectors=True,
        help="Leave tensors whose name matches as they are in the target (repeatable).",
    )
    preset: Preset = option(
        "full", section="Selection", parse="choice", choices=get_args(Preset), recorded=True,
        for_vectors=True, help="Leave out embeddings and output head, or those and the norms.",
    )
    layers: str | None = option(
        None, section="Selection", metavar="A-B[,C...]", recorded=True, for_vectors=True,
        help="Merge only these layers, counted from 0: `8-20`, `0,2,4-6`.",
    )
    # fmt: on
    _include: tuple[re.Pattern[str], ...] = field(init=False, repr=False, compare=False)
    _exclude: tuple[re.Pattern[str], ...] = field(init=False, repr=False, compare=False)
    _layers: tuple[tuple[int, int], ...] = field(init=False, repr=False, compare=False)
    _parts: PartNames = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            object.__setattr__(self, name, texts(getattr(self, name), name))
        if self.preset not in get_args(Preset):
            raise RecipeError(
                f"preset `{self.preset}` is not known", f"choose one of {', '.join(get_args(Preset))}"
            )
        if self.layers is not None and not isinstance(self.layers, str):
            raise RecipeError(
                f"`layers` is a text, found {kind_of(self.layers)}", "write `8-20` or `0,3,5-7`"
            )
        object.__setattr__(self, "_parts", NO_PARTS)
        object.__setattr__(self, "_include", _compile(self.include, "include"))
        object.__setattr__(self, "_exclude", _compile(self.exclude, "exclude"))
        object.__setattr__(self, "_layers", _parse_layers(self.layers) if self.layers is not None else ())

    @property
    def is_full(self) -> bool:
        """Whether every tensor is selected, whatever its name."""
        return not (self.include or self.exclude or self._layers) and self.preset == "full"

    def matches(self, name: str) -> bool:
        """Whether the tensor of this name is selected."""
        if self.preset != "full":
            if is_vocabulary(name):
                return False
            if self.preset == "no-embed-norm" and _NORM.search(name):
                return False
        if self._layers and not self._in_layers(name):
            return False
        if not (self._include or self._exclude):
            return True
        return any(self._mask(name))

    def with_parts(self, parts: PartNames) -> Selection:
        """The same on a model of which some tensors hold other weights than their names say."""
        bound = replace(self)
        object.__setattr__(bound, "_parts", parts)
        return bound

    def parts(self, name: str) -> tuple[StoredPart, ...]:
        """The weights in a tensor; none where it is one weight, under its own name."""
        return self._parts.of(name)

    def taken(self, name: str) -> tuple[StoredPart, ...]:
        """The weights in a selected tensor that are; none where all of it is selected."""
        if not (self._include or self._exclude):
            return ()
        parts, mask = self._parts.of(name), self._mask(name)
        if not parts or all(mask):
            return ()
        return tuple(part for part, is_taken in zip(parts, mask, strict=True) if is_taken)

    def _mask(self, name: str) -> list[bool]:
        """Whether the patterns take each of the weights in a tensor."""
        names = self._names(name)
        taken = [not self._include] * len(names)
        for patterns, found_is_taken in ((self._include, True), (self._exclude, False)):
            for pattern in patterns:
                for place, is_found in enumerate(_found(pattern, name, names)):
                    if is_found:
                        taken[place] = found_is_taken
        return taken

    def select(self, names: Iterable[str]) -> list[str]:
        """The selected names, in the order given.

        Raises
        ------
        RecipeError
            No name is selected.
        """
        names = list(names)
        if self.is_full:
            return names
        selected = [name for name in names if self.matches(name)]
        if not selected:
            span = self.layer_span(names)
            if self._layers and span is not None and not any(map(self._in_layers, names)):
                raise RecipeError(
                    f"layers `{self.layers}` do not exist: {span}",
                    "name some of these layers, counted from 0",
                )
            examples = ", ".join(f"`{name}`" for name in names[len(names) // 2 :][:3])
            raise RecipeError(
                f"the selection {self} matches none of {len(names)} tensors",
                f"names look like {examples}" if examples else "the checkpoint has no tensors",
            )
        return selected

    def unused(self, names: Iterable[str]) -> list[str]:
        """The parts of the selection that no name answers to, each as the user wrote it."""
        names = list(names)
        parts = [
            f"{option} `{pattern.pattern}`"
            for option, patterns in (("include", self._include), ("exclude", self._exclude))
            for pattern in patterns
            if not any(any(_found(pattern, name, self._names(name))) for name in names)
        ]
        if self._layers:
            present = {layer for name in names if (layer := layer_of(name)) is not None}
            end = max(present, default=-1) + 1
            for first, last in self._layers:
                if any(first <= layer <= last for layer in present):
                    first = max(first, end)  # what lies behind the last layer
                if first <= last:
                    parts.append(f"layers `{first}-{last}`" if last > first else f"layer `{first}`")
        return parts

    def layer_span(self, names: Iterable[str]) -> str | None:
        """Which layers there are, in words; ``None`` without any."""
        present = {layer for name in names if (layer := layer_of(name)) is not None}
        if not present:
            return None
        first, last = min(present), max(present)
        return f"the layers are {first} to {last}" if last > first else f"the only layer is {first}"

    def _in_layers(self, name: str) -> bool:
        layer = layer_of(name)
        return layer is not None and any(first <= layer <= last for first, last in self._layers)

    def _names(self, name: str) -> list[str]:
        """The names of the weights in a tensor."""
        return [block_name(part.name) for part in self._parts.of(name)] or [name]

    def __str__(self) -> str:
        parts = [f"include `{pattern}`" for pattern in self.include]
        parts += [f"exclude `{pattern}`" for pattern in self.exclude]
        if self._layers:
            parts.append(f"layers `{self.layers}`")
        if self.preset != "full" or not parts:
            parts.insert(0, f"preset `{self.preset}`")
        return ", ".join(parts)


def _found(pattern: re.Pattern[str], stored: str, names: Sequence[str]) -> list[bool]:
    """In which names of the weights in a stored tensor a pattern is found; in all, if in its own alone."""
    found = [pattern.search(name) is not None for name in names]
    if any(found):
        return found
    is_found = pattern.search(stored) or pattern.search(block_name(stored))
    return [is_found is not None] * len(names)


def selection_recipe(selection: Selection) -> dict[str, Any]:
    """The parts of a selection that are not the default, as a recipe has them."""
    return recorded(selection)


_STRICTNESS: tuple[Preset, ...] = ("full", "no-embed", "no-embed-norm")


def both(first: Selection, second: Selection) -> Selection:
    """The selection of tensors that both select."""
    if first.include and second.include:
        # a name has to hold a match of each
        ahead = [f"(?=.*(?:{'|'.join(part)}))" for part in (first.include, second.include)]
        include: tuple[str, ...] = (f"(?s)^{''.join(ahead)}",)
    else:
        include = first.include or second.include
    return replace(
        first,
        include=include,
        exclude=(*first.exclude, *second.exclude),
        preset=max(first.preset, second.preset, key=_STRICTNESS.index),
        layers=_common_layers(first.layers, second.layers),
    )


def _common_layers(first: str | None, second: str | None) -> str | None:
    if first is None or second is None:
        return first if second is None else second
    one, other = (
        [tuple(map(int, part.split("-"))) for part in text.replace(" ", "").split(",")]
        for text in (first, second)
    )
    ranges = [(max(a[0], b[0]), min(a[-1], b[-1])) for a in one for b in other]
    common = ",".join(f"{low}-{high}" for low, high in ranges if low <= high)
    if not common:
        raise RecipeError(f"layers `{first}` and `{second}` have none in common")
    return common
