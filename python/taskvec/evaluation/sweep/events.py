"""The events that a progress callback of an evaluation receives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """One step of an evaluation.

    Attributes
    ----------
    kind : str
        ``plan`` (arms are known), ``note`` (something that the report will lack), ``merge`` (weights are
        made), ``start``, ``progress``, ``done`` (an arm) or ``known`` (it was evaluated before).
    arm : str
        Its name; for ``plan`` and ``merge`` the names, separated by commas; for ``note`` the text.
    task : str
        With ``progress``.
    done, total : int
        Requests answered, with ``progress``; otherwise arms done, and known of.
    """

    kind: str
    arm: str
    task: str = ""
    done: int = 0
    total: int = 0


Progress = Callable[[Event], None]
