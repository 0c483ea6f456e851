"""Which stored tensors make up packed weights, and in which format: from headers, config and side files.

A tensor is packed because its companions are stored, wherever they lie; the config says what headers leave
open, and has to agree with them. Everything that is not known to be right makes the whole checkpoint one
whose packed weights are not read, with the reason.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from taskvec.models.model import TensorInfo
from taskvec.models.quantised.declared import Declaration, declaration, plain_dtype
from taskvec.models.quantised.format import Format, Packed, Shape
from taskvec.models.quantised.leftovers import Leftovers, is_matrix
from taskvec.models.quantised.record import NARROW_FLOATS, Recognised, UnreadableError, shown
from taskvec.models.quantised.rules import ANCHORS, NOT_READ, Rule, is_aside, rule_of
from taskvec.text import listed

Read = Callable[[Sequence[str]], Mapping[str, bytes]]
Stored = Mapping[str, TensorInfo]

SAMPLE = 1 << 16
METHODS = frozenset({
    "", "fp8", "fbgemm_fp8", "compressed-tensors", "modelopt", "mxfp4", "gptq", "awq", "bitsandbytes", "mlx",
})  # fmt: skip


def _decide(
    rule: Rule, name: str, infos: Mapping[str, TensorInfo], declared: Declaration
) -> tuple[Format, Shape]:
    from taskvec.models.quantised import e2m1, integers, mlx, scaled  # packed weights alone need them

    ways = {
        "fp8": scaled.fp8,
        "int8": scaled.int8,
        "scb": scaled.scb,
        "e2m1": e2m1.packed,
        "mxfp4": e2m1.mxfp4,
        "qweight": integers.qweight,
        "mlx": mlx.mlx,
    }
    return ways[rule.way](name, infos, declared)


def _schemes(declared: Declaration) -> list[Any]:
    """The schemes of compressed-tensors; none of another method."""
    if declared.method != "compressed-tensors":
        return []
    from taskvec.models.quantised.compressed_tensors import schemes

    return schemes(declared.facts)


def recognise(
    stored: Stored,
    config: Mapping[str, Any],
    files: Mapping[str, Mapping[str, Any]],
    read: Read,
    metadata: Collection[str] = (),
) -> Recognised:
    """The logical tensors of a checkpoint.

    Parameters
    ----------
    stored : mapping
        Every stored tensor, in file order.
    config : mapping
        config.json.
    files : mapping
        The files next to it that declare a format, parsed, by name.
    read : callable
        Gives the bytes of some tensors by name, the first `SAMPLE` of each; called once, for what headers and
        config leave open.
    metadata : collection of str
        The keys of the headers besides their tensors.
    """
    plain = Recognised(stored, MappingProxyType({}))
    anchors = [name for name in stored if name.endswith(ANCHORS)]
    found = [rule for rule in (rule_of(name, stored) for name in anchors) if rule is not None]
    declared = declaration(config, files)
    if declared.method not in METHODS:
        return plain
    try:
        if not found:
            _hold_declared(stored, declared)
            return plain
        result = _Table(stored, declared, plain_dtype(config), read).of(found)
        _hold_order(result, metadata)
        return result
    except UnreadableError as problem:
        return plain._replace(problem=str(problem))


def _hold_declared(stored: Stored, declared: Declaration) -> None:
    narrow = next((info for info in stored.values() if is_matrix(info, NARROW_FLOATS)), None)
    if declared.method and narrow is not None:
        raise UnreadableError(
            f"{declared.where} declares `{declared.method}`, and {shown(narrow)} has no scales"
        )


def _hold_order(result: Recognised, metadata: Collection[str]) -> None:
    """Return unless a tool has packed the weights that puts scales of groups into an order of its own.

    Raises
    ------
    UnreadableError
        ComfyUI has: its files have the shapes of the formats that they are named like.
    """
    is_marked = any("quantization_metadata" in key for key in metadata)
    for name, packed in result.packed.items():
        is_one = dict(packed.format.parameters).get("block") in ((0, 0), (1, 0))
        if not is_one and (is_marked or f"{name.removesuffix('.weight')}.comfy_quant" in result.marks):
            raise UnreadableError(
                f"`{name}` is {packed.format.words} of ComfyUI, whose order of scales is not read"
            )


class _Table:
    """The logical tensors of one checkpoint in the making."""

    def __init__(self, stored: Stored, declared: Declaration, dtype: str, read: Read) -> None:
        self.stored, self.declared, self.dtype, self.read = stored, declared, dtype, read
        self.known: dict[Any, tuple[Format, Shape]] = {}
        self.formats: dict[Format, Format] = {}
        # where modules have ways of their own, the name counts besides types and shapes
        self.is_by_name = self._is_by_name()

    def of(self, found: Sequence[tuple[Rule, str]]) -> Recognised:
        names, alike = _open_questions(found, self.stored, self.declared)
        contents = dict(self.read(names))
        self.is_symmetric = _lacks_lowest(contents)
        contents |= {name: contents[other] for name, other in alike.items() if other in contents}
        by_codes: dict[str, tuple[str, Packed, TensorInfo]] = {}
        used: set[str] = set()
        for rule, stem in found:
            name, packed, info, names = self._weight(rule, stem, contents)
            used.update(names)
            if packed.parts[0] in by_codes:
                scales = by_codes[packed.parts[0]][1].parts[1:] + packed.parts[1:]
                raise UnreadableError(f"`{name}` has scales of two formats next to it: {listed(scales)}")
            by_codes[packed.parts[0]] = name, packed, info
        tensors: dict[str, TensorInfo] = {}
        marks: list[str] = []
        packed_by_name: dict[str, Packed] = {}
        leftovers = Leftovers({name: info for name, _, info in by_codes.values()})
        for stored_name, info in self.stored.items():
            entry = by_codes.get(stored_name)
            if entry is not None:
                name, packed, info = entry
                if name in tensors or (name != stored_name and name in self.stored and name not in used):
                    raise UnreadableError(
                        f"`{name}` is stored plain, and packed as {shown(self.stored[stored_name])}"
                    )
                tensors[name], packed_by_name[name] = info, packed
            elif stored_name.endswith(".comfy_quant"):
                marks.append(stored_name)
            elif stored_name not in used and not is_aside(info):
                leftovers.hold_plain(info)
                tensors[stored_name] = info
        return Recognised(MappingProxyType(tensors), MappingProxyType(packed_by_name), marks=frozenset(marks))

    def _is_by_name(self) -> bool:
        if self.declared.method == "compressed-tensors":
            return len({each._replace(targets=()) for each in _schemes(self.declared)}) > 1
        facts = self.declared.facts
        return self.declared.method == "mlx" and any(isinstance(value, dict) for value in facts.values())

    def _weight(
        self, rule: Rule, stem: str, contents: Mapping[str, bytes]
    ) -> tuple[str, Packed, TensorInfo, list[str]]:
        """One packed weight: its name, its record, its logical tensor, and the stored names that it takes."""
        stored, name = self.stored, stem + rule.strip
        codes = stored.get(stem + rule.codes)
        if codes is None:
            raise UnreadableError(f"`{stem + rule.codes}` is missing next to its scales")
        ends, infos, names = [("codes", rule.codes)], {"codes": codes}, [codes.name]
        facts: list[Any] = [rule, codes.dtype, codes.shape]
        for part, end in rule.parts:
            info = stored.get(stem + end)
            if info is not None:
                if part in infos:
                    raise UnreadableError(
                        f"{shown(infos[part])} and {shown(info)} are both there for `{name}`"
                    )
                ends.append((part, end))
                infos[part] = info
                names.append(info.name)
                facts += (end, info.dtype, info.shape)
        content = contents.get(infos["shape"].name) if "shape" in infos else None
        state = contents.get(infos["state"].name) if "state" in infos else None
        key = (*facts, content, state, name if self.is_by_name else None)
        decided = self.known.get(key)
        if decided is None:
            decided = self.known[key] = self._decided(rule, name, infos, content, state, ends)
        form, shape = decided
        nbytes = sum(info.nbytes for info in infos.values())
        kept = tuple(infos[part].name for part, _ in form.parts)
        beside = tuple(each for each in names if each not in kept) if len(names) > len(kept) else ()
        logical = TensorInfo(name, form.dtype, shape, nbytes, codes.file)
        return name, Packed(form, kept, beside), logical, names

    def _decided(
        self,
        rule: Rule,
        name: str,
        infos: Mapping[str, TensorInfo],
        content: bytes | None,
        state: bytes | None,
        ends: Sequence[tuple[str, str]],
    ) -> tuple[Format, Shape]:
        from taskvec.models.quantised import bitsandbytes, integers

        if rule.way == "bnb4":
            form, shape = bitsandbytes.four_bit(infos, self.declared, state)
        elif rule.way == "pack":
            form, shape = integers.pack_quantized(name, infos, self.declared, _shape_of(infos, content))
        elif "scales" not in infos:
            raise UnreadableError(f"{shown(infos['codes'])} has no scales next to it")
        else:
            form, shape = _decide(rule, name, infos, self.declared)
        kept = tuple(end for end in ends if end[0] not in NOT_READ)
        is_symmetric = self.is_symmetric and rule.way == "pack" and dict(form.parameters)["bits"] == 4
        form = form._replace(dtype=self.dtype, strip=rule.strip, parts=kept, is_symmetric=is_symmetric)
        return self.formats.setdefault(form, form), shape


def _open_questions(
    found: Iterable[tuple[Rule, str]], stored: Stored, declared: Declaration
) -> tuple[list[str], dict[str, str]]:
    """The small tensors whose content is needed, because headers leave the shape of a weight open.

    Of weights whose headers are equal and show a shape, one is asked: its answer holds for the others, which
    the second value names with it.
    """
    names: list[str] = []
    alike: dict[str, str] = {}
    is_open: dict[Any, bool] = {}
    asked: dict[Any, str] = {}
    declared_schemes = _schemes(declared)
    for rule, stem in found:
        if rule.way == "bnb4":
            names += [stem + end for part, end in rule.parts if part == "state" and stem + end in stored]
        elif rule.way == "pack" and f"{stem}_shape" in stored:
            codes, scales = stored[f"{stem}_packed"], stored[f"{stem}_scale"]
            key = codes.shape, scales.shape
            if key not in is_open:
                is_open[key] = _is_width_open(codes, scales, declared_schemes)
            first = asked.setdefault(
                (*key, stored[f"{stem}_shape"]._replace(name="", file="")), f"{stem}_shape"
            )
            if is_open[key] or first == f"{stem}_shape":
                names.append(f"{stem}_shape")
            else:
                alike[f"{stem}_shape"] = first
    # how scales were made shows in the codes alone: a sample of one weight tells
    if declared_schemes and all(each.bits == 4 for each in declared_schemes):
        names += [stem + rule.codes for rule, stem in found if rule.way == "pack" and rule.codes][:1]
    return names, alike


def _lacks_lowest(contents: Mapping[str, bytes]) -> bool:
    """Whether a sample of four-bit codes has none that is zero, the lowest integer."""
    codes = next((data for name, data in contents.items() if name.endswith("_packed")), None)
    return bool(codes) and all(byte & 0x0F and byte & 0xF0 for byte in codes or b"")


def _is_width_open(codes: TensorInfo, scales: TensorInfo, declared: Sequence[Any]) -> bool:
    if len(codes.shape) != 2 or len(scales.shape) != 2:
        return False
    from taskvec.models.quantised import integers

    widths = {
        integers.columns(codes, scales, each.bits, each.group if each.strategy == "group" else 0)
        for each in declared
        if each.bits > 0
    }
    return len(widths) != 1 or None in widths


def _shape_of(infos: Mapping[str, TensorInfo], content: bytes | None) -> Shape | None:
    """What ``weight_shape`` holds: two numbers of 64 or 32 bits."""
    info = infos.get("shape")
    if info is None or content is None:
        return None
    kind = {"I64": "q", "I32": "i"}.get(info.dtype)
    if kind is None or info.shape != (2,) or len(content) != info.nbytes:
        raise UnreadableError(f"{shown(info)} is not the shape of a matrix")
    rows, columns = struct.unpack(f"<2{kind}", content)
    if not (0 <= rows < 2**48 and 0 < columns < 2**48):
        raise UnreadableError(f"{shown(info)} says [{rows}, {columns}]")
    return rows, columns
