"""Fetching, computing and sending overlap as far as the scratch folder has room, and no further."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from taskvec.run.pipeline import Room, Steps, run

WAIT = 60.0


class Work:
    """Units of six bytes that come in pieces of one byte each, and of which two are made."""

    def __init__(self, limit: int) -> None:
        self.room, self.order = Room(limit), list[str]()
        self.begun = {number: threading.Event() for number in range(4)}
        self.sending = threading.Event()
        self.may_send = threading.Event()
        self.may_send.set()
        self.stopped = threading.Event()
        self.pieces = dict.fromkeys(range(4), 0)

    def fetch(self, unit: int, take: Callable[[int], None]) -> int:
        for _ in range(6):
            take(1)
            self.pieces[unit] += 1
            self.begun[unit].set()
        return unit

    def compute(self, unit: int, fetched: int) -> int:
        assert fetched == unit
        assert self.pieces[unit] == 6
        self.order.append(f"compute {unit}")
        return unit

    def send(self, unit: int, _: int) -> None:
        self.sending.set()
        assert self.may_send.wait(WAIT)
        self.order.append(f"send {unit}")

    def run(self, units: int = 4) -> None:
        steps = Steps[int, int, int](self.fetch, self.compute, lambda _: None, self.send, self.stopped.set)
        run(range(units), steps, self.room, lambda _: (6, 2))


def test_the_next_unit_comes_as_far_as_there_is_room_while_one_is_computed() -> None:
    """Two whole units have no room: 13 bytes are one and most of the next."""
    work = Work(13)
    compute = work.compute

    def slow(unit: int, fetched: int) -> int:
        if unit < 3:
            assert work.begun[unit + 1].wait(WAIT), "the next unit is not fetched meanwhile"
        return compute(unit, fetched)

    work.compute = slow  # type: ignore[method-assign]
    work.run()
    assert work.order[0] == "compute 0"
    assert sorted(work.order) == sorted(f"{what} {n}" for what in ("compute", "send") for n in range(4))
    assert 8 < work.room.peak <= 13
    assert work.room.used == 0


@pytest.mark.parametrize("limit", [8, 9, 10, 15, 16, 100])
def test_any_room_for_one_unit_is_enough(limit: int) -> None:
    work = Work(limit)
    work.run()
    assert work.room.peak <= limit
    assert work.room.used == 0


def test_units_are_computed_while_one_is_sent() -> None:
    work = Work(100)
    work.may_send.clear()
    compute = work.compute

    def noted(unit: int, fetched: int) -> int:
        if unit == 3:
            work.may_send.set()  # nothing has been sent yet
        return compute(unit, fetched)

    work.compute = noted  # type: ignore[method-assign]
    work.run()
    assert [each for each in work.order if each.startswith("compute")] == [f"compute {n}" for n in range(4)]
    assert work.order.index("compute 2") < min(work.order.index(f"send {n}") for n in range(4))


@pytest.mark.parametrize("step", ["fetch", "compute", "send"])
def test_a_failure_ends_all_steps_and_is_raised(step: str) -> None:
    work = Work(13)

    def failing(unit: int, *rest: object) -> int:
        if unit == 1:
            raise OSError(f"{step} fails")
        if step == "send" and unit > 1:  # on its way when the other fails
            assert work.stopped.wait(WAIT), "what is being sent is not told to stop"
            raise InterruptedError("stopped")
        return {"fetch": fetch, "compute": compute, "send": send}[step](unit, *rest)  # type: ignore[operator]

    fetch, compute, send = work.fetch, work.compute, work.send
    setattr(work, step, failing)
    with pytest.raises(OSError, match=f"{step} fails"):
        work.run()
    assert work.stopped.is_set()
    assert not {"send 1", "send 2", "send 3"} & set(work.order)


def test_the_next_unit_is_begun_while_the_last_answers_of_this_one_come() -> None:
    """All requests of a unit are made before any of the next, and no answer of it is waited for."""
    work = Work(100)
    answered, order = threading.Event(), list[tuple[int, int]]()

    def fetch(unit: int, take: Callable[[int], None]) -> int:
        for number in range(6):
            take(1)
            order.append((unit, number))
        work.pieces[unit] = 6
        if unit == 1:
            answered.set()
        elif unit == 0:
            assert answered.wait(WAIT), "the next unit waits for the answers of this one"
        return unit

    work.fetch = fetch  # type: ignore[method-assign]
    work.run()
    assert order == [(unit, number) for unit in range(4) for number in range(6)]
    assert [each for each in work.order if each.startswith("compute")] == [f"compute {n}" for n in range(4)]
