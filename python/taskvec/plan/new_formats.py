"""Formats in which a plain checkpoint can be packed, by the rules of the tools that read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from taskvec.models.model import Model, TensorInfo
from taskvec.models.quantised.format import Format
from taskvec.models.quantised.record import up
from taskvec.models.tensor_names import is_vocabulary
from taskvec.regex import regex

Shape = tuple[int, ...]
_EXPERTS = regex(r"(.*\.experts)\.")

# Linear layers that every tool leaves as they are: they choose experts, or weigh them.
_ROUTERS = regex(r"(?:^|\.)(?:gate|router|shared_expert_gate|classifier|wg)(?:\.|$)")


class Part(NamedTuple):
    """A stored tensor of a packed weight: which part it is, what its name ends in, its type and shape."""

    part: str
    end: str
    dtype: str
    shape: Callable[..., Shape]


class NewFormat(NamedTuple):
    """A way to pack the matrices of a checkpoint.

    Attributes
    ----------
    kind, parameters
        As of :class:`taskvec.models.quantised.format.Format`.
    rule : str
        How the engine makes scales.
    parts : tuple of Part
    multiple : (int, int)
        Rows and columns of a matrix are multiples of these; others stay plain.
    config : callable
        ``quantization_config`` for the modules that stay plain.
    words : str
    """

    kind: str
    parameters: tuple[tuple[str, Any], ...]
    rule: str
    parts: tuple[Part, ...]
    multiple: tuple[int, int]
    config: Callable[[Sequence[str]], dict[str, Any]]
    words: str
    has_experts: bool = True
    is_stacked: bool = False

    def fits(self, info: TensorInfo) -> bool:
        """Whether a matrix has sides that the format can have."""
        if experts_of(info.name) and not self.has_experts:
            return False
        return all(side % whole == 0 for side, whole in zip(info.shape[-2:], self.multiple, strict=True))

    def is_linear(self, info: TensorInfo) -> bool:
        """Whether a tensor is the matrix of a linear layer that tools pack, or matrices of experts."""
        if self.is_stacked:
            return is_stack(info)
        if len(info.shape) != 2 or not info.name.endswith(".weight") or not all(info.shape):
            return False
        return not (is_vocabulary(info.name) or "norm" in info.name or _ROUTERS.search(info.name))

    def format(self, dtype: str) -> Format:
        """The format with the type of arithmetic of its source."""
        # the shape is written, and not read: it is in the plan
        ends = tuple(
            (each.part, each.end.removeprefix(".weight")) for each in self.parts if each.part != "shape"
        )
        return Format(self.kind, dtype, "", ends, self.parameters, "", self.words)


def _fp8_config(plain: Sequence[str]) -> dict[str, Any]:
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": list(plain),
    }


def _compressed(form: str, activations: dict[str, Any] | None = None, **weights: Any) -> Callable[..., Any]:
    def config(plain: Sequence[str]) -> dict[str, Any]:
        facts = {"symmetric": True, "dynamic": False, "group_size": None, **weights}
        group = {"targets": ["Linear"], "weights": facts, "input_activations": activations, "format": form}
        return {
            "quant_method": "compressed-tensors",
            "format": form,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": list(plain),
        }

    return config


_DYNAMIC = {"dynamic": True, "strategy": "token", "symmetric": True, "num_bits": 8}
_SAME: Callable[..., Shape] = lambda rows, columns: (rows, columns)  # noqa: E731
_BY_ROW: Callable[..., Shape] = lambda rows, _: (rows, 1)  # noqa: E731

NEW_FORMATS = {
    "fp8-block": NewFormat(
        "scaled",
        (("block", (128, 128)),),
        "amax_448_reciprocal",
        (
            Part("codes", ".weight", "F8_E4M3", _SAME),
            Part(
                "scales", ".weight_scale_inv", "F32", lambda rows, columns: (up(rows, 128), up(columns, 128))
            ),
        ),
        (128, 128),
        _fp8_config,
        "FP8 block 128x128, F32 scales",
    ),
    "fp8-channel": NewFormat(
        "scaled",
        (("block", (1, 0)),),
        "ct_448",
        (Part("codes", ".weight", "F8_E4M3", _SAME), Part("scales", ".weight_scale", "BF16", _BY_ROW)),
        (1, 1),
        _compressed(
            "float-quantized", {**_DYNAMIC, "type": "float"}, num_bits=8, type="float", strategy="channel"
        ),
        "FP8 per channel, BF16 scales",
    ),
    "int8-channel": NewFormat(
        "scaled",
        (("block", (1, 0)),),
        "ct_127",
        (Part("codes", ".weight", "I8", _SAME), Part("scales", ".weight_scale", "BF16", _BY_ROW)),
        (1, 1),
        _compressed("int-quantized", {**_DYNAMIC, "type": "int"}, num_bits=8, type="int", strategy="channel"),
        "INT8 per channel, BF16 scales",
        has_experts=False,
    ),
    "mxfp4": NewFormat(
        "e2m1",
        (("group", 32),),
        "mx_ct",
        (
            Part("codes", ".weight_packed", "U8", lambda rows, columns: (rows, columns // 2)),
            Part("scales", ".weight_scale", "U8", lambda rows, columns: (rows, columns // 32)),
        ),
        (1, 32),
        _compressed(
            "mxfp4-pack-quantized",
            num_bits=4,
            type="float",
            strategy="group",
            group_size=32,
            scale_dtype="torch.uint8",
        ),
        "MXFP4, U8 scales",
    ),
    "int4-g32": NewFormat(
        "packed_int",
        (("bits", 4), ("group", 32)),
        "ct",
        (
            Part("codes", ".weight_packed", "I32", lambda rows, columns: (rows, columns // 8)),
            Part("scales", ".weight_scale", "BF16", lambda rows, columns: (rows, columns // 32)),
            Part("shape", ".weight_shape", "I64", lambda *_: (2,)),
        ),
        (1, 32),
        _compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=32),
        "INT4 group 32, BF16 scales",
    ),
}

# What MXFP4 is in gpt-oss: its experts, and nothing else.
GPT_OSS = NewFormat(
    "e2m1",
    (("group", 32),),
    "mx_rceil",
    (
        Part("codes", "_blocks", "U8", lambda experts, rows, columns: (experts, rows, columns // 32, 16)),
        Part("scales", "_scales", "U8", lambda experts, rows, columns: (experts, rows, columns // 32)),
    ),
    (1, 32),
    lambda plain: {"quant_method": "mxfp4", "modules_to_not_convert": list(plain)},
    "MXFP4 experts, U8 scales",
    is_stacked=True,
)


def new_format(model: Model, name: str | None) -> NewFormat | None:
    """The format of a name in which a model is packed."""
    if name == "mxfp4" and model.config.get("model_type") == "gpt_oss":
        return GPT_OSS
    return NEW_FORMATS.get(name or "")


def is_stack(info: TensorInfo) -> bool:
    """Whether a tensor holds the matrices of several experts."""
    return len(info.shape) == 3 and bool(experts_of(info.name))


def experts_of(name: str) -> str:
    """The module of a layer's experts that a tensor belongs to; empty for others."""
    found = _EXPERTS.match(name)
    return found[1] if found else ""


def plain_modules(tensors: Sequence[TensorInfo]) -> list[str]:
    """The modules of weights that stay plain, by their own names; experts also as one module."""
    modules = {
        info.name.removesuffix(".weight")
        for info in tensors
        if info.name.endswith(".weight") and not is_stack(info)
    }
    stacks = {experts_of(info.name) for info in tensors if len(info.shape) > 1}
    return sorted((modules | stacks) - {""})
