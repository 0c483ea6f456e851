"""Packed weights of which only those that take a step are written plain, and how a config says so.

A reader packs and unpacks by module. Those that serving engines keep in one layer (queries, keys and values;
gate and up; the experts of a layer) are plain together or not at all.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from taskvec.compat.layouts.rewritten import in_plain_layout
from taskvec.errors import FormatError, RecipeError
from taskvec.files.json import parse_object
from taskvec.models.quantised.declared import SIDE_FILES, declaration, declaring
from taskvec.plan.new_formats import experts_of, plain_modules
from taskvec.regex import regex

if TYPE_CHECKING:
    from taskvec.models.model import Model

# Modules of one parent that are one layer at run time.
_TOGETHER = (
    ("q_proj", "k_proj", "v_proj", "qkv_proj"), ("gate_proj", "up_proj", "gate_up_proj"), ("w1", "w3"),
    ("wq", "wk", "wv"), ("query", "key", "value"), ("q_a_proj", "kv_a_proj_with_mqa"),
    ("in_proj_qkv", "in_proj_z"), ("in_proj_a", "in_proj_b"),
)  # fmt: skip
_GROUP = {leaf: number for number, group in enumerate(_TOGETHER) for leaf in group}
# The list of plain modules of each method, and the other names that it may have.
_LISTS: Mapping[str, tuple[str, ...]] = {
    "fp8": ("modules_to_not_convert", "ignored_layers"),
    "fbgemm_fp8": ("modules_to_not_convert",),
    "compressed-tensors": ("ignore",),
    "modelopt": ("ignore", "exclude_modules", "modules_to_not_convert"),
    "awq": ("modules_to_not_convert",),
    "bitsandbytes": ("llm_int8_skip_modules",),
    "mxfp4": ("modules_to_not_convert",),
    "mlx": (),
    "": (),
}
# What goes with a packed module: scales of its inputs, and marks of how it is packed. Scales of a cache stay.
_OF_INPUTS = regex(
    r"(?:^|[._])(?:input_scale|activation_scale|qscale_act|scale_input|input_global_scale|input_zero_point"
    r"|input_scale_ub|weight_format|comfy_quant)$"
)


def touched(model: Model, names: Iterable[str]) -> frozenset[str]:
    """The packed weights that are written plain where these take a step.

    Raises
    ------
    RecipeError
        The format cannot say which of its modules are plain.
    """
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in model.packed:
        groups[_layer_of(name)].append(name)
    found = frozenset(each for name in names for each in groups[_layer_of(name)])
    if found:
        _hold_sayable(model)
    return found


def _layer_of(name: str) -> str:
    """What is one layer at run time."""
    experts = experts_of(name)
    if experts:
        return experts
    module = name.removesuffix(".weight")
    parent, _, leaf = module.rpartition(".")
    return f"{parent} {_GROUP[leaf]}" if leaf in _GROUP else module


def _hold_sayable(model: Model) -> None:
    method = _method(model)
    if method not in _LISTS or in_plain_layout(model) is not model:
        raise RecipeError(
            f"`{model.spec}` is stored as `{method}`, which cannot have some of these weights plain",
            "write all of them plain, `--out-dtype bfloat16`, or all in the format, `--out-dtype target`",
        )


def _method(model: Model) -> str:
    return declaration(model.config, dict(_side_files(model))).method


def _side_files(model: Model) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in SIDE_FILES:
        if name in model.other_files:
            try:
                yield name, parse_object(model.read_file(name), name)
            except FormatError:  # what cannot be read declares nothing, and is copied
                continue


def gone(model: Model, plain: Collection[str]) -> frozenset[str]:
    """The stored tensors that an output lacks because these weights are plain in it."""
    parts = {part for name in plain for part in (*model.packed[name].parts, *model.packed[name].beside)}
    modules = {name.removesuffix(".weight") for name in plain}
    found = {
        name
        for name in model.stored
        if name not in model.tensors and (end := _OF_INPUTS.search(name)) and name[: end.start()] in modules
    }
    return frozenset(parts | found)


def declarations(model: Model, plain: Collection[str]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What declares the format where some weights are plain: keys of config.json, and whole other files.

    Where nothing lists plain modules, readers leave the head alone by themselves; a list has to name it.
    """
    method = _method(model)
    new = plain_modules([model.tensors[name] for name in sorted(plain)])
    others = [
        info for name, info in model.tensors.items() if name not in model.packed and len(info.shape) > 1
    ]
    added = _Added(method, new, sorted({*new, *plain_modules(others), "lm_head"}))
    changes = {key: added.to(value) for key, value in declaring(model.config) if isinstance(value, dict)}
    files = {}
    for name, facts in _side_files(model):
        inner = facts.get("quantization")
        made = (
            {"quantization": added.to(inner, "exclude_modules")}
            if isinstance(inner, dict)
            else added.to(facts)
        )
        files[name] = json.dumps({**facts, **made}, indent=2).encode() + b"\n"
    return changes, files


class _Added(NamedTuple):
    """Modules that become plain, and all that are."""

    method: str
    new: Sequence[str]
    every: Sequence[str]

    def to(self, facts: Mapping[str, Any], key: str = "") -> dict[str, Any]:
        """A declaration that names them."""
        if self.method == "mlx":
            return {**facts, **dict.fromkeys(self.new, False)}
        keys = _LISTS[self.method]
        if not keys:
            return dict(facts)
        key = key or next((each for each in keys if isinstance(facts.get(each), list)), keys[0])
        known = facts.get(key)
        if not isinstance(known, list):
            return {**facts, key: list(self.every)}
        return {**facts, key: [*known, *(each for each in self.new if each not in known)]}
