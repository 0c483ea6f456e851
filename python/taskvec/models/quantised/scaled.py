"""Codes that are numbers by themselves, times a scale: FP8 and INT8 per tensor, channel, block or group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from taskvec.models.quantised.compressed_tensors import scheme_of, schemes
from taskvec.models.quantised.format import Format, Shape
from taskvec.models.quantised.record import NARROW_FLOATS, POWERS_OF_TWO, SCALES, UnreadableError, shown, up

if TYPE_CHECKING:
    from taskvec.models.model import TensorInfo
    from taskvec.models.quantised.compressed_tensors import Scheme
    from taskvec.models.quantised.declared import Declaration

Block = tuple[int, int]
TENSOR, CHANNEL, BLOCK, GROUP = (0, 0), (1, 0), (128, 128), (1, 32)
# What bitsandbytes multiplies an INT8 code with besides its scale: 1/127 in float32.
INT8_FACTOR = 0.007874015718698502


def grids(shape: Shape, block: Block) -> list[Shape]:
    """The shapes that the scales of a weight may have, one for each block; rounded up where it is cut off."""
    *lead, rows, columns = shape
    grid = (*lead, up(rows, block[0] or rows or 1), up(columns, block[1] or columns or 1))
    found: list[Shape] = [grid]
    if block == CHANNEL:
        found.append(grid[:-1])
    if block == TENSOR and not lead:
        found += [(1,), ()]
    if all(block) and not lead:  # ModelOpt keeps the axes within a block, of one each
        found.append((grid[0], 1, grid[1], 1))
    return found


def block_of(codes: TensorInfo, scales: TensorInfo) -> Block:
    """The block that the grid of the scales shows where no config says it.

    Raises
    ------
    UnreadableError
        It is not one of the usual ones.
    """
    usual = [GROUP] if scales.dtype in POWERS_OF_TWO else []
    for block in (*usual, TENSOR, CHANNEL, BLOCK):
        if scales.shape in grids(codes.shape, block):
            return block
    raise UnreadableError(
        f"the scales {shown(scales)} have no grid that fits {shown(codes)}: one per tensor, per row, or per "
        "block of 128x128"
    )


def fp8(name: str, parts: Mapping[str, TensorInfo], declared: Declaration) -> tuple[Format, Shape]:
    """The format of FP8 codes with scales.

    Raises
    ------
    UnreadableError
        The scales have another grid or type than the config and the codes ask for.
    """
    codes, scales = parts["codes"], parts["scales"]
    _check(codes, scales, SCALES | POWERS_OF_TWO)
    if declared.method == "compressed-tensors":
        block = _scheme_block(_scheme_of(name, codes, scales, declared, "float"))
    else:
        block = _declared_block(codes, scales, declared)
    if scales.dtype in POWERS_OF_TWO and block in (TENSOR, CHANNEL):
        raise UnreadableError(
            f"the scales {shown(scales)} of {shown(codes)} are one for each "
            f"{'tensor' if block == TENSOR else 'channel'}, of another type than BF16, F16, F32"
        )
    return _format(codes, scales, block), codes.shape


def int8(name: str, parts: Mapping[str, TensorInfo], declared: Declaration) -> tuple[Format, Shape]:
    """The format of INT8 codes with scales; raises as :func:`fp8`."""
    codes, scales = parts["codes"], parts["scales"]
    _check(codes, scales, SCALES)
    if "zeros" in parts:
        raise UnreadableError(f"INT8 with zero points is not read ({shown(parts['zeros'])})")
    if declared.method == "compressed-tensors":
        scheme = _scheme_of(name, codes, scales, declared, "int")
        hold_zeros(codes, None, declared, is_symmetric=scheme.is_symmetric)
        block = _scheme_block(scheme)
    elif declared.method:
        raise uncovered(codes, declared)
    else:  # of four bits two to a byte, of three values four, of rotated weights: the shapes are the same
        raise UnreadableError(
            f"{shown(codes)} has {shown(scales)} next to it, and no config says how its integers are packed"
        )
    return _format(codes, scales, block), codes.shape


def scb(_: str, parts: Mapping[str, TensorInfo], declared: Declaration) -> tuple[Format, Shape]:
    """The format of bitsandbytes' INT8; raises as :func:`fp8`."""
    codes, scales = parts["codes"], parts["scales"]
    _check(codes, scales, frozenset({"F32"}))
    if declared.method not in ("", "bitsandbytes"):
        raise uncovered(codes, declared)
    if codes.dtype != "I8" or len(codes.shape) != 2 or scales.shape not in grids(codes.shape, CHANNEL):
        raise wrong_grid(codes, scales, CHANNEL)
    made = _format(codes, scales, CHANNEL)
    parameters = (*made.parameters, ("factor", INT8_FACTOR))
    return made._replace(parameters=parameters, words="bitsandbytes INT8, F32 scales"), codes.shape


def uncovered(codes: TensorInfo, declared: Declaration) -> UnreadableError:
    """The error of a packed weight that is of another format than the declared one."""
    return UnreadableError(
        f"{shown(codes)} has scales next to it that {declared.where} (`{declared.method}`) does not cover"
    )


def wrong_grid(codes: TensorInfo, scales: TensorInfo, block: Block, by: str = "") -> UnreadableError:
    """The error of scales that do not have the grid of a block."""
    expected = " or ".join(f"[{', '.join(map(str, grid))}]" for grid in grids(codes.shape, block))
    return UnreadableError(
        f"the scales {shown(scales)} of {shown(codes)} have another grid than {expected}, which is that of "
        f"{_in_words(block)}{by}"
    )


def _check(codes: TensorInfo, scales: TensorInfo, types: frozenset[str]) -> None:
    if scales.dtype not in types:
        known = ", ".join(sorted(types))
        raise UnreadableError(f"the scales {shown(scales)} of {shown(codes)} have another type than {known}")
    if len(codes.shape) not in (2, 3):
        raise UnreadableError(f"{shown(codes)} has scales next to it, and is not a matrix")


def _declared_block(codes: TensorInfo, scales: TensorInfo, declared: Declaration) -> Block:
    method, facts = declared.method, declared.facts
    if method == "modelopt":
        hold_basis(declared)
    if method in ("", "of an unnamed method"):
        return block_of(codes, scales)
    if method == "fp8" and "weight_block_size" in facts:
        block = _block_size(facts["weight_block_size"], declared)
    elif method == "fbgemm_fp8":
        block = CHANNEL
    elif method == "modelopt" and facts.get("quant_algo") in _ALGORITHMS:
        block = _ALGORITHMS[facts["quant_algo"]]
    elif method in ("fp8", "modelopt"):
        return block_of(codes, scales)
    else:
        raise uncovered(codes, declared)
    if scales.shape not in grids(codes.shape, block):
        raise wrong_grid(codes, scales, block, f" as {declared.where} declares")
    return block


def hold_basis(declared: Declaration) -> None:
    """Return unless ModelOpt has scaled or split the columns of a weight: of all, or of some layers.

    Raises
    ------
    UnreadableError
        It has: the weights are in another basis.
    """
    layers = declared.facts.get("quantized_layers")
    each = [value for value in layers.values() if isinstance(value, dict)] if isinstance(layers, dict) else []
    for facts in (declared.facts, *each):
        algorithm = str(facts.get("quant_algo"))
        if any(word in algorithm.upper().split("_") for word in ("AWQ", "SVD", "SVDQUANT", "SQ")):
            raise UnreadableError(f"`{algorithm}` of ModelOpt is not read: its weights are in another basis")


_ALGORITHMS = {"FP8": TENSOR, "FP8_PER_CHANNEL_PER_TOKEN": CHANNEL, "FP8_PB_WO": BLOCK, "MXFP8": GROUP}


def _block_size(value: object, declared: Declaration) -> Block:
    if value is None:
        return TENSOR
    if isinstance(value, (list, tuple)) and len(value) == 2:
        rows, columns = value
        if isinstance(rows, int) and isinstance(columns, int) and rows > 0 and columns > 0:
            return rows, columns
    raise UnreadableError(
        f"`weight_block_size` in {declared.where} is {value!r}, expected two numbers or null"
    )


def hold_zeros(
    codes: TensorInfo, zeros: TensorInfo | None, declared: Declaration, *, is_symmetric: bool
) -> None:
    """Return if codes have zero points exactly where the config says so.

    Raises
    ------
    UnreadableError
        They are missing, or there although the config says that the codes are symmetric.
    """
    if not is_symmetric and zeros is None:
        raise UnreadableError(
            f"{shown(codes)} has no zero points, which {declared.where} declares (`symmetric`: false)"
        )
    if is_symmetric and zeros is not None:
        raise UnreadableError(
            f"{shown(codes)} has zero points {shown(zeros)}, and {declared.where} says that it has none "
            "(`symmetric`: true)"
        )


def _scheme_of(name: str, codes: TensorInfo, scales: TensorInfo, declared: Declaration, sort: str) -> Scheme:
    def fits(each: Scheme) -> bool:
        # without `type`, a format of its own says it
        is_sort = each.type == sort or each.format.startswith(("mxfp8", sort))
        types = POWERS_OF_TWO if each.format == "mxfp8-quantized" else SCALES
        is_sort = is_sort and scales.dtype in types
        return each.bits == 8 and is_sort and scales.shape in grids(codes.shape, _scheme_block(each))

    found = schemes(declared.facts)
    return scheme_of(name, found, fits, f"{shown(codes)} with {shown(scales)}")


def _scheme_block(scheme: Scheme) -> Block:
    if scheme.format == "mxfp8-quantized":
        return GROUP
    known = {"tensor": TENSOR, "channel": CHANNEL, "token": CHANNEL, "block": scheme.block}
    return known.get(scheme.strategy, (1, scheme.group or 32))


def _in_words(block: Block) -> str:
    if block == TENSOR:
        return "one per tensor"
    if block == CHANNEL:
        return "one per channel"
    return f"blocks of {block[0]}x{block[1]}"


def _format(codes: TensorInfo, scales: TensorInfo, block: Block) -> Format:
    type_of = {"F8_E4M3": "FP8", "F8_E5M2": "FP8 E5M2", "I8": "INT8"}[codes.dtype]
    sizes = {TENSOR: "per tensor", CHANNEL: "per channel"}
    size = sizes.get(block) or f"block {block[0]}x{block[1]}"
    is_mx = block == GROUP and codes.dtype in NARROW_FLOATS and scales.dtype in POWERS_OF_TWO
    words = f"MXFP8, {scales.dtype} scales" if is_mx else f"{type_of} {size}, {scales.dtype} scales"
    return Format("scaled", "BF16", "", (), (("block", block),), scales.dtype, words)
