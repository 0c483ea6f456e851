"""Three steps of many pieces of work that overlap: fetching the next, computing this, sending the last."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from taskvec.resolve.threads import Background

Unit = TypeVar("Unit")
Fetched = TypeVar("Fetched")
Made = TypeVar("Made")
SENDERS = 2
# That an upload which is told to stop has to give itself up, and a request to end: of that nothing stays.
_UPLOAD_SECONDS = 20.0
_REQUEST_SECONDS = 0.5


class Room:
    """Bytes of the scratch folder; who asks for more than there is waits until others give theirs back."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used, self.peak = limit, 0, 0
        self.is_stopped = False
        self._changed = threading.Condition()

    def take(self, count: int) -> None:
        """Take some, when they are there.

        Raises
        ------
        InterruptedError
            The work is stopped.
        """
        with self._changed:
            while self.used and self.used + count > self.limit and not self.is_stopped:
                self._changed.wait()
            if self.is_stopped:
                raise InterruptedError("the run is stopped")
            self.used += count
            self.peak = max(self.peak, self.used)

    def give(self, count: int) -> None:
        """Give some back."""
        with self._changed:
            self.used -= count
            self._changed.notify_all()

    def stop(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self.is_stopped = True
            self._changed.notify_all()


class Steps(NamedTuple, Generic[Unit, Fetched, Made]):
    """What is done with each piece of work.

    Attributes
    ----------
    fetch : callable
        On a thread of its own, one piece of work after the other. Its second argument is to be told the bytes
        of each request before it is made, from any thread, and returns when there is room for them.
    compute : callable
        On the calling thread.
    release : callable
        Gives up what was fetched.
    send : callable
        On threads of its own, some at a time; gives up what was made.
    stop : callable
        Called when the work ends early: what is being fetched and sent is to fail soon.
    """

    fetch: Callable[[Unit, Callable[[int], None]], Fetched]
    compute: Callable[[Unit, Fetched], Made]
    release: Callable[[Fetched], None]
    send: Callable[[Unit, Made], None]
    stop: Callable[[], None]


def run(
    units: Sequence[Unit],
    steps: Steps[Unit, Fetched, Made],
    room: Room,
    needs: Callable[[Unit], tuple[int, int]],
) -> None:
    """Fetch, compute and send every unit, in their order.

    A unit has the room for what it makes before any of it is fetched, and waits for the rest as it is
    fetched: so the next unit comes as far as there is room while this one is computed, and none waits for a
    later one.

    Parameters
    ----------
    units : sequence
    steps : Steps
    room : Room
        Bounds what is in the scratch folder.
    needs : callable
        Bytes that a unit has there: of what is fetched, and of what is made.
    """
    fetched: queue.SimpleQueue[tuple[Unit, Fetched | None, BaseException | None]] = queue.SimpleQueue()

    def fetch_all() -> None:
        for unit in units:
            try:
                room.take(needs(unit)[1])
                fetched.put((unit, steps.fetch(unit, room.take), None))
            except BaseException as error:
                fetched.put((unit, None, error))
                return

    def send(unit: Unit, made: Made) -> None:
        try:
            steps.send(unit, made)
        finally:
            room.give(needs(unit)[1])

    fetching, sending = Background(1), Background(SENDERS)
    fetching.submit(fetch_all)
    try:
        for _ in units:
            unit, found, error = fetched.get()
            if error is not None:
                raise error
            made = steps.compute(unit, found)  # type: ignore[arg-type]
            steps.release(found)  # type: ignore[arg-type]
            room.give(needs(unit)[0])
            sending.check()
            sending.submit(lambda unit=unit, made=made: send(unit, made))
        sending.wait()
    except BaseException:
        room.stop()
        steps.stop()
        _settle(sending, _UPLOAD_SECONDS)
        _settle(fetching, _REQUEST_SECONDS)
        raise
    finally:
        fetching.close(1)
        sending.close(SENDERS)


def _settle(work: Background, seconds: float) -> None:
    """Wait a while for calls that were told to stop; what they raise then is no news."""
    for _ in range(1000):
        try:
            work.wait(seconds)
            return
        except Exception:
            continue
