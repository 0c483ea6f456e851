"""The identity of an arm: its settings, the versions that decide a score, and its weights."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from taskvec.errors import EvaluationError
from taskvec.evaluation.arms import Arm
from taskvec.evaluation.record import digest_files, identity
from taskvec.evaluation.settings import Settings, torch_device
from taskvec.files import look
from taskvec.files.names import MANIFEST, RECIPE

# Raised whenever the same settings come to give other prompts, stop strings or decoding: arms from before are
# then neither taken for finished nor compared.
PREPARATION = 5

_State = tuple[tuple[str, look.Stamp | None], ...]  # the files of a model that decide what it computes
_read: dict[str, tuple[str, _State]] = {}  # digests, and what was read for them, by absolute path
_VERSIONED = ("lm_eval", "transformers", "torch", "vllm")


def versions(settings: Settings) -> dict[str, str]:
    """The versions that decide a score, by package."""
    found = {}
    for package in _VERSIONED:
        if package == "vllm" and settings.backend != "vllm":
            continue
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def settings_identity(settings: Settings) -> dict[str, Any]:
    """`Settings.identity` with what only this machine knows: the kind of device, the local tasks' content."""
    device = "cuda" if settings.backend == "vllm" else torch_device(settings.device).split(":")[0]
    content: dict[str, Any] = {**settings.identity(), "device": device, "preparation": PREPARATION}
    if settings.include_path is not None:
        folder = Path(settings.include_path)
        levels = look.walk(folder, without=frozenset({"__pycache__"}))
        files = [
            path
            for level in levels
            for name in level.files
            if look.is_file(path := folder / level.path / name)
        ]
        content["include_path"] = digest_files(files, folder)
    return content


def arm_identity(settings: Settings, weights: str, arm: Arm) -> str:
    """The identity that `evaluate` would give an arm's record."""
    return identity(settings_identity(settings), versions(settings), weights, arm)


def resolve(model: str | os.PathLike[str]) -> tuple[str, str]:
    """The place of a model's files, and the identity of its weights: a digest of files, or a hub revision.

    A hub model is downloaded if it is not in the cache.
    """
    path = Path(model)
    if look.exists(path):
        return os.fspath(model), weights_digest(path)
    from taskvec.resolve.open import open as open_model
    from taskvec.resolve.remote import materialised

    checkpoint = materialised(open_model(os.fspath(model)))
    return os.fspath(checkpoint.location), f"hub:{checkpoint.spec}@{checkpoint.revision}"


def weights_digest(model: Path) -> str:
    """A digest of the files of a model or a saved vector: weights, config, tokenizer.

    Files that describe a model, and change nothing of what it computes, do not count.
    """
    state, root = _state(model), model if look.is_folder(model) else model.parent
    found = f"files:{digest_files([root / name for name, _ in state], root)}"
    _read[os.path.abspath(model)] = found, state
    return found


class Source(NamedTuple):
    """A model or a vector that must not change while it is in use.

    Attributes
    ----------
    place : str
    identity : str
        Of its weights.
    state : tuple
        Its files as they were when they were read for that; empty where another process has read them.
    """

    place: str
    identity: str
    state: _State = ()


def source(place: str | os.PathLike[str], identity: str) -> Source:
    """A model whose identity this process has found."""
    found, state = _read.get(os.path.abspath(place), ("", ()))
    return Source(os.fspath(place), identity, state if found == identity else ())


def hold_unchanged(sources: Iterable[Source]) -> None:
    """Return if models and vectors still are what their identities say.

    They are read again where this process has not read them, or where a time, a size or a file's number
    differs.

    Raises
    ------
    EvaluationError
        One is not.
    """
    for given in sources:
        if not given.identity.startswith("files:"):
            continue  # a revision of the hub, which does not change
        model = Path(given.place)
        state = _state(model)
        if state == given.state or _read.get(os.path.abspath(model)) == (given.identity, state):
            continue
        if not look.exists(model) or weights_digest(model) != given.identity:
            raise EvaluationError(
                f"`{given.place}` has changed since this run began",
                "run the same command again: it takes the model as it is then",
            )


def _state(model: Path) -> _State:
    if not look.is_folder(model):
        return ((model.name, look.stamp(model)),)
    return tuple(
        (name, look.stamp(model / name))
        for name in look.listing(model)
        if look.is_file(model / name)
        and not name.endswith(".md")
        and name not in (MANIFEST, RECIPE, ".gitattributes")
    )
