"""Machines with links of a given bandwidth: network namespaces of this one. Needs root, ``ip`` and ``tc``."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

# Seconds of the rate that may pass at once: on a busy machine the kernel lets packets go late. And how long
# the rest waits before it is dropped.
_BURST, _WAIT = 0.05, "200ms"


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@dataclass(frozen=True)
class Host:
    """A namespace with one link to the store's.

    Attributes
    ----------
    name : str
        Of the namespace.
    store : str
        The address of the store as this host sees it.
    """

    name: str
    store: str

    def command(self, words: Sequence[str]) -> list[str]:
        """A command as it is run here."""
        return ["ip", "netns", "exec", self.name, *words]

    def moved(self) -> tuple[int, int]:
        """Bytes that have come and gone over the link, those of its packets included."""
        (row,) = json.loads(_ip("-n", self.name, "-s", "-j", "link", "show", "dev", "uplink"))
        return row["stats64"]["rx"]["bytes"], row["stats64"]["tx"]["bytes"]


def _limit(namespace: str, device: str, rate: float) -> None:
    """Let so many MB a second leave by a device."""
    bits, burst = f"{int(rate * 8e6)}bit", str(int(rate * 1e6 * _BURST))
    words = ["tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf"]
    subprocess.run([*words, "rate", bits, "burst", burst, "latency", _WAIT], check=True)


@contextmanager
def hosts(count: int, down: float, up: float) -> Iterator[tuple[str, list[Host]]]:
    """The namespace of a store, and hosts that have a link of their own to it.

    Parameters
    ----------
    count : int
        How many hosts.
    down, up : float
        MB/s from the store to a host, and back.
    """
    prefix = f"tv{os.getpid()}"
    store, names = f"{prefix}s", [f"{prefix}h{number}" for number in range(count)]
    made: list[str] = []
    try:
        for name in (store, *names):
            _ip("netns", "add", name)
            made.append(name)
            _ip("-n", name, "link", "set", "lo", "up")
        found = []
        for number, name in enumerate(names):
            side, net = f"to{number}", f"10.77.{number}"
            _ip("link", "add", side, "netns", store, "type", "veth", "peer", "name", "uplink", "netns", name)
            for where, device, at, rate in ((store, side, 1, down), (name, "uplink", 2, up)):
                _ip("-n", where, "addr", "add", f"{net}.{at}/24", "dev", device)
                _ip("-n", where, "link", "set", "dev", device, "up")
                _limit(where, device, rate)
            found.append(Host(name, f"http://{net}.1:9000"))
        yield store, found
    finally:
        for name in made:
            _ip("netns", "del", name)
