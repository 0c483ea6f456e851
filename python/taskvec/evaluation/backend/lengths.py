"""The length of each answer in tokens, as the backend made them."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Length:
    """One answer's length in tokens, and whether the limit ended it."""

    tokens: int
    cut: bool


class TokenCounter:
    """Counts the tokens of each answer as the backend made them.

    lm-eval returns text alone. Its backends give every answer to a hook, right after the batch that made it,
    so the batch's own tokens can be told apart row by row. Where that is not possible, the text is tokenized
    again.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._rows: list[Any] = []
        self._found: dict[tuple[str, str], list[Length]] = defaultdict(list)

    @contextlib.contextmanager
    def watching(self) -> Any:
        """While lm-eval generates: see each batch and each answer."""
        model = self._model
        self._rows.clear()
        self._found.clear()
        hook = getattr(model, "cache_hook", None)
        generate = getattr(model, "_model_generate", None)
        own = getattr(model, "__dict__", {}).get("_model_generate")
        if hook is None or generate is None:
            yield
            return

        def watched(*arguments: Any, **named: Any) -> Any:
            output = generate(*arguments, **named)
            context = named.get("context")
            self._rows = list(_rows(output, 0 if context is None else context.shape[1]))
            return output

        model._model_generate = watched
        model.cache_hook = self
        try:
            yield
        finally:
            if own is None:
                del model._model_generate
            else:
                model._model_generate = own
            model.cache_hook = hook

    def add_partial(self, attribute: str, arguments: Sequence[Any], text: Any) -> None:
        """The hook that lm-eval calls with each answer, in the order of the batch's rows."""
        if attribute == "generate_until" and self._rows:
            row = self._rows.pop(0)
            self._found[(str(arguments[0]), text)].append(self._measure(row, arguments[1], text))

    def length(self, arguments: Sequence[Any], text: str) -> Length:
        """The length of one answer."""
        found = self._found.get((str(arguments[0]), text))
        if found:
            return found.pop(0) if len(found) > 1 else found[0]
        count = len(self._model.tokenizer.encode(text, add_special_tokens=False)) if text else 0
        return Length(count, count >= int(arguments[1].get("max_gen_toks", count + 1)))

    def _measure(self, row: Any, arguments: Any, text: str) -> Length:
        limit = int(arguments.get("max_gen_toks", 0))
        is_cut: bool | None = None
        if not isinstance(row, list):  # vLLM says itself why it stopped
            row, is_cut = list(row.token_ids), row.finish_reason == "length"
        tokens, ended = _until_end(row, self._ends())
        if is_cut:
            return Length(len(tokens), True)
        decode = self._decode
        if len(decode(tokens)) > len(text):  # a stop string ended it: the tokens up to that string
            low, high = 0, len(tokens)
            while low < high:
                middle = (low + high) // 2
                if len(decode(tokens[:middle])) >= len(text):
                    high = middle
                else:
                    low = middle + 1
            return Length(low, False)
        return Length(len(tokens), is_cut is None and not ended and len(tokens) >= limit)

    def _decode(self, tokens: Sequence[int]) -> str:
        model = self._model
        return (
            model.tok_decode(tokens)
            if hasattr(model, "tok_decode")
            else model.tokenizer.decode(tokens, skip_special_tokens=True)
        )

    def _ends(self) -> set[int]:
        model = getattr(self._model, "model", None)
        config = getattr(model, "generation_config", None)
        ends = getattr(config, "eos_token_id", None)
        found = set(ends) if isinstance(ends, (list, tuple)) else {ends}
        found.add(getattr(self._model, "eot_token_id", None))
        return {int(token) for token in found if token is not None}


def _rows(output: Any, prompt: int) -> list[Any]:
    """The new tokens of each row: a list of token numbers, or vLLM's completion."""
    if hasattr(output, "tolist"):
        return [row[prompt:] for row in output.tolist()]
    return [row.outputs[0] for row in output]


def _until_end(tokens: list[int], ends: set[int]) -> tuple[list[int], bool]:
    for index, token in enumerate(tokens):
        if token in ends:
            return tokens[:index], True
    return tokens, False
