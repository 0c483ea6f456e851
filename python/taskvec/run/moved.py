"""Progress over what is fetched, computed and sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from taskvec.progress import Callback, Progress
from taskvec.run.supply import Supply

Unit = tuple[int, ...]


class Meter:
    """Progress over what is fetched, computed and sent."""

    def __init__(self, progress: Callback | None, supply: Supply, missing: Sequence[Unit]) -> None:
        self.progress, self.supply = progress, supply
        self.begin, self.is_stopped = time.monotonic(), False
        into, out = sum(map(supply.bytes_in, missing)), sum(map(supply.bytes_out, missing))
        self.total = into + 2 * out
        self._fetched = self._computed = 0
        self._sent: dict[str, int] = {}

    def fetched(self, count: int) -> None:
        """More bytes have come."""
        self._hold_on()
        self._fetched += count
        self._say()

    def of_unit(self, unit: Unit) -> Callable[[int, int], None]:
        """The engine's callback while it computes a unit."""
        before, size = self._computed, self.supply.bytes_out(unit)

        def tell(done: int, total: int) -> None:
            self._computed = before + (size * done // total if total else 0)
            self._say()

        return tell

    def of_file(self, name: str) -> Callable[[int], None]:
        """A sink's callback while it sends a file."""

        def tell(count: int) -> None:
            self._hold_on()
            self._sent[name] = count
            self._say()

        return tell

    def _hold_on(self) -> None:
        """Return while the run goes on; what is raised ends a request or an upload."""
        if self.is_stopped:
            raise InterruptedError("the run is stopped")

    def _say(self) -> None:
        if self.progress is not None:
            done = self._fetched + self._computed + sum(list(self._sent.values()))
            self.progress(Progress("merge", min(done, self.total), self.total, time.monotonic() - self.begin))
