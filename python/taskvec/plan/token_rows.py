"""Where the rows of a model come from when it is moved to another tokenizer: token by token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from taskvec.compat.token_pieces import Splitter
from taskvec.compat.token_text import Lookup, meanings, roles_of
from taskvec.compat.vocabulary import Vocabulary
from taskvec.plan.token_ways import Method

Way = Literal["copied", "role", "computed", "subword", "zero"]


class Origin(NamedTuple):
    """Where the row of a token comes from.

    Attributes
    ----------
    way : {"copied", "role", "computed", "subword", "zero"}
        A row of the target, of the same token or of that with the same role; one that is computed from the
        other model's rows; the mean of rows of the target; or nothing.
    rows : tuple of int
        Those rows of the target.
    """

    way: Way
    rows: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Origins:
    """The rows of all tokens.

    Attributes
    ----------
    by_token : mapping of str to Origin
    ids : mapping of str to int
        The tokens of the new vocabulary.
    """

    by_token: Mapping[str, Origin]
    ids: Mapping[str, int]

    def of(self, way: Way) -> list[str]:
        """The tokens with one way, by their ids."""
        found = (token for token, origin in self.by_token.items() if origin.way == way)
        return sorted(found, key=self.ids.__getitem__)

    @property
    def counts(self) -> dict[str, int]:
        """How many tokens there are of each way."""
        counted = Counter(origin.way for origin in self.by_token.values())
        return {way: counted[way] for way in ("copied", "role", "computed", "subword", "zero")}


@dataclass(frozen=True, slots=True)
class Approximation:
    """What is computed when the plan is run.

    Attributes
    ----------
    method : {"omp", "nearest", "subword"}
    k : int
        Rows that a row is made of, at most.
    origins : Origins
    shared : tuple of (int, int)
        Tokens that both have: the row of the other model, and the target's.
    tokens : tuple of str
        Those whose rows are computed.
    wanted : tuple of int
        Their rows of the other model.
    spaces : mapping of str to str
        The target's matrices, and the matrix of the other model in whose space each is approximated.
    height : int
        Rows of the output.
    working : int
        Bytes that the computation takes, at most.
    changed : tuple of str
        Sample texts that the tokenizer does not give back when it has cut them.
    """

    method: Method
    k: int
    origins: Origins
    shared: tuple[tuple[int, int], ...]
    tokens: tuple[str, ...]
    wanted: tuple[int, ...]
    spaces: Mapping[str, str]
    height: int
    working: int
    changed: tuple[str, ...]


def origins(target: Vocabulary, other: Vocabulary, method: Method, heights: tuple[int, int]) -> Origins:
    """Where the row of every token of another vocabulary comes from.

    Parameters
    ----------
    target, other : Vocabulary
    method : {"omp", "nearest", "subword"}
        For tokens that the target lacks. Those of which the other model has no row are cut into pieces.
    heights : tuple of int
        Rows of the target's and of the other model's embedding.
    """
    height, other_height = heights
    own = {token: meaning for token, meaning in meanings(target).items() if target.ids[token] < height}
    find, split = Lookup(own), Splitter(target, own)
    found: dict[str, Origin] = {}
    lacking = {}
    for token, meaning in meanings(other).items():
        same = find(meaning)
        if same is not None:
            found[token] = Origin("copied", (target.ids[same],))
        else:
            lacking[token] = meaning
    found |= _by_role(target, other, lacking, height)
    for token, meaning in lacking.items():
        if token in found:
            continue
        if method != "subword" and other.ids[token] < other_height:
            found[token] = Origin("computed")
            continue
        pieces = tuple(row for row in split(meaning) if row < height)
        found[token] = Origin("subword", pieces) if pieces else Origin("zero")
    return Origins(found, other.ids)


def _by_role(
    target: Vocabulary, other: Vocabulary, lacking: Sequence[str] | Mapping[str, object], height: int
) -> dict[str, Origin]:
    """Of tokens that have a role the rows of those that have it in the target."""
    own = roles_of(target.model, target.ids)
    found: dict[str, Origin] = {}
    for role, token in roles_of(other.model, other.ids).items():
        same = own.get(role)
        if token in lacking and token not in found and same is not None and target.ids[same] < height:
            found[token] = Origin("role", (target.ids[same],))
    return found
