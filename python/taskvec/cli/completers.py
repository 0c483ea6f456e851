"""What the shell offers after arguments and options: files, cached models, methods, findings, layers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem

Completer = Callable[["click.Context", "click.Parameter", str], "list[CompletionItem]"]


def complete(kind: str | None) -> Completer | None:
    """The completer for a value that help calls `kind`, such as ``MODEL``; ``None`` where there is none."""
    return _BY_KIND.get((kind or "").strip("[].").partition("[")[0].removesuffix("..."))


def files(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files and folders, which the shell lists itself."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Folders, and the repositories of the hub's cache that begin so."""
    return [*files(ctx, param, incomplete), *_begin(_cached(), incomplete)]


def methods(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Merge methods."""
    from taskvec.methods.catalogue import METHODS

    return _begin(METHODS, incomplete)


def findings(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Findings that ``--force`` goes on in spite of; several are separated by commas."""
    from taskvec.compat.findings import FINDINGS

    before, comma, last = incomplete.rpartition(",")
    names = (name for name, kind in FINDINGS.items() if kind.forced is not None)
    return _begin((f"{before}{comma}{name}" for name in names if name.startswith(last)), incomplete)


def layers(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """All layers of the first model that is named and lies on this machine."""
    named = (ctx.params.get(role) for role in ("target", "model", "donor", "left"))
    for model in named:
        count = _layers_of(model) if isinstance(model, str) else None
        if count:
            return _begin([f"0-{count - 1}"], incomplete)
    return []


def _begin(words: Iterable[str], incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(word) for word in words if word.startswith(incomplete)]


def _cached() -> list[str]:
    """The repositories in the hub's cache, found without its library, which takes long to import."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface"
    )
    cache = Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub"))
    try:
        folders = sorted(os.listdir(cache))
    except OSError:
        return []  # a shell that completes has no place for an error
    head = "models--"
    return [name.removeprefix(head).replace("--", "/") for name in folders if name.startswith(head)]


def _layers_of(model: str) -> int | None:
    try:
        config = json.loads((Path(model) / "config.json").read_bytes())
        count = config.get("text_config", config).get("num_hidden_layers")
    except (OSError, ValueError, AttributeError):
        return None
    return count if isinstance(count, int) and count > 0 else None


_BY_KIND: dict[str, Completer] = {
    **dict.fromkeys(("MODEL", "TARGET", "DONOR", "REFERENCE", "A", "B", "VECTOR", "CHECKPOINT"), models),
    **dict.fromkeys(("RECIPE", "SPACE", "FILE", "OUT", "DIR", "PATH", "PLAN", "RESULT"), files),
    "METHOD": methods,
    "ID": findings,
    "A-B": layers,
}
