"""The identity of an arm: its settings, the versions that decide a score, and its weights."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
from pathlib import Path
from typing import Any

from taskvec.evaluation.arms import Arm
from taskvec.evaluation.record import digest_files, identity
from taskvec.evaluation.settings import Settings, torch_device
from taskvec.files import look
from taskvec.files.names import MANIFEST, RECIPE

# Raised whenever the same settings come to give other prompts, stop strings or decoding: arms from before are
# then neither taken for finished nor compared.
PREPARATION = 4

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
    if not look.is_folder(model):
        return f"files:{digest_files([model], model.parent)}"
    files = [
        path
        for path in (model / name for name in look.listing(model))
        if look.is_file(path)
        and path.suffix != ".md"
        and path.name not in (MANIFEST, RECIPE, ".gitattributes")
    ]
    return f"files:{digest_files(files, model)}"
