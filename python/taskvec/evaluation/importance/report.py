"""What was found out of a map's making."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from taskvec.text import duration, listed, plural


@dataclass(frozen=True, slots=True)
class ImportanceReport:
    """The outcome of :func:`taskvec.importance`.

    Attributes
    ----------
    out : str
        The folder, or the address.
    documents : mapping of str to int
        By task, the documents that count.
    left_out : int
        Documents without a reference answer.
    tokens : int
        Of the answers whose likelihood was differentiated.
    tensors : int
        Written.
    without_gradient : tuple of str
        Those that had no part in the likelihood: zero.
    unknown : tuple of str
        Those of the model's files that are not the model's parameters: not in the map.
    device : str
    seconds : float
    resumed : int
        Documents that an earlier, unfinished run had been through.
    already_done : bool
        An earlier run had finished, and nothing was touched.
    """

    out: str
    documents: Mapping[str, int]
    left_out: int
    tokens: int
    tensors: int
    without_gradient: tuple[str, ...]
    unknown: tuple[str, ...]
    device: str
    seconds: float
    resumed: int = 0
    already_done: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "documents": dict(self.documents)}

    def lines(self) -> list[str]:
        """The figures in words."""
        total = sum(self.documents.values())
        found = [
            f"{plural(total, 'document')} of {', '.join(self.documents)}, {plural(self.tokens, 'token')} of "
            f"answers, {plural(self.tensors, 'tensor')}, in {duration(self.seconds)}"
        ]
        if self.left_out:
            found.append(f"{plural(self.left_out, 'document')} without a reference answer left out")
        if self.without_gradient:
            found.append(
                f"no gradient, so zero: {plural(len(self.without_gradient), 'tensor')}: "
                f"{listed(self.without_gradient)}"
            )
        if self.unknown:
            found.append(
                f"not in the map, as the loaded model does not have them: "
                f"{plural(len(self.unknown), 'tensor')}: {listed(self.unknown)}"
            )
        return found

    def __str__(self) -> str:
        return "\n".join([self.out, *(f"  {line}" for line in self.lines())])
