"""A model that is kept between evaluations, and takes the weights of the next folder in place.

The candidates of a search differ in weights alone: making the model, its tokenizer and lm-eval's object
around it again for each would take longer than evaluating it. Weights are put in only where that surely gives
the model that loading would: the same other files, the same names, shapes and types. Otherwise it is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskvec.errors import EvaluationError
from taskvec.evaluation.backend.load import load_model
from taskvec.evaluation.record import digest_files, digest_json
from taskvec.evaluation.settings import Backend, Settings
from taskvec.files import look
from taskvec.files.names import CARD, MANIFEST, RECIPE

_WEIGHTS = (".safetensors", ".safetensors.index.json")
_APART = (MANIFEST, RECIPE, CARD, ".gitattributes", "training_args.bin", "trainer_state.json")
# Files of settings, and the keys in them that change nothing of what a model computes.
_SETTINGS = ("config.json", "generation_config.json")
_LOOK = "see whether the file is whole and its disk answers; the same command then goes on"
_ORIGINS = ("_name_or_path", "transformers_version", "_from_model_config")


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
    key = key_of(model, settings)
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
        from taskvec.evaluation.backend.memory import free_memory

        _held.clear()
        free_memory()


def key_of(model: str, settings: Settings, *, backend: Backend = "hf") -> tuple[Any, ...] | None:
    """What two folders have in common whose weights can be exchanged; None where they cannot."""
    folder = Path(model)
    if settings.backend != backend or not look.is_folder(folder):
        return None
    names = look.listing(folder)
    if not any(name.endswith(".safetensors") for name in names):
        return None
    config = _stated(folder / "config.json")
    if not config or config.get("quantization_config") or config.get("auto_map"):
        return None  # of what cannot be read, loading says what is wrong
    others = [
        folder / name
        for name in names
        if not name.endswith(_WEIGHTS) and name not in (*_APART, *_SETTINGS) and look.is_file(folder / name)
    ]
    return (
        digest_files(others, folder),
        *(digest_json(_stated(folder / name)) for name in _SETTINGS),
        settings.device,
        settings.batch,
        settings.model_args,
        settings.decoding,
    )


def _stated(path: Path) -> dict[str, Any] | None:
    """A JSON file of settings without what says where it comes from; None where there is none to read."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict):
        return None
    return {key: value for key, value in content.items() if key not in _ORIGINS}


def places_of(model: Any, folder: Path, *, loosely: bool = False) -> dict[str, Any] | None:
    """The tensors of a model by the names that a folder stores them under; None where they are others.

    Parameters
    ----------
    model : torch.nn.Module
        It may be on the device ``meta``, where it has shapes alone.
    folder : Path
        Of safetensors files.
    loosely : bool
        Whether float tensors may be of another type in the model, which was then loaded in that type, and
        whether the folder may hold tensors that the model has no place for.

    Raises
    ------
    EvaluationError
        A file cannot be read.
    """
    within = dict(model.state_dict(keep_vars=True))
    places: dict[str, Any] = {}
    for path in _files(folder):
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                value, part = within.get(name), file.get_slice(name)
                if value is None and loosely:
                    continue
                if value is None or name in places or list(value.shape) != list(part.get_shape()):
                    return None
                is_cast = loosely and value.is_floating_point() and part.get_dtype() in _FLOATS
                if not is_cast and _NAMES.get(str(value.dtype)) != part.get_dtype():
                    return None
                places[name] = value
    own = {id(value) for value in places.values()}
    is_whole = len(own) == len(places) and all(id(value) in own for value in within.values())
    return places if is_whole else None  # every tensor is stored, or tied to one that is


def fill(model: Any, folder: Path, *, loosely: bool = False) -> bool:
    """Put the weights of a folder into a model in place; False, and nothing done, where names differ.

    Parameters
    ----------
    model : torch.nn.Module
        Loaded from a folder of the same config.
    folder : Path
        Of safetensors files.
    loosely : bool
        As that of :func:`places_of`.

    Raises
    ------
    EvaluationError
        A file cannot be read; the model then has weights of both, and has to be filled again.
    """
    import torch

    places = places_of(model, folder, loosely=loosely)
    if places is None or any(value.is_meta for value in places.values()):
        return False
    with torch.no_grad():
        for path in _files(folder):
            with _opened(path) as file:
                for name in places.keys() & file.keys():
                    places[name].copy_(_read(path, lambda file=file, name=name: file.get_tensor(name)))
    return True


def _opened(path: Path) -> Any:
    from safetensors import safe_open

    return _read(path, lambda: safe_open(path, "pt"))


def _read(path: Path, call: Callable[[], Any]) -> Any:
    """What a call of safetensors gives; torch, which maps the file, has errors of its own for it."""
    from safetensors import SafetensorError

    try:
        return call()
    except (OSError, RuntimeError, SafetensorError) as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        fix = look.way_out(error) if isinstance(error, OSError) else _LOOK
        raise EvaluationError(f"cannot read `{path}`: {text}", fix) from error


def _files(folder: Path) -> list[Path]:
    return [folder / name for name in look.listing(folder) if name.endswith(".safetensors")]


_FLOATS = ("F32", "BF16", "F16", "F64")
_NAMES = {
    "torch.float32": "F32",
    "torch.bfloat16": "BF16",
    "torch.float16": "F16",
    "torch.float64": "F64",
    "torch.bool": "BOOL",
    "torch.uint8": "U8",
    "torch.int8": "I8",
    "torch.int16": "I16",
    "torch.int32": "I32",
    "torch.int64": "I64",
}
