"""What may have happened where a step was not added as it should be, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from taskvec.models.adapter import Adapter
from taskvec.report.merge_check import MergeCheck, is_apart
from taskvec.text import plural

if TYPE_CHECKING:
    from taskvec.models.model import Model
    from taskvec.models.saved_vector import SavedVector


def guesses(check: MergeCheck, step: Model | Adapter | SavedVector) -> Iterator[str]:
    """What may have happened where the step was not added as it should be."""
    counts = check.counts
    if check.verdict == "added":
        if check.expected is None and check.alpha is not None and is_apart(check.alpha, 1.0):
            yield from _of_scale(check.alpha, step)
        return
    base = [name for name, each in check.tensors.items() if each.status == "base"]
    if check.verdict == "partly-added":
        kinds = sorted({name.rsplit(".", 2)[-2] for name in base if name.count(".") > 1})
        yield f"left as in the base: {len(base)} tensors ({', '.join(kinds[:8])})"
    if check.verdict == "not-added" and not counts.get("rounded-away"):
        yield "the merged model is the base: the merge was not saved, or the wrong folder was"
    if check.verdict == "not-added" and counts.get("rounded-away"):
        yield "the step is too small for the type of the merged model: write it in float32"
    if check.verdict == "wrong-alpha" and check.alpha is not None and check.expected:
        yield f"the factor is {check.alpha / check.expected:.6g} times the expected one"
        yield from _of_scale(check.alpha / check.expected, step)
    if check.verdict == "other":
        yield from _of_other(check)


def _of_scale(factor: float, step: Model | Adapter | SavedVector) -> Iterator[str]:
    """Mistakes in the scale of an adapter that give this factor."""
    if not isinstance(step, Adapter):
        return
    rank, alpha = step.config.get("r"), step.config.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or not rank or not alpha:
        return
    is_root = bool(step.config.get("use_rslora"))
    scale = alpha / math.sqrt(rank) if is_root else alpha / rank
    known = {
        "the scale was left out (B * A alone)": 1 / scale,
        "merged with lora_alpha / r, and adapter_config.json says use_rslora": 1 / math.sqrt(rank),
        "merged with lora_alpha / sqrt(r), and adapter_config.json does not say use_rslora": math.sqrt(rank),
        "merged twice": 2.0,
        "subtracted": -1.0,
        "scaled twice": scale,
    }
    skipped = "does not say" if is_root else "says use_rslora"
    for words, wanted in known.items():
        if skipped not in words and is_apart(wanted, 1.0) and not is_apart(factor, wanted):
            yield words


def _of_other(check: MergeCheck) -> Iterator[str]:
    others = [each for each in check.tensors.values() if each.status == "other"]
    rows = [each for each in others if math.isfinite(each.step_norm + each.moved_norm)]
    if len(rows) < len(others):
        count = plural(len(others) - len(rows), "tensor")
        yield f"not compared: {count} with values that are NaN or infinite"
    still = [each for each in rows if not each.step_norm]
    if still:
        yield (
            f"{len(still)} tensors that the step does not change differ from the base: another base, or more "
            "than this step"
        )
    far = [each for each in rows if each.step_norm and each.left_norm > 0.5 * each.moved_norm]
    if far and len(far) > len(rows) / 2:
        yield "most of merged - base does not point along the step: is BASE the model that was merged into?"
    elif rows and not still:
        yield "merged - base points along the step, and more than rounding is left: was more added?"
