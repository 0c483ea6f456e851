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
# Units that are fetched at a time: the requests of the next one are begun when all of this one have been, so
# that the link is not empty while the last answers come.
_FETCHERS = 2
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


class _Arrival(Generic[Fetched]):
    """What is fetched for one unit, once it is here."""

    def __init__(self, count: int) -> None:
        self._all_begun, self._has_failed = threading.Event(), False
        self._left, self._lock = count, threading.Lock()
        self._found: queue.SimpleQueue[tuple[Fetched | None, BaseException | None]] = queue.SimpleQueue()

    def has_begun(self, count: int) -> None:
        """A request of so many bytes has room, and is made."""
        with self._lock:
            self._left -= count
            if self._left <= 0:
                self._all_begun.set()

    def wait_for_its_requests(self) -> None:
        """Return when all of them have been made.

        Raises
        ------
        InterruptedError
            It has failed: nothing that comes later is wanted.
        """
        self._all_begun.wait()
        if self._has_failed:
            raise InterruptedError("the run is stopped")

    def put(self, found: Fetched | None, error: BaseException | None) -> None:
        """It is here, or has failed."""
        self._has_failed = error is not None
        self._found.put((found, error))
        self._all_begun.set()

    def get(self) -> Fetched:
        """What is here; raises what has failed."""
        found, error = self._found.get()
        if error is not None:
            raise error
        return found  # type: ignore[return-value]


class Steps(NamedTuple, Generic[Unit, Fetched, Made]):
    """What is done with each piece of work.

    Attributes
    ----------
    fetch : callable
        On threads of its own; the next piece of work when all requests of this one have been begun. Its
        second argument is to be told the bytes of each request before it is made, from any thread, and
        returns when there is room for them.
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
    arrivals: list[_Arrival[Fetched]] = [_Arrival(needs(unit)[0]) for unit in units]
    fetching, sending = Background(_FETCHERS), Background(SENDERS)

    def fetch(number: int) -> None:
        arrival = arrivals[number]

        def take(count: int) -> None:
            room.take(count)
            arrival.has_begun(count)

        try:
            if number:
                # those before have all the room that they need: none waits for a later one
                arrivals[number - 1].wait_for_its_requests()
            room.take(needs(units[number])[1])
            arrival.put(steps.fetch(units[number], take), None)
        except BaseException as error:
            arrival.put(None, error)

    def send(unit: Unit, made: Made) -> None:
        try:
            steps.send(unit, made)
        finally:
            room.give(needs(unit)[1])

    for number in range(len(units)):
        fetching.submit(lambda number=number: fetch(number))
    try:
        for unit, arrival in zip(units, arrivals, strict=True):
            found = arrival.get()
            made = steps.compute(unit, found)
            steps.release(found)
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
        fetching.close(_FETCHERS)
        sending.close(SENDERS)


def _settle(work: Background, seconds: float) -> None:
    """Wait a while for calls that were told to stop; what they raise then is not news."""
    for _ in range(1000):
        try:
            work.wait(seconds)
            return
        except Exception:
            continue
