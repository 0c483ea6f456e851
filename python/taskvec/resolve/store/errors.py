"""Answers of an object store, a web server or the network other than a file, each with the way out.

The text of an error of obstore has the answer of the server in it, and that may repeat keys and tokens: only
the status, the store's own word for the fault and the kind of the failure are taken from it.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from taskvec.errors import Error, HubError, NotFoundError, OutputError, RecipeError
from taskvec.regex import regex
from taskvec.resolve.store.address import WEB, Address

_STATUS = regex(r"status code: (\d{3})")
# The answers of stores: XML of S3, Azure and Google, JSON of Google.
_CODE = regex(r"<Code>([A-Za-z]{3,60})</Code>|\"reason\": ?\"([A-Za-z]{3,60})\"")
_KIND = regex(r"kind: (Connect|Timeout|Decode|Interrupted)\b")
_KEY = regex(r"Configuration key: '([a-z0-9_]{1,60})'")
# Where a machine in a cloud gets credentials: asked for where there are none.
_MACHINE = ("169.254.169.254", "169.254.170.2", "metadata.google.internal")

_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN), or give "
    "`--storage-option skip_signature=true` for a public bucket",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to the file of a service account, or give "
    "`--storage-option skip_signature=true` for a public bucket",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (or AZURE_STORAGE_SAS_TOKEN)",
}
_EXPIRED = frozenset({"ExpiredToken", "TokenRefreshRequired", "ExpiredTokenException"})
_WRONG_KEYS = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AuthenticationFailed", "InvalidSecurity"}
)
_NO_PLACE = frozenset({"NoSuchBucket", "ContainerNotFound", "InvalidBucketName"})
_AGAIN = "run the same command again; finished files are kept"


@contextmanager
def explained(address: Address, file: str | None = None, *, writing: bool = False) -> Iterator[None]:
    """Turns whatever goes wrong at an address into a :class:`taskvec.Error` that says how to go on."""
    told: Error | None = None
    try:
        yield
    except Error:
        raise
    except Exception as error:
        told = explain(error, address, file)
        if told is None:
            raise
        if writing:
            told = _of_writing(told)
    if told is not None:
        raise told from None  # what obstore says must not be shown as its cause


def changed(address: Address, file: str, what: str) -> HubError:
    """A file is not what it was when it was listed."""
    return HubError(
        f"`{file}` of `{address}` has changed since it was listed: {what}",
        "run the same command again when nothing writes to the address",
    )


def not_set_up(subject: str) -> HubError:
    """Something in the options is wrong; what it is may be a secret."""
    return HubError(
        f"{subject} cannot be reached as it is set up",
        "check the options that `--storage-option` and the environment give for this kind of store",
    )


def explain(error: Exception, address: Address, file: str | None) -> Error | None:
    """The error to raise in place of `error`; ``None`` where it is a defect and not the address's doing."""
    if isinstance(error, OSError) and error.errno is not None:
        return _of_system(error, address)
    if not _is_foreign(error):
        return None
    text = str(error)
    status = _first(_STATUS, text)
    code = _first(_CODE, text)
    name = type(error).__name__
    if name == "UnknownConfigurationKeyError":
        return _unknown_option(_first(_KEY, text), address)
    if any(host in text.partition("Debug source")[0] for host in _MACHINE):
        return HubError(f"there are no credentials for `{address}`", _CREDENTIALS[address.scheme])
    if name == "NotSupportedError":
        return HubError(
            f"the server of `{address}` does not send parts of files (ranges)",
            "download the model with another tool, and give the folder",
        )
    if name == "PreconditionError" or status == "412":
        return changed(address, file or "a file", "its ETag is another one")
    if status == "416":
        return changed(address, file or "a file", "it is shorter")
    if status is not None or name in ("NotFoundError", "PermissionDeniedError", "UnauthenticatedError"):
        return _of_answer(int(status or 404), code, address, file)
    return _of_connection(text, address, file)


def _of_answer(status: int, code: str | None, address: Address, file: str | None) -> Error:
    subject = f"`{file}` of `{address}`" if file else f"`{address}`"
    told = f"{status} {code}" if code else str(status)
    login = _CREDENTIALS.get(address.scheme, "this server may need a login, which taskvec does not do")
    if code in _NO_PLACE:
        return NotFoundError(
            f"there is no bucket `{address.place}` for `{address}` ({told})",
            "check its name; for another provider than the usual one give `--storage-option endpoint=https://...`",
        )
    if code in _EXPIRED:
        return HubError(f"the token for {subject} has expired ({told})", f"get a new one; {login}")
    if code in _WRONG_KEYS:
        return HubError(f"{subject} does not accept these credentials ({told})", login)
    if code == "RequestTimeTooSkewed":
        return HubError(
            f"{subject} says that this machine's clock is wrong ({told})", "set the clock, then try again"
        )
    if code in ("AuthorizationHeaderMalformed", "PermanentRedirect"):
        return _other_region(address)
    if code == "NoSuchUpload":
        return HubError(f"the upload of {subject} was ended or given up elsewhere ({told})", _AGAIN)
    if status == 404:
        return NotFoundError(f"{subject} is not found ({told})", "check the address")
    if status == 401:
        return HubError(f"{subject} needs valid credentials ({told})", login)
    if status == 403:
        return HubError(
            f"{subject} is forbidden ({told})",
            f"check that these credentials may list and read it; {login}"
            if address.scheme not in WEB
            else login,
        )
    if status == 400 and file is None and address.scheme not in WEB:
        return HubError(f"{subject} refused the request ({told})", f"check region and credentials; {login}")
    if status in (429, 503) or code == "SlowDown":
        return HubError(
            f"{subject} cannot be had now: the server takes no more requests ({told})",
            f"wait some minutes; {_AGAIN}",
        )
    return HubError(f"`{address.scheme}://{address.place}` answered {told} for {subject}", f"later, {_AGAIN}")


def _of_connection(text: str, address: Address, file: str | None) -> Error:
    subject = f"`{file}` of `{address}`" if file else f"`{address}`"
    kind = _first(_KIND, text)
    if "BadScheme" in text:
        return HubError(
            f"{subject} would be reached by http without encryption",
            "give an endpoint of https, or `--storage-option allow_http=true` if that is meant",
        )
    if "BareRedirect" in text:
        return _other_region(address)
    if "MissingAccount" in text:
        return HubError(f"there is no storage account for `{address}`", _CREDENTIALS["az"])
    if "dns error" in text:
        return HubError(
            f"the host of {subject} is not known", "check the address, the endpoint and the network"
        )
    if "certificate" in text.lower() or "UnknownIssuer" in text:
        return HubError(
            f"the server of {subject} has no certificate that is trusted",
            "check the address and the clock; a private authority is given by "
            "`--storage-option root_certificate=...`",
        )
    if kind is None and "HttpError" not in text:
        return not_set_up(subject)
    reason = {
        "Connect": "no connection",
        "Timeout": "no answer in time",
        "Decode": "the answer was cut off",
        "Interrupted": "the connection was cut off",
    }.get(kind or "", "the connection failed")
    return HubError(f"{subject} could not be fetched: {reason}", f"check the network; {_AGAIN}")


def _of_writing(error: Error) -> Error:
    """The same of a file that was to be written."""
    message = error.message.replace("could not be fetched", "could not be written")
    hint = (error.hint or "").replace("may list and read it", "may list, read and write it")
    return type(error)(message, hint or None)


def _of_system(error: OSError, address: Address) -> Error:
    where = error.filename or "the folder for fetched files"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            f"no space left for `{address}` in `{where}`",
            "free space there, or choose a folder on a larger disk by --scratch",
        )
    return OutputError(
        f"`{where}` cannot be written for `{address}`: {(error.strerror or 'failed').lower()}",
        "check its permissions, or choose another folder by --scratch",
    )


def _unknown_option(key: str | None, address: Address) -> Error:
    named = f" `{key}`" if key else " of that name"
    return RecipeError(
        f"{address.scheme}:// has no storage option{named}",
        "common ones are endpoint, region, allow_http and skip_signature; obstore's documentation lists all",
    )


def _other_region(address: Address) -> Error:
    return HubError(
        f"`{address}` is in another region",
        "set AWS_REGION to the region of the bucket, or give `--storage-option region=...`",
    )


def _first(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.search(text)
    return next((group for group in found.groups() if group), None) if found else None


def _is_foreign(error: Any) -> bool:
    # obstore's NotFoundError is the builtin one
    module = type(error).__module__
    return module.startswith("obstore") or (isinstance(error, FileNotFoundError) and error.errno is None)
