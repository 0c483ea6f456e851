"""Faults at each step of a run from a store into a store: what it ends in, and the bytes at the end.

    python benches/bench_faults.py [--rounds 1] [--record DIR]

The store is moto, a proxy in front of it makes the faults. A run is a process; a killed or refused one is
given again without the fault. The bytes are compared with those of a run over local files, and the store is
asked for unfinished uploads.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from network.record import record
from support.faulty_proxy import Fault, Proxy, running_proxy
from support.models import write_trio
from support.s3_server import S3, running_s3

ROLES = ("target", "donor", "reference")
MANIFEST = "taskvec.json"
SHAPE = {"hidden": 512, "intermediate": 2048, "vocabulary": 8000}
LARGEST = "12MB"  # of a weight file: each is an upload of several parts
STEPS = {
    "headers": ("GET", "donor/model"),
    "fetch": ("GET", "donor/model"),
    "send": ("PUT", "partNumber=2"),
    "record of a file": ("PUT", "done/model-00001"),
    "before the manifest": ("PUT", f"out/{MANIFEST}"),
}
# How often the fault happens; a run that is killed hangs in the request meanwhile.
FAULTS: dict[str, tuple[str, int]] = {
    "killed": ("hang", 1),
    "terminated": ("hang", 1),
    "cut once": ("dropped", 1),
    "429 once": ("429", 1),
    "500 once": ("500", 1),
    "cut always": ("dropped", 1000),
    "429 always": ("429", 1000),
    "500 always": ("500", 1000),
    "expired token": ("expired", 1000),
}
SIGNALS = {"killed": signal.SIGKILL, "terminated": signal.SIGTERM}
# Parts of the least size that a store takes, and repetitions without long waits.
START = """
import sys
from datetime import timedelta
from taskvec.resolve.store import client, write
write.PART = 5 << 20
client.REPEAT["max_retries"] = 2
waits = {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=5), "base": 2}
client.REPEAT["backoff"] = waits
from taskvec.cli import main
main()
"""


class Runs:
    """Runs of one merge between one pair of buckets."""

    def __init__(self, place: Path, s3: S3, proxy: Proxy) -> None:
        self.place, self.s3, self.proxy = place, s3, proxy
        folders = write_trio(place / "models", **SHAPE)
        self.far = [s3.put("models", role, folder) for role, folder in zip(ROLES, folders, strict=True)]
        s3.client.create_bucket(Bucket="results")
        assert self._start(list(map(str, folders)), str(place / "out")).wait() == 0
        self.expected = {path.name: path.read_bytes() for path in (place / "out").glob("*.safetensors")}
        assert self._start(self.far, "s3://results/out").wait() == 0
        method, part = STEPS["fetch"]
        self.gets = sum(seen == method and part in path for seen, path in proxy.seen)

    def _start(self, models: list[str], out: str) -> subprocess.Popen[bytes]:
        named = [word for role, at in zip(ROLES, models, strict=True) for word in (f"--{role}", at)]
        words = ["transfer", *named, "-o", out, "--max-shard-size", LARGEST, "--quiet"]
        variables = {**self.s3.variables, "AWS_ENDPOINT_URL": self.proxy.endpoint}
        variables["TASKVEC_SCRATCH"] = str(self.place / "scratch")
        environment = {**os.environ, **variables}
        with open(self.place / "error", "wb") as error:
            return subprocess.Popen([sys.executable, "-c", START, *words], stderr=error,
                                    stdout=subprocess.DEVNULL, env=environment)  # fmt: skip

    def there(self) -> dict[str, bytes]:
        listed = self.s3.client.list_objects_v2(Bucket="results").get("Contents", ())
        get = self.s3.client.get_object
        return {
            each["Key"].removeprefix("out/"): get(Bucket="results", Key=each["Key"])["Body"].read()
            for each in listed
        }

    def uploads(self) -> int:
        return len(self.s3.client.list_multipart_uploads(Bucket="results").get("Uploads", ()))

    def _add(self, what: str, method: str, part: str, times: int, after: int) -> Fault:
        """A fault of the requests after the first ones."""
        seen = iter(range(1_000_000))

        def is_wanted(got: str, path: str) -> bool:
            return got == method and part in path and next(seen) >= after

        self.proxy.faults.append(fault := Fault(what, is_wanted, times))
        return fault

    def disturbed(self, step: str, fault: str) -> dict[str, Any]:
        """One run with a fault, and another one where that has ended it."""
        for key in self.there():
            self.s3.client.delete_object(Bucket="results", Key=f"out/{key}")
        (what, times), (method, part) = FAULTS[fault], STEPS[step]
        self.proxy.hung.clear()
        # the last two requests of the kind are for weights; before them are headers and samples
        happens = self._add(what, method, part, times, after=self.gets - 2 if step == "fetch" else 0)
        first = self._start(self.far, "s3://results/out")
        if fault in SIGNALS:
            assert self.proxy.hung.wait(300)
            first.send_signal(SIGNALS[fault])
        code = first.wait(300)
        error = (self.place / "error").read_text().partition("\n")[0]
        self.proxy.faults.clear()
        looks_complete, left = code != 0 and MANIFEST in self.there(), self.uploads()
        again = self._start(self.far, "s3://results/out").wait(300) if code else 0
        found = {name: data for name, data in self.there().items() if name.endswith(".safetensors")}
        return {
            "step": step, "fault": fault, "happened": happens.happened, "exit_code": code, "error": error,
            "looked_complete": looks_complete, "uploads_left_by_it": left, "again": again,
            "same_bytes": found == self.expected, "uploads_at_the_end": self.uploads(),
        }  # fmt: skip


def measure(rounds: int, faults: list[str], steps: list[str]) -> list[dict[str, Any]]:
    found = []
    with tempfile.TemporaryDirectory() as place, running_s3() as s3, running_proxy(s3.endpoint) as proxy:
        runs = Runs(Path(place), s3, proxy)
        for _ in range(rounds):
            for step in steps:
                for fault in faults:
                    found.append(runs.disturbed(step, fault))
                    print(json.dumps(found[-1]), flush=True)
    return found


def summed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How many runs were disturbed at which step, and whether all ended in the same bytes."""
    counts: dict[str, Counter[str]] = {step: Counter() for step in STEPS}
    for row in rows:
        counts[row["step"]][row["fault"]] += 1
    return {
        "disturbed": counts,
        "ended_in_the_same_bytes": sum(row["same_bytes"] and row["again"] == 0 for row in rows),
        "runs": len(rows),
        "looked_complete": sum(row["looked_complete"] for row in rows),
        "uploads_at_the_end": sum(row["uploads_at_the_end"] for row in rows),
        "exit_codes": {
            fault: sorted({row["exit_code"] for row in rows if row["fault"] == fault}) for fault in FAULTS
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    rows = measure(given.rounds, list(FAULTS), list(STEPS))
    found = summed(rows)
    print(json.dumps(found, indent=2))
    if given.record:
        record(given.record, "faults", {**found, "each": rows})


if __name__ == "__main__":
    main()
