"""What the hub answers to those who write, each with the way out; no token and no signed address is shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from taskvec.errors import Error, HubError, RecipeError
from taskvec.regex import regex
from taskvec.resolve.hub_errors import is_unreachable, retry_after, status_of

_LOGIN = "log in with `hf auth login`, or set HF_TOKEN, with a token that may write"
_KEPT = "run the same command again: what was sent is kept"
_SECRET = regex(r"\?\S*|hf_\w+|[Bb]earer \S+")


class MovedError(HubError):
    """The branch is not at the commit that the run began on."""


class RefusedError(HubError):
    """The hub does not take what it was given."""


class LostAnswerError(HubError):
    """It is not known whether the hub has done what it was asked for."""


@contextmanager
def refused(address: str) -> Iterator[None]:
    """Turns whatever goes wrong at the hub into a :class:`taskvec.Error` that says how to go on."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        yield
    except Error:
        raise
    except HFValidationError as error:
        raise RecipeError(
            f"`{address}` cannot be a repository: {_clean(error)}",
            "write `hf://org/name` or `hf://org/name@branch`",
        ) from None
    except OfflineModeIsEnabled:
        raise HubError(
            f"`{address}` cannot be written: offline mode is on",
            "unset HF_HUB_OFFLINE, or write to a local folder",
        ) from None
    except Exception as error:
        cause = _behind(error)
        status = status_of(cause)
        if status is not None:
            raise _of_status(status, address, cause) from None
        if is_unreachable(cause) or isinstance(cause, OSError):
            raise LostAnswerError(
                f"`{address}` cannot be reached: {_clean(cause)}", f"check the connection; {_KEPT}"
            ) from None
        if isinstance(error, (ValueError, RuntimeError, HfHubHTTPError)):  # what huggingface_hub says itself
            raise HubError(f"`{address}` was not written: {_clean(error)}", _KEPT) from None
        raise


def _of_status(status: int, address: str, cause: BaseException) -> HubError:
    match status:
        case 401:
            return HubError(f"`{address}` needs a valid token (401)", f"{_LOGIN}; a token may have expired")
        case 402 | 507:
            return HubError(
                f"the account has no room for `{address}` ({status})",
                "free space on the hub, or write to another organisation",
            )
        case 403:
            return HubError(
                f"this token may not write to `{address}` (403)",
                f"choose a namespace of your own, or {_LOGIN} there",
            )
        case 404:
            return HubError(
                f"`{address}` is not found, or not for this token to see (404)",
                f"check the name; for a private repository {_LOGIN}",
            )
        case 409 | 412:
            return MovedError(f"`{address}` was changed by another commit meanwhile ({status})", _KEPT)
        case 413:
            return HubError(
                f"a file is too large for `{address}` (413)",
                "choose a smaller `--max-shard-size`, such as 5GB",
            )
        case 429:
            seconds = retry_after(cause)
            when = f"in {seconds} seconds" if seconds else "in a few minutes"
            return HubError(
                f"the hub takes no more requests for `{address}` for now (429)",
                f"run the same command again {when}: what was sent is kept",
            )
    if status >= 500:
        return LostAnswerError(f"the hub answered {status} for `{address}`", f"try again later; {_KEPT}")
    return RefusedError(f"the hub answered {status} for `{address}`: {_clean(cause)}", _KEPT)


def _behind(error: BaseException) -> BaseException:
    """The HTTP or network error behind the one that huggingface_hub wraps around it."""
    seen: set[int] = set()
    found = error
    while status_of(found) is None and found.__cause__ is not None and id(found) not in seen:
        seen.add(id(found))
        found = found.__cause__
    return found if status_of(found) is not None or is_unreachable(found) else error


def _clean(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return _SECRET.sub("…", lines[0].strip() if lines else type(error).__name__)[:300]
