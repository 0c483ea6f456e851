"""Outputs that are not local folders: how finished files get to an address, and when they count as an output.

A run computes one weight file after another in a scratch folder and gives each, once whole, to a *sink*: a
bucket of an object store, a repository on the hub. The run knows the protocol below alone; the sink knows how
its place keeps files. This is the life of one::

    sink = open_sink("s3://bucket/prefix")      # asks nothing yet; None for a local folder
    sink.finished(names)                        # the manifests, if a run has ended there: nothing is to do
    sent = sink.begin(head, overwrite=..., resume=...)   # which weight files are there, whole, of this plan
    sink.send(path, Sent(...), told)            # one weight file, several at a time; then its record
    sink.sent()                                 # those that are there now: other parts send theirs meanwhile
    sink.bring(sents, folder)                   # pieces of a vector, which are to be joined
    sink.finish(files, manifests)               # all other files, in their order; the manifests at the end
    sink.close(failed=True)                     # whatever happened: unfinished uploads are given up

What every sink has to hold:

- **Nothing looks complete before it is.** Complete means that the manifest is there. A sink may keep weight
  files where they will stay (an object store: no reader takes a folder without config and index for a
  model), or out of sight until one commit at the end (the hub).
- **A weight file that has a record is whole.** ``send`` returns after the place has the file with the size
  and the checksum that were sent, and only then keeps the record; a process that is killed in between sends
  the file again. ``begin`` and ``sent`` give back those records alone whose file is still there as it was
  sent.
- **Pieces are of the run alone.** A file whose name is below ``PIECES`` is sent and recorded as any other,
  is not a file of the output, and goes when the run has ended.
- **Several processes may send at once,** also the same file: parts of one plan do. They write the same
  bytes.
- **Of several that finish one takes precedence.** ``finish`` puts the first manifest only where none is, and
  says so with an ``OutputError`` if another run has ended first. If the answer to that is lost it looks
  whether the manifest that is there is its own: manifests of one run differ from those of any other in
  ``run.id``.
- **Another plan is refused.** ``begin`` raises ``OutputError`` if the place holds an unfinished run of
  another plan (by ``head.identity``), a finished output, or anything else, unless ``overwrite`` is set:
  then what makes it look complete is removed first, and the rest of it after that. ``overwrite`` keeps an
  unfinished run of this very plan; ``resume=False`` keeps nothing.
- **Stopping is quick.** The calls may be made from threads other than the main one. When ``told`` raises,
  or the caller is interrupted, the upload is aborted, and nothing of it stays at the place where that can
  be helped.
- **Errors are** ``taskvec.Error`` **with the way out;** no message, record or file holds a credential. What
  the network does is tried again before it counts.

Names are relative, with ``/`` between their parts: ``model-00001-of-00002.safetensors``, and below the folder
of the output where a run has several: ``alpha=0.5/model.safetensors``.

A sink for another kind of address is a file ``run/NAME_sink.py`` with a function that makes one, and its row
in ``SCHEMES`` of ``run/sinks.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from taskvec._core import digest_file
from taskvec.errors import OutputError


class Head(NamedTuple):
    """What an unfinished run notes of itself before its first file.

    Attributes
    ----------
    identity : str
        Of the plan: the same on every machine.
    parts : int
        How many parts the first process knew of.
    plan : bytes
        The plan as a file, from which any process can end the run; empty where it cannot be saved.
    outputs : tuple of str
        The folders of the outputs below the address; one that is empty for the address itself.
    """

    identity: str
    parts: int
    plan: bytes
    outputs: tuple[str, ...]


class Sent(NamedTuple):
    """A weight file that is at its place, whole: what stands for a line of the journal.

    Attributes
    ----------
    name : str
    size : int
        In bytes.
    digest : str
        BLAKE3 in hexadecimal.
    identity : str
        Of the plan.
    inputs : str
        Digest of the states of the inputs that it was computed from.
    line : str
        What the engine noted of it: the line of its journal.
    """

    name: str
    size: int
    digest: str
    identity: str
    inputs: str
    line: str


# Told the bytes that have been sent of a file so far; what it raises stops the upload.
Told = Callable[[int], None]


class Sink(Protocol):
    """A place for the files of a run; see above for what it has to hold."""

    @property
    def address(self) -> str:
        """As it is shown and recorded: without secrets."""
        ...

    def sizes(self) -> Mapping[str, int]:
        """The bytes of every file that is there, by its name, those of the run's own state left out."""
        ...

    def finished(self, names: Sequence[str]) -> Mapping[str, bytes]:
        """Those of the manifests of these names that are there; nothing is changed."""
        ...

    def head(self) -> Head | None:
        """That of the unfinished run that is there, if there is one."""
        ...

    def begin(self, head: Head, *, overwrite: bool = False, resume: bool = True) -> Mapping[str, Sent]:
        """Take the place for a run, or go on with an unfinished one of the same plan.

        Returns
        -------
        mapping
            The weight files that are there, by name.

        Raises
        ------
        OutputError
            The place holds something else.
        HubError
            It refuses, or cannot be reached.
        """
        ...

    def sent(self) -> Mapping[str, Sent]:
        """The weight files of this plan that are there now, whoever has sent them."""
        ...

    def reread(self, sent: Sent, folder: Path) -> bool:
        """Whether a weight file that is there has the bytes that were sent; read by way of a folder."""
        ...

    def send(self, path: Path, sent: Sent, told: Told) -> None:
        """Send a weight file that lies at `path`, and keep its record once it is whole at the place.

        The file at `path` may be removed when this returns.

        Raises
        ------
        OutputError
            What arrived is not what was sent.
        HubError
            The place refuses, or cannot be reached.
        """
        ...

    def bring(self, sents: Sequence[Sent], folder: Path) -> Mapping[str, Path]:
        """Pieces that are there, by their names, as files of this machine: in a folder, or where they lie.

        Raises
        ------
        OutputError
            One does not have the bytes that were sent.
        HubError
            The place refuses, or cannot be reached.
        """
        ...

    def finish(self, files: Sequence[tuple[str, Path]], manifests: Mapping[str, bytes]) -> None:
        """Put all other files to their place in this order, then the manifests, and forget the run's state.

        Raises
        ------
        OutputError
            Another run has ended here first, or a weight file is missing.
        """
        ...

    def close(self, *, failed: bool = False) -> None:
        """End the use of the sink: what is being sent is stopped, and unfinished uploads are given up."""
        ...


def held(address: str, sents: Sequence[Sent], paths: Mapping[str, Path]) -> Mapping[str, Path]:
    """Return the paths of files that were sent to an address, if each has the bytes that were sent.

    Raises
    ------
    OutputError
    """
    for sent in sents:
        if digest_file(paths[sent.name])[1] != sent.digest:
            raise OutputError(
                f"`{sent.name}` of `{address}` does not have the bytes that were sent",
                "run the parts again with --rehash: what is damaged is written again",
            )
    return paths
