"""A recipe with every question answered: plain data from which a plan is made."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from taskvec.compat.findings import Finding
from taskvec.methods.method import Method
from taskvec.recipe.model_ref import ModelRef


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and config of a model, vector or adapter.

    Parameters
    ----------
    names : mapping or collection of str
        Its tensors by the names that all models of the merge share, and the names they are stored under; a
        collection where these are the same. Of a vector or adapter: the tensors that it changes.
    config : mapping
        Its config.json, ``{}`` if it has none.
    """

    names: Mapping[str, str] | Collection[str]
    config: Mapping[str, Any] = field(default_factory=dict)


class ExpandedTensor(NamedTuple):
    """One tensor of the output."""

    name: str
    operation: int
    """Index into the operations."""
    inputs: tuple[tuple[int, str], ...]
    """Model and stored name of each input, in the order in which the operation counts them."""
    template: tuple[int, str]
    """Model and stored name of the tensor whose shape and type it has."""


@dataclass(frozen=True, slots=True)
class ExpandedMerge:
    """A recipe with every question answered.

    Attributes
    ----------
    method : Method
    models : tuple of ModelRef
        What the numbers in ``inputs`` refer to.
    base : int or None
        The base, where the method has one: survival is measured against it.
    config_from : int
        The model that gives config.json and the other files.
    operations : tuple of dict
        Each once.
    tensors : tuple of ExpandedTensor
        In the order of that model; layers of slices in their new order.
    config_edits : dict
        Keys of config.json that change, nested ones as ``text_config.num_hidden_layers``.
    tokenizer_from : int
    chat_template : str or None
    dtype, out_dtype : str or None
        As the recipe has them, in safetensors' names; the output's is ``out_dtype or dtype``.
    alphas : tuple of float
    rounding : str or None
    seed : int or None
        ``None``: the recipe does not say.
    missing : tuple of (str, tuple of int)
        Tensors that some models lack. They are the template's bytes.
    maps : mapping of int to int
        Of each importance map, the model that it is of.
    unmapped : tuple of (str, int)
        Tensors that an importance map lacks, and that map; no importance is given for them otherwise.
    remarks : tuple of Finding
    """

    method: Method
    models: tuple[ModelRef, ...]
    base: int | None
    config_from: int
    operations: tuple[dict[str, Any], ...]
    tensors: tuple[ExpandedTensor, ...]
    config_edits: dict[str, Any]
    tokenizer_from: int
    chat_template: str | None
    dtype: str | None
    out_dtype: str | None
    alphas: tuple[float, ...]
    rounding: str | None
    seed: int | None
    missing: tuple[tuple[str, tuple[int, ...]], ...]
    maps: Mapping[int, int]
    unmapped: tuple[tuple[str, int], ...]
    remarks: tuple[Finding, ...]
