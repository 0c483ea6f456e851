"""A repository on the hub as a place to write to: made, sent to, and committed to once.

huggingface_hub does the sending: its tokens, HF_ENDPOINT and Xet hold here as everywhere. Large files are
sent before the commit and lie out of sight until then; they are known by their SHA-256.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from taskvec.errors import HubError, RecipeError
from taskvec.models.model import Stored
from taskvec.resolve.hub import parse
from taskvec.resolve.hub_refusals import refused

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

BRANCH = "main"
# What the hub itself puts into a new repository.
_OWN = frozenset({".gitattributes"})


class Sending(NamedTuple):
    """A large file that the hub has, out of sight.

    Attributes
    ----------
    size : int
        In bytes.
    sha256 : str
    sample : str
        Its first bytes in hexadecimal.
    xet : bool
        Whether it was sent by Xet, of which the hub does not tell before the commit what it has.
    """

    size: int
    sha256: str
    sample: str
    xet: bool = False


class Branch(NamedTuple):
    """A branch as it is: its commit, and the bytes of every file in it."""

    commit: str
    files: Mapping[str, int]


class HubPlace:
    """A branch of a model repository on the hub.

    Parameters
    ----------
    repository : str
        ``org/name``.
    branch : str

    Every method raises ``HubError`` where the hub refuses or cannot be reached; what the network does is
    tried again by huggingface_hub first. No message has a token or the query of an address.
    """

    def __init__(self, repository: str, branch: str = BRANCH) -> None:
        self.repository, self.branch = repository, branch

    @property
    def address(self) -> str:
        """As it is shown."""
        return f"hf://{self.repository}" + (f"@{self.branch}" if self.branch != BRANCH else "")

    def look(self) -> Branch | None:
        """The branch as it is now; ``None`` where there is no such repository, or branch."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        with refused(self.address):
            try:
                info = HfApi().model_info(self.repository, revision=self.branch, files_metadata=True)
            except (RepositoryNotFoundError, RevisionNotFoundError):
                return None
        files = {each.rfilename: each.size or 0 for each in info.siblings or () if each.rfilename not in _OWN}
        return Branch(info.sha or "", files)

    def list(self, below: str = "") -> Mapping[str, Stored]:
        """Every file by its name, or those in a folder, with its SHA-256 as its tag."""
        from huggingface_hub import HfApi

        with refused(self.address):
            info = HfApi().model_info(self.repository, revision=self.branch, files_metadata=True)
        return {
            each.rfilename: Stored(each.size or 0, each.lfs.sha256 if each.lfs else None)
            for each in info.siblings or ()
            if each.rfilename not in _OWN and each.rfilename.startswith(below)
        }

    def make(self, *, public: bool) -> None:
        """Make the repository, private unless `public`, and the branch, where they do not exist."""
        from huggingface_hub import HfApi

        with refused(self.address):
            if not HfApi().repo_exists(self.repository):
                HfApi().create_repo(self.repository, private=not public, exist_ok=True)
            if self.branch != BRANCH:
                HfApi().create_branch(self.repository, branch=self.branch, exist_ok=True)

    def get(self, name: str) -> bytes | None:
        """The bytes of a small file; ``None`` where there is none."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        with refused(self.address):
            url = hf_hub_url(self.repository, name, revision=self.branch)
            answer = get_session().get(url, headers=build_hf_headers(), follow_redirects=True)
            if answer.status_code in (401, 404):
                return None  # 401: the public hub's answer to those without a token for what is not found
            hf_raise_for_status(answer)
            return bytes(answer.content)

    def send(self, name: str, path: Path, told: Callable[[int], None]) -> Sending | bytes:
        """Send a file ahead of the commit; ``told`` is called with the bytes sent, and stops it by raising.

        A file that the hub keeps in its history instead is given back as its bytes.
        """
        from huggingface_hub import CommitOperationAdd, HfApi

        listener = _Listener(told)
        with listener, refused(self.address), _QUIET, _read_by(path, listener) as content:
            addition = CommitOperationAdd(name, content)
            listener.is_on = True
            HfApi().preupload_lfs_files(self.repository, [addition], revision=self.branch)
            if not addition._is_uploaded:
                return path.read_bytes()
            info = addition.upload_info
            xet = isinstance(content, str)
            sending = Sending(info.size, info.sha256.hex(), info.sample.hex(), xet)
        if self.lost([sending]):
            raise HubError(
                f"`{name}` was sent to `{self.address}`, and the hub does not have it",
                "run the same command again: it is sent again",
            )
        return sending

    def lost(self, sent: Collection[Sending]) -> set[str]:
        """The SHA-256 of those of these files that the hub says it does not have."""
        from huggingface_hub.lfs import UploadInfo, post_lfs_batch_info

        asked = [each for each in sent if not each.xet]
        infos = [UploadInfo(size=each.size, sample=b"", sha256=bytes.fromhex(each.sha256)) for each in asked]
        missing: set[str] = set()
        for start in range(0, len(infos), 100):
            with refused(self.address):
                actions, errors, _ = post_lfs_batch_info(
                    infos[start : start + 100],
                    token=None,
                    repo_type="model",
                    repo_id=self.repository,
                    revision=self.branch,
                )
            missing |= {each["oid"] for each in actions if each.get("actions")}
            missing |= {each["oid"] for each in errors}
        return missing

    def commit(
        self,
        title: str,
        sent: Mapping[str, Sending],
        files: Mapping[str, Path | bytes],
        removed: Sequence[str],
        parent: str,
    ) -> None:
        """One commit with all files, on top of `parent`, the commit that the branch has to be at."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        additions = [_sent_before(name, sending) for name, sending in sent.items()]
        additions += [CommitOperationAdd(name, content) for name, content in files.items()]
        deletions = [CommitOperationDelete(name) for name in removed]
        with refused(self.address), _QUIET:
            HfApi().create_commit(
                self.repository,
                [*deletions, *additions],
                commit_message=title,
                revision=self.branch,
                parent_commit=parent or None,
            )


def _sent_before(name: str, sending: Sending) -> CommitOperationAdd:
    """What stands in a commit for a file that the hub has already."""
    from huggingface_hub import CommitOperationAdd

    addition = CommitOperationAdd(name, b"")
    info = addition.upload_info
    info.size, info.sha256 = sending.size, bytes.fromhex(sending.sha256)
    info.sample = bytes.fromhex(sending.sample)
    addition._upload_mode, addition._is_uploaded, addition._should_ignore = "lfs", True, False
    return addition


class _Quiet:
    """No bars of huggingface_hub while any thread is inside: the run shows one of its own."""

    def __init__(self) -> None:
        self._inside, self._was_quiet, self._lock = 0, False, threading.Lock()

    def __enter__(self) -> None:
        from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars

        with self._lock:
            if not self._inside:
                self._was_quiet = are_progress_bars_disabled()
                disable_progress_bars()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        from huggingface_hub.utils import enable_progress_bars

        with self._lock:
            self._inside -= 1
            if not self._inside and not self._was_quiet:
                enable_progress_bars()


_QUIET = _Quiet()


class _Listener:
    """Passes on what is told, once it is on; what that raises comes through huggingface_hub as it was."""

    def __init__(self, told: Callable[[int], None]) -> None:
        self._told, self.is_on = told, False
        self.raised: BaseException | None = None

    def __call__(self, count: int) -> None:
        try:
            if self.is_on:
                self._told(count)
        except BaseException as error:
            self.raised = error
            raise

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        if self.raised is not None:
            raise self.raised


class _Told(io.BufferedReader):
    """A file that tells how far it has been sent."""

    def __init__(self, path: Path, told: _Listener) -> None:
        super().__init__(io.FileIO(path))
        self.told = told

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file."""
        data = super().read(size)
        self.told(self.tell())
        return data


@contextmanager
def _read_by(path: Path, told: _Listener) -> Iterator[_Told | str]:
    """The file as huggingface_hub is to have it: Xet reads it by itself, and tells when it has."""
    from huggingface_hub import constants

    if find_spec("hf_xet") and not constants.HF_HUB_DISABLE_XET:
        yield str(path)
        told(path.stat().st_size)
        return
    with _Told(path, told) as file:
        yield file


def place_at(address: str) -> HubPlace:
    """The place that ``hf://org/name`` or ``hf://org/name@branch`` names; nothing is asked for yet.

    Raises
    ------
    RecipeError
        It names none.
    """
    name = parse(address)
    assert name is not None  # `hf://` is meant for the hub, or an error
    if "/" not in name.repository:
        raise RecipeError(f"`{address}` names no repository to write to", "write `hf://org/name`")
    return HubPlace(name.repository, name.revision or BRANCH)
