"""Answers of the hub, the network and huggingface_hub other than a file, each with the way out."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from taskvec.errors import Error, HubError, NotFoundError, OutputError

# huggingface_hub raises its own errors, those of the HTTP client that its version uses, and the system's.
_FOREIGN = ("huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2", "hf_xet", "ssl")
_LOGIN = "log in with `hf auth login` or set HF_TOKEN"


@contextmanager
def explained(repository: str, revision: str | None = None, file: str | None = None) -> Iterator[None]:
    """Turns whatever goes wrong at the hub into a :class:`taskvec.Error` that says how to go on."""
    try:
        yield
    except Error:
        raise
    except Exception as error:
        told = explain(error, repository, revision, file)
        if told is None:
            raise
        raise told from error


def is_unreachable(error: BaseException) -> bool:
    """Whether the hub gave no answer, so that the cache may stand in: offline, no connection, its fault."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    cause = _root(error)
    if isinstance(cause, OfflineModeIsEnabled):
        return True
    status = status_of(cause)
    return status >= 500 if status is not None else _is_connection(cause)


def explain(error: BaseException, repository: str, revision: str | None, file: str | None) -> Error | None:
    """The error to raise in place of `error`; ``None`` where it is a defect and not the hub's doing."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    cause = _root(error)
    subject = f"`{repository}`" + (f" at `{revision}`" if revision else "")
    page = f"{constants.ENDPOINT}/{repository}"
    status = status_of(cause)
    if isinstance(cause, OfflineModeIsEnabled | LocalEntryNotFoundError):
        return HubError(
            f"{subject} is not complete in the cache `{constants.HF_HUB_CACHE}`, and offline mode is on",
            "unset HF_HUB_OFFLINE and run the same command again, or give a local folder",
        )
    if isinstance(cause, GatedRepoError):
        return HubError(
            f"access to `{repository}` is gated",
            f"accept its licence at {page}, then {_LOGIN} of that account",
        )
    if isinstance(cause, RevisionNotFoundError):
        return NotFoundError(
            f"`{repository}` has no revision `{revision or 'main'}`",
            f"look at {page}/commits/main for revisions",
        )
    if isinstance(cause, RepositoryNotFoundError) or (status == 404 and file is None):
        return NotFoundError(
            f"`{repository}` is not a repository at {constants.ENDPOINT}, or a private one",
            f"check the name at {page}; for a private repository {_LOGIN}",
        )
    if isinstance(cause, EntryNotFoundError) or status == 404:
        return NotFoundError(f"{subject} has no file `{file}`", f"look at {page}/tree/{revision or 'main'}")
    if isinstance(cause, HFValidationError):
        return NotFoundError(
            f"`{repository}` is neither a local path nor a repository name",
            "write `org/name` or the path of a folder",
        )
    if status == 401:
        return HubError(f"{subject} needs a valid token (401)", f"{_LOGIN}; a token may have expired")
    if status == 403:
        return HubError(
            f"{subject} is forbidden to this token (403)", f"look at {page}; {_LOGIN} of another account"
        )
    if status == 429:
        seconds = retry_after(cause)
        when = f"in {seconds} seconds" if seconds else "in a few minutes"
        return HubError(
            f"{constants.ENDPOINT} takes no more requests for now (429)",
            f"run the same command again {when}; finished files are kept; to raise the limit {_LOGIN}",
        )
    if status is not None:
        return HubError(
            f"{constants.ENDPOINT} answered {status} for {subject}" + (f", file `{file}`" if file else ""),
            "try again later; finished files are kept",
        )
    return _explain_system(cause, subject, file)


def _explain_system(cause: BaseException, subject: str, file: str | None) -> Error | None:
    from huggingface_hub import constants

    number = getattr(cause, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            f"no space left for {subject} in the cache `{constants.HF_HUB_CACHE}`",
            "free space there, or set HF_HOME to a folder on a larger disk",
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError(
            f"the cache `{constants.HF_HUB_CACHE}` cannot be used: {cause}",
            "check its permissions, or set HF_HOME to a folder of your own",
        )
    if _is_foreign(cause) or isinstance(cause, ConnectionError | TimeoutError):
        what = f"file `{file}` of {subject}" if file else subject
        return HubError(
            f"{what} could not be fetched from {constants.ENDPOINT}: {_reason(cause)}",
            "check the connection and run the same command again; finished files are kept",
        )
    if isinstance(cause, OSError):
        return HubError(
            f"{subject} could not be fetched: {_reason(cause)}",
            "run the same command again; finished files are kept",
        )
    return None


def _root(error: BaseException) -> BaseException:
    """The HTTP or network error behind the one that huggingface_hub wraps around it."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    seen: set[int] = set()
    while (
        isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None and id(error) not in seen
    ):
        seen.add(id(error))
        error = error.__cause__
    return error


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error is of, if it is of one."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _is_foreign(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in _FOREIGN


def _is_connection(error: BaseException) -> bool:
    if _is_foreign(error):
        # By name: which HTTP client it is depends on the version.
        kinds = {kind.__name__ for kind in type(error).__mro__}
        return not kinds.isdisjoint({"TransportError", "FileMetadataError"})
    return isinstance(error, ConnectionError | TimeoutError)


def retry_after(error: BaseException) -> int | None:
    """The seconds to wait that an answer names."""
    headers: Any = getattr(getattr(error, "response", None), "headers", {})
    value = str(headers.get("Retry-After", "")).strip()
    if value.isdigit():
        return int(value)
    # The hub's own header: `"api";r=0;t=55` says that the window ends in 55 seconds.
    for part in str(headers.get("ratelimit", "")).split(";"):
        name, _, number = part.strip().partition("=")
        if name == "t" and number.isdigit():
            return int(number)
    return None
