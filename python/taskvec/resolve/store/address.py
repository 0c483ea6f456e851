"""Addresses of object stores and web servers: ``s3://bucket/prefix``, ``https://host/folder``."""

from __future__ import annotations

from typing import NamedTuple

from taskvec.errors import RecipeError

WEB = ("https", "http")
OBJECTS = ("s3", "gs", "az")


class Address(NamedTuple):
    """An address of files.

    Attributes
    ----------
    scheme : str
        ``s3``, ``gs``, ``az``, ``https`` or ``http``.
    place : str
        The bucket or container; the host of a web server, with its port.
    path : str
        The folder below it, or a single file; without slashes at its ends.
    """

    scheme: str
    place: str
    path: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.place}" + (f"/{self.path}" if self.path else "")

    @property
    def file(self) -> str | None:
        """The name of the file, where the address is that of a single one."""
        return self.path.rpartition("/")[2] if self.path.endswith(".safetensors") else None

    @property
    def folder(self) -> str:
        """The path without the single file."""
        return self.path.rpartition("/")[0] if self.file else self.path


def parse(text: str) -> Address:
    """Read an address.

    Raises
    ------
    RecipeError
        It names no place, has parts that could leave it, or a name, password or signature. Addresses are
        written into manifests and shown, which secrets must not be; so the message does not repeat them.
    """
    scheme, _, rest = text.strip().partition("://")
    place, _, path = rest.partition("/")
    if "@" in place:
        raise RecipeError(
            f"an address of {scheme}:// has a user name or a password in it, which a manifest would show",
            "take them out; give credentials in the environment or by --storage-option",
        )
    if "?" in rest or "#" in rest:
        raise RecipeError(
            f"an address of {scheme}:// has a `?` or `#` in it: a manifest would show a signature there",
            "give the address without them, and credentials in the environment or by --storage-option",
        )
    parts = [part for part in path.split("/") if part]
    if not place:
        raise RecipeError(f"`{text}` names no place", f"write `{scheme}://{_example(scheme)}`")
    if {".", ".."} & set(parts) or any(ord(letter) < 32 for letter in rest):
        raise RecipeError(f"`{text}` has parts that are not names", f"write `{scheme}://{_example(scheme)}`")
    return Address(scheme, place, "/".join(parts))


def _example(scheme: str) -> str:
    return "host/folder" if scheme in WEB else "bucket/prefix"
