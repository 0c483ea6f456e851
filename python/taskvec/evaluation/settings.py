"""How arms are evaluated: every setting that can change a score, in one frozen value."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from taskvec.errors import RecipeError

THINK = "Think step by step."
PERTURBATIONS = ("typo", "distractor", "order", "numbers")
PAPER_TASKS = ("gsm8k", "humaneval", "sciq", "bbh_cot_fewshot")

Backend = Literal["hf", "vllm"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What all arms of one experiment share.

    Attributes
    ----------
    tasks : tuple of str
        Task or group names of lm-eval, or of YAML tasks in ``include_path``.
    backend : {"hf", "vllm"}
        lm-eval's model class.
    device : str, optional
        ``cpu``, ``cuda``, ``cuda:1`` or a GPU's number; by default the GPU where there is one.
    batch_size : int or "auto", optional
        16 for ``hf`` and ``"auto"`` for ``vllm`` by default. ``"auto"`` with ``hf`` lets lm-eval measure.
    limit : int or float, optional
        The first so many documents of each task; below 1 a share of them.
    chat_template : bool
        Whether prompts go through the tokenizer's chat template. It moves scores by tens of points.
    max_gen_toks : int, optional
        New tokens for every generating task; by default `defaults.KNOWN` decides per task.
    seed : int
        For lm-eval's few-shot draws, for sampling, and for perturbations.
    include_path : Path, optional
        A folder of YAML tasks.
    model_args : tuple of (str, str)
        Further arguments of the backend, such as ``("dtype", "float32")``.
    metrics : tuple of (str, str)
        The metric to compare per task, where the default is not wanted.
    allow_unsafe_code : bool
        Consent to run code that a model writes.
    """

    tasks: tuple[str, ...]
    backend: Backend = "hf"
    device: str | None = None
    batch_size: int | Literal["auto"] | None = None
    limit: int | float | None = None
    chat_template: bool = False
    max_gen_toks: int | None = None
    seed: int = 1234
    include_path: Path | None = None
    model_args: tuple[tuple[str, str], ...] = ()
    metrics: tuple[tuple[str, str], ...] = field(default=())
    allow_unsafe_code: bool = False

    def __post_init__(self) -> None:
        if not self.tasks:
            raise RecipeError("no task was named", "name tasks with --tasks gsm8k,sciq, or use --paper")
        repeated = sorted({task for task in self.tasks if self.tasks.count(task) > 1})
        if repeated:
            raise RecipeError(f"task `{repeated[0]}` is named twice")
        if self.backend not in ("hf", "vllm"):
            raise RecipeError(f"backend `{self.backend}` is not one of `hf`, `vllm`")
        if isinstance(self.batch_size, str) and self.batch_size != "auto":
            raise RecipeError(f"batch size `{self.batch_size}` is neither a number nor `auto`")
        if isinstance(self.batch_size, int) and self.batch_size < 1:
            raise RecipeError(f"batch size {self.batch_size} is below 1")
        if self.limit is not None and not (
            math.isfinite(self.limit) and (0 < self.limit < 1 or float(self.limit).is_integer())
        ):
            raise RecipeError(
                f"limit {self.limit} is neither a count nor a share",
                "give a whole number, or a share below 1",
            )
        if self.limit is not None and self.limit <= 0:
            raise RecipeError(f"limit {self.limit} leaves no documents")
        if self.max_gen_toks is not None and self.max_gen_toks < 1:
            raise RecipeError(f"max_gen_toks {self.max_gen_toks} is below 1")

    @property
    def batch(self) -> int | Literal["auto"]:
        """The batch size that is asked of the backend."""
        if self.batch_size is not None:
            return self.batch_size
        return "auto" if self.backend == "vllm" else 16

    @property
    def block(self) -> int:
        """Requests per recorded block.

        Blocks are fixed slices of the request list, so a resumed run forms the same batches as an undisturbed
        one and ends in the same samples. Eight batches leave lm-eval enough requests to sort by length.
        """
        return max(64, 8 * self.batch) if isinstance(self.batch, int) else 256

    def identity(self) -> dict[str, Any]:
        """The settings that decide whether two arms may be compared, as plain data."""
        return {
            "tasks": list(self.tasks),
            "backend": self.backend,
            "batch_size": self.batch,
            "limit": self.limit,
            "chat_template": self.chat_template,
            "max_gen_toks": self.max_gen_toks,
            "seed": self.seed,
            "model_args": dict(sorted(self.model_args)),
        }

    def metric_for(self, task: str) -> str | None:
        """The metric that the user chose for `task`."""
        return dict(self.metrics).get(task)


def paper_settings(settings: Settings) -> Settings:
    """`settings` with the paper's tasks; generation lengths come from `defaults.KNOWN`."""
    return replace(settings, tasks=PAPER_TASKS)


def torch_device(device: str | None) -> str:
    """The device in torch's words: a bare number is a GPU, none is the GPU where there is one."""
    if device is None:
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    return f"cuda:{device}" if device.isdigit() else device
