"""An adapter on its model: which stored weight every pair of factors changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from taskvec.compat.findings import Finding, finding
from taskvec.compat.tied_heads import Head, head_of
from taskvec.dtypes import FLOAT_DTYPES
from taskvec.errors import FormatError
from taskvec.models.adapter import Adapter, Factors, PartFactors
from taskvec.models.adapter_config import MERGE_FIRST
from taskvec.models.adapter_names import StoredNames, ambiguous, core, not_found
from taskvec.models.adapter_whole import COPY
from taskvec.models.model import Model, TensorInfo
from taskvec.models.tensor_names import is_vocabulary
from taskvec.plan.adapter_parts import Weights, fitted_parts

_HEADS = ("lm_head.weight", "embed_out.weight", "output_layer.weight", "output.weight")
# Models whose weights of these modules are stored as [inputs, outputs] (Conv1D of transformers).
_CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_CONV1D_MODULES = ("c_attn", "q_attn", "c_proj", "c_fc")


def fitted(adapter: Adapter, model: Model, like: Model | None = None) -> Adapter:
    """The adapter with its factors under the names that its model stores.

    Parameters
    ----------
    adapter : Adapter
        As it was read.
    model : Model
    like : Model, optional
        The model whose layout that has been fitted to, where it has.

    Raises
    ------
    FormatError
        A weight is not found, may be one of several, is changed twice, or has another shape.
    """
    if model.sub_models and "" not in model.sub_models:
        folder = next(iter(model.sub_models)).rstrip("/")
        raise FormatError(
            f"`{adapter.spec}` is put on `{model.spec}`, which is several models in folders",
            f"name the folder of the one that it is made for: `{model.spec}/{folder}`",
        )
    found: dict[str, Factors] = {}
    tensors: dict[str, TensorInfo] = {}
    head, stored = head_of(model), StoredNames(model.tensors.keys())
    weights = Weights(model, like)
    elsewhere: list[str] = []
    for name, factors in adapter.factors.items():
        alike = _stored(adapter, name, model, head, stored)
        if not alike:
            elsewhere.append(name)
        for weight in alike:
            if weight in found:
                raise _twice(adapter, name, weight, head)
            is_embedding = name in adapter.embeddings
            info = model.tensors[weight]
            is_transposed = is_embedding or _is_transposed(adapter, name, model, info)
            _check_weight(adapter, name, model, info, is_transposed)
            found[weight] = factors._replace(transposed=is_transposed)
            tensors[weight] = adapter.tensors[name]._replace(name=weight, shape=info.shape)
    parts = fitted_parts(adapter, elsewhere, weights)
    for weight, each in parts.items():
        if weight in found:
            raise _twice(adapter, weight, weight, head)
        tensors[weight] = _changed(adapter, model, weight, each)
    whole = _fitted_whole(adapter, {**found, **parts}, model, head, stored, weights)
    return replace(
        adapter,
        factors=found,
        tensors=tensors,
        embeddings=frozenset(),
        whole=whole,
        parts=parts,
        parameters=(),
    )


def _changed(adapter: Adapter, model: Model, name: str, parts: Sequence[PartFactors]) -> TensorInfo:
    """A tensor of which an adapter changes parts, with the bytes of their factors."""
    info = model.tensors[name]
    if info.dtype not in FLOAT_DTYPES:
        raise _not_float(adapter, model, info)
    factors = {each for part in parts for each in (part.a, part.b)}
    nbytes = sum(adapter.stored[each].nbytes for each in factors)
    return info._replace(nbytes=nbytes)


def on_top(adapter: Adapter, model: Model, number: int) -> Adapter:
    """A fitted adapter with its model, which is source `number` of a plan: all of the model's weights."""
    tensors = dict(model.tensors)
    for name in adapter.changed:
        info = tensors[name]
        own = adapter.whole[name].nbytes if name in adapter.whole else info.nbytes
        is_added = name in adapter.factors or name in adapter.parts
        factors = adapter.tensors[name].nbytes if is_added else 0
        tensors[name] = info._replace(nbytes=own + factors)
    return replace(adapter, tensors=tensors, base=number)


def tie_findings(pairs: Sequence[tuple[Adapter, Model]]) -> Iterator[Finding]:
    """Warnings for adapters, fitted to their models, that change a head tied to the embedding."""
    for adapter, model in pairs:
        head = head_of(model)
        if _is_tied(head) and any(name in adapter.factors for name in (head.embedding, head.head)):
            yield finding(
                "tied-head",
                f"output head of `{model.spec}`",
                "a tensor of its own",
                f"tied to the embedding, and the adapter `{adapter.spec}` changes it",
                "the shared weight takes the change, as `merge_and_unload` of peft does it: both change",
            )


def _fitted_whole(
    adapter: Adapter,
    factors: Mapping[str, object],
    model: Model,
    head: Head,
    stored: StoredNames,
    weights: Weights,
) -> dict[str, TensorInfo]:
    """The whole weights of an adapter under the names that its model stores."""
    found: dict[str, TensorInfo] = {}
    names = {name: stored.alike(name) or weights.stored_whole(name) for name in adapter.whole}
    lacking = [name for name, alike in names.items() if not alike]
    for name, info in adapter.whole.items():
        alike = names[name]
        is_head = alike in ([head.head], [head.embedding]) or core(f"model.{name}") in _HEADS
        if _is_tied(head) and is_head:
            raise _whole_of_tied(adapter, name, model)
        if not alike:
            raise not_found(adapter.spec, lacking, model.spec, model.tensors.keys())
        if len(alike) > 1:
            raise ambiguous(adapter.spec, name, model.spec, alike)
        if alike[0] in found or (alike[0] in factors and COPY not in info.name):
            raise _twice(adapter, name, alike[0], head)
        _check_whole_weight(adapter, info, model, model.tensors[alike[0]])
        found[alike[0]] = info
    return found


def _whole_of_tied(adapter: Adapter, name: str, model: Model) -> FormatError:
    return FormatError(
        f"the adapter `{adapter.spec}` holds `{name}` as a whole, and `{model.spec}` ties embedding and head "
        "to each other: which of them is meant cannot be told",
        "if it is the model's own weight, save the adapter without it (`save_embedding_layers=False` of "
        f"save_pretrained); otherwise {MERGE_FIRST}",
    )


def _is_tied(head: Head) -> bool:
    return head.state in ("tied", "double")


def _stored(adapter: Adapter, name: str, model: Model, head: Head, stored: StoredNames) -> tuple[str, ...]:
    """The stored weights that a name of PEFT stands for: one, or the copies of a tied head.

    None where the model stores it under another kind of name, or with others in one tensor.
    """
    alike = stored.alike(name)
    if len(alike) > 1:
        raise ambiguous(adapter.spec, name, model.spec, alike)
    is_head = alike == [head.head] if alike else core(f"model.{name}") in _HEADS
    if _is_tied(head) and (is_head or alike == [head.embedding]):
        return tuple(each for each in (head.embedding, head.head) if each is not None)
    return tuple(alike)


def _twice(adapter: Adapter, name: str, weight: str, head: Head) -> FormatError:
    if _is_tied(head) and weight in (head.embedding, head.head):
        return FormatError(
            f"the adapter `{adapter.spec}` changes the embedding and the head, which are tied to each other: "
            f"both are `{weight}`",
            MERGE_FIRST,
        )
    return FormatError(
        f"the adapter `{adapter.spec}` changes `{weight}` twice, the second time as `{name}`",
        "it has the factors of several saves: save it again",
    )


def _is_transposed(adapter: Adapter, name: str, model: Model, info: TensorInfo) -> bool:
    """Whether a weight is [inputs, outputs]: its shape tells, where it is not square.

    `fan_in_fan_out` is one flag for all modules, and PEFT overrules it by the class of each.
    """
    a, b = _sides(adapter, name)
    if a != b or len(info.shape) != 2:
        return info.shape == (a, b)
    if isinstance(model.config.get("model_type"), str):
        return is_conv1d(model.config, name)
    return adapter.factors[name].transposed


def is_conv1d(config: Mapping[str, Any], name: str) -> bool:
    """Whether a model stores a weight as [inputs, outputs]."""
    return config.get("model_type") in _CONV1D_MODELS and name.split(".")[-2] in _CONV1D_MODULES


def _sides(adapter: Adapter, name: str) -> tuple[int, int]:
    """Inputs and outputs of the factors."""
    first, second = adapter.tensors[name].shape
    return (first, second) if adapter.factors[name].transposed else (second, first)


def _check_weight(adapter: Adapter, name: str, model: Model, info: TensorInfo, is_transposed: bool) -> None:
    inputs, outputs = _sides(adapter, name)
    if info.dtype not in FLOAT_DTYPES:
        raise _not_float(adapter, model, info)
    if info.shape != ((inputs, outputs) if is_transposed else (outputs, inputs)):
        raise FormatError(
            f"the adapter `{adapter.spec}` changes `{name}`, of {inputs} inputs and {outputs} outputs; "
            f"`{info.name}` of `{model.spec}` is {list(info.shape)}",
            "give the model with these sizes: another size, or another vocabulary, is another model",
        )


def _not_float(adapter: Adapter, model: Model, info: TensorInfo) -> FormatError:
    return FormatError(
        f"the adapter `{adapter.spec}` changes `{info.name}`, in `{model.spec}` {info.dtype}",
        "put the adapter on the model before it was quantised: same weights in BF16, F16 or F32",
    )


def _check_whole_weight(adapter: Adapter, whole: TensorInfo, model: Model, info: TensorInfo) -> None:
    if info.dtype not in FLOAT_DTYPES:
        raise FormatError(
            f"the adapter `{adapter.spec}` replaces `{info.name}`, in `{model.spec}` {info.dtype}",
            "put the adapter on the model before it was quantised: same weights in BF16, F16 or F32",
        )
    if whole.shape != info.shape:
        raise FormatError(
            f"`{whole.name}` of the adapter `{adapter.spec}` is {list(whole.shape)}; `{info.name}` of "
            f"`{model.spec}` is {list(info.shape)}",
            _more_rows(whole, info) or "give the model with these sizes: another size is another model",
        )


def _more_rows(whole: TensorInfo, info: TensorInfo) -> str:
    """The way out where a model was given rows for new tokens before it was trained."""
    if not is_vocabulary(info.name) or whole.shape[1:] != info.shape[1:]:
        return ""
    return (
        f"the adapter was trained with {whole.shape[0]:,} rows: give the base with as many "
        f"(`resize_token_embeddings({whole.shape[0]})` of transformers, and `save_pretrained`)"
    )
