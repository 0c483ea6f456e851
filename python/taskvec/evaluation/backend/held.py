"""A model that is kept between evaluations, and takes the weights of the next folder in place.

The candidates of a search differ in weights alone: making the model, its tokenizer and lm-eval's object
around it again for each would take longer than evaluating it. Weights are put in only where that surely gives
the model that loading would: the same other files, the same names, shapes and types. Otherwise it is loaded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskvec.evaluation.backend.load import load_model
from taskvec.evaluation.record import digest_files
from taskvec.evaluation.settings import Settings
from taskvec.files import look

_WEIGHTS = (".safetensors", ".safetensors.index.json")
_APART = ("taskvec.json", "README.md", ".gitattributes")


@dataclass(slots=True)
class _Held:
    key: tuple[Any, ...]
    loaded: Any
    batch: Any


_held: list[_Held] = []


def load_held(model: str, settings: Settings) -> Any:
    """The model of a folder as :func:`load_model` gives it, in the one from before where that can be done.

    The model that was given before must not be used any more.
    """
    key = _key(model, settings)
    if key is None:
        let_go()
        return load_model(model, settings)
    if _held and _held[0].key == key and fill(_held[0].loaded.model, Path(model)):
        _held[0].loaded.batch_size_per_gpu = _held[0].batch  # it may have been halved
        return _held[0].loaded
    let_go()
    loaded = load_model(model, settings)
    _held.append(_Held(key, loaded, loaded.batch_size_per_gpu))
    return loaded


def let_go() -> None:
    """Give the memory of the model back."""
    if _held:
        from taskvec.evaluation.backend.blocks import free_memory

        _held.clear()
        free_memory()


def _key(model: str, settings: Settings) -> tuple[Any, ...] | None:
    """What two folders have in common whose weights can be exchanged; None where they cannot."""
    folder = Path(model)
    if settings.backend != "hf" or not look.is_folder(folder):
        return None
    names = look.listing(folder)
    if not any(name.endswith(".safetensors") for name in names):
        return None
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return None  # loading says what is wrong
    if not isinstance(config, dict) or config.get("quantization_config") or config.get("auto_map"):
        return None
    others = [
        folder / name
        for name in names
        if not name.endswith(_WEIGHTS) and name not in _APART and look.is_file(folder / name)
    ]
    return (
        digest_files(others, folder),
        settings.device,
        settings.batch,
        settings.model_args,
        settings.decoding,
    )


def fill(model: Any, folder: Path) -> bool:
    """Put the weights of a folder into a model in place; False, and nothing done, where names differ.

    Parameters
    ----------
    model : torch.nn.Module
        Loaded from a folder of the same config.
    folder : Path
        Of safetensors files.
    """
    import torch
    from safetensors import safe_open

    files = [folder / name for name in look.listing(folder) if name.endswith(".safetensors")]
    within = dict(model.state_dict(keep_vars=True))
    places: dict[int, str] = {}
    stored: dict[str, Path] = {}
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                value = within.get(name)
                part = file.get_slice(name)
                if (
                    value is None
                    or value.is_meta
                    or list(value.shape) != list(part.get_shape())
                    or _NAMES.get(str(value.dtype)) != part.get_dtype()
                    or value.data_ptr() in places
                    or name in stored
                ):
                    return False
                places[value.data_ptr()] = name
                stored[name] = path
    if any(value.data_ptr() not in places for value in within.values()):  # neither stored nor tied to one
        return False
    with torch.no_grad():
        for path in files:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 - no mapping
                    within[name].copy_(file.get_tensor(name))
    return True


_NAMES = {"torch.float32": "F32", "torch.bfloat16": "BF16", "torch.float16": "F16", "torch.float64": "F64"}
