"""Loading a model into lm-eval's own class for it."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskvec.errors import EvaluationError
from taskvec.evaluation.backend.decoding import make_neutral
from taskvec.evaluation.settings import Settings, torch_device
from taskvec.files import look
from taskvec.files.sub_models import PIPELINE

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")


def load_model(model: str | os.PathLike[str], settings: Settings) -> Any:
    """The model in a folder, as an lm-eval model of the settings' backend.

    Raises
    ------
    EvaluationError
        The folder lacks a file, the backend or the device is not found, or memory does not suffice.
    """
    from lm_eval.api.registry import get_model

    from taskvec.evaluation.backend.memory import free_memory, is_out_of_memory

    name, arguments = os.fspath(model), dict(settings.model_args)
    if look.is_folder(name):
        if look.is_file(Path(name) / PIPELINE):
            raise EvaluationError(
                f"`{name}` is a pipeline of several models, as its `{PIPELINE}` says, and no language model",
                "give the folder of a language model",
            )
        if "tokenizer" not in arguments and not any(
            look.exists(Path(name) / file) for file in _TOKENIZER_FILES
        ):
            raise EvaluationError(
                f"`{name}` has no tokenizer: none of {', '.join(_TOKENIZER_FILES)} is there",
                "copy the target's tokenizer files into it, or name one with `--model-arg tokenizer=FOLDER`",
            )
        if not look.exists(Path(name) / "config.json"):
            raise EvaluationError(f"`{name}` is not a model folder: config.json is not found")
    values: dict[str, Any] = {key: _typed(value) for key, value in arguments.items()}
    values.update(pretrained=name, batch_size=first_batch(settings))
    if settings.backend == "vllm":
        if importlib.util.find_spec("vllm") is None:
            raise EvaluationError(
                "backend `vllm` is not installed", "pip install vllm, or use `--backend hf`"
            )
        values.setdefault("seed", settings.seed)
    else:
        values["device"] = torch_device(settings.device)
        import torch

        if values["device"].startswith("cuda") and not torch.cuda.is_available():
            raise EvaluationError(
                f"device `{values['device']}` is asked for, and there is no GPU", "`--device cpu`"
            )
        if values["device"].startswith("cuda") and (dtype := _gpu_type(name, arguments)) is not None:
            values["dtype"] = dtype
    try:
        found = get_model(settings.backend)(**values)
    except Exception as error:
        if is_out_of_memory(error):
            free_memory()
            raise EvaluationError(
                f"`{name}` does not fit into the memory of {values.get('device', 'the GPU')}",
                "use another --device, `--model-arg dtype=bfloat16`, or `--backend vllm` over several GPUs",
            ) from error
        text = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        if "tokenizer" in str(error).lower():
            raise EvaluationError(f"cannot load the tokenizer of `{name}`: {text}") from error
        raise EvaluationError(
            f"cannot load `{name}` with backend `{settings.backend}`: {text}", _way_out(error)
        ) from error
    backend: Any = found  # the model is this backend's own
    if settings.backend == "hf" and settings.decoding == "neutral":
        make_neutral(backend.model)
    if settings.backend == "vllm":
        _without_bars(backend)
    return found


def _without_bars(backend: Any) -> None:
    """Let vLLM draw no bar: it divides by the time that a bar shows, which one that is switched off lacks."""
    engine: Any = getattr(backend, "model", None)
    generate = getattr(engine, "generate", None)
    if generate is None:  # lm-eval makes engines of its own where data are divided over several
        return

    def quiet(*arguments: Any, **named: Any) -> Any:
        return generate(*arguments, **{**named, "use_tqdm": False})

    engine.generate = quiet


def grows(settings: Settings) -> bool:
    """Whether batch sizes are found by trying: on a GPU, whose memory says when it is full.

    A machine that has none left ends processes instead of saying so, and larger batches are no faster there.
    """
    on_gpu = torch_device(settings.device).startswith("cuda")
    return settings.batch == "auto" and settings.backend == "hf" and on_gpu


def first_batch(settings: Settings) -> int | str:
    """The batch size that the backend is made with."""
    return 16 if settings.batch == "auto" and settings.backend == "hf" else settings.batch


def _gpu_type(model: str, arguments: Mapping[str, str]) -> str | None:
    """The type of the weights on a GPU where it is not the stored one: bfloat16 in place of float32."""
    import torch

    if "dtype" in arguments or not torch.cuda.is_bf16_supported():
        return None
    try:
        config = json.loads((Path(model) / "config.json").read_text())
        stored = config.get("dtype") or config.get("torch_dtype")
    except (OSError, ValueError, AttributeError):
        return None
    return "bfloat16" if stored in (None, "float32", "float64") else None


def _way_out(error: BaseException) -> str | None:
    """What to do about an error of the file system below an exception; nothing about others."""
    found: BaseException | None = error
    while found is not None and not (isinstance(found, OSError) and found.errno):
        found = found.__cause__ or found.__context__
    return look.way_out(found) if isinstance(found, OSError) else None


def _typed(value: str) -> Any:
    """A backend argument as YAML reads it: numbers and true or false are not texts."""
    import yaml

    found = yaml.safe_load(value)
    return found if isinstance(found, (int, float, bool)) else value
