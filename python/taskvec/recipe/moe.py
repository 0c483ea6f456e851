"""The format of recipes that make a mixture of experts of dense models: mergekit-moe's, key by key.

What needs the models as well (which layouts fit, whether the prompts make gates) is checked in
:mod:`taskvec.plan.moe`. Every error names the file and the line.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError

from taskvec.compat.findings import Finding, finding
from taskvec.methods.values import SettingError
from taskvec.recipe.document import Document
from taskvec.recipe.errors import first_error
from taskvec.recipe.fields import DtypeName, ModelName, Seed
from taskvec.recipe.known_words import in_our_words
from taskvec.recipe.load import read, writable
from taskvec.recipe.model_ref import ModelRef
from taskvec.recipe.overrides import apply_overrides
from taskvec.recipe.schema import Form, Written
from taskvec.text import Key, kind_of, nearest, shown

GateMode = Literal["hidden", "cheap_embed", "random", "uniform_random"]
MAXIMUM_EXPERTS = 1024
# What the layouts are called in recipes, and what they are called here.
LAYOUTS = {
    "mixtral": "mixtral",
    "qwen": "qwen2_moe", "qwen2": "qwen2_moe", "qwen2_moe": "qwen2_moe",
    "qwen3": "qwen3_moe", "qwen3_moe": "qwen3_moe",
    "deepseek": "deepseek",
}  # fmt: skip


_TOKENIZER = "the tokenizer is the base's"
_GATES = "the base model is run one layer at a time"
# Words of merges and of mergekit's command line that stand in recipes of experts.
_OF_MERGES = {
    "merge_method": "experts are not merged",
    "parameters": "experts are not merged",
    "tokenizer_source": _TOKENIZER,
    "tokenizer": _TOKENIZER,
    "chat_template": _TOKENIZER,
    "load_in_4bit": _GATES,
    "load_in_8bit": _GATES,
}


def _prompts(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _layout(value: Any) -> Any:
    if value is None:
        return None
    word = value.strip().lower() if isinstance(value, str) else ""
    if word in LAYOUTS:
        return LAYOUTS[word]
    near = nearest(word, LAYOUTS)
    raise SettingError(
        f"{kind_of(value)} is not a layout of a mixture of experts that is known here",
        f"did you mean `{near}`?" if near else "`mixtral`, `qwen`, `qwen3` and `deepseek` are",
    )


Prompts = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...] | None,
    Field(strict=False, min_length=1),
    BeforeValidator(_prompts),
]
Factor = Annotated[float, Field(allow_inf_nan=False)]


class Expert(Form):
    """A dense model whose MLPs become one expert of every layer."""

    source_model: ModelName = Field(description="folder or hub id (org/name@revision), with +adapter")
    positive_prompts: Prompts = Field(None, description="texts that are to be routed to this expert")
    negative_prompts: Prompts = Field(None, description="texts that are not")
    residual_scale: Factor | None = Field(None, description="factor of what the expert adds")
    noise_scale: Annotated[Factor, Field(ge=0)] | None = Field(
        None, description="standard deviation of normal noise that is added to the expert's matrices"
    )


class MoeRecipe(Written):
    """A mixture of experts: attention, norms and embeddings of one model, and MLPs of others."""

    base_model: ModelName = Field(description="the model that all but the experts is taken from")
    experts: Annotated[
        tuple[Expert, ...],
        Field(
            strict=False,
            min_length=1,
            max_length=MAXIMUM_EXPERTS,
            description="a list: `- source_model: org/name`, and what each is for",
        ),
    ]
    gate_mode: GateMode = Field("hidden", description="how the router is made")
    experts_per_token: Annotated[int, Field(ge=1)] = Field(2, description="experts that see each token")
    shared_experts: Annotated[tuple[Expert, ...] | None, Field(strict=False)] = Field(
        None, description="an expert that sees every token"
    )
    architecture: Annotated[str | None, BeforeValidator(_layout)] = Field(
        None, description="mixtral, qwen, qwen3 or deepseek; by default what fits the models"
    )
    dtype: DtypeName = Field(None, description="type of the output; by default the base's")
    seed: Seed | None = Field(None, description="seed of random gates and of noise")

    @property
    def shared(self) -> Expert | None:
        """The shared expert."""
        return self.shared_experts[0] if self.shared_experts else None

    def everyone(self) -> Iterator[tuple[tuple[Key, ...], Expert]]:
        """Experts and the shared one, and where each is written."""
        for key, experts in (("experts", self.experts), ("shared_experts", self.shared_experts or ())):
            for number, expert in enumerate(experts):
                yield (key, number), expert

    @property
    def has_random_gates(self) -> bool:
        """Whether the gates are drawn, and not made of prompts."""
        return self.gate_mode in ("random", "uniform_random")

    @property
    def is_drawn(self) -> bool:
        """Whether random numbers are drawn: for the gates, or as noise."""
        return self.has_random_gates or any(each.noise_scale for _, each in self.everyone())

    def models(self) -> list[ModelRef]:
        """Every model, the base first, each once."""
        return list(dict.fromkeys([self.base_model, *(each.source_model for _, each in self.everyone())]))


@dataclass(frozen=True, slots=True)
class MoeFile:
    """A recipe, and all that was found about it without its models.

    Attributes
    ----------
    recipe : MoeRecipe
    source : str
        What it is called: its file as the user wrote it, or ``recipe``.
    text : str
        YAML as it was written, or as the values given from Python are written.
    document : dict
        It as plain data, overrides applied: what a manifest keeps.
    remarks : tuple of Finding
        On words that have no effect.
    """

    recipe: MoeRecipe
    source: str
    text: str
    document: dict[str, Any]
    remarks: tuple[Finding, ...]


def load(recipe: str | os.PathLike[str] | Mapping[str, Any], overrides: Iterable[str] = ()) -> MoeFile:
    """Read a recipe, and check all that can be checked without its models.

    Parameters
    ----------
    recipe : path, text or mapping
    overrides : iterable of str
        ``experts_per_token=1``: values to replace.

    Raises
    ------
    RecipeError
        The recipe is not one; the message names the file and the line, the hint the way out.
    NotFoundError
        There is no such file.
    """
    source, text, documents = read(recipe)
    (changed, *rest) = apply_overrides(documents, overrides)
    if rest:
        raise rest[0].error((), "a second document", "a mixture of experts is one document")
    _refuse_others(changed)
    ours, remarks = in_our_words(changed)
    ours, more = _without_merges(ours)
    try:
        made = MoeRecipe.model_validate(ours.plain(), context=ours)
    except ValidationError as error:
        raise first_error(ours, MoeRecipe, error) from None
    plain = writable(changed.plain())
    text = text or yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    _check(made)
    return MoeFile(made, source, text, plain, (*remarks, *more, *_without_effect(made)))


def _refuse_others(document: Document) -> None:
    if "merge_method" in document.root.value and "experts" not in document.root.value:
        raise document.error(
            ("merge_method",), "this is a recipe of a merge", "run it with `taskvec merge`", key=True
        )


def _without_merges(document: Document) -> tuple[Document, list[Finding]]:
    """The document without words of merges, which mean nothing here, and a note on each."""
    found = [key for key in document.root.value if key in _OF_MERGES]
    rest = {key: node for key, node in document.root.value.items() if key not in _OF_MERGES}
    remarks = [_remark(document, (key,), f"`{key}` has no effect: {_OF_MERGES[key]}") for key in found]
    return Document(replace(document.root, value=rest), document.source), remarks


def _remark(document: Document, path: Sequence[Key], what: str) -> Finding:
    return finding("recipe-ignored", document.place(path, key=True), "", what, "remove it")


def _check(recipe: MoeRecipe) -> None:
    if recipe.experts_per_token > len(recipe.experts):
        raise recipe.error(
            ("experts_per_token",) if "experts_per_token" in recipe.model_fields_set else ("experts",),
            f"{recipe.experts_per_token} experts per token of {len(recipe.experts)}",
            "name more experts, or set a smaller `experts_per_token`",
        )
    if recipe.shared_experts is not None and len(recipe.shared_experts) > 1:
        raise recipe.error(("shared_experts", 1), "a second shared expert", "no layout has more than one")
    if not recipe.has_random_gates:
        _check_prompts(recipe)


def _check_prompts(recipe: MoeRecipe) -> None:
    for number, expert in enumerate(recipe.experts):
        if expert.positive_prompts is None:
            raise recipe.error(
                ("experts", number),
                f"`{shown(str(expert.source_model))}` has no `positive_prompts`, of which its gate is made",
                "add one or more, or set `gate_mode: random`",
            )
    kinds = {
        (frozenset(e.positive_prompts or ()), frozenset(e.negative_prompts or ())) for e in recipe.experts
    }
    if len(recipe.experts) > 1 and len(kinds) == 1:
        raise recipe.error(
            ("experts",),
            "all experts have the same prompts, so that all gates would be the same",
            "say of each what it is for, or set `gate_mode: random`",
            key=True,
        )


def _without_effect(recipe: MoeRecipe) -> Iterator[Finding]:
    document = recipe.document
    for path, expert in recipe.everyone():
        for key in ("positive_prompts", "negative_prompts"):
            if recipe.has_random_gates and getattr(expert, key) is not None:
                yield _remark(document, (*path, key), f"`{key}` has no effect: the gates are random")
        if expert.noise_scale == 0:
            yield _remark(document, (*path, "noise_scale"), "`noise_scale` of 0 has no effect")
    if recipe.seed is not None and not recipe.is_drawn:
        yield _remark(document, ("seed",), "`seed` has no effect: the gates are made of the prompts")
