"""Tensor names: which layer of which stack a tensor belongs to, and which part of a model.

A *stack* is a run of numbered layers (``model.layers.``, ``vision_tower.encoder.layers.``). A *module* is a
part of a model that a recipe can address: mergekit's names for the known families, or the name of a stack.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from taskvec.regex import regex

# Of a checkpoint in several folders, names have the folder's path and a slash before them.
# The leftmost number counts the layers; experts and blocks inside of a layer come after it.
_LAYER = regex(r"(?:^|[./])(?:layers?|h|blocks?)\.(\d{1,6})\.")
_VISION = regex(r"(?:^|\.)(?:visual|vision_tower|vision_model|vision_encoder)\.")
_AUDIO = regex(r"(?:^|\.)(?:audio_tower|audio_model|audio_encoder)\.")
_PROJECTOR = regex(
    r"(?:^|\.)(?:multi_modal_projector|mm_projector|embed_vision|embed_audio|connector)\.|"
    r"(?:^|\.)visual\.(?:merger|deepstack_merger_list)\."
)
_PREDICTOR = regex(r"(?:^|\.)(?:mtp|nextn)\.")
_ENCODER = regex(r"^(?:model\.)?encoder\.")
_DECODER = regex(r"^(?:model\.)?decoder\.")
_SHARED = regex(r"^(?:model\.)?shared\.")
_NUMBER = regex(r"(?<=\.)\d+(?=\.|$)")
# What torch puts around a module, at any place: FSDP, activation checkpointing, `torch.compile`.
_WRAPPERS = regex(r"(?:^|(?<=\.))(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
# Names of what comes before the first layer in published models; the rest comes after the last.
_FIRST = regex(
    r"(?<!un)embed(?!_out)|embd|(?:^|[./])(?:wte|wpe|shared|per_layer\w*)\.|(?:^|[._/])conv[12]?\.|patch_|_pre\.|"
    r"rotary|relative_pe|(?:^|[./])class_"
)


def without_wrappers(name: str) -> str:
    """A name without the modules that torch has put around others."""
    return _WRAPPERS.sub("", name) if "_wrapped_module." in name or "_orig_mod." in name else name


class Place(NamedTuple):
    """Where a layer's tensor is: ``stack`` ends in a dot, ``rest`` begins with one."""

    stack: str
    layer: int
    rest: str

    def at(self, layer: int) -> str:
        """The name of the same tensor in another layer."""
        return f"{self.stack}{layer}{self.rest}"


def place_of(name: str) -> Place | None:
    """The layer that a tensor belongs to; ``None`` outside of layers."""
    match = _LAYER.search(name)
    if match is None:
        return None
    start, end = match.span(1)
    return Place(name[:start], int(match[1]), name[end:])


def is_first(name: str) -> bool:
    """Whether a tensor outside of layers comes before them (an embedding) or after (final norm, head)."""
    return _FIRST.search(name) is not None


class Places(dict[str, "Place | None"]):
    """:func:`place_of`, each name once: the models of a merge have the same names."""

    def __missing__(self, name: str) -> Place | None:
        place = self[name] = place_of(name)
        return place


def stacks(names: Iterable[str], places: Places | None = None) -> dict[str, int]:
    """The stacks of a model, and how many layers each has."""
    places = Places() if places is None else places
    counts: dict[str, int] = {}
    for name in names:
        place = places[name]
        if place is not None and counts.get(place[0], 0) <= place[1]:
            counts[place[0]] = place[1] + 1
    return counts


@lru_cache(maxsize=64)
def kind_of_stack(stack: str) -> str:
    """``text``, ``vision``, ``audio``, ``encoder``, ``decoder`` or ``predictor``."""
    for pattern, kind in (
        (_VISION, "vision"),
        (_AUDIO, "audio"),
        (_PREDICTOR, "predictor"),
        (_ENCODER, "encoder"),
        (_DECODER, "decoder"),
    ):
        if pattern.search(stack):
            return kind
    return "text"


def modules(names: Iterable[str]) -> dict[str, list[str]]:
    """The parts of a model, by mergekit's names for them, and their tensors in order.

    ``default`` where there is one part only; ``encoder``, ``decoder`` and ``shared``; or
    ``text_decoder``, ``vision_tower``, ``audio_tower`` and ``multi_modal_projector``.
    """
    names = list(names)
    kinds = {kind_of_stack(stack) for stack in stacks(names)}
    if {"encoder", "decoder"} <= kinds:
        return _parts(names, ((_ENCODER, "encoder"), (_SHARED, "shared")), "decoder")
    if kinds & {"vision", "audio"}:
        towers = (_VISION, "vision_tower"), (_AUDIO, "audio_tower")
        return _parts(names, ((_PROJECTOR, "multi_modal_projector"), *towers), "text_decoder")
    return {"default": names}


def _parts(
    names: list[str], patterns: tuple[tuple[re.Pattern[str], str], ...], otherwise: str
) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {}
    for name in names:
        part = next((part for pattern, part in patterns if pattern.search(name)), otherwise)
        parts.setdefault(part, []).append(name)
    return parts


# Names that mean the same part.
SYNONYMS: Mapping[str, str] = {"vision_model": "vision_tower", "visual": "vision_tower"}


def split_by(names: Iterable[str], wanted: Iterable[str]) -> dict[str, list[str]] | None:
    """The tensors of each module that a recipe names, under ``""`` the others; ``None`` if one is unknown.

    mergekit infers the parts of families it does not know: a stack's own name (``model.layers``), and
    ``default`` for all that is outside of such stacks.
    """
    names, wanted = list(names), list(wanted)
    known = modules(names)
    if all(SYNONYMS.get(name, name) in known for name in wanted):
        parts = {name: known.pop(SYNONYMS.get(name, name)) for name in wanted}
        rest = {name for part in known.values() for name in part}
        return {**parts, "": [name for name in names if name in rest]}
    prefixes = {stack.rstrip("."): stack for stack in stacks(names)}
    if not all(name in prefixes or name == "default" for name in wanted):
        return None
    parts = {name: [] for name in [*wanted, ""]}
    for name in names:
        place = place_of(name)
        stack = place.stack.rstrip(".") if place is not None else "default"
        part = stack if stack in parts else "default" if place is None and "default" in parts else ""
        parts[part].append(name)
    return parts


def main_stack(counts: Mapping[str, int]) -> str | None:
    """The one stack whose layers a slice means; ``None`` if there is none, or more than one."""
    found = [stack for stack in counts if kind_of_stack(stack) != "predictor"]
    return found[0] if len(found) == 1 else None


def layer_of(name: str) -> int | None:
    """The layer that a tensor belongs to; ``None`` for embeddings, final norm, head and towers."""
    place = _outside_towers(name)
    return None if place is None else place.layer


def module_of(name: str) -> str:
    """The kind of module that a tensor belongs to: its name without layer, numbers and ``.weight``."""
    place = _outside_towers(name)
    inner = name.removeprefix("model.") if place is None else place.rest.removeprefix(".")
    return _NUMBER.sub("*", inner).removesuffix(".weight")


def _outside_towers(name: str) -> Place | None:
    """The layer of the language model that a tensor belongs to.

    Towers that read pictures or sound number their own layers; "layer 8" means the language model's.
    """
    place = place_of(name)
    return None if place is None or kind_of_stack(place.stack) in ("vision", "audio") else place


# The input embedding and the output head by every name that published decoders give them. `output` counts
# only at the top (Llama's own layout): `attention.output.dense` is not a head.
_VOCABULARY_WORDS = (
    "embed_tokens", "embed_tokens_per_layer", "word_embeddings", "tok_embeddings", "wte", "embed_in",
    "shared", "lm_head", "embed_out", "output_layer", "unembed",
)  # fmt: skip
_VOCABULARY = regex(
    rf"(?:^|[./])(?:{'|'.join(_VOCABULARY_WORDS)})\.(?:weight|bias)$|(?:^|/)output\.(?:weight|bias)$"
)
_VOCABULARY_ENDINGS = tuple(
    f"{word}.{kind}" for word in (*_VOCABULARY_WORDS, "output") for kind in ("weight", "bias")
)


def is_vocabulary(name: str) -> bool:
    """Whether a tensor has one row per token: the input embedding or the output head."""
    # Searching costs ten times as much, and a model has ten thousand tensors more than embeddings.
    return name.endswith(_VOCABULARY_ENDINGS) and _VOCABULARY.search(name) is not None
