"""What the bytes of a source are known by: the digests of its weight files, and one of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskvec._core import blake3_hex
from taskvec.files import look
from taskvec.files.manifest import DIGEST
from taskvec.models.model import Model

if TYPE_CHECKING:
    from taskvec.models.adapter import Adapter
    from taskvec.models.saved_vector import SavedVector

    Source = Model | SavedVector | Adapter

# Of each source of a run: BLAKE3 of its weight files by name, or one of the words below.
Contents = Sequence[Mapping[str, str]]

NOT_READ_WHOLE = "not-read-whole"
NOT_COMPUTED = "not-computed"
IN_MEMORY = "in-memory"


def listed_sha256(source: Source, name: str) -> str | None:
    """The SHA-256 that the hub lists of a weight file; one in its cache is a link to a blob of that name."""
    if not source.revision:
        return None
    path = source.location / name
    if source.remote is not None and not look.exists(path):
        digest = source.remote.list()[name].digest
    else:
        digest = look.resolved(path).name
    return digest if digest is not None and DIGEST.fullmatch(digest) else None


def file_rows(source: Source, contents: Mapping[str, str]) -> list[dict[str, Any]]:
    """The weight files of a source as a manifest has them: name, bytes, and a digest where it is known."""
    rows: list[dict[str, Any]] = []
    for name, size in source.file_sizes.items():
        row: dict[str, Any] = {"name": name, "bytes": size}
        sha256, blake3 = listed_sha256(source, name), contents.get(name, NOT_COMPUTED)
        if sha256 is not None:
            row["sha256"] = sha256
        elif DIGEST.fullmatch(blake3):
            row["blake3"] = blake3
        rows.append(row)
    return rows


def content_of(source: Source, rows: Sequence[Mapping[str, Any]], contents: Mapping[str, str]) -> str:
    """What all weight bytes of a source are known by.

    Returns
    -------
    str
        ``blake3:`` or ``sha256:`` and a digest: of a single file its own, as ``b3sum`` or ``sha256sum``
        prints it; of several that of the lines that these print for all of them, by name. Of a
        GGUF file its BLAKE3. Or one word: ``not-read-whole`` where a run has read less than half of a file,
        ``not-computed`` where no digests were made, ``in-memory``.
    """
    if isinstance(source, Model) and source.kind == "memory":
        return IN_MEMORY
    if isinstance(source, Model) and source.is_laid_out:
        is_digest = bool(source.decoded) and DIGEST.fullmatch(source.revision or "")
        return f"blake3:{source.revision}" if is_digest else NOT_COMPUTED
    for kind in ("blake3", "sha256"):
        if rows and all(kind in row for row in rows):
            return f"{kind}:{_joined(kind, rows)}"
    return NOT_READ_WHOLE if NOT_READ_WHOLE in contents.values() else NOT_COMPUTED


def _joined(kind: str, rows: Sequence[Mapping[str, Any]]) -> str:
    if len(rows) == 1:
        return str(rows[0][kind])
    lines = "".join(f"{row[kind]}  {row['name']}\n" for row in sorted(rows, key=lambda row: row["name"]))
    if kind == "blake3":
        return blake3_hex(lines.encode())
    import hashlib

    return hashlib.sha256(lines.encode()).hexdigest()
