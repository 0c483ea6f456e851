"""The report of an experiment: data, page, Markdown and figures."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any


def json_schema() -> dict[str, Any]:
    """The JSON schema of ``report.json``."""
    return json.loads((resources.files(__name__) / "templates" / "report.schema.json").read_text("utf-8"))
