"""How long a task's answers may be, and what ends them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from taskvec.errors import EvaluationError
from taskvec.evaluation.tasks.defaults import FALLBACK_MAX_GEN_TOKS, TaskDefaults

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens")


@dataclass(frozen=True, slots=True)
class Generation:
    """The generation settings of one task.

    Attributes
    ----------
    max_gen_toks : int
        New tokens allowed.
    stop : list of str
        What ends an answer.
    dropped_stops : list of str
        Stop strings of the task that would cut a right answer.
    arguments : dict
        lm-eval's ``generation_kwargs``.
    """

    max_gen_toks: int
    stop: list[str]
    dropped_stops: list[str]
    arguments: dict[str, Any]


def generation(
    name: str,
    asked: dict[str, Any],
    row: TaskDefaults,
    *,
    chat: bool,
    neutral: bool,
    wanted: int | None,
    max_length: int | None,
) -> Generation:
    """The generation settings of a task.

    Parameters
    ----------
    name : str
        The task.
    asked : dict
        Its own ``generation_kwargs``.
    row : TaskDefaults
        What is known of it.
    chat : bool
        Whether prompts go through a chat template: the end of the turn then ends the answer.
    neutral : bool
        Whether answers are decoded by what the task asks for alone.
    wanted : int, optional
        New tokens that the user asks for.
    max_length : int, optional
        Tokens that the model holds.

    Raises
    ------
    EvaluationError
        The model cannot hold an answer of that length.
    """
    length = _length(name, asked, row, wanted, max_length)
    stops = asked.get("until") or []
    stops = [stops] if isinstance(stops, str) else list(stops)
    cutting = row.cutting_stops if chat else row.chain_stops
    kept = [stop for stop in stops if stop not in cutting]
    if not chat:
        kept += [stop for stop in row.completion_stops if stop not in kept]
    rest = {key: value for key, value in asked.items() if key not in _LENGTHS}
    if neutral and rest.get("do_sample"):
        # transformers would sample from the 50 likeliest tokens where nothing is set, vLLM from all
        rest.setdefault("top_k", 0)
    return Generation(
        max_gen_toks=length,
        stop=kept,
        dropped_stops=[stop for stop in stops if stop in cutting],
        arguments={**rest, "until": kept, "max_gen_toks": length},
    )


def _length(
    name: str, asked: dict[str, Any], row: TaskDefaults, wanted: int | None, max_length: int | None
) -> int:
    own = next((asked[key] for key in _LENGTHS if asked.get(key)), None)
    if wanted is not None:
        length = wanted
    else:
        length = max(own or 0, row.max_gen_toks or 0) or FALLBACK_MAX_GEN_TOKS
        if max_length is not None and (own is None or length != own):
            # a default never takes more than half of what the model can hold; a stated length is the user's
            length = max(own or 1, min(length, max_length // 2))
    if max_length is not None and length >= max_length:
        raise EvaluationError(
            f"task `{name}` asks for {length} new tokens, the model holds {max_length} in all",
            f"set --max-gen-toks below {max_length}",
        )
    return length
