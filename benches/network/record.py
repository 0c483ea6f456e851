"""Results as dated files, by processor."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

from taskvec import _core, host


def record(root: Path, name: str, found: dict[str, Any]) -> None:
    """Write a record below `root`, a folder for each processor."""
    now, cpu = datetime.datetime.now(datetime.UTC), host.cpu_name()
    versions = {"python": platform.python_version(), "taskvec": _core.__version__}
    machine = {"cpu": cpu, "cores": os.cpu_count(), **versions}
    data = {"schema": 1, "date": now.isoformat(timespec="seconds"), "machine": machine, **found}
    folder = root / (re.sub(r"[^a-z0-9]+", "-", cpu.lower()).strip("-") or "unknown")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{now:%Y-%m-%d}-{name}.json").write_text(json.dumps(data, indent=2) + "\n")
