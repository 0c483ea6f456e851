"""How answers are decoded: by what the task asks for alone, or with what a model's own file adds to it.

``generation_config.json`` holds habits of one model, such as ``repetition_penalty`` 1.1. transformers follows
it unasked, vLLM does not, and two models that are compared seldom have the same one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskvec.errors import EvaluationError
from taskvec.files import look

FILE = "generation_config.json"

# What says where an answer begins and ends, and nothing of how its tokens are chosen.
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_NOTES = ("transformers_version", "_from_model_config")


def make_neutral(model: Any) -> None:
    """Let a transformers model decode by the arguments of each call alone; the special tokens stay."""
    from transformers import GenerationConfig

    own = getattr(model, "generation_config", None)
    if own is not None:
        tokens = {name: getattr(own, name, None) for name in _TOKENS}
        model.generation_config = GenerationConfig(**tokens)


def habits(model: Any) -> dict[str, Any]:
    """What a transformers model's own configuration adds to the arguments of each call."""
    own = getattr(model, "generation_config", None)
    return _without_tokens(own.to_diff_dict()) if own is not None else {}


def check_alike(models: Mapping[str, str | os.PathLike[str]]) -> None:
    """Refuse models whose own files would have them decode differently.

    Parameters
    ----------
    models : mapping of str to path
        Folders, by the name that a message gives the model.

    Raises
    ------
    EvaluationError
        Two of them differ; the message names the models and the setting.
    """
    found = {name: _stated(Path(folder)) for name, folder in models.items()}
    if not found:
        return
    first, own = next(iter(found.items()))
    for name, other in found.items():
        for key in sorted({*own, *other}):
            if own.get(key) != other.get(key):
                raise EvaluationError(
                    f"`{first}` and `{name}` decode differently by their {FILE}: {key} is {own.get(key)} and "
                    f"{other.get(key)}",
                    "leave out `--decoding model`: scores would compare the files, not the weights",
                )


def _stated(folder: Path) -> dict[str, Any]:
    path = folder / FILE
    if not look.exists(path):
        return {}
    try:
        return _without_tokens(json.loads(path.read_text()))
    except (OSError, ValueError, AttributeError) as error:
        raise EvaluationError(f"cannot read `{path}`: {error}", "mend or remove the file") from error


def _without_tokens(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in _TOKENS and key not in _NOTES}
