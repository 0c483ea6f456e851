"""Filters of a recipe without effect: a typo, or a recipe for models of another family."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from taskvec.compat.findings import Finding, finding
from taskvec.methods.values import Setting
from taskvec.recipe.expand_group import Merger
from taskvec.recipe.schema import Recipe
from taskvec.text import Key, nearest, shown

Place = tuple[tuple[Key, ...], str]
"""Where a filter is written, and its text."""


def unmatched(recipe: Recipe, mergers: Iterable[Merger], names: Iterable[str]) -> list[Finding]:
    """A note on each filter that matches no tensor that is merged, with its line.

    Parameters
    ----------
    recipe : Recipe
    mergers : iterable of Merger
        After they have made their tensors.
    names : iterable of str
        Of the output's tensors: what a filter may have been meant to find.
    """
    is_hit: dict[Place, bool] = {}
    inside: dict[Place, tuple[str, str]] = {}
    for merger in mergers:
        for place, matches in _places(merger):
            is_hit[place] = is_hit.get(place, False) or matches
            if place[1] in merger.inside:
                inside.setdefault(place, merger.inside[place[1]])
                is_hit[place] = False
    lacking = [place for place, matches in is_hit.items() if not matches]
    parts = {part for name in names for part in name.split(".")} if lacking else set()
    words = sorted(filter(str.isidentifier, parts))
    return [
        _of_a_part(recipe, *place, *inside[place]) if place in inside else _remark(recipe, *place, words)
        for place in lacking
    ]


def _of_a_part(recipe: Recipe, path: tuple[Key, ...], text: str, part: str, name: str) -> Finding:
    leaf = name.removesuffix(".weight").rpartition(".")[2]
    return finding(
        "recipe-filter",
        recipe.document.place(path),
        "",
        f"filter `{shown(text)}` is found in `{shown(part)}`, which is stored as a part of `{shown(name)}`: "
        "its value cannot be another one than that of the rest, and has no effect there",
        f"name the stored tensor: `filter: {shown(leaf)}`",
    )


def _remark(recipe: Recipe, path: tuple[Key, ...], text: str, words: list[str]) -> Finding:
    near = nearest(text, words)
    name = next(step for step in reversed(path) if isinstance(step, str) and step not in ("filter", "value"))
    return finding(
        "recipe-filter",
        recipe.document.place(path),
        "",
        f"filter `{shown(text)}` of `{shown(name)}` matches no tensor that is merged",
        f"did you mean `{near}`?" if near else "`taskvec inspect MODEL --all` lists their names",
    )


def _places(merger: Merger) -> Iterator[tuple[Place, bool]]:
    """Every filter of a group, and whether a tensor of the group matches it."""
    group = merger.group
    for scope in group.scopes:
        yield from _of_settings(merger, scope.settings, scope.path, 0)
    for number, source in enumerate(group.sources):
        # Filters of a model's parameters are looked for in its own names, which slices number otherwise.
        if number != merger.base:
            name = 1 + number if group.is_slice else 0
            yield from _of_settings(merger, source.parameters, (*source.path, "parameters"), name)


def _of_settings(
    merger: Merger, settings: Mapping[str, Setting], path: tuple[Key, ...], name: int
) -> Iterator[tuple[Place, bool]]:
    known = {parameter.name for parameter in merger.method.parameters if not parameter.ignored}
    for parameter, setting in settings.items():
        if parameter not in known:
            continue
        for branch in setting.branches:
            if branch.filter is not None:
                place = (*path, parameter, *branch.path[:-1], "filter")
                yield (place, branch.filter), merger.matched(branch.filter, name)
