"""A model in another layout than its own, for an output that its own layout cannot have.

Packed weights of gpt-oss are stored as outputs by inputs, and plain ones the other way round. Experts that
several formats store one by one may lie in one tensor of a plain checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from taskvec.compat.config_keys import INNER
from taskvec.compat.layouts.fit import fitted, is_alike
from taskvec.compat.layouts.table import views
from taskvec.models.assembled import Assembled, Piece
from taskvec.models.assembled_reader import AssembledReader
from taskvec.models.model import Model, TensorInfo
from taskvec.regex import regex

# Families whose experts transformers reads one by one, as `mlp.experts.0.gate_proj.weight`; from its
# conversions between checkpoints and modules.
_ONE_BY_ONE = frozenset({
    "afmoe", "axk1", "bailing_hybrid", "cohere2_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1",
    "ernie4_5_moe", "exaone_moe", "flex_olmo", "glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm_moe_dsa",
    "hunyuan_v1_moe", "hy_v3", "kimi_k25", "laguna", "longcat_flash", "mellum", "mimo_v2_flash", "olmoe",
    "qwen2_moe", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_moe", "qwen3_next", "qwen3_omni_moe",
    "qwen3_omni_moe_text", "qwen3_omni_moe_thinker", "sarvam_mla", "sarvam_moe", "solar_open",
})  # fmt: skip
_FUSED = regex(r"(?P<stem>.*\.mlp\.experts)\.(?:gate_up_proj|down_proj)")
_EXPERT = regex(r".*\.mlp\.experts(?P<rest>\.\d+\.(?:gate|up|down)_proj\.weight)")


def in_plain_layout(model: Model) -> Model:
    """A model as plain checkpoints of its family store it: packed experts of gpt-oss turned round."""
    turned = {
        name: model.tensors[name]
        for name, packed in model.packed.items()
        if dict(packed.format.parts).get("codes") == "_blocks"
    }
    if not turned:
        return model
    made = {name: _turned(info) for name, info in turned.items()}
    infos = {name: info._replace(shape=made[name].shape) for name, info in turned.items()}
    tensors = {name: infos.get(name, info) for name, info in model.tensors.items()}
    return _in_layout(model, tensors, made)


def in_packed_layout(model: Model, is_wanted: Callable[[TensorInfo], bool]) -> Model:
    """The plain experts of gpt-oss as packed ones are stored, outputs by inputs, where they are wanted so."""
    made, tensors = {}, dict(model.tensors)
    for name, info in model.tensors.items():
        if _FUSED.fullmatch(name) and len(info.shape) == 3:
            turned = _turned(info)
            wanted = info._replace(shape=turned.shape)
            if is_wanted(wanted):
                made[name], tensors[name] = turned, wanted
    return _in_layout(model, tensors, made) if made else model


def like(model: Model, plain: Model) -> Model:
    """A model as another one that :func:`in_plain_layout` gave: turned round too, or fitted to it."""
    turned = in_plain_layout(model)
    return turned if is_alike(turned, plain) else fitted(model, plain)


def _turned(info: TensorInfo) -> Assembled:
    """The tensor with its last two axes exchanged."""
    experts, rows, columns = math.prod(info.shape[:-2]), *info.shape[-2:]
    size = rows * columns
    piece = Piece(info.name, (experts, rows, columns), 0, (size, 1, rows), 0, (size, columns, 1))
    return Assembled((*info.shape[:-2], columns, rows), (piece,), {info.name: info.shape})


def one_by_one(model: Model, is_wanted: Callable[[str, list[str]], bool]) -> Model:
    """A model with its fused experts one by one, where transformers reads its family so.

    Parameters
    ----------
    model : Model
    is_wanted : callable
        Whether a fused tensor, given with the names that its experts get, is to be taken apart.
    """
    inner = [each for key in INNER if isinstance(each := model.config.get(key), dict)]
    if not any(each.get("model_type") in _ONE_BY_ONE for each in (model.config, *inner)):
        return model
    made: dict[str, Assembled] = {}
    tensors: dict[str, TensorInfo] = {}
    for name, found in views(model):
        info, fused = model.tensors[name], _FUSED.fullmatch(name)
        experts = [_EXPERT.fullmatch(view.name) for view in found]
        names = [f"{fused['stem']}{each['rest']}" for each in experts if fused and each]
        if not fused or len(names) != len(found) or not is_wanted(name, names):
            tensors[name] = info
            continue
        for own, view in zip(names, found, strict=True):
            (rows,), (columns,) = view.axes
            shape, strides = (rows[0], columns[0]), (rows[1], columns[1])
            piece = Piece(name, shape, 0, (columns[0], 1), view.first, strides)
            made[own] = Assembled(shape, (piece,), {name: info.shape} if name in model.packed else {})
            nbytes = info.nbytes * math.prod(shape) // math.prod(info.shape)
            tensors[own] = TensorInfo(own, info.dtype, shape, nbytes, info.file)
    return _in_layout(model, tensors, made) if made else model


def _in_layout(model: Model, tensors: dict[str, TensorInfo], made: dict[str, Assembled]) -> Model:
    reader = model.weights and AssembledReader(model.weights, model.tensors, made)
    return replace(model, tensors=tensors, assembled=made, weights=reader)
