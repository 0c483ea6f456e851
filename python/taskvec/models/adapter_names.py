"""The stored weight that a module of an adapter is: PEFT names modules as they are in memory.

A checkpoint often stores the same weights under names with other beginnings: GPT-2 without ``transformer.``,
a decoder adapted by its inner model without ``model.``, a vision-language model with
``language_model.model.`` for ``model.language_model.``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from taskvec.errors import FormatError
from taskvec.models.adapter_config import MERGE_FIRST
from taskvec.models.tensor_names import without_wrappers
from taskvec.text import alike, listed

# Parts of a name that say in which object a module lies, and not which module it is.
_WRAPPERS = frozenset({
    "base_model", "model", "transformer", "language_model", "module", "_orig_mod", "gpt_neox", "backbone",
    "rwkv", "bert", "roberta", "distilbert", "deberta", "electra", "albert", "mpnet", "esm",
})  # fmt: skip


class StoredNames:
    """The names of a checkpoint's tensors, found again by what follows their wrappers."""

    def __init__(self, names: Collection[str]) -> None:
        self.names = names
        self._by_core: Mapping[str, list[str]] | None = None

    def alike(self, name: str) -> list[str]:
        """Names that differ from `name` in their wrappers at most; the same name alone, if it is there."""
        if name in self.names:
            return [name]
        if self._by_core is None:
            self._by_core = _grouped(self.names)
        return self._by_core.get(core(name), [])


def core(name: str) -> str:
    """A name without the wrappers that it begins with."""
    parts = without_wrappers(name).split(".")
    while len(parts) > 2 and parts[0] in _WRAPPERS:
        del parts[0]
    return ".".join(parts)


def _grouped(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(core(name), []).append(name)
    return found


def not_found(adapter: str, names: list[str], model: str, stored: Collection[str]) -> FormatError:
    """The error for weights that a model stores under no name that is known to mean the same."""
    near = alike(names[0], list(stored)[:20_000], n=2, cutoff=0.3)
    examples = near or list(stored)[:2]
    return FormatError(
        f"the names differ: the adapter `{adapter}` changes {listed(names)}, and `{model}` has no weight of "
        f"that name, with or without `model.` and the like in front; it has {listed(examples)} among "
        f"{len(stored):,}",
        "if these are the same weights under other names, rename the adapter's tensors to the names that the "
        f"model stores, or {MERGE_FIRST}",
    )


def ambiguous(adapter: str, name: str, model: str, found: list[str]) -> FormatError:
    """The error for a module that may be more than one stored weight."""
    return FormatError(
        f"the names differ: the adapter `{adapter}` changes `{name}`, which may be any of {listed(found)} in "
        f"`{model}`",
        "rename the adapter's tensors to the names that the model stores",
    )
