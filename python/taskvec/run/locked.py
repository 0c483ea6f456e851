"""The locks of the folders of a run, from before the first byte is written until the last one is ended."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from taskvec._core import FolderLock
from taskvec.files.names import NEW, STATE
from taskvec.models.adapter import Adapter
from taskvec.models.model import Model
from taskvec.models.source import local_path, source_path
from taskvec.models.state_dict import is_fleeting
from taskvec.plan.plan import PlanRecord
from taskvec.run.inputs import Source
from taskvec.settings import Settings


@contextlib.contextmanager
def locked(
    plan: PlanRecord, folders: Sequence[Path], sources: Sequence[Source], settings: Settings
) -> Iterator[None]:
    """Hold the locks of the folders of a run, which come into being for that where they are missing.

    What the run would refuse for what lies in a folder is refused before anything is made. An output that an
    earlier run had begun to put in the place of another is put there.

    Raises
    ------
    OutputError
        Another run has one of the folders, one of them touches an input, or what lies there must stay.
    """
    inputs = paths_of(sources)
    resume = settings.resume and not any(map(is_fleeting, sources))
    with contextlib.ExitStack() as held:
        for folder in folders:
            lock = FolderLock(
                folder, inputs=inputs, plan=plan.json, resume=resume, overwrite=settings.overwrite
            )
            held.enter_context(lock)
        yield


def paths_of(sources: Sequence[Source]) -> list[str]:
    """Where the sources of a run lie, but for those in memory; files in sub-folders on their own."""
    return [path for source in sources if source.path is not None for path in _paths(source)]


def _paths(source: Source) -> Iterator[str]:
    yield _path(source)
    if isinstance(source, Model) and source.sub_models:
        yield from (str(source.location / name) for name in source.file_sizes if "/" in name)


def _path(source: Source) -> str:
    return str(source.path) if isinstance(source, Adapter) else source_path(source)


def engine_paths(sources: Sequence[Source]) -> list[str]:
    """Where each source lies on this machine, as the engine is told; empty for those in memory."""
    return ["" if source.path is None else local_path(source) for source in sources]


def place_of(folder: Path, replaces: bool) -> Path:
    """Where the files of an output are written: its folder, or first one in the state of what it replaces."""
    return folder / STATE / NEW if replaces else folder
