"""Options of ``taskvec sweep`` for arms that say what a vector is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from taskvec.cli.options import option, split_names, together


def numbers(kind: type) -> Callable[[click.Context, click.Parameter, Sequence[str]], tuple[Any, ...]]:
    """A callback for numbers with commas between them."""

    def read(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> tuple[Any, ...]:
        found = []
        for text in split_names(ctx, param, values):
            try:
                found.append(kind(text.removesuffix("%")))
            except ValueError:
                words = "a whole number" if kind is int else "a number"
                raise click.BadParameter(f"`{text}` is not {words}", param=param) from None
        return tuple(found)

    return read


part_options = together(
    option("--groups", type=click.IntRange(2, 100), metavar="N", section="Parts of the vector",
           help="Only each of N groups of layers, and all but it."),
    option("--modules", is_flag=True, default=None, section="Parts of the vector",
           help="The same by kind of module: attention, feed-forward, norms, vocabulary."),
    option("--top", multiple=True, callback=numbers(float), metavar="P[,P...]", section="Parts of the vector",
           help="Only the P per cent of its elements that are largest."),
    option("--rank", multiple=True, callback=numbers(int), metavar="R[,R...]", section="Parts of the vector",
           help="Every matrix at rank R."),
    option("--sign", is_flag=True, default=None, section="Parts of the vector",
           help="Signs alone, with one scale per tensor."),
    option("--without-sft", is_flag=True, default=None, section="Parts of the vector",
           help="Without its projection on reference - base."),
    option("--between", multiple=True, callback=numbers(float), metavar="T[,T...]",
           section="Parts of the vector", help="reference + T (donor - reference), on the reference."),
    option("--also", metavar="MODEL|VEC", section="Parts of the vector",
           help="A second donor or saved vector: alone, and added to the first."),
)  # fmt: skip


def parts_given(options: dict[str, Any]) -> dict[str, Any]:
    """What a command line names of parts, in the layout of a sweep file."""
    lists = {key: list(options[key]) for key in ("top", "rank", "between")}
    return {**lists, **{key: options[key] for key in ("groups", "modules", "sign", "without_sft", "also")}}
