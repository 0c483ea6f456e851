"""How many requests are on their way at a time: more on machines of more cores, within bounds."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# A process of its own, on a machine that says it has so many cores. A read returns when as many others as are
# expected have been asked for, so that fewer at a time never end, and more are counted.
_CODE = """
import json, os, sys, tempfile, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

cores, expected = map(int, sys.argv[1:])
os.sched_getaffinity = lambda _: set(range(cores))

from taskvec.resolve import stage
from taskvec.resolve.store import write
from taskvec.resolve.store.address import parse
from taskvec.resolve.threads import THREADS

stage.PIECE = 16
barrier, lock = threading.Barrier(expected), threading.Lock()
active = most = 0

class Remote:
    def read(self, name, ranges):
        global active, most
        with lock:
            active += 1
            most = max(most, active)
        barrier.wait(60)
        with lock:
            active -= 1
        return [bytes(stop - start) for start, stop in ranges]

place = Path(tempfile.mkdtemp())
(place / "headers").mkdir()
count = 6 * expected
(place / "headers" / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}" + bytes(16 * count))
source = stage.Staged(None, place / "headers", Remote())

def bring(number, start, stop, requests):
    wanted = {"model.safetensors": [(10 + 16 * start, 10 + 16 * stop)]}
    (place / number).mkdir()
    stage.bring([source], [wanted], place / number, lambda _: None, lambda _: None, requests)

bring("one", 0, count, None)
alone, most = most, 0
# as two weight files are fetched where one ends and the next begins
requests = threading.BoundedSemaphore(THREADS)
with ThreadPoolExecutor(2) as pool:
    both = [pool.submit(bring, name, 0, count // 2, requests) for name in ("two", "three")]
    [each.result() for each in both]

class Client:
    def put(self, path, data, **options):
        global parts
        parts = options["max_concurrency"]
        list(data)
        return {"e_tag": None}

(place / "large").write_bytes(bytes(write.PART + 1))
sink = write.StorePlace(parse("s3://bucket/out"), Client())
sink.write("large", place / "large", lambda _: None)
print(json.dumps([alone, most, parts]))
"""


@pytest.mark.parametrize(
    ("cores", "reads", "parts"), [(1, 8, 4), (2, 8, 4), (4, 16, 4), (8, 32, 8), (16, 64, 16), (96, 64, 16)]
)
def test_requests_on_their_way_scale_with_cores(cores: int, reads: int, parts: int) -> None:
    command = [sys.executable, "-c", _CODE, str(cores), str(reads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == [reads, reads, parts]
