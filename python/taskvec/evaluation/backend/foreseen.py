"""What is asked after the answers that are scored, given to an engine together with these.

lm-eval evaluates the draws of an arm one after the other, and would leave the batch of an engine empty in
between. Which requests they have is known before anything is answered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any


class Asked(BaseException):
    """Raised in place of answers: what lm-eval would have generated."""

    def __init__(self, requests: list[Any]) -> None:
        super().__init__("requests to generate")
        self.requests = requests


class Foreseen:
    """Requests that follow, and their answers until they are asked for."""

    def __init__(self) -> None:
        self._only_asks = False
        self._following: list[list[Any]] = []
        self._answered: deque[tuple[list[Any], list[Any]]] = deque()

    def asked(self, evaluate: Callable[[], Any]) -> list[Any]:
        """The requests that an evaluation would begin to generate; nothing is answered."""
        self._only_asks = True
        try:
            evaluate()
        except Asked as found:
            return found.requests
        finally:
            self._only_asks = False
        return []

    def follow(self, requests: list[Any], times: int) -> None:
        """Requests that will be asked `times` times after the next ones."""
        self._following = [requests] * times if requests else []

    def hold(self, requests: list[Any]) -> None:
        """Raise `Asked` where it is asked alone which requests there are."""
        if self._only_asks:
            raise Asked(requests)

    def answers(self, requests: list[Any], ask: Callable[[list[Any]], list[Any]]) -> list[Any]:
        """The answers to requests: foreseen, or asked with all that follow them."""
        if self._answered and self._answered[0][0] == _arguments(requests):
            return self._answered.popleft()[1]
        following, self._following = self._following, []
        found = ask([*requests, *(one for group in following for one in group)])
        at = len(requests)
        self._answered.clear()
        for group in following:
            self._answered.append((_arguments(group), found[at : at + len(group)]))
            at += len(group)
        return found[: len(requests)]


def _arguments(requests: list[Any]) -> list[Any]:
    return [request.args for request in requests]
