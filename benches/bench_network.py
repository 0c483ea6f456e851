"""Staged runs over links of a given bandwidth: against their bound, on one host and on two.

    sudo python benches/bench_network.py [--down 60] [--up 60] [--rounds 3] [--size 1.0] [--record DIR]

Hosts are network namespaces of this machine (`ip netns`, `tc`), the store is localbucket (`pip install
localbucket`). Three models of `--size` GB in 12 weight files each, in a folder that should be in memory
(`--folder /dev/shm/network`), are merged into the store; the scratch folder may hold half of their bytes.

The bound: the slowest of fetch, compute and send, and of the others what has nothing to overlap with, the
first weight file or the last. Bandwidths in it are those that four plain requests reach over the same link.
Compared with it is the time from the beginning of the run to its end; that of the whole process is noted too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from network.hosts import Host, hosts
from network.process import Process, Ran, run_all
from network.record import record
from network.store import Store, rates, running_store, warm
from taskvec.selftest.synthetic import Shape, write_checkpoint

ROLES = {"target": "instruct", "donor": "grpo", "reference": "sft"}
FILES = 12
# From so many bytes of a model on: hidden size, intermediate size and heads of its layers.
_LAYERS = ((9e8, 1536, 8960, 12), (0, 896, 4864, 14))


def shape_of(size: float) -> Shape:
    """A model of about so many bytes, whose weight files are all of about the same size."""
    hidden, intermediate, heads = next(each for least, *each in _LAYERS if size >= least)
    layer = Shape(1, hidden, intermediate, 0, heads, 2).total_bytes
    return Shape(max(1, round(size / layer / FILES)) * FILES, hidden, intermediate, 512, heads, 2)


def write_models(folder: Path, size: float) -> int:
    """The models, if they are not there; the bytes of one."""
    shape = shape_of(size)
    for member in ROLES.values():
        if not (folder / member).exists():
            write_checkpoint(
                folder / member, shape, member, max_shard_size=int(shape.total_bytes / FILES * 1.06)
            )  # type: ignore[arg-type]
    return shape.total_bytes


def words(where: str, out: str, *more: str) -> list[str]:
    models = [word for role, member in ROLES.items() for word in (f"--{role}", f"{where}/{member}")]
    return ["transfer", *models, "-o", out, "--threads", "2", *more]


class Bench:
    """The measurements on one folder of models."""

    def __init__(self, folder: Path, size: float, scratch: float, rounds: int) -> None:
        self.folder, self.rounds = folder, rounds
        self.bytes = write_models(folder / "data" / "models", size)
        self.scratch = int(3 * self.bytes * scratch)
        (folder / "data" / "results").mkdir(parents=True, exist_ok=True)

    def clear(self) -> None:
        for name in ("data/results", "out", "work"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / "data" / "results").mkdir()

    def local(self) -> dict[str, Any]:
        """The same with everything here."""
        ran = []
        for _ in range(self.rounds):
            self.clear()
            models, out = self.folder / "data" / "models", self.folder / "out"
            ran += run_all([Process(words(str(models), str(out)), self.folder / "work" / "local")])
        return {"seconds": median(ran), "each": [each.seconds for each in ran],
                "anonymous_bytes": max(each.memory for each in ran)}  # fmt: skip

    def staged(self, count: int, down: float, up: float, compute: float) -> dict[str, Any]:
        """So many hosts, each with its own link."""
        rounds = []
        with hosts(count, down, up) as (store, found):
            log = self.folder / "store.log"
            with running_store(store, self.folder / "data", log) as server:
                warm(found[0])
                for _ in range(self.rounds):
                    self.clear()
                    rounds.append(self._round(found, server))
        reached = [statistics.median(each["reached"][n] for each in rounds) for n in range(2)]
        bound = self.bound(count, *reached, compute)
        seconds = statistics.median(each["seconds"] for each in rounds)
        return {
            "hosts": count, "down_mb": down, "up_mb": up, "reached_mb": [each / 1e6 for each in reached],
            **bound, "seconds": seconds, "over_bound": seconds / bound["bound"] - 1, "rounds": rounds,
        }  # fmt: skip

    def _round(self, found: list[Host], server: Store) -> dict[str, Any]:
        first = sorted((self.folder / "data" / "models" / "instruct").glob("*.safetensors"))[0]
        size = first.stat().st_size // 4 * 4
        reached = rates(found[0], f"/models/instruct/{first.name}", size)
        self.clear()
        before, _ = [each.moved() for each in found], server.requests()
        parts = [[]] if len(found) == 1 else [["--part", f"{n}/{len(found)}"] for n in range(len(found))]
        processes = [
            Process(
                words("s3://models", "s3://results/out", "--scratch-size", str(self.scratch), *part),
                self.folder / "work" / f"host{number}",
                at,
            )
            for number, (at, part) in enumerate(zip(found, parts, strict=True))
        ]
        ran = run_all(processes)
        pairs = list(zip(before, [each.moved() for each in found], strict=True))
        moved = [[late[n] - early[n] for n in range(2)] for early, late in pairs]
        return {
            "seconds": max(each.report["seconds"] for each in ran),
            "process_seconds": max(each.seconds for each in ran),
            "reached": list(reached),
            "bytes_over_links": moved,
            "requests": dict(server.requests()),
            "peak_scratch_bytes": [each.scratch for each in ran],
            "anonymous_bytes": [each.memory for each in ran],
            "load": os.getloadavg()[0],
        }

    def bound(self, count: int, down: float, up: float, compute: float) -> dict[str, Any]:
        """Seconds of each step on one host, and of all where they overlap."""
        files = -(-FILES // count)
        share = self.bytes / FILES
        steps = {"fetch": 3 * share / down, "compute": compute / FILES, "send": share / up}
        slowest = max(steps, key=lambda name: steps[name])
        rest = sum(steps.values()) - steps[slowest]
        return {**{name: each * files for name, each in steps.items()}, "slowest": slowest,
                "bound": steps[slowest] * files + rest}  # fmt: skip


def median(ran: list[Ran]) -> float:
    return statistics.median(each.seconds for each in ran)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm/network"))
    parser.add_argument("--size", type=float, default=1.0, help="GB of a model")
    parser.add_argument("--down", type=float, action="append", help="MB/s; several for several links")
    parser.add_argument("--up", type=float, action="append")
    parser.add_argument("--hosts", type=int, default=2, help="how many to compare with one")
    parser.add_argument("--scratch", type=float, default=0.5, help="share of the models' bytes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    bench = Bench(given.folder, given.size * 1e9, given.scratch, given.rounds)
    found: dict[str, Any] = {"model_bytes": bench.bytes, "files": FILES, "scratch_size": bench.scratch}
    found["local"] = bench.local()
    print(json.dumps(found["local"]), flush=True)
    found["staged"] = []
    for down, up in zip(given.down or [60.0], given.up or [60.0], strict=True):
        for count in {1, given.hosts}:
            one = bench.staged(count, down, up, found["local"]["seconds"])
            print(json.dumps({key: value for key, value in one.items() if key != "rounds"}), flush=True)
            print(json.dumps(one["rounds"]), flush=True)
            found["staged"].append(one)
    if given.record:
        record(given.record, "network", found)


if __name__ == "__main__":
    main()
