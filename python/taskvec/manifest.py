"""``taskvec.json``: what made a folder and what is in it; written last, so that its presence means complete.

The members are documented by :func:`schema`. All of them but ``run`` depend on the inputs and on what was
asked for alone: the same merge gives the same bytes there, on any machine and with any number of threads.
"""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from taskvec import _core, repeat
from taskvec.companions import MANIFEST
from taskvec.errors import FormatError, NotFoundError
from taskvec.jsonfile import read_object
from taskvec.manifest_schema import VERSION
from taskvec.manifest_schema import schema as schema
from taskvec.plan import ARITHMETIC
from taskvec.report import Survival

if TYPE_CHECKING:
    from taskvec.adapter import Adapter
    from taskvec.checkpoint import Checkpoint
    from taskvec.plan import Plan
    from taskvec.report import Output
    from taskvec.saved import SavedVector

# A row of survival figures takes about 150 bytes: room for a few million tensors.
MAXIMUM_BYTES = 1 << 30

_HEX = re.compile(r"[0-9a-f]{64}")


class File(NamedTuple):
    """A file of the folder: relative POSIX name, size in bytes, BLAKE3."""

    name: str
    bytes: int
    blake3: str


def provenance(plan: Plan, output: Output, vector: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a manifest says of how the output came about; the model card is written from it too.

    ``vector`` describes a saved vector, of which there is no survival.
    """
    recipe = dict(plan.recipe)
    if "alpha" in recipe:
        recipe["alpha"] = output.alpha
    return {
        "schema": VERSION,
        "kind": plan.kind,
        "engine": {"name": "taskvec", "version": _core.__version__, "arithmetic": ARITHMETIC},
        "recipe": recipe,
        "sources": [
            _source(source.role, checkpoint)
            for source, checkpoint in zip(plan.sources, plan.checkpoints, strict=True)
        ],
        "findings": [{**asdict(finding), "message": finding.message} for finding in plan.findings],
        "survival": {
            "fields": list(Survival._fields),
            "total": list(output.survival) if output.survival else None,
            "tensors": output.tensors,
        },
        "non_finite": [list(row) for row in output.non_finite],
        **({"vector": dict(vector)} if vector else {}),
    }


def run_facts(plan: Plan, engine: Mapping[str, Any], begin: float) -> dict[str, Any]:
    """What is true of this run alone; ``begin`` is when it began, on the monotonic clock."""
    return {
        "plan": plan.digest,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - begin, 3),
        "threads": engine["threads"],
        "cpu_level": engine["cpu_level"],
    }


def text(facts: Mapping[str, Any], *, files: Sequence[File], run: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest: its provenance, the files, and what is true of this run alone."""
    ordered = {
        **{key: facts[key] for key in ("schema", "kind", "engine", "recipe")},
        "command": repeat.command(facts["recipe"]),
        "sources": facts["sources"],
        "files": [file._asdict() for file in sorted(files)],
        **{key: facts[key] for key in ("findings", "survival", "non_finite", "vector") if key in facts},
        "run": dict(run),
    }
    out = io.BytesIO()
    _dump(out, ordered, 3)
    out.write(b"\n")
    return out.getvalue()


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a folder, checked as far as this program relies on it.

    Raises
    ------
    NotFoundError
        The folder has none.
    FormatError
        It is no manifest of this version, or names files outside the folder.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise NotFoundError(
            f"`{folder}` has no `{MANIFEST}`", "only folders that taskvec wrote have one; name such a folder"
        )
    manifest = read_object(path, maximum=MAXIMUM_BYTES)
    if manifest.get("schema") != VERSION:
        raise FormatError(
            f"`{path}` has schema {manifest.get('schema')!r}, expected {VERSION}",
            "it was written by another version of taskvec: use that one",
        )
    files(manifest, path)
    return manifest


def files(manifest: Mapping[str, Any], path: Path) -> list[File]:
    """The files that a manifest lists.

    Raises
    ------
    FormatError
        The list is damaged, or a name leads out of the folder.
    """
    listed = manifest.get("files")
    if not isinstance(listed, list) or not listed:
        raise FormatError(f"`{path}` lists no files", "the manifest is damaged; make the merge again")
    result: dict[str, File] = {}
    for entry in listed:
        file = _file(entry)
        if file is None or file.name in result:
            raise FormatError(
                f"`{path}` has a damaged entry {json.dumps(entry)[:120]}",
                "make the merge again, or do not trust it",
            )
        result[file.name] = file
    return list(result.values())


def _file(entry: Any) -> File | None:
    """An entry of the list, if it is sound: a name that stays in the folder, a size, a digest."""
    if not isinstance(entry, dict):
        return None
    name, size, digest = entry.get("name"), entry.get("bytes"), entry.get("blake3")
    if not (isinstance(name, str) and isinstance(size, int) and isinstance(digest, str)):
        return None
    path = PurePosixPath(name)
    is_inside = bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name
    if not is_inside or str(path) != name or name == MANIFEST or size < 0 or not _HEX.fullmatch(digest):
        return None
    return File(name, size, digest)


def rounded(value: float) -> float:
    """Six significant digits, as the engine reports: sums may differ in the last bits."""
    return float(f"{value:.5e}")


def _source(role: str, checkpoint: Checkpoint | SavedVector | Adapter) -> dict[str, Any]:
    hub = {"repository": checkpoint.repository, "revision": checkpoint.revision}
    return {
        "role": role,
        "model": checkpoint.spec,
        **{key: value for key, value in hub.items() if value},
        "fingerprint": checkpoint.fingerprint,
        "files": [_weight_file(checkpoint, name, size) for name, size in checkpoint.file_sizes.items()],
    }


def _weight_file(checkpoint: Checkpoint | SavedVector | Adapter, name: str, size: int) -> dict[str, Any]:
    """A weight file; one of the hub's cache is a link to a blob that is named by its SHA-256."""
    entry: dict[str, Any] = {"name": name, "bytes": size}
    if checkpoint.revision:
        blob = (checkpoint.location / name).resolve().name
        if _HEX.fullmatch(blob):
            entry["sha256"] = blob
    return entry


def _dump(out: io.BytesIO, value: Any, depth: int, indent: bytes = b"") -> None:
    """JSON with its upper levels spread over lines: small for 100 000 tensors, and still readable."""
    is_row = isinstance(value, (list, tuple)) and not any(isinstance(item, (dict, list)) for item in value)
    if depth == 0 or not isinstance(value, (Mapping, list)) or not value or is_row:
        out.write(json.dumps(value, ensure_ascii=True).encode())
        return
    deeper = indent + b"  "
    before = b"\n" + deeper
    out.write(b"{" if isinstance(value, Mapping) else b"[")
    if isinstance(value, Mapping):
        for key, item in value.items():
            out.write(before + json.dumps(key).encode() + b": ")
            _dump(out, item, depth - 1, deeper)
            before = b",\n" + deeper
        out.write(b"\n" + indent + b"}")
        return
    for item in value:
        out.write(before)
        _dump(out, item, 0)
        before = b",\n" + deeper
    out.write(b"\n" + indent + b"]")
