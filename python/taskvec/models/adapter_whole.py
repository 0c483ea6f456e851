"""Whole weights in an adapter's file: trained modules (``modules_to_save``), and copies of adapted layers.

PEFT puts both in the place of the model's own weights when it loads an adapter: a module of
``modules_to_save`` under the module's name, a layer with factors of its own as ``base_layer``, and embedding
and head, where they were saved along, under their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from taskvec.dtypes import FLOAT_DTYPES
from taskvec.errors import FormatError
from taskvec.models.adapter_config import CORRECT
from taskvec.models.model import TensorInfo
from taskvec.text import kind_of, listed, shown

COPY = ".base_layer."
PREFIX = "base_model.model."
# The layers that `save_embedding_layers` of PEFT's `save_pretrained` saves along.
_SAVED_ALONG = ("embed_tokens", "lm_head")
_SAVE_AGAIN = "its settings and its weights come from different saves: save it again"


def saved_modules(config: Mapping[str, Any], spec: str) -> Sequence[str]:
    """The names, or their ends, of the modules that an adapter holds as a whole.

    Raises
    ------
    FormatError
        ``modules_to_save`` is not a list of names.
    """
    names = config.get("modules_to_save")
    if names is None:
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise FormatError(
            f"`modules_to_save` of the adapter `{spec}` is {shown(names)}, {kind_of(names)}; expected a list "
            "of names",
            CORRECT,
        )
    return names


def whole_name(stored: str, modules: Iterable[str]) -> str | None:
    """The weight that a stored tensor takes the place of, without PEFT's prefix; ``None`` if it is not one.

    Parameters
    ----------
    stored : str
        Its name in the adapter's file.
    modules : iterable of str
        Those of :func:`saved_modules`.
    """
    name = stored.removeprefix(PREFIX)
    parts = name.split(".")
    if COPY in name:
        return name.replace(COPY, ".") if parts.count("base_layer") == 1 else None
    if any(part in ("original_module", "token_adapter") or part.startswith("lora_") for part in parts):
        return None
    is_along = len(parts) > 1 and parts[-1] == "weight" and parts[-2] in _SAVED_ALONG
    return name if is_along or _is_of(name, modules) else None


def check_whole(whole: Mapping[str, TensorInfo], modules: Sequence[str], spec: str) -> None:
    """Hold that what is named is there, and that it is numbers that can be merged.

    Raises
    ------
    FormatError
        No module of ``modules_to_save`` has a weight, or one of the tensors is of no float type.
    """
    # some may be missing: PEFT lists all names that a head may have, and a model has one of them
    if modules and not any(_is_of(name, modules) for name in whole):
        raise FormatError(
            f"the adapter `{spec}` trains whole modules (`modules_to_save: {shown(list(modules))}`), and "
            "holds the weights of none of them",
            _SAVE_AGAIN,
        )
    others = [info.name for info in whole.values() if info.dtype not in FLOAT_DTYPES]
    if others:
        raise FormatError(
            f"the adapter `{spec}` holds {listed(others)}, which are not floats, in the place of the model's",
            "merge it into its model with `peft` (merge_and_unload) first, and use the result",
        )


def _is_of(name: str, modules: Iterable[str]) -> bool:
    """Whether a weight is that of a module whose name ends with one of these, as PEFT finds them."""
    parts = name.split(".")
    above = [".".join(parts[:count]) for count in range(1, len(parts))]
    return any(module.endswith(end) for end in modules for module in above)
