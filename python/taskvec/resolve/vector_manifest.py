"""The tensors that the manifest of a saved vector lists, held against the headers of its files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from taskvec.dtypes import FLOAT_DTYPES, TYPES
from taskvec.errors import FormatError
from taskvec.models.saved_vector import FORMATS

if TYPE_CHECKING:
    from taskvec.models.model import Model

# What is stored of a tensor, by its encoding.
_PARTS = {"zero": (), "dense": ("",), "mask": (".mask", ".values"), "index": (".indices", ".values")}
_EXACT = (".exact.indices", ".exact.donor", ".exact.reference")
# More elements than any tensor has, and than the engine, which counts bits in 64 bits, has room for.
_TOO_MANY = 1 << 56
_INDEX_DTYPES = frozenset({"I32", "I64"})
_AGAIN = "download or extract it again; `taskvec verify` names the files that have changed"


def rows(data: Mapping[str, Any], stored: Model) -> dict[str, dict[str, Any]]:
    """The tensors that a manifest lists.

    Parameters
    ----------
    data : mapping
        taskvec.json.
    stored : Model
        The safetensors files next to it.

    Raises
    ------
    FormatError
        A member is missing or wrong, or manifest and files contradict each other.
    """
    vector = data.get("vector")
    if not isinstance(vector, dict) or vector.get("format") not in FORMATS:
        raise FormatError(
            f"`{stored.spec}` has no description of a vector of format "
            f"{FORMATS[0]} or {FORMATS[1]} in its manifest",
            "extract it again with this version",
        )
    tensors = vector.get("tensors")
    if not isinstance(tensors, dict):
        raise FormatError(f"`{stored.spec}` has a damaged `vector.tensors` in its manifest", _AGAIN)
    wanted: dict[str, str] = {}
    # Once: the engine makes a new mapping of all of it for everyone who asks.
    metadata = stored.metadata
    for name, row in tensors.items():
        wrong = _wrong_member(row)
        if wrong is not None:
            raise FormatError(
                f"`{stored.spec}` has a damaged description of `{name}`: {_found(row, wrong)}", _AGAIN
            )
        if row["dtype"] != vector.get("dtype") is not None and row["encoding"] != "zero":
            raise _contradiction(stored, name, f"values of {row['dtype']}", f"all are {vector['dtype']}")
        for part, (dtypes, shape) in _expected(row).items():
            _hold(stored, f"{name}{part}", row, dtypes, shape)
            wanted[f"{name}{part}"] = name
        _hold_bytes(stored, name, row, metadata.get(f"taskvec.origin.{name}", "BF16"))
        _hold_rounded(stored, name, row, f"taskvec.rounded.{name}" in metadata)
    surplus = next((name for name in stored.tensors if name not in wanted), None)
    if surplus is not None:
        raise FormatError(f"`{stored.spec}` holds `{surplus}`, which its manifest does not list", _AGAIN)
    if vector["format"] != FORMATS[any("rounded" in row for row in tensors.values())]:
        raise FormatError(f"`{stored.spec}` has a damaged `vector.format` in its manifest", _AGAIN)
    for member in ("elements", "changed", "bytes"):
        total = sum(row[member] for row in tensors.values())
        if vector.get(member) != total:
            raise FormatError(
                f"`{stored.spec}` has a damaged `vector.{member}` in its manifest: {vector.get(member)!r}, "
                f"its tensors have {total}",
                _AGAIN,
            )
    wrong = next((key for key in ("dtype", "norm", "largest") if not _CHECKS[key](vector.get(key))), None)
    if wrong is not None or "dtype" not in vector:
        raise FormatError(
            f"`{stored.spec}` has a damaged `vector.{wrong or 'dtype'}` in its manifest", _AGAIN
        )
    return tensors


def widest(name: str, row: Mapping[str, Any], stored: Model) -> str:
    """The widest type of what differences come from: values, and exact elements for what is rounded."""
    parts = ("donor", "reference") if "rounded" in row else ()
    dtypes = [row["dtype"], *(stored.tensors[f"{name}.exact.{part}"].dtype for part in parts)]
    return max(dtypes, key=lambda dtype: TYPES[dtype].bytes)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_figure(value: Any) -> bool:
    """A norm, which is null where a value is not finite."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value is None or (is_number and math.isfinite(value) and value >= 0)


# Of the whole vector.
_CHECKS = {
    "dtype": lambda value: value is None or (isinstance(value, str) and value in FLOAT_DTYPES),
    "norm": _is_figure,
    "largest": _is_figure,
}
# Of a tensor.
_ROW_CHECKS = {
    "encoding": lambda value: isinstance(value, str) and value in _PARTS,
    "shape": lambda value: isinstance(value, list) and all(_is_count(n) and n < _TOO_MANY for n in value),
    "dtype": lambda value: isinstance(value, str) and value in FLOAT_DTYPES,
    "origin": lambda value: value in ("BF16", "F32"),
    "file": lambda value: value is None or isinstance(value, str),
    "norm": _is_figure,
    "largest": _is_figure,
    **dict.fromkeys(("bytes", "elements", "changed"), _is_count),
}


def _wrong_member(row: Any) -> str | None:
    """The first member of a description that is missing or wrong by itself."""
    if not isinstance(row, dict):
        return ""
    for member, is_sound in _ROW_CHECKS.items():
        if member not in row or not is_sound(row[member]):
            return member
    if row["elements"] != math.prod(row["shape"]) or row["elements"] >= _TOO_MANY:
        return "elements"
    if row["changed"] > row["elements"] or (row["encoding"] == "zero" and row["changed"]):
        return "changed"
    if not _is_count(row.get("exact", 0)) or (row["encoding"] == "zero" and row.get("exact")):
        return "exact"
    if row.get("rounded", True) is not True or ("rounded" in row and not row.get("exact")):
        return "rounded"
    if (row["encoding"] == "zero") != (row["file"] is None):
        return "file"
    return None


def _found(row: Any, member: str) -> str:
    if not member:
        return "it is not an object"
    return f"`{member}` is {row[member]!r}" if member in row else f"`{member}` is missing"


def _expected(row: Mapping[str, Any]) -> dict[str, tuple[frozenset[str], list[int]]]:
    """Types and shape of what is stored of a tensor."""
    values = frozenset({row["dtype"]})
    changed, lost = [row["changed"]], [row.get("exact", 0)]
    shapes = {
        "": (values, row["shape"]),
        ".values": (values, changed),
        ".indices": (_INDEX_DTYPES, changed),
        ".mask": (frozenset({"U8"}), [-(-row["elements"] // 8)]),
        ".exact.indices": (_INDEX_DTYPES, lost),
        ".exact.donor": (FLOAT_DTYPES, lost),
        ".exact.reference": (FLOAT_DTYPES, lost),
    }
    parts = (*_PARTS[row["encoding"]], *(_EXACT if row.get("exact") else ()))
    return {part: shapes[part] for part in parts}


def _hold(stored: Model, name: str, row: Mapping[str, Any], dtypes: frozenset[str], shape: list[int]) -> None:
    """One stored tensor against its description."""
    info = stored.tensors.get(name)
    if info is None:
        raise FormatError(f"`{stored.spec}` lacks `{name}`, which its manifest lists", _AGAIN)
    if info.dtype not in dtypes or list(info.shape) != shape:
        kinds = " or ".join(sorted(dtypes)) if len(dtypes) < 3 else "floats"
        raise _contradiction(stored, name, f"{info.dtype} {list(info.shape)}", f"{kinds} {shape}")
    if info.file != row["file"]:
        raise _contradiction(stored, name, f"in `{info.file}`", f"`{row['file']}`")


def _hold_bytes(stored: Model, name: str, row: Mapping[str, Any], origin: str) -> None:
    found = sum(stored.tensors[f"{name}{part}"].nbytes for part in _expected(row))
    if found != row["bytes"]:
        raise _contradiction(stored, name, f"{found} bytes", f"{row['bytes']}")
    if row["encoding"] != "zero" and origin != row["origin"]:
        raise _contradiction(stored, name, f"of models of {origin}", row["origin"])


def _hold_rounded(stored: Model, name: str, row: Mapping[str, Any], found: bool) -> None:
    kinds = {False: "with every value exact", True: "with rounded values"}
    if found != ("rounded" in row):
        raise _contradiction(stored, name, kinds[found], kinds[not found])


def _contradiction(stored: Model, name: str, found: str, listed: str) -> FormatError:
    return FormatError(f"`{name}` of `{stored.spec}` is {found}, its manifest says {listed}", _AGAIN)
