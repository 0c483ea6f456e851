"""The schemes that a config of compressed-tensors declares, and which of them a weight has."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from taskvec.models.quantised.record import UnreadableError

PLAIN_FORMATS = frozenset({
    "float-quantized", "naive-quantized", "int-quantized", "pack-quantized", "mxfp4-pack-quantized",
    "mxfp8-quantized", "nvfp4-pack-quantized", "mixed-precision", "dense", "",
})  # fmt: skip

# Words of `actorder` with which columns have groups in an order of their own; the last is the word of old.
_ORDERED = frozenset({"true", "group", "dynamic"})


class Scheme(NamedTuple):
    """How some modules are stored: ``strategy`` is ``tensor``, ``channel``, ``block`` or ``group``.

    ``is_ordered`` says that the columns of a group are not neighbours: another tensor has the group of each.
    """

    format: str
    bits: int
    type: str
    strategy: str
    group: int
    is_symmetric: bool
    block: tuple[int, int]
    targets: tuple[str, ...]
    is_ordered: bool = False

    @property
    def words(self) -> str:
        """The scheme in a message."""
        size = {"group": f" of {self.group}", "block": f" {self.block[0]}x{self.block[1]}"}
        return f"{self.bits} bits {self.type}, one scale per {self.strategy}{size.get(self.strategy, '')}"


def schemes(facts: Mapping[str, Any]) -> list[Scheme]:
    """The schemes of a config, each once.

    Raises
    ------
    UnreadableError
        One of them is of a format that is not read.
    """
    if (
        facts.get("sparsity_config", {})
        and (facts["sparsity_config"] or {}).get("format", "dense") != "dense"
    ):
        raise UnreadableError(
            f"sparse compressed-tensors (`{facts['sparsity_config'].get('format')}`) are not read"
        )
    if facts.get("transform_config"):
        raise UnreadableError("the weights are rotated (`transform_config`), which is another basis")
    whole = str(facts.get("format") or "")
    groups = facts.get("config_groups")
    found = [
        _scheme(group, whole)
        for group in (groups.values() if isinstance(groups, dict) else ())
        if isinstance(group, dict) and isinstance(group.get("weights"), dict)
    ]
    for name in {whole, *(each.format for each in found)}:
        if name not in PLAIN_FORMATS:
            raise UnreadableError(f"the format `{name}` of compressed-tensors is not read")
    return found


def _scheme(group: Mapping[str, Any], whole: str) -> Scheme:
    weights = group["weights"]
    size, block = weights.get("group_size"), weights.get("block_structure")
    strategy = str(weights.get("strategy") or "")
    if not strategy:
        strategy = "block" if block else "group" if isinstance(size, int) and size > 0 else "tensor"
        strategy = "channel" if size == -1 else strategy
    if isinstance(block, str):  # older files write `128x128`
        block = [int(side) for side in block.split("x") if side.isdigit()]
    sides = tuple(block) if isinstance(block, (list, tuple)) else ()
    if not (len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides)):
        sides = (128, 128)
    return Scheme(
        format=str(group.get("format") or whole),
        bits=weights.get("num_bits") if isinstance(weights.get("num_bits"), int) else 8,
        type=str(weights.get("type") or "int"),
        strategy="group" if strategy == "tensor_group" else strategy,
        group=size if isinstance(size, int) and size > 0 else 0,
        is_symmetric=weights.get("symmetric") is not False,
        block=(sides[0], sides[1]),
        targets=tuple(map(str, group.get("targets") or ())),
        is_ordered=str(weights.get("actorder")).lower() in _ORDERED,
    )


def scheme_of(name: str, declared: list[Scheme], fits: Callable[[Scheme], bool], what: str) -> Scheme:
    """The scheme that a weight has, among those that fit its stored tensors.

    Raises
    ------
    UnreadableError
        None fits, or several do and their targets do not tell which.
    """
    possible = [each for each in declared if fits(each)]
    if not possible:
        said = "; ".join(dict.fromkeys(each.words for each in declared)) or "nothing of it"
        raise UnreadableError(f"{what} does not have the scales that the config declares ({said})")
    if len({each._replace(targets=()) for each in possible}) > 1:
        module = name.removesuffix(".weight")
        named = [each for each in possible if any(_is_meant(module, target) for target in each.targets)]
        possible = named or possible
    if len({each._replace(targets=()) for each in possible}) > 1:
        said = "; ".join(dict.fromkeys(each.words for each in possible))
        raise UnreadableError(f"{what} may be stored in several ways of the config: {said}")
    return possible[0]


def _is_meant(module: str, target: str) -> bool:
    if target.startswith("re:"):
        try:
            return re.match(target[3:], module) is not None
        except re.error:
            return False
    return module == target or module.endswith(f".{target}")
