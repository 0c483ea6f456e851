"""Which tensors of a vector an adapter holds as factors, which as a whole, and which it leaves out.

Factors are for the weights of linear layers, embeddings and heads. Which layers are linear the names say:
only names that are known to be those of one count, since an adapter with factors of another kind of module
does not load.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, NamedTuple

from taskvec.compat.tied_heads import head_of
from taskvec.dtypes import FLOAT_DTYPES
from taskvec.errors import RecipeError
from taskvec.models.model import Model
from taskvec.models.tensor_names import is_vocabulary
from taskvec.plan.adapters import is_conv1d
from taskvec.regex import regex

Role = Literal["linear", "embedding", "head", "expert"]
Embeddings = Literal["lora", "whole", "leave"]
Others = Literal["leave", "whole"]

# Last parts of the names of linear layers.
_LINEAR = frozenset({
    "q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv_proj", "qkv", "query_key_value", "Wqkv",
    "W_pack", "c_attn", "q_attn", "c_proj", "c_fc", "wq", "wk", "wv", "wo", "q_a_proj", "q_b_proj",
    "kv_a_proj_with_mqa", "kv_a_proj", "kv_b_proj", "query", "key", "value", "dense", "in_proj",
    "in_proj_qkv", "in_proj_qkvz", "in_proj_ba", "in_proj_z", "in_proj_a", "in_proj_b", "x_proj", "dt_proj",
    "gate_proj", "up_proj", "down_proj", "gate_up_proj", "fc1", "fc2", "fc_in", "fc_out", "dense_h_to_4h",
    "dense_4h_to_h", "w1", "w2", "w3", "wi", "wi_0", "wi_1", "q", "k", "v", "o", "q_lin", "k_lin", "v_lin",
    "out_lin", "lin1", "lin2", "linear_1", "linear_2", "shared_expert_gate",
})  # fmt: skip
_HEADS = ("lm_head", "embed_out", "output_layer", "output", "unembed")
_EXPERT = regex(r"\.experts\.\d+\.")
# Kinds of models whose experts, stored one by one, transformers 5 loads as one tensor a layer, with the
# factors of an adapter that PEFT brings into that form (0.21); of other kinds it drops the factors.
_STACKED = frozenset({
    "mixtral", "minimax", "minimax_m2", "afmoe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1",
    "ernie4_5_moe", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "glm4v_moe", "longcat_flash", "solar_open",
    "mellum", "qwen3_moe", "qwen3_next", "hunyuan_v1_moe", "flex_olmo", "olmoe", "sarvam_mla", "exaone_moe",
    "cohere2_moe",
})  # fmt: skip
# Names that it then takes for those of experts wherever they occur.
_OF_EXPERTS = frozenset({"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
# Modules that have another name once transformers 5 has loaded them, and what such modules lie in.
_RENAMED = ("embed_out.", ".block_sparse_moe.")
_OTHER_NAME = "it has another name once it is loaded"


class Part(NamedTuple):
    """A weight with factors.

    Attributes
    ----------
    name : str
        The stored weight.
    module : str
        The module that it is the weight of.
    role : {"linear", "embedding", "head", "expert"}
    shape : tuple of int
        As it is stored.
    transposed : bool
        Whether that is [inputs, outputs], of which the factors are those of the transposed one.
    """

    name: str
    module: str
    role: Role
    shape: tuple[int, int]
    transposed: bool


class Division(NamedTuple):
    """The tensors of a vector, divided.

    ``factors`` are weights with factors, ``whole`` those that are held as they are in the donor, ``left``
    the others, each with the reason.
    """

    factors: list[Part]
    whole: list[str]
    left: dict[str, str]


def divide(
    model: Model, names: Sequence[str], *, embeddings: Embeddings = "lora", others: Others = "leave"
) -> Division:
    """Say how an adapter on a model holds each of some tensors.

    Parameters
    ----------
    model : Model
        That the adapter is put on: names, shapes and config.
    names : sequence of str
        The tensors of the vector.
    embeddings : {"lora", "whole", "leave"}
        What becomes of input embedding and output head.
    others : {"leave", "whole"}
        What becomes of all that is not a linear layer: norms, biases, routers.

    Raises
    ------
    RecipeError
        Embedding and head are tied, and are to be held whole.
    """
    head = head_of(model)
    is_tied = head.state in ("tied", "double")
    factors: list[Part] = []
    left: dict[str, str] = {}
    rest: list[str] = []
    for name in names:
        info = model.tensors[name]
        if info.dtype not in FLOAT_DTYPES:
            left[name] = f"{info.dtype} is not a float type"
        elif head.state == "double" and name == head.head:
            left[name] = "tied to the embedding, whose factors are for both"
        elif is_vocabulary(name) and _is_renamed(name):
            left[name] = _OTHER_NAME
        elif is_vocabulary(name) and len(info.shape) == 2:
            if embeddings == "lora":
                factors.append(_vocabulary_part(name, info.shape))
            elif embeddings == "leave":
                left[name] = "embeddings and head are to be left"
            else:
                rest.append(name)
        elif (part := _linear_part(model, name)) is None:
            rest.append(name)
        elif (reason := _not_loaded(model, part)) is None:
            factors.append(part)
        elif part.role == "expert":
            left[name] = reason
        else:
            rest.append(name)
    if is_tied and embeddings == "whole" and any(is_vocabulary(name) for name in rest):
        raise RecipeError(
            f"`{model.spec}` ties embedding and head to each other, and an adapter cannot hold one of them "
            "as a whole",
            "give them factors (`--embeddings lora`) or leave them (`--embeddings leave`)",
        )
    _hold_experts(model, factors)
    wanted = [name for name in rest if others == "whole" or is_vocabulary(name)]
    whole, refused = _whole(model, wanted, factors)
    reasons = {name: _reason(model, name) for name in rest if name not in set(wanted)}
    return Division(factors, whole, {**left, **reasons, **refused})


def _is_renamed(name: str) -> bool:
    return any(part in name for part in _RENAMED)


def _vocabulary_part(name: str, shape: Sequence[int]) -> Part:
    module = name.removesuffix(".weight")
    is_head = module.rpartition(".")[2] in _HEADS
    rows, columns = shape
    return Part(name, module, "head" if is_head else "embedding", (rows, columns), not is_head)


def _linear_part(model: Model, name: str) -> Part | None:
    shape = model.tensors[name].shape
    module, _, kind = name.rpartition(".")
    if kind != "weight" or len(shape) != 2 or module.rpartition(".")[2] not in _LINEAR:
        return None
    role: Role = "expert" if _EXPERT.search(name) else "linear"
    return Part(name, module, role, (shape[0], shape[1]), is_conv1d(model.config, name))


def _not_loaded(model: Model, part: Part) -> str | None:
    """Why PEFT would drop the factors of a linear layer, if it would."""
    is_stacked = model.config.get("model_type") in _STACKED
    if part.role == "expert" and not is_stacked:
        return "peft loads the experts of this kind of model as one tensor, without their factors"
    if part.role != "expert" and is_stacked and part.module.rpartition(".")[2] in _OF_EXPERTS:
        return "peft takes a module of this name for an expert of this kind of model"
    return None


def _hold_experts(model: Model, factors: Sequence[Part]) -> None:
    """Return if every layer has the factors of all its experts, or of none: they are loaded as one."""
    chosen = {part.name for part in factors if part.role == "expert"}
    blocks = {_EXPERT.split(name)[0] for name in chosen}
    for name in model.tensors:
        if name not in chosen and _EXPERT.search(name) and _EXPERT.split(name)[0] in blocks:
            raise RecipeError(
                f"the selection leaves out `{name}`, an expert whose layer has others with factors",
                "select all experts of a layer with all their weights, or none (`--exclude experts`)",
            )


def _whole(model: Model, names: Sequence[str], factors: Sequence[Part]) -> tuple[list[str], dict[str, str]]:
    """What is held whole, with all else that is in the same modules; and what cannot be, with the reason.

    A bias of a layer with factors is held as that of its base layer. A module is held with all its tensors,
    since it is loaded as one.
    """
    adapted = {part.module for part in factors}
    above: set[str] = set()
    for module in adapted:
        above.update(module[:at] for at, letter in enumerate(module) if letter == ".")
    siblings: dict[str, list[str]] = defaultdict(list)
    for name in model.tensors:
        siblings[name.rpartition(".")[0]].append(name)
    whole: dict[str, None] = {}
    refused: dict[str, str] = {}
    for name in names:
        module, _, kind = name.rpartition(".")
        if module in adapted and kind == "bias":
            whole[name] = None
        elif not module or module in above or module in adapted:
            refused[name] = "it lies in a module that has factors"
        elif _EXPERT.search(f"{module}."):
            refused[name] = "it lies in an expert, which is loaded with the others"
        elif _is_renamed(name):
            refused[name] = _OTHER_NAME
        else:
            whole.update(dict.fromkeys(siblings[module]))
    return list(whole), refused


def _reason(model: Model, name: str) -> str:
    shape = model.tensors[name].shape
    part = _linear_part(model, name)
    if part is not None:
        return _not_loaded(model, part) or "it is not selected"
    if len(shape) != 2:
        return f"it has {len(shape)} {'dimension' if len(shape) == 1 else 'dimensions'}"
    return "it is not known to be the weight of a linear layer"
