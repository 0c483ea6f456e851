"""``BASE?patch=FILE``: a base with a patch put in, laid out in the folder for fetched files.

One tensor is in memory at a time. What lies there is used again while base and patch are in the same state.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from taskvec._core import Checkpoint as Reader
from taskvec._core import blake3_hex
from taskvec.dtypes import TORCH_NAMES, numpy_dtype
from taskvec.errors import FormatError, NotFoundError
from taskvec.files import look
from taskvec.files.folder import INDEX_SUFFIX
from taskvec.files.names import PATCH, is_own
from taskvec.models.model import Model
from taskvec.models.source import local_path
from taskvec.resolve import storage
from taskvec.resolve.laid_out import Row, laid_out, write
from taskvec.resolve.local import open_folder
from taskvec.resolve.patch.contents import Change, Patch, read
from taskvec.resolve.remote import materialised
from taskvec.text import kind_of, shown

# The layout that is written: another one is laid out again.
_FORMAT = 1
_STEP = "step"


def open_patched(spec: str, opened: Callable[[str], Model]) -> Model:
    """A model with a patch put in.

    Parameters
    ----------
    spec : str
        ``BASE?patch=FILE``; several patches follow each other, and are put in in that order.
    opened : callable
        Opens the base.

    Raises
    ------
    NotFoundError, FormatError
        The base or the patch was not found, is damaged, or they are not compatible; the tensor is
        named.
    OutputError
        The folder for fetched files has no room.
    """
    named, _, place = spec.rpartition(PATCH)
    path = Path(place).expanduser().absolute()
    base = materialised(opened(named), None)
    if not isinstance(base, Model) or base.path is None:
        raise FormatError(
            f"`{named}` is {kind_of(base)}, which takes no patch", "give a model that lies in files"
        )
    if not look.exists(path):
        raise NotFoundError(f"patch `{path}` was not found", "check the path")
    weights = [_state(base.location / name) for name in base.file_sizes]
    files = sorted(path.iterdir()) if look.is_folder(path) else [path]
    key = blake3_hex(
        json.dumps(
            [_FORMAT, base.fingerprint, base.revision, weights, [_state(file) for file in files]]
        ).encode()
    )
    folder = storage.current().folder / "patched" / key[:32]
    note = laid_out(path, folder, partial(_lay_out, base, path))
    model = open_folder(spec, folder)
    return replace(
        model,
        repository=spec,
        revision=note["identity"],
        address=spec,
        is_laid_out=True,
        patched=note["changed"],
    )


def _state(path: Path) -> list[Any]:
    return [str(look.resolved(path)), *(look.stamp(path) or ())]


def _lay_out(base: Model, path: Path, part: Path) -> dict[str, Any]:
    patch = read(path)
    before = _step_of(base)
    if None not in (before, patch.base_step) and before != patch.base_step:
        raise FormatError(
            f"`{path}` leads from step {patch.base_step} to {patch.step}, and the patch before it to "
            f"{before}",
            "put in every patch, in their order",
        )
    reader = Reader(local_path(base), [*base.file_sizes] if base.sub_models else None)
    infos = {name: (dtype, tuple(shape), size) for name, dtype, shape, _, _, size in reader.tensors()}
    for name, change in patch.changes.items():
        _hold(patch, name, change, infos.get(name))
    rows = {
        name: Row(dtype, shape, size, partial(_bytes, patch, reader, name, dtype))
        for name, (dtype, shape, size) in infos.items()
    }
    write(path, part, rows)
    for name in base.other_files:
        if not is_own(name) and not name.endswith(INDEX_SUFFIX):
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(base.location / name, part / name)
    counts = {name: change.count for name, change in patch.changes.items()}
    identity = blake3_hex(json.dumps([base.fingerprint, base.revision, _digests(path)]).encode())
    note = {"identity": identity, "changed": {name: int(count) for name, count in counts.items()}}
    return note if patch.step is None else {**note, _STEP: patch.step}


def _digests(path: Path) -> list[str]:
    from taskvec._core import digest_file

    files = sorted(path.iterdir()) if look.is_folder(path) else [path]
    return [digest_file(file)[1] for file in files if look.is_file(file)]


def _step_of(base: Model) -> int | None:
    """The step to which the base's own patch leads."""
    from taskvec.files.json import read_object
    from taskvec.resolve.laid_out import NOTE

    if not base.patched:
        return None
    step = read_object(base.location / NOTE).get(_STEP)
    return step if isinstance(step, int) else None


def _hold(patch: Patch, name: str, change: Change, info: tuple[str, tuple[int, ...], int] | None) -> None:
    """Return if a change is one of a tensor of the base.

    Raises
    ------
    FormatError
    """
    where = f"`{patch.path}` changes `{name}`"
    if info is None:
        raise FormatError(
            f"{where}, which the base does not have", "give the model that the patch was made on"
        )
    dtype, shape, _ = info
    count = math.prod(shape)
    if change.shape is not None and change.shape != shape:
        raise FormatError(
            f"{where} of {shown(list(change.shape))}, and the base has {list(shape)}",
            "give the model that the patch was made on",
        )
    if change.count > count:
        raise FormatError(
            f"{where} at {change.count} positions, and the base has {count} elements",
            "give the model that the patch was made on",
        )
    if change.dtype != dtype and (change.dtype, dtype) not in (("BF16", "F32"), ("F16", "F32")):
        word = TORCH_NAMES.get(change.dtype)
        raise FormatError(
            f"{where} to {change.dtype}, and the base stores {dtype}: its values would be rounded",
            f"convert the base first: `taskvec convert BASE -o NEW --out-dtype {word}`"
            if word in ("bfloat16", "float16", "float32", "float64")
            else "give the model that the patch was made on",
        )


def _bytes(patch: Patch, reader: Reader, name: str, dtype: str) -> bytes:
    """A tensor of the base with what the patch changes in it."""
    change = patch.changes.get(name)
    if change is None:
        return reader.read(name)
    kind = numpy_dtype(dtype)
    indices, values = change.read()
    if change.dtype != dtype:
        values = values.astype(kind)
    if indices is None:
        return values.tobytes()
    tensor = np.frombuffer(reader.read(name), kind).copy()
    if len(indices) and indices[-1] >= len(tensor):
        raise FormatError(
            f"`{patch.path}` changes `{name}` at position {indices[-1]}, and the base has {len(tensor)} "
            "elements",
            "give the model that the patch was made on",
        )
    tensor[indices] = values
    return tensor.tobytes()
