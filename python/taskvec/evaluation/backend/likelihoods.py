"""Likelihoods that are kept request by request, as lm-eval ends each batch of a block.

lm-eval sorts what it is asked and gives each answer to a hook as its batch ends. What is left of a block that
was cut short between two batches is sorted and batched as it was before, so that a run that goes on asks the
other batches alone and ends in the same last digits.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from taskvec.evaluation.backend.journal import Journal, block_key

Answer = list[Any]
"""A log-likelihood, and whether greedy decoding would give the continuation."""


class Likelihoods:
    """The answers to the requests of one block.

    Parameters
    ----------
    inner : lm-eval model
    journal : Journal
        A batch is a line of it: the batch size, and each request by its digest with its answer.
    key : str
        Of the block.
    size : callable
        The batch size in use.
    """

    def __init__(self, inner: Any, journal: Journal, key: str, size: Callable[[], int | str]) -> None:
        self._inner, self._journal, self._key, self._size_now = inner, journal, key, size
        self._answers: dict[str, list[Answer]] = defaultdict(list)
        self._pending: list[tuple[str, Answer]] = []
        self._lines = 0
        self.size: int | str | None = None
        while (line := journal.get(f"{key}.{self._lines}")) is not None:
            self.size, rows = line
            for name, answer in rows:
                self._answers[name].append(answer)
            self._lines += 1

    def missing(self, requests: Sequence[Any]) -> list[Any]:
        """The requests without an answer, in their order."""
        left = Counter({name: len(found) for name, found in self._answers.items()})
        lacking = []
        for request in requests:
            name = _digest(request.args)
            if left[name]:
                left[name] -= 1
            else:
                lacking.append(request)
        return lacking

    def answers(self, requests: Sequence[Any]) -> list[Answer]:
        """The answers to requests that all have one; equal requests have theirs in the order of answering."""
        taken: Counter[str] = Counter()
        found = []
        for request in requests:
            name = _digest(request.args)
            found.append(self._answers[name][taken[name]])
            taken[name] += 1
        return found

    def take(self, requests: Sequence[Any], answers: Sequence[Any]) -> None:
        """Keep what a call has answered and the hook has not seen."""
        self._keep()
        lacking = {id(request) for request in self.missing(requests)}
        self._pending = [
            (_digest(request.args), _plain(answer))
            for request, answer in zip(requests, answers, strict=True)
            if id(request) in lacking
        ]
        self._keep()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """While lm-eval asks: each batch is kept before the next one begins."""
        model = self._inner
        hook, call = getattr(model, "cache_hook", None), getattr(model, "_model_call", None)
        if hook is None or call is None:
            yield
            return
        own = vars(model).get("_model_call")

        def watched(*arguments: Any, **named: Any) -> Any:
            self._keep()
            return call(*arguments, **named)

        model._model_call, model.cache_hook = watched, self
        try:
            yield
        finally:
            self._pending.clear()
            model.cache_hook = hook
            if own is None:
                del model._model_call
            else:
                model._model_call = own

    def add_partial(self, attribute: str, arguments: Sequence[Any], answer: Any) -> None:
        """The hook that lm-eval calls with each answer of a batch."""
        if attribute == "loglikelihood":
            self._pending.append((_digest(arguments), _plain(answer)))

    def _keep(self) -> None:
        if not self._pending:
            return
        self._journal.put(f"{self._key}.{self._lines}", [self._size_now(), self._pending])
        self._lines += 1
        for name, answer in self._pending:
            self._answers[name].append(answer)
        self._pending = []


def _digest(arguments: Sequence[Any]) -> str:
    return block_key("loglikelihood", list(arguments), 0)


def _plain(answer: Any) -> Answer:
    value, greedy = answer
    return [float(value), bool(greedy)]
