"""The check of config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskvec.compat.findings import Finding

if TYPE_CHECKING:
    from taskvec.models.model import Model


def check_configs(role: str, base: Model, models: Sequence[tuple[str, Model]]) -> list[Finding]:
    """Compare the config.json of each folder that has weights; of a pipeline there is none at the top."""
    findings: list[Finding] = []
    if "" in base.sub_models or not base.sub_models:
        findings += check_config(role, base.config, [(name, model.config) for name, model in models])
    for folder, config in base.configs.items():
        others = [
            (f"{name}/{folder.rstrip('/')}", model.configs.get(folder, {}))
            for name, model in models
            if folder in model.configs
        ]
        if others and (config or any(other for _, other in others)):
            findings += check_config(f"{role}/{folder.rstrip('/')}", config, others)
    return findings


def check_config(
    base_role: str, base: Mapping[str, Any], others: Sequence[tuple[str, Mapping[str, Any]]]
) -> list[Finding]:
    """Compare the configs of `others` with the base's, as functions of the same weights."""
    if base and all(config == base for _, config in others):
        return []
    # Its rules and tables take milliseconds to import, which equal configs need not pay.
    from taskvec.compat.functions import compare_configs

    return compare_configs(base_role, base, others)
