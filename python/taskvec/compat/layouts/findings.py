"""What is told of models that were brought into the target's layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from taskvec.compat.findings import Finding, finding
from taskvec.compat.layouts.vocabulary import missing_rows
from taskvec.models.tensor_names import is_vocabulary
from taskvec.text import roles

if TYPE_CHECKING:
    from taskvec.models.model import Model


def check_layouts(role: str, base: Model, others: Sequence[tuple[str, Model]]) -> Iterator[Finding]:
    """Tensors that another model stores in another layout, and rows of a vocabulary that it does not have."""
    layouts: dict[tuple[str, str, int], list[str]] = {}
    rows: dict[tuple[str, int], list[str]] = {}
    for name, other in others:
        moved = [each for each in other.assembled if not is_vocabulary(each)]
        if moved:
            first = next(piece.name for piece in other.assembled[moved[0]].pieces if piece.name)
            layouts.setdefault((moved[0], first, len(moved)), []).append(name)
        for each, count in missing_rows(other).items():
            rows.setdefault((each, count), []).append(name)
    for (mine, theirs, count), who in layouts.items():
        what = f"{count:,} tensors are stored in another layout and matched: `{mine}` from `{theirs}`"
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
