"""The formats in which computed weights are packed again, and how their scales are made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskvec.models.model import Model
    from taskvec.models.quantised.format import Format


def encoding(form: Format, model: Model, *, is_own: bool) -> dict[str, Any]:
    """A format as the engine encodes it.

    ``is_own`` says that the first input is stored in it, so that its scales are the other candidate.
    """
    return {**form.document(), "rule": rule(form, model.config), "own": is_own}


def rule(form: Format, config: Mapping[str, Any]) -> str:
    """How fresh scales are made: the rule of the tool that made the target, as far as its headers show it."""
    parameters = dict(form.parameters)
    if form.kind == "packed_int":
        return "pair"
    if form.kind == "e2m1":
        return "nvfp4" if parameters["group"] == 16 else "mx"
    if "INT8" in form.words:
        return "amax_127"
    if form.scale in ("U8", "F8_E8M0"):
        return "mx" if parameters["block"] == (1, 32) else "ue8m0"
    declared = config.get("quantization_config")
    is_power = isinstance(declared, dict) and declared.get("scale_fmt") == "ue8m0"
    return "ue8m0" if is_power else "amax_448"
