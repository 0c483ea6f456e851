"""The check of config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskvec.compat.findings import Finding


def check_config(
    base_role: str, base: Mapping[str, Any], others: Sequence[tuple[str, Mapping[str, Any]]]
) -> list[Finding]:
    """Compare the configs of `others` with the base's, as functions of the same weights."""
    if base and all(config == base for _, config in others):
        return []
    # Its rules and tables take milliseconds to import, which equal configs need not pay.
    from taskvec.compat.functions import compare_configs

    return compare_configs(base_role, base, others)
