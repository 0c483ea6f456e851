"""The input files of a run: their states before it and after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from taskvec.errors import FormatError
from taskvec.files import look
from taskvec.files.names import CONFIG, MANIFEST, is_own
from taskvec.models.adapter import Adapter
from taskvec.models.adapter_config import CONFIG as ADAPTER_CONFIG
from taskvec.models.model import Model
from taskvec.models.saved_vector import COMPARED, SavedVector
from taskvec.models.state_dict import are_held

Source = Model | SavedVector | Adapter
# A row of the manifest: model, file, and the state of the file, or its bytes and the revision that it is of.
InputRow = list[Any]
# How many values a row of a local file has.
_LOCAL = 2 + len(look.Stamp._fields)


def companions(base: Model) -> list[str]:
    """The files of `base` that come along unchanged, as relative POSIX names.

    Its model card, its config.json and the files of an earlier run of taskvec are not among them.
    """
    return [name for name in base.other_files if name != CONFIG and not is_own(name)]


class Inputs:
    """The files that some models give to a run, with their states before it.

    Parameters
    ----------
    sources : sequence of Model, SavedVector or Adapter
        The first one's other files come along to the outputs. All are local, or in memory.

    Raises
    ------
    FormatError
        A file has gone.
    OutputError
        A file cannot be looked at.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._stamps: dict[Path, look.Stamp] = {}
        for source, name in _files(sources):
            path = source.location / name
            seen = source.stamps.get(name) if isinstance(source, Model) else None
            stamp = seen or look.stamp(path)
            if stamp is None:
                raise _changed(path, "has gone since it was opened")
            self._stamps[path] = stamp

    def hold(self) -> None:
        """Return if all files are as they were.

        Raises
        ------
        FormatError
            Names one that is not.
        OutputError
            A file cannot be looked at.
        """
        for path, before in self._stamps.items():
            if look.stamp(path) != before:
                raise _changed(path, "changed while it was read")


def input_rows(sources: Sequence[Source]) -> list[InputRow] | None:
    """The states of the input files as a manifest keeps them; ``None`` where tensors lie in memory."""
    if are_held(sources):
        return None
    # what is fixed in memory is known to the plan
    rows: dict[tuple[str, str], InputRow] = {}
    for source, name in _files(sources):
        key = source.spec, name
        is_remote = (
            source.repository is not None if isinstance(source, Adapter) else source.address is not None
        )
        if is_remote:
            rows[key] = [*key, source.file_sizes.get(name), source.revision]  # another state has another one
        else:
            known = source.stamps.get(name) if isinstance(source, Model) else None
            rows[key] = [*key, *(known or look.stamp(source.location / name) or ())]
    return list(rows.values())


def is_touched(before: Sequence[InputRow], now: Sequence[InputRow]) -> bool:
    """Whether two lists have the same local files of the same sizes, in other states."""
    old, new = ([row[:3] for row in rows if len(row) == _LOCAL] for rows in (before, now))
    others, left = ([row for row in rows if len(row) != _LOCAL] for rows in (before, now))
    return old == new and others == left


def difference(before: Iterable[InputRow], now: Iterable[InputRow], verb: str = "has changed") -> str:
    """The first input file that is another one, in words for a message."""
    old, new = ({(row[0], row[1]): row[2:] for row in rows} for rows in (before, now))
    found = next((key for key in [*new, *old] if new.get(key) != old.get(key)), None)
    if found is None:
        return "the list of its inputs has changed"
    model, name = found
    verb = verb if (model, name) in old and new.get((model, name)) else "has gone"
    return f"`{name}` of `{model}` {verb if (model, name) in old else 'is new'}"


def _files(sources: Sequence[Source]) -> Iterator[tuple[Source, str]]:
    for number, source in enumerate(sources):
        for name in source.file_sizes:
            yield source, name
        if isinstance(source, Adapter):
            yield source, ADAPTER_CONFIG
        elif isinstance(source, SavedVector):
            yield source, MANIFEST
        else:
            read = {*COMPARED, *(companions(source) if number == 0 else ())}
            yield from ((source, name) for name in source.other_files if name in read)


def _changed(path: Path, what: str) -> FormatError:
    return FormatError(f"`{path}` {what}", "run the same command again when nothing writes to it")
