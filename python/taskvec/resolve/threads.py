"""Calls of a network library on threads of their own, so that Ctrl-C is answered at once.

The calls of obstore do not look at signals until a server has answered. They are made by daemon threads,
which nobody waits for at the end of the process; the caller waits where Python can be interrupted.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from taskvec.host import cores

Item = TypeVar("Item")
Result = TypeVar("Result")

# Requests on their way at a time. Taken to be some 50 MB/s for each connection, which is not measured:
# machines with more cores have faster networks, and one connection does not fill them.
THREADS = min(max(8, 4 * cores()), 64)
_NAME = "taskvec-waits"


def each(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int = THREADS
) -> Iterator[tuple[Item, Result]]:
    """Pairs of item and `work(item)`, as they get ready; work is begun in the order of the items.

    The first failure is raised, and no further item is begun then, nor when the caller stops to listen.
    """
    waiting = list(items)[::-1]
    count = len(waiting)
    finished: queue.SimpleQueue[tuple[Item, Result | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        while waiting:
            try:
                item = waiting.pop()
            except IndexError:
                return
            try:
                finished.put((item, work(item), None))
            except BaseException as error:
                finished.put((item, None, error))

    _start(run, min(threads, count))
    try:
        for _ in range(count):
            item, result, error = finished.get()
            if error is not None:
                raise error
            yield item, result  # type: ignore[misc]
    finally:
        waiting.clear()


def interruptible(work: Callable[[], Result]) -> Result:
    """The result of one call that may wait for a server."""
    if threading.current_thread() is not threading.main_thread():
        return work()  # signals do not reach other threads
    ((_, result),) = each(lambda _: work(), (None,), 1)
    return result


class Background:
    """Calls that are made by other threads, some at a time, while this one goes on.

    The first failure is raised by the next :meth:`check` or by :meth:`wait`.
    """

    def __init__(self, threads: int) -> None:
        self._waiting: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._finished: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._left = 0
        for _ in range(threads):
            _start(self._run, 1)

    def _run(self) -> None:
        while (work := self._waiting.get()) is not None:
            try:
                work()
                self._finished.put(None)
            except BaseException as error:
                self._finished.put(error)
            del work

    def submit(self, work: Callable[[], object]) -> None:
        """Have a call made."""
        self._left += 1
        self._waiting.put(work)

    def check(self) -> None:
        """Return if nothing has failed so far."""
        while not self._finished.empty():
            self._take(self._finished.get())

    def wait(self, seconds: float | None = None) -> None:
        """Return when all calls have been made, or after a time."""
        ends = None if seconds is None else time.monotonic() + seconds
        while self._left:
            left = None if ends is None else max(ends - time.monotonic(), 0)
            try:
                self._take(self._finished.get(timeout=left))
            except queue.Empty:
                return

    def _take(self, error: BaseException | None) -> None:
        self._left -= 1
        if error is not None:
            raise error

    def close(self, threads: int) -> None:
        """Let the threads end when they have nothing more to do."""
        for _ in range(threads):
            self._waiting.put(None)


def are_waiting() -> bool:
    """Whether threads wait for a server whose answer nobody wants any more."""
    return any(thread.name == _NAME for thread in threading.enumerate())


def _start(run: Callable[[], None], threads: int) -> None:
    """Run on so many threads, or on as many as start; here, where none does."""
    for number in range(threads):
        try:
            threading.Thread(target=run, name=_NAME, daemon=True).start()
        except RuntimeError:  # the system has no more
            if number == 0:
                run()
            return
