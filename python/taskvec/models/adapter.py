"""LoRA adapters as PEFT saves them: which factors change which weight, and by how much.

The change of a weight is scale · B·A (Hu et al., 2106.09685), with scale = alpha / r, or alpha / √r where the
adapter is rank-stabilised (Kalajdzievski, 2312.03732). The engine computes it tile by tile.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from taskvec._core import Checkpoint as Reader
from taskvec.errors import FormatError, NotFoundError
from taskvec.files import look
from taskvec.files.json import read_object
from taskvec.models.model import Model, TensorInfo

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<factor>[AB])(?:\.weight)?")
# Settings by which an adapter is more than A and B; each changes the meaning of B·A.
_UNSUPPORTED = {
    "use_dora": "DoRA (weight-decomposed adapters)",
    "use_qalora": "QALoRA",
    "lora_bias": "biases of B",
    "megatron_config": "Megatron layers",
}


class Factors(NamedTuple):
    """Stored names of A and B, the scale of their product, and whether the weight is [inputs, outputs]."""

    a: str
    b: str
    scale: float
    transposed: bool


@dataclass(frozen=True, repr=False, slots=True)
class Adapter:
    """An adapter's headers and settings; a source of a plan, as checkpoints and vectors are.

    Attributes
    ----------
    spec : str
        What the user wrote.
    path : Path
        Its folder.
    factors : mapping of str to Factors
        By the name of the weight that they change.
    tensors : mapping of str to TensorInfo
        The weights that it gives: those that it changes, with the bytes of their factors, or all of its
        model's once it is put on top of one.
    base : int, optional
        The plan's number of the model that it is put on top of.
    """

    spec: str
    path: Path
    factors: Mapping[str, Factors]
    tensors: Mapping[str, TensorInfo]
    file_sizes: dict[str, int]
    fingerprint: str
    config: dict[str, Any]
    base: int | None = None
    repository: str | None = None
    revision: str | None = None

    @property
    def location(self) -> Path:
        """Its folder."""
        return self.path

    @property
    def download_bytes(self) -> int:
        """Nothing is left to download."""
        return 0

    def on_top_of(self, model: Model, number: int) -> Adapter:
        """The adapter with its model, which is source `number` of a plan.

        Raises
        ------
        FormatError
            The model does not have the weights that the adapter changes.
        """
        unknown = [name for name in self.factors if name not in model.tensors]
        if unknown:
            raise FormatError(
                f"the adapter `{self.spec}` changes `{unknown[0]}`, which `{model.spec}` does not have",
                "use the model that the adapter was trained for",
            )
        tensors = dict(model.tensors)
        for name in self.factors:
            info = tensors[name]
            tensors[name] = info._replace(nbytes=info.nbytes + self.tensors[name].nbytes)
        return replace(self, tensors=tensors, base=number)

    def __repr__(self) -> str:
        return f"Adapter({self.spec!r}, weights: {len(self.factors):,})"


def open_adapter(spec: str | os.PathLike[str]) -> Adapter:
    """Open a LoRA adapter by its headers and its settings.

    Raises
    ------
    NotFoundError
        There is no adapter in that folder.
    FormatError
        It is damaged, or of a kind whose change of a weight is not B·A alone; the message names it.
    """
    folder = Path(spec)
    for name in (CONFIG, WEIGHTS):
        if not look.is_file(folder / name):
            raise NotFoundError(
                f"`{spec}` holds no LoRA adapter: `{name}` is not there",
                f"an adapter is a folder with `{CONFIG}` and `{WEIGHTS}`",
            )
    config = read_object(folder / CONFIG)
    _check(config, folder)
    reader = Reader(str(folder / WEIGHTS))
    stored = {
        name: TensorInfo(name, dtype, shape, nbytes, file)
        for name, dtype, shape, file, _, nbytes in reader.tensors()
    }
    factors = _factors(stored, config, folder)
    return Adapter(
        os.fspath(spec),
        folder.absolute(),
        factors,
        {
            name: _weight(name, stored[pair.a], stored[pair.b], pair.transposed)
            for name, pair in factors.items()
        },
        dict(reader.files()),
        reader.fingerprint,
        config,
    )


def _weight(name: str, a: TensorInfo, b: TensorInfo, transposed: bool) -> TensorInfo:
    shape = (a.shape[-1], b.shape[0]) if transposed else (b.shape[0], a.shape[-1])
    return TensorInfo(name, a.dtype, shape, a.nbytes + b.nbytes, a.file)


def _check(config: Mapping[str, Any], folder: Path) -> None:
    kind = str(config.get("peft_type", "LORA")).upper()
    found = [text for key, text in _UNSUPPORTED.items() if config.get(key)]
    if kind != "LORA":
        found.append(f"the adapter type {kind}")
    if config.get("bias", "none") not in ("none", None):
        found.append(f"trained biases (`bias: {config['bias']}`)")
    if config.get("modules_to_save"):
        found.append(f"whole modules (`modules_to_save: {config['modules_to_save']}`)")
    if found:
        raise FormatError(
            f"the adapter `{folder}` uses {', '.join(found)}, which cannot be merged as B·A",
            "merge it into its model with `peft` (merge_and_unload) first, and use the result",
        )


def _factors(
    tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], folder: Path
) -> dict[str, Factors]:
    pairs: dict[str, dict[str, str]] = {}
    embeddings: set[str] = set()
    for name in tensors:
        match = _KEY.fullmatch(name)
        if match is None:
            raise FormatError(
                f"the adapter `{folder}` has the tensor `{name}`, which is not a factor of a weight",
                "merge it into its model with `peft` (merge_and_unload) first, and use the result",
            )
        module = match["module"].removeprefix(_PREFIX)
        pairs.setdefault(module, {})[match["factor"]] = name
        if match["embedding"]:
            embeddings.add(module)
    made = {}
    for module, pair in pairs.items():
        if set(pair) != {"A", "B"}:
            raise FormatError(
                f"the adapter `{folder}` has one factor of `{module}` without the other", "save it again"
            )
        scale = _scale(config, module, tensors[pair["A"]].shape[0], folder)
        transposed = module in embeddings or bool(config.get("fan_in_fan_out"))
        made[f"{module}.weight"] = Factors(pair["A"], pair["B"], scale, transposed)
    return made


def _scale(config: Mapping[str, Any], module: str, stored_rank: int, folder: Path) -> float:
    rank = _pattern(config.get("rank_pattern"), module, config.get("r"))
    alpha = _pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", rank))
    for name, value in (("r", rank), ("lora_alpha", alpha)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise FormatError(f"`{folder / CONFIG}`: `{name}` is {value!r}, expected a number")
    if rank != stored_rank or rank <= 0:
        raise FormatError(
            f"the adapter `{folder}` has rank {stored_rank} at `{module}`, its settings say {rank}",
            f"`{CONFIG}` and `{WEIGHTS}` come from different saves",
        )
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _pattern(patterns: Any, module: str, default: Any) -> Any:
    """The value of the first pattern that a module's name ends with, as PEFT looks it up."""
    for pattern, value in (patterns or {}).items():
        try:
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                return value
        except re.error:
            continue
    return default
