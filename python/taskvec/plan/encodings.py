"""The formats in which computed weights are packed again, and how their scales are made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskvec.models.model import Model
    from taskvec.models.quantised.format import Format


def encoding(form: Format, model: Model, *, is_own: bool) -> dict[str, Any]:
    """A format as the engine encodes it.

    ``is_own`` says that the first input is stored in it, so that its scales are the other candidate: the
    better of the two is taken for each group, so that a rule that is not the file's own does no harm.
    """
    return {**form.document(), "rule": rule(form, model.config), "own": is_own}


def rule(form: Format, config: Mapping[str, Any]) -> str:
    """How fresh scales are made: as the tool does that made the target, as far as its headers show it."""
    declared = config.get("quantization_config") or config.get("compression_config")
    facts: Mapping[str, Any] = declared if isinstance(declared, dict) else {}
    is_compressed_tensors = facts.get("quant_method") == "compressed-tensors"
    parameters = dict(form.parameters)
    if form.kind == "packed_int":
        return "amax_7" if form.is_symmetric else "pair"
    if form.kind == "mlx":
        return "mlx"
    if form.kind == "e2m1":
        return "nvfp4" if parameters["group"] == 16 else "mx_ct" if is_compressed_tensors else "mx_rceil"
    if form.scale in ("U8", "F8_E8M0"):
        return "mx_ct" if parameters["block"] == (1, 32) else "ue8m0"
    if form.words.startswith("INT8"):
        return "ct_127" if is_compressed_tensors else "amax_127"
    if facts.get("scale_fmt") == "ue8m0":
        return "ue8m0"
    return "ct_448" if is_compressed_tensors else "amax_448"
