"""What is told of models that were brought into the target's layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from taskvec.compat.findings import Finding, finding
from taskvec.compat.layouts.table import words_of
from taskvec.compat.layouts.vocabulary import missing_rows
from taskvec.models.tensor_names import is_vocabulary
from taskvec.regex import regex
from taskvec.text import roles

if TYPE_CHECKING:
    from taskvec.models.model import Model


_NUMBER = regex(r"(?<=\.)\d+(?=\.)")
# Kinds of tensors that are named; a family has a few.
_SHOWN = 4


def check_layouts(role: str, base: Model, others: Sequence[tuple[str, Model]]) -> Iterator[Finding]:
    """Tensors that another model stores in another layout, and rows of a vocabulary that it does not have."""
    layouts: dict[str, list[str]] = {}
    rows: dict[tuple[str, int], list[str]] = {}
    for name, other in others:
        if what := _matched(base, other):
            layouts.setdefault(what, []).append(name)
        for each, count in missing_rows(other).items():
            rows.setdefault((each, count), []).append(name)
    for what, who in layouts.items():
        yield finding("layout", roles(who), "", what)
    for (name, count), who in rows.items():
        all_rows = base.tensors[name].shape[0]
        yield finding(
            "vocabulary-padded",
            f"`{name}` of {roles(who)}",
            f"{all_rows:,} rows as in the {role}",
            f"{count:,} rows in common; the {role}'s other {all_rows - count:,} are kept",
            "if ids stand for other tokens, leave embedding and head out with `--preset no-embed`",
        )


def _matched(base: Model, other: Model) -> str:
    """Which tensors were matched in another layout, a row of the table for each kind; empty if none were."""
    kinds: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for name, made in other.assembled.items():
        first = next((piece.name for piece in made.pieces if piece.name), None)
        if first is not None and not is_vocabulary(name):
            kinds.setdefault((_NUMBER.sub("*", name), _NUMBER.sub("*", first)), []).append((name, first))
    if not kinds:
        return ""
    parts = []
    for pairs in kinds.values():
        mine, theirs = pairs[0]
        row = words_of(mine, base.config) or words_of(theirs, other.config)
        parts.append(f"`{mine}` from `{theirs}`{f' ({row})' if row else ''}")
    more = f" and {len(parts) - _SHOWN} more kinds" if len(parts) > _SHOWN else ""
    count = sum(map(len, kinds.values()))
    matched = "; ".join(parts[:_SHOWN])
    return f"{count:,} tensors are stored in another layout and matched: {matched}{more}"
