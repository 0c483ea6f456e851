"""A map that goes to an address: made in the scratch folder, and then sent."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from taskvec.evaluation.importance.report import ImportanceReport
from taskvec.files import manifest as files
from taskvec.files.manifest import File
from taskvec.files.names import MANIFEST
from taskvec.report.manifest import with_id
from taskvec.resolve.threads import each
from taskvec.run import pipeline
from taskvec.run.scratch import forget, kept_folder, scratch
from taskvec.run.shadow import Shadow
from taskvec.run.sink import Head, Sent, Sink
from taskvec.run.sinks import closing


def delivered(
    address: str,
    identity: str,
    *,
    overwrite: bool,
    resume: bool,
    finished: Callable[[Path], ImportanceReport | None],
    make: Callable[[Path], ImportanceReport],
) -> ImportanceReport:
    """Make a map in a folder of the scratch folder, and send it to an address.

    Parameters
    ----------
    address : str
    identity : str
        What tells this map from others.
    overwrite : bool
        Replace an output that is there.
    resume : bool
        Go on with an unfinished run.
    finished : callable
        The report of this very map where a folder has it whole.
    make : callable
        Makes the map in a folder, which is kept until everything is sent.

    Raises
    ------
    OutputError
        The address holds something else.
    HubError
        It refuses, or cannot be reached.
    """
    begun = time.monotonic()
    with scratch() as place, closing(address) as sink:
        kept = kept_folder(address, identity)
        if resume and not overwrite:
            done = _there(Shadow(("",), sink, place / "out"), finished)
            if done is not None:
                forget(kept)
                return done
        sent = sink.begin(Head(identity, 1, b"", ("",)), overwrite=overwrite, resume=resume)
        made = Shadow(("",), sink, kept)
        made.place.parent.mkdir(parents=True, exist_ok=True)
        with made.told():
            report = finished(made.place) if resume else None
            report = report or make(made.place)
        _send(made, sink, sent, identity)
        forget(made.place)
    seconds = time.monotonic() - begun
    return replace(report, out=sink.address, seconds=seconds, already_done=False)


def _there(shadow: Shadow, finished: Callable[[Path], ImportanceReport | None]) -> ImportanceReport | None:
    """The report of this map where the address has it: files of its sizes stand for it."""
    manifests = shadow.sink.finished(shadow.manifests)
    if MANIFEST not in manifests:
        return None
    shadow.fill(shadow.sink.sizes())
    (shadow.place / MANIFEST).write_bytes(manifests[MANIFEST])
    with shadow.told():
        report = finished(shadow.place)
    return None if report is None else replace(report, out=shadow.sink.address)


def _send(made: Shadow, sink: Sink, sent: Mapping[str, Sent], identity: str) -> None:
    """Send what lies in a folder, the manifest last; weight files that are there already are left out."""
    written = files.files(files.read(made.place), made.place)
    weights = [file for file in written if file.name.endswith(".safetensors")]

    def send(file: File) -> None:
        line = json.dumps({"shard": file.name, "size": file.bytes, "digest": file.blake3})
        row = Sent(file.name, file.bytes, file.blake3, identity, "", line)
        sink.send(made.place / file.name, row, lambda _: None)

    def is_there(file: File) -> bool:
        return file.name in sent and sent[file.name].digest == file.blake3

    for _ in each(send, [file for file in weights if not is_there(file)], pipeline.SENDERS):
        pass
    data = with_id((made.place / MANIFEST).read_bytes(), secrets.token_hex(8))
    sink.finish(made.others({file.name for file in weights}), {MANIFEST: data})
