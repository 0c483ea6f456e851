"""A Ray cluster of two nodes on this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def two_nodes() -> Iterator[Any]:
    """Two nodes of one CPU each, and a head that runs nothing; this process is connected to it.

    It stays connected: Ray 2.60 may end a process that connects again after it has disconnected.
    """
    os.environ["RAY_AUTH_MODE"] = "disabled"
    # 15 otherwise: starved by the tests that run next to it
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - how Ray spells it
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False}
    made = started(lambda: Cluster(initialize_head=True, head_node_args=head))
    try:
        for _ in range(2):
            started(lambda: made.add_node(num_cpus=1))
        ray.init(address=made.address, log_to_driver=False, logging_level=logging.ERROR)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def started(start: Callable[[], Any]) -> Any:
    """What `start` starts, tried again: Ray gives a node half a minute, which a busy machine may not."""
    for _ in range(5):
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    return start()
