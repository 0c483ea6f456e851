"""What a task costs on a Ray cluster of two nodes: weight files of a few kilobytes, a task each.

python benches/bench_ray.py [--rounds 3] [--record DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import taskvec as tv
from network.record import record
from support.models import write_trio
from support.ray_cluster import two_nodes

SIZE = 6000


def timed(plan: tv.Plan, out: Path, cluster: str | None) -> float:
    begin = time.monotonic()
    if cluster is None:
        plan.run(out, settings=tv.Settings(threads=1))
    else:
        plan.run_on_ray(out, address=cluster, settings=tv.Settings(threads=1))
    return time.monotonic() - begin


def measure(rounds: int) -> dict[str, Any]:
    import taskvec.run.cluster as cluster

    cluster._OF_A_TASK = 1  # a task for each weight file, however small
    with tempfile.TemporaryDirectory() as name, two_nodes() as nodes:
        import ray

        place = Path(name)
        plan = tv.plan_transfer(*write_trio(place / "models", layers=16), max_shard_size=SIZE)
        ray.init(address=nodes.address, include_dashboard=None, log_to_driver=False)
        timed(plan, place / "warm", nodes.address)
        one = [timed(plan, place / f"one{n}", None) for n in range(rounds)]
        many = [timed(plan, place / f"ray{n}", nodes.address) for n in range(rounds)]
        ray.shutdown()
    tasks = len(plan.shards)
    each = (statistics.median(many) - statistics.median(one)) / tasks * 1000
    return {
        "tasks": tasks,
        "one_process_s": one,
        "ray_s": many,
        "ms_per_task": each,
        "load": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    found = measure(given.rounds)
    print(json.dumps(found, indent=2))
    if given.record:
        record(given.record, "ray", found)


if __name__ == "__main__":
    main()
