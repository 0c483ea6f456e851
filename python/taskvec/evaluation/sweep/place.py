"""Which arms of a sweep are made in the target, and which are merged: a list of what is known to be safe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from taskvec.evaluation.arms import MERGED, PARTS, Arm
from taskvec.evaluation.backend.delta import Placement
from taskvec.evaluation.backend.held import key_of, places_of
from taskvec.evaluation.experiment import Experiment
from taskvec.evaluation.settings import Settings
from taskvec.evaluation.sweep.merge import Merger

# Arguments of lm-eval's `hf` class under which a model is one module of whole tensors on one device.
_ARGUMENTS = frozenset(
    {
        "add_bos_token", "attn_implementation", "dtype", "enable_thinking", "logits_cache", "max_length",
        "prefix_token_id", "softmax_dtype", "think_end_token", "tokenizer", "truncation",
        "use_fast_tokenizer",
    }
)  # fmt: skip


class Places:
    """Finds out for each arm whether its weights can be made in the target.

    Parameters
    ----------
    experiment : Experiment
    settings : Settings
    target : str
        The target's folder on this machine.
    merger : Merger
        Knows what is added for each arm.
    facts : Path
        Folder of what is measured of merges.

    Attributes
    ----------
    refused : str or None
        Why no arm can be made in the target; None where some can.
    """

    def __init__(
        self, experiment: Experiment, settings: Settings, target: str, merger: Merger, facts: Path
    ) -> None:
        self._target, self._merger, self._facts = target, merger, facts
        self.refused = _refusal(experiment, settings, target)

    def placement(self, arm: Arm, identity: str) -> Placement | None:
        """How the weights of an arm come into the target; None where they do not.

        Raises
        ------
        taskvec.Error
            The models are incompatible.
        """
        if self.refused is not None:
            return None
        if arm.kind in PARTS:
            return None
        if arm.kind not in MERGED:
            return Placement(self._target)
        from taskvec.evaluation.backend.changed import is_plain

        delta = self._merger.delta_of(arm)
        if not is_plain(delta.plan(self._target)):
            return None
        return Placement(
            self._target,
            delta,
            name=arm.weights,
            identity=identity,
            command=self._merger.command(arm),
            facts=self._facts / f"{arm.weights}.json",
        )


def _refusal(experiment: Experiment, settings: Settings, target: str) -> str | None:
    """Why a target cannot be held while its weights change; None where it can."""
    if experiment.arms == "merged":
        return "the experiment asks for merged models"
    if settings.backend != "hf":
        return f"backend `{settings.backend}` takes weights from folders"
    unknown = sorted(set(dict(settings.model_args)) - _ARGUMENTS)
    if unknown:
        return f"--model-arg {unknown[0]} may divide or change the model as it is loaded"
    if experiment.merge.out_dtype is not None:
        return "--out-dtype changes the type of the weights"
    if experiment.merge.rounding != "nearest":
        return f"rounding is {experiment.merge.rounding}"
    if key_of(target, settings) is None:
        return f"`{experiment.target}` is quantised, has code of its own, or is not a folder of safetensors"
    if not _is_one_module(Path(target)):
        return f"`{experiment.target}` is loaded into other tensors than its files hold"
    return None


def _is_one_module(folder: Path) -> bool:
    """Whether transformers makes a causal language model of exactly the tensors that a folder stores."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        config: Any = AutoConfig.from_pretrained(str(folder))
        if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            return False
        with torch.device("meta"):
            module = AutoModelForCausalLM.from_config(config)
        return places_of(module, folder, loosely=True) is not None
    except Exception:  # whatever is wrong with the model is reported by loading it
        return False
