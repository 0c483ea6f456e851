"""Tied and untied output heads: one decision for the models of a run.

A model ties its head to the embedding (only the embedding is stored), stores both, or stores both and yet
says ``tie_word_embeddings``: then some runtimes take the stored head and others the embedding. The output
has the target's tensors and the target's flag, and the vector goes into each of them once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from taskvec.compat.config_keys import INNER
from taskvec.compat.families import known_keys
from taskvec.compat.findings import Finding, finding
from taskvec.compat.predictor import copies
from taskvec.models.tensor_names import layer_of
from taskvec.text import roles

if TYPE_CHECKING:
    from taskvec.models.model import Model

State = Literal["tied", "untied", "double", "none"]

_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
    "embed_in.weight",
)
_HEADS = ("lm_head.weight", "embed_out.weight", "output_layer.weight")


class Head(NamedTuple):
    """The embedding and the head of one model, by stored name, and how they hang together.

    ``tied``: no head is stored, the embedding serves as one. ``untied``: both are stored. ``double``: both
    are stored and the config ties them. ``none``: there is no head (or no embedding) at all.
    """

    state: State
    embedding: str | None
    head: str | None


class TieDecision(NamedTuple):
    """Which stored tensors serve as the other models' embedding and head.

    Attributes
    ----------
    base : Head
        Of the target (or the base of a merge).
    substitutes : mapping of role to mapping
        Per model: the base's tensor -> the stored name that serves for it where it is not the same name.
    unused : mapping of role to tuple of str
        Per model: heads that are not used, because the base has none of its own.
    finding : Finding or None
        The decision in words, where there was one to take.
    """

    base: Head
    substitutes: Mapping[str, Mapping[str, str]]
    unused: Mapping[str, tuple[str, ...]]
    finding: Finding | None


def head_of(checkpoint: Model) -> Head:
    """Find the embedding and the head of a model from its names and its tie flag."""
    return _head(checkpoint, *_vocabulary_names(checkpoint.tensors))


def _vocabulary_names(names: Iterable[str]) -> tuple[str | None, str | None]:
    embedding = head = None
    for name in names:
        # Layers of multi-token prediction carry an embedding and a head of their own: these are not the
        # model's.
        if name.endswith(_EMBEDDINGS) and embedding is None and layer_of(name) is None:
            embedding = name
        elif (name.endswith(_HEADS) or name == "output.weight") and head is None and layer_of(name) is None:
            head = name
    return embedding, head


def _head(checkpoint: Model, embedding: str | None, head: str | None) -> Head:
    flag = _tie_flag(checkpoint)
    if embedding is None or (head is None and flag is False):
        return Head("none", embedding, head)
    if head is None:
        return Head("tied", embedding, None)
    is_tied = _is_tied_by_default(checkpoint.config) if flag is None else flag
    return Head("double" if is_tied else "untied", embedding, head)


def _tie_flag(checkpoint: Model) -> bool | None:
    for source in _sections(checkpoint.config):
        if isinstance(source.get("tie_word_embeddings"), bool):
            return source["tie_word_embeddings"]
    return None


def _sections(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The config, and the sections that a language model within it may have."""
    yield config
    yield from (config[key] for key in INNER if isinstance(config.get(key), dict))


def _is_tied_by_default(config: Mapping[str, Any]) -> bool:
    """Whether the class of the model ties its head where the config does not say."""
    kinds = [source["model_type"] for source in _sections(config) if source.get("model_type")]
    return any(kind in known_keys("tied") for kind in kinds if isinstance(kind, str))


def tie_decision(base: Model, others: Sequence[tuple[str, Model]], role: str = "target") -> TieDecision:
    """Decide once, for all models of a run, what serves as embedding and head.

    ====================  ==============================================================================
    the base is           its tensors take
    ====================  ==============================================================================
    tied                  the others' embeddings; a head that another model stores is not used
    untied                each its own; the head of a tied model is its embedding
    stored twice          both the others' embeddings, so that the two copies stay equal
    ====================  ==============================================================================

    Parameters
    ----------
    base : Model
        The target of a transfer, the base of a merge.
    others : sequence of (role, Model)
        The donor and the reference, or the models of a merge.
    role : str
        What the base is called in the finding.
    """
    own = head_of(base)
    heads = {}
    for name, other in others:
        # Equal names, the usual case, are looked through once.
        is_alike = other.tensors.keys() == base.tensors.keys()
        heads[name] = _head(other, own.embedding, own.head) if is_alike else head_of(other)
    substitutes: dict[str, dict[str, str]] = {}
    unused: dict[str, tuple[str, ...]] = {}
    for name, other in heads.items():
        if other.embedding is None or own.embedding is None:
            continue
        if own.state in ("tied", "double") and other.head is not None:
            unused[name] = (other.head,)
        if own.head is not None and (own.state == "double" or other.state == "tied"):
            substitutes[name] = {own.head: other.embedding}
    stored = copies(base, own.embedding, own.head)
    for name, other in others if stored else ():
        serving = substitutes.get(name, {})
        lacking = {
            copy: serving.get(first, first) for copy, first in stored.items() if copy not in other.tensors
        }
        if lacking:
            substitutes[name] = {**serving, **lacking}
    return TieDecision(own, substitutes, unused, _explain(own, heads, role))


_STATES = {
    "tied": "tied to the embedding",
    "untied": "a tensor of its own",
    "double": "stored although `tie_word_embeddings` is true",
    "none": "absent",
}


def _explain(own: Head, heads: Mapping[str, Head], role: str) -> Finding | None:
    states = {other.state for other in heads.values()}
    if "none" in (own.state, *states) or states <= {own.state} - {"double"}:
        return None
    by_state: dict[State, list[str]] = {}
    for name, other in heads.items():
        by_state.setdefault(other.state, []).append(name)
    found = "; ".join(f"{_STATES[state]} in {roles(names)}" for state, names in by_state.items())
    if own.state == "tied":
        done = (
            "the vector is added to the embedding once; no head is written and the config stays tied: "
            "what the others learned in a head of their own is left out"
        )
    elif own.state == "untied":
        done = "head and embedding each take a vector; in a tied model the embedding serves as the head"
    else:
        done = "both stored copies take the embedding's vector, so that they stay equal; the config stays"
    return finding("tied-head", "output head", f"{_STATES[own.state]} as in {role}", found, done)
