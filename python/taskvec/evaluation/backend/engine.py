"""One engine of vLLM over all arms: the weights of the next arm are put into it from their folder.

vLLM reloads the weights of a running engine from another folder where the installed version has
``reload_weights`` with a path. That is used between folders that differ in weights alone; the cache of
prompts, which holds what the old weights made of them, is emptied. Otherwise the engine is ended and made
again, which takes its start-up time for every arm.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskvec.evaluation.backend.held import key_of
from taskvec.evaluation.backend.load import load_model
from taskvec.evaluation.settings import Settings
from taskvec.files import look

# Arguments of lm-eval's `vllm` class that leave the weights as their files have them, in one type.
_ARGUMENTS = frozenset(
    {
        "add_bos_token", "block_size", "chat_template_args", "disable_log_stats", "dtype",
        "enable_chunked_prefill", "enable_prefix_caching", "enable_thinking", "enforce_eager",
        "gpu_memory_utilization", "max_length", "max_model_len", "max_num_batched_tokens", "max_num_seqs",
        "prefix_token_id", "seed", "tensor_parallel_size", "think_end_token", "tokenizer", "tokenizer_mode",
        "truncation_side",
    }
)  # fmt: skip


@dataclass(slots=True)
class _Engine:
    key: tuple[Any, ...]
    loaded: Any
    holds: tuple[Any, ...]


_engines: list[_Engine] = []
_refused: list[str] = []  # why the installed version reloads no weights, once it was tried


def load_engine(model: str, settings: Settings) -> Any:
    """The model of a folder as an lm-eval model of vLLM, in the engine from before where that can be done.

    The model that was given before must not be used any more.
    """
    key = key_of(model, settings, backend="vllm")
    if key is None:
        let_go()
        return load_model(model, settings)
    holds = _stamps(Path(model))
    if _engines and _engines[0].key == key:
        engine = _engines[0]
        if engine.holds == holds:
            return engine.loaded
        are_plain = set(dict(settings.model_args)) <= _ARGUMENTS
        if are_plain and not _refused and _reloaded(engine.loaded, model):
            engine.holds = holds
            return engine.loaded
    let_go()
    loaded = load_model(model, settings)
    _engines.append(_Engine(key, loaded, holds))
    return loaded


def let_go() -> None:
    """End the engine, and give its memory back."""
    if not _engines:
        return
    from taskvec.evaluation.backend.memory import free_memory

    engine = _engines.pop()
    llm: Any = getattr(engine.loaded, "model", None)
    core: Any = getattr(getattr(llm, "llm_engine", None), "engine_core", None)
    with contextlib.suppress(Exception):  # it ends with the object that holds it too, only later
        core.shutdown()
    del engine, llm, core
    free_memory()


def _reloaded(loaded: Any, model: str) -> bool:
    """Put the weights of a folder into a running engine; False where the installed version cannot."""
    engine = getattr(loaded, "model", None)
    call, empty = (getattr(engine, name, None) for name in ("collective_rpc", "reset_prefix_cache"))
    if not callable(call) or not callable(empty):
        _refused.append("it has no `collective_rpc` or `reset_prefix_cache`")
        return False
    try:
        call("reload_weights", kwargs={"weights_path": model})
        if empty() is False:
            raise RuntimeError("the cache of prompts was not emptied")
    except Exception as error:  # whatever it holds now, it is not used any more
        _refused.append(f"{type(error).__name__}: {error}")
        return False
    return True


def refusal() -> str | None:
    """Why weights are not reloaded; None where they are, or it was not tried."""
    return _refused[0] if _refused else None


def _stamps(folder: Path) -> tuple[Any, ...]:
    """Which weights a folder holds, as far as its files can tell."""
    names = [name for name in look.listing(folder) if name.endswith((".safetensors", ".index.json"))]
    return (str(folder.resolve()), *((name, look.stamp(folder / name)) for name in sorted(names)))
