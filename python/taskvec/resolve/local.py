"""A local folder opened by its headers."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from taskvec._core import Checkpoint as Reader
from taskvec.files import folder
from taskvec.files.json import read_object
from taskvec.models.model import Model, TensorInfo

CONFIG = "config.json"
# A config is a few kB; the largest published, with a quantisation table per layer, is under 1 MB.
MAXIMUM_CONFIG = 16 << 20


def _cached_snapshot(path: Path) -> Path | None:
    """The snapshot to take where the path is a repository in the hub's cache: `main`, or the only one."""
    if not (path / "snapshots").is_dir() or not (path / "blobs").is_dir():
        return None
    snapshots = sorted(entry for entry in (path / "snapshots").iterdir() if entry.is_dir())
    try:
        main = (path / "refs" / "main").read_text().strip()
    except OSError:
        main = ""
    for snapshot in snapshots:
        if snapshot.name == main or len(snapshots) == 1:
            return snapshot
    return None


def open_folder(spec: str, path: Path) -> Model:
    """Open a local folder."""
    return _make(spec, path.absolute(), Reader(str(path)))


def _make(spec: str, path: Path, reader: Reader) -> Model:
    sizes = dict(reader.files())
    listing = folder.list_folder(path, sizes)
    config = read_object(path / CONFIG, maximum=MAXIMUM_CONFIG) if os.path.lexists(path / CONFIG) else {}
    return Model(
        spec=spec,
        path=path,
        tensors=_tensors(reader),
        config=config,
        other_files=listing.other,
        left_files=listing.left,
        file_sizes=sizes,
        fingerprint=reader.fingerprint,
        weights=reader,
    )


class _Table(dict[str, TensorInfo]):
    """Tensors by name, in file order; can be referred to weakly."""

    __slots__ = ("__weakref__",)


_latest: weakref.ref[_Table] | None = None


def _tensors(reader: Reader) -> Mapping[str, TensorInfo]:
    """The table of a checkpoint. It has the entries of the one opened before where they are equal.

    The models of a run are mostly of one architecture, and entries of its own for each of a hundred thousand
    tensors take 30 MB.
    """
    global _latest
    known: Mapping[str, TensorInfo] = (_latest and _latest()) or {}
    table = _Table()
    for name, dtype, shape, file, _, nbytes in reader.tensors():
        facts = dtype, shape, nbytes, file
        info = known.get(name)
        if info is None or info[1:] != facts:
            info = TensorInfo(name, *facts)
        table[info.name] = info
    _latest = weakref.ref(table)
    return MappingProxyType(table)
