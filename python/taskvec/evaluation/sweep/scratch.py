"""The folders of a sweep: a lock on the output, and a scratch folder for merged models.

Merged models stay within a byte budget: each is removed as soon as its arms are evaluated. The measurements
of its merge are kept in a file of facts, which also tells a later run whose weights a folder holds.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pydantic import TypeAdapter

from taskvec.errors import EvaluationError, OutputError
from taskvec.evaluation.arms import Arm
from taskvec.evaluation.record import Merged, write_whole, writing
from taskvec.evaluation.sweep.merge import UNFINISHED, MergeArms
from taskvec.evaluation.sweep.part_vectors import FOLDER as PARTS
from taskvec.evaluation.sweep.sound import is_sound
from taskvec.files import look
from taskvec.files.lock import lock
from taskvec.files.place import make_folders, sync_folders
from taskvec.host import free_space

REMOVED = ".removed-"
_FACTS = TypeAdapter(Merged)
SPARE = 0.5  # of the free space, where no budget is named


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep a second run out of an output folder; the lock ends with the process, however that ends.

    Raises
    ------
    EvaluationError
        The folder cannot be written to, or another process holds the lock.
    """
    is_new = not look.exists(out)
    try:
        make_folders(out)
        file = (out / ".lock").open("w")
    except OSError as error:
        raise EvaluationError(
            f"cannot write into `{out}`: {error.strerror or error}", look.way_out(error)
        ) from error
    try:
        try:
            lock(file.fileno(), wait=False)
        except BlockingIOError as error:
            raise EvaluationError(
                f"another evaluation is writing into `{out}`",
                "wait for it, or name another folder with -o",
            ) from error
        except OSError as error:
            raise EvaluationError(
                f"cannot lock `{out / '.lock'}`: {error.strerror or error}", look.way_out(error)
            ) from error
        try:
            yield
        except BaseException:
            if is_new:
                _leave_nothing(out)
            raise
    finally:
        with contextlib.suppress(OSError):  # nothing was written into it
            file.close()


def _leave_nothing(out: Path) -> None:
    """Remove a folder in which nothing was done."""
    with contextlib.suppress(OSError):  # it does no harm
        found = set(os.listdir(out))
        if found <= {".lock", "experiment.yaml", "scratch"}:
            if "scratch" in found:
                (out / "scratch").rmdir()  # before the others: it may hold something
            for name in found - {"scratch"}:
                (out / name).unlink()
            out.rmdir()


def take_away(folder: Path) -> None:
    """Remove a folder that nobody looks at any more, as far as that goes."""
    with contextlib.suppress(OSError):  # of the folder itself, which `rmtree` raises all the same
        shutil.rmtree(folder, ignore_errors=True)


class Scratch:
    """A folder for merged models while they are needed.

    Parameters
    ----------
    folder : Path
        The scratch folder; only sub-folders that this class made are removed.
    facts : Path
        Folder of the engine's measurements, kept after the weights are gone.
    merge : callable
        See `MergeArms`.
    model_bytes : int
        Size of one merged model.
    budget : int, optional
        Bytes that merged models may take together; half of the free space by default.
    keep : bool
        Leave merged models where they are.
    waits : bool
        Nothing is made and no room asked for before the first model is: there may be none.
    has_manifests : bool
        Whether merged models have manifests, by which they are looked at before they are used again.
    hold : callable, optional
        Called when models are merged: raises where what they are merged from is not what it was.
    """

    def __init__(
        self,
        folder: Path,
        facts: Path,
        merge: MergeArms,
        *,
        model_bytes: int,
        budget: int | None = None,
        keep: bool = False,
        waits: bool = False,
        has_manifests: bool = True,
        hold: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self._facts, self._merge, self._hold = folder, facts, merge, hold
        self._model_bytes, self._keep = max(1, model_bytes), keep
        self._asked, self._budget, self._has_manifests = budget, 0, has_manifests
        if not waits:
            self._begin()

    def _begin(self) -> None:
        """Make the folder and see that a model fits into the budget, before the first."""
        if self._budget:
            return
        folder, budget = self.folder, self._asked
        is_new = not look.exists(folder, follow_links=False)
        with writing(folder):
            make_folders(folder)
            free = free_space(folder)
        found = budget
        if found is None:  # where the file system does not tell: one model at a time
            found = self._model_bytes if free is None else int(SPARE * free)
        if self._model_bytes > found:
            if is_new:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            where = "the scratch budget" if budget is not None else f"half of what is free under `{folder}`"
            raise OutputError(
                f"one merged model takes {self._model_bytes:,} bytes, {where} is {found:,}",
                "raise --scratch-budget, or name a --scratch folder on a larger disk",
            )
        self._budget = found

    @property
    def capacity(self) -> int:
        """How many merged models fit into the budget at once."""
        self._begin()
        return self._budget // self._model_bytes

    def models(self, arms: Sequence[Arm], identities: dict[str, str]) -> dict[str, Path]:
        """The folders of the weights of `arms`, merged now or left by a run that was killed.

        Parameters
        ----------
        arms : sequence of Arm
            At most `capacity` different weights.
        identities : dict of str to str
            The identity of the weights, by `Arm.weights`.
        """
        self._begin()
        needed = list({arm.weights: arm for arm in arms}.values())
        missing = [arm for arm in needed if not self._is_there(arm.weights, identities[arm.weights])]
        for arm in missing:
            self._drop(arm.weights)
        if missing:
            made = self._merge(missing, self.folder)
            self._hold()
            # facts that outlive a power cut are of these weights, not of those that had the name before
            sync_folders(self.folder, [])
            for name, merged in made.items():
                content = {"identity": identities[name], **merged.to_json()}
                write_whole(self._facts / f"{name}.json", json.dumps(content, indent=1))
        absent = [arm.weights for arm in needed if not look.is_folder(self.folder / arm.weights)]
        if absent:
            raise EvaluationError(f"the merge did not make `{self.folder / absent[0]}`")
        return {arm.weights: self.folder / arm.weights for arm in needed}

    def release(self, name: str) -> None:
        """Remove weights that are not needed any more, unless they are to be kept."""
        if not self._keep:
            self._drop(name)

    def clear(self) -> None:
        """Remove the leftovers of this and of earlier runs that were killed."""
        if self._keep or not look.is_folder(self.folder):
            return
        for name in look.listing(self.folder):
            if name.startswith(REMOVED):
                take_away(self.folder / name)
            elif name in (UNFINISHED, PARTS) or look.exists(self._facts / f"{name}.json"):
                self._drop(name)
        if not look.listing(self.folder):
            with contextlib.suppress(OSError):  # an empty folder does no harm
                self.folder.rmdir()

    def is_measured(self, name: str, identity: str) -> bool:
        """Whether the facts of these weights are there."""
        facts = self._facts / f"{name}.json"
        return read_identity(facts) == identity and read_facts(facts) is not None

    def _is_there(self, name: str, identity: str) -> bool:
        folder = self.folder / name
        if not look.is_folder(folder) or not self.is_measured(name, identity):
            return False
        return not self._has_manifests or is_sound(folder)

    def _drop(self, name: str) -> None:
        """Take weights away at once: what a removal leaves of them would pass for the whole."""
        gone = self.folder / f"{REMOVED}{name}"
        if not look.exists(self.folder / name, follow_links=False):
            return
        take_away(gone)
        with writing(self.folder / name):
            (self.folder / name).replace(gone)
        take_away(gone)  # the next run removes what is left


def read_identity(path: Path) -> str | None:
    """The identity of the weights in a file of facts; None if it is absent or damaged."""
    try:
        return json.loads(_text(path)).get("identity")
    except (ValueError, AttributeError):  # a list, a number: not what was written
        return None


def read_facts(path: Path) -> Merged | None:
    """The measurements of a merge in a file of facts; None if they are not known."""
    try:
        content = json.loads(_text(path))
        content.pop("identity")
        return _FACTS.validate_json(json.dumps(content), strict=True)
    except (ValueError, TypeError, KeyError, AttributeError):  # pydantic's are of the first kind
        return None


def _text(path: Path) -> str:
    """The text of a file of facts, none of one that does not exist."""
    try:
        return path.read_text()
    except OSError as error:
        look.hold_absent(path, error)
        return ""
