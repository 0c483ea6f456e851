"""Holding an output at an address against its manifest: by the checksums there, or by reading it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from taskvec._core import digest_file
from taskvec.errors import NotFoundError, VerificationError
from taskvec.files.manifest import File, files, parse
from taskvec.files.names import MANIFEST
from taskvec.files.seal import Sealed, seal_of, worst
from taskvec.models.model import Remote, Stored
from taskvec.progress import Callback, Progress
from taskvec.report.verify import FileCheck, Verification
from taskvec.resolve import storage
from taskvec.resolve.store.written import RUN, is_state, read_tags, run_outputs
from taskvec.resolve.threads import interruptible


class Listed(Protocol):
    """An address with an output."""

    @property
    def address(self) -> str:
        """As it is shown."""
        ...

    def list(self, below: str = "") -> Mapping[str, Stored]:
        """Every file by its name."""
        ...

    def get(self, name: str) -> bytes | None:
        """The bytes of a small file; ``None`` where there is none."""
        ...


def _opened(address: str) -> tuple[Listed, Callable[[], Remote]]:
    """The place that an address names, and what opens it for reading."""
    if address.startswith("hf://"):
        from taskvec.resolve import hub, hub_write
        from taskvec.resolve.repository import HubName

        place = hub_write.place_at(address)
        return place, lambda: hub.resolve(HubName(place.repository, place.branch))
    from taskvec.resolve.store import files as store  # obstore, which the hub does not need
    from taskvec.resolve.store import write

    return write.place_at(address), lambda: store.find(address)


def verify_store(
    address: str, *, rehash: bool = False, threads: int | None = None, progress: Callback | None = None
) -> Verification:
    """Compare every file at an address with what was written there.

    The store has a checksum of each file, which was noted when that was written, after the bytes had been
    compared with it. A file without one is read.

    Parameters
    ----------
    address : str
    rehash : bool
        Read all files, and compare their digests with the manifest's.
    threads : int, optional
        All cores by default.
    progress : callable, optional
        Called with a :class:`taskvec.Progress`.

    Raises
    ------
    NotFoundError
        There is no manifest.
    VerificationError
        There is an unfinished run.
    HubError
        The address refuses, or cannot be reached.
    """
    begin = time.monotonic()
    place, opened = _opened(address)
    there = dict(interruptible(place.list))
    found = _parts(place, there)
    parts = {below: data for below, (data, _) in found.items()}
    rows = [(below, file) for below, data in parts.items() for file in files(data, Path(below) / MANIFEST)]
    tags = {below: interruptible(lambda below=below: read_tags(place.get, below)) for below in parts}
    total, done, checks = sum(file.bytes for _, file in rows), 0, []
    with tempfile.TemporaryDirectory(prefix="verify-", dir=_scratch()) as folder:
        for below, file in rows:
            known = None if rehash else tags[below].get(file.name)
            checks.append(_check(opened, below, file, there, known, Path(folder), threads or 0))
            done += file.bytes
            if progress is not None:
                progress(Progress("verify", done, total, time.monotonic() - begin))
    listed = {below + file.name for below, file in rows} | {below + MANIFEST for below in parts}
    others = [name for name in sorted(there) if name not in listed and not is_state(name)]
    checks += [FileCheck(name, "extra", None, None, None, None) for name in others]
    kind = str(next(iter(parts.values())).get("kind"))
    seal = worst(state for _, state in found.values())
    return Verification(place.address, kind, tuple(checks), time.monotonic() - begin, seal)


def _scratch() -> Path:
    folder = storage.current().folder
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _parts(place: Listed, there: Mapping[str, Stored]) -> dict[str, tuple[dict[str, Any], Sealed]]:
    """The manifests and their seals, by the folders of their outputs: the address, or one per alpha."""
    ends = [MANIFEST] if MANIFEST in there else list(_of_alphas(there))
    begun = run_outputs(interruptible(lambda: place.get(RUN))) if RUN in there else []
    if not ends or not {f"{folder}/{MANIFEST}" if folder else MANIFEST for folder in begun} <= {*there}:
        if any(is_state(name) for name in there):
            raise VerificationError(
                f"`{place.address}` holds an unfinished run",
                "run the command that began it again; it goes on where it stopped",
            )
        raise NotFoundError(
            f"`{place.address}` has no `{MANIFEST}`", "give the address of an output that taskvec wrote"
        )
    found = {}
    for end in ends:
        data = interruptible(lambda end=end: place.get(end)) or b""
        manifest = parse(data, Path(f"{place.address}/{end}"))
        found[end.removesuffix(MANIFEST)] = manifest, seal_of(data, manifest)
    return found


def _of_alphas(there: Mapping[str, Stored]) -> Iterator[str]:
    folders = sorted({name.partition("/")[0] for name in there if name.startswith("alpha=") and "/" in name})
    for folder in folders:
        if f"{folder}/{MANIFEST}" in there:
            yield f"{folder}/{MANIFEST}"


def _check(
    opened: Callable[[], Remote],
    below: str,
    file: File,
    there: Mapping[str, Stored],
    tag: str | None,
    folder: Path,
    threads: int,
) -> FileCheck:
    name, found = below + file.name, there.get(below + file.name)
    if found is None:
        return FileCheck(name, "missing", file.bytes, None, file.blake3, None)
    if found.size != file.bytes:
        verdict = "truncated" if found.size < file.bytes else "differs"
        return FileCheck(name, verdict, file.bytes, found.size, file.blake3, None)  # type: ignore[arg-type]
    if tag is not None and tag == found.tag:
        return FileCheck(name, "ok", file.bytes, found.size, file.blake3, None)
    path = opened().fetch([name], folder) / name
    digest = digest_file(path, threads=threads)[1]
    path.unlink()
    return FileCheck(
        name, "ok" if digest == file.blake3 else "differs", file.bytes, found.size, file.blake3, digest
    )
