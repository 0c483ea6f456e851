"""LoRA adapters as PEFT saves them: which factors change which weight, and by how much.

The change of a weight is scale · B·A (Hu et al., 2106.09685), with scale = alpha / r, or alpha / √r where the
adapter is rank-stabilised (Kalajdzievski, 2312.03732). The engine computes it tile by tile.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from taskvec.dtypes import FLOAT_DTYPES
from taskvec.errors import FormatError
from taskvec.models.adapter_config import CONFIG, MERGE_FIRST, check_config, is_set, scale_of
from taskvec.models.adapter_parameters import (
    ParameterFactors,
    named,
    parameter_factors,
    target_parameters,
)
from taskvec.models.adapter_whole import PREFIX, check_whole, saved_modules, whole_name
from taskvec.models.model import Remote, TensorInfo
from taskvec.models.pickled import restored, state_of
from taskvec.regex import regex
from taskvec.text import shown

if TYPE_CHECKING:
    from taskvec._core import Checkpoint as Reader

_AGAIN = "save it again with `peft`"
WEIGHTS = "adapter_model.safetensors"
FILES = (CONFIG, WEIGHTS)
# Of a module in memory there is an adapter's name in front of `weight`; PEFT calls the only one `default`.
_KEY = regex(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<factor>[AB])(?:\.default)?(?:\.weight)?")
# What else is found in such a file, by the name of its tensors.
_OTHER_KINDS = (
    (r"lora_magnitude_vector", "a magnitude of DoRA"),
    (r"lora_(embedding_)?B\.bias$", "a bias of B"),
    (r"\.(lora_E|ranknum)$", "a part of AdaLoRA"),
    (r"\.hada_", "a factor of LoHa"),
    (r"\.lokr_", "a factor of LoKr"),
    (r"\.ia3_", "a vector of IA³"),
    (r"vera_|\.lora_[AB]\.[^.]+\.weight$", "a factor under another kind of name"),
    (r"token_adapter|trainable_tokens", "rows of single tokens"),
    (r"\.(bias|weight)$", "a whole weight or bias"),
)


class Factors(NamedTuple):
    """Stored names of A and B, the scale of their product, and whether the weight is [inputs, outputs]."""

    a: str
    b: str
    scale: float
    transposed: bool


class PartFactors(NamedTuple):
    """Factors of a weight that is stored as a part of a tensor; all but the scale in elements.

    Attributes
    ----------
    a, b : str
        Stored names of A and B.
    scale : float
        Of their product.
    rank : int
    start : (int, int)
        Where A and B begin.
    ranks : (int, int)
        The step from one rank to the next in A and B.
    to : int
        The first element in the tensor.
    axes : tuple of (int, int, (int, int))
        For each dimension of the part: its length, the step in the tensor, and those in A and B.
    """

    a: str
    b: str
    scale: float
    rank: int
    start: tuple[int, int]
    ranks: tuple[int, int]
    to: int
    axes: tuple[tuple[int, int, tuple[int, int]], ...]


@dataclass(frozen=True, repr=False, slots=True)
class Adapter:
    """An adapter's headers and settings; a source of a plan, as checkpoints and vectors are.

    Attributes
    ----------
    spec : str
        What the user wrote.
    path : Path
        Its folder; of a remote one the folder that it will have here.
    factors : mapping of str to Factors
        By the name of the weight that they change: PEFT's, or the model's once it is fitted to one.
    tensors : mapping of str to TensorInfo
        The weights that it gives: those that it changes, with the bytes of their factors, or all of its
        model's once it is put on top of one.
    embeddings : frozenset of str
        Those of its names whose factors are of an embedding.
    whole : mapping of str to TensorInfo
        Stored tensors that take the place of the model's, by the name of these; factors of the same weight
        change the one in the adapter's file.
    repository, revision : str or None
        The name on the hub and the commit.
    download_bytes : int
        What a run would still download.
    remote : Remote or None
        Where its files are fetched from, when they are not here.
    parameters : tuple of ParameterFactors
        Factors of parameters that are not a module's weight; none once it is fitted to a model.
    parts : mapping of str to tuple of PartFactors
        Once it is fitted to a model: the factors of weights that are parts of a stored tensor, by its name.
    base : int, optional
        The plan's number of the model that it is put on top of.
    stored : mapping of str to TensorInfo
        Every stored tensor of its file.
    """

    spec: str
    path: Path
    factors: Mapping[str, Factors]
    tensors: Mapping[str, TensorInfo]
    file_sizes: dict[str, int]
    fingerprint: str
    config: dict[str, Any]
    embeddings: frozenset[str] = field(default=frozenset())
    whole: Mapping[str, TensorInfo] = field(default_factory=dict)
    parameters: tuple[ParameterFactors, ...] = ()
    parts: Mapping[str, tuple[PartFactors, ...]] = field(default_factory=dict)
    stored: Mapping[str, TensorInfo] = field(default_factory=dict)
    base: int | None = None
    repository: str | None = None
    revision: str | None = None
    download_bytes: int = 0
    remote: Remote | None = None

    @property
    def changed(self) -> list[str]:
        """The weights that it changes or replaces."""
        return list(dict.fromkeys((*self.factors, *self.parts, *self.whole)))

    @property
    def location(self) -> Path:
        """Its folder."""
        return self.path

    def __reduce__(self) -> Any:
        return restored, (type(self), state_of(self))

    def __deepcopy__(self, memo: object) -> Adapter:
        return self  # it is never changed

    def __repr__(self) -> str:
        return f"Adapter({self.spec!r}, weights: {len(self.changed) + len(self.parameters):,})"


def read_adapter(spec: str, path: Path, config: dict[str, Any], reader: Reader) -> Adapter:
    """An adapter by its settings and the header of its weights.

    Raises
    ------
    FormatError
        It is damaged, or of a kind whose change of a weight is not B·A alone; the message names it.
    """
    check_config(config, spec)
    stored = {
        name: TensorInfo(name, dtype, shape, nbytes, file)
        for name, dtype, shape, file, _, nbytes in reader.tensors()
    }
    modules = saved_modules(config, spec)
    whole = _whole(stored, modules, spec)
    replaced = {info.name for info in whole.values()}
    pairs, embeddings = _pairs([name for name in stored if name not in replaced], spec)
    flag = is_set(config, "fan_in_fan_out", spec)
    targets = target_parameters(config, spec)
    factors, tensors, parameters = {}, {}, []
    for module, pair in pairs.items():
        inner, names = named(module, targets)
        if names:
            both = (stored[pair["A"]], stored[pair["B"]])
            _check_factors(module, *both, spec)
            parameters.append(parameter_factors(inner, names, both, config, spec))
            continue
        name, a, b = f"{module}.weight", stored[pair["A"]], stored[pair["B"]]
        _check_factors(module, a, b, spec)
        is_transposed = module in embeddings or flag
        factors[name] = Factors(a.name, b.name, scale_of(config, module, a.shape[0], spec), is_transposed)
        shape = (a.shape[1], b.shape[0]) if is_transposed else (b.shape[0], a.shape[1])
        tensors[name] = TensorInfo(name, a.dtype, shape, a.nbytes + b.nbytes, a.file)
    check_whole(whole, modules, spec)
    if targets and not parameters:
        raise FormatError(
            f"the adapter `{spec}` changes parameters (`target_parameters: {shown(targets)}`), and holds "
            "factors of none of them",
            "its settings and its weights come from different saves: save it again",
        )
    return Adapter(
        spec,
        path,
        factors,
        tensors,
        dict(reader.files()),
        reader.fingerprint,
        config,
        frozenset(f"{module}.weight" for module in embeddings),
        whole,
        tuple(parameters),
        stored=stored,
    )


def _whole(stored: Mapping[str, TensorInfo], modules: Sequence[str], spec: str) -> dict[str, TensorInfo]:
    """The tensors that take the place of a weight, by its name."""
    whole: dict[str, TensorInfo] = {}
    for info in stored.values():
        name = None if _KEY.fullmatch(info.name) else whole_name(info.name, modules)
        if name is not None and whole.setdefault(name, info) is not info:
            raise FormatError(
                f"the adapter `{spec}` has two tensors in the place of `{name}`: `{whole[name].name}` and "
                f"`{info.name}`",
                MERGE_FIRST,
            )
    return whole


def _pairs(names: Iterable[str], spec: str) -> tuple[dict[str, dict[str, str]], set[str]]:
    """The stored names of A and B by module, and the modules that are embeddings."""
    pairs: dict[str, dict[str, str]] = {}
    embeddings: set[str] = set()
    for name in names:
        match = _KEY.fullmatch(name)
        if match is None:
            words = next((words for mark, words in _OTHER_KINDS if re.search(mark, name)), "of no known kind")
            raise FormatError(
                f"the adapter `{spec}` has the tensor `{name}`, {words}, which is not a factor of a weight",
                MERGE_FIRST,
            )
        module = match["module"].removeprefix(PREFIX)
        other = pairs.setdefault(module, {}).setdefault(match["factor"], name)
        if other != name:
            raise FormatError(
                f"the adapter `{spec}` has two factors of `{module}`: `{other}` and `{name}`", _AGAIN
            )
        if match["embedding"]:
            embeddings.add(module)
    for module, pair in pairs.items():
        if set(pair) != {"A", "B"}:
            raise FormatError(
                f"the adapter `{spec}` has one factor of `{module}` without the other", "save it again"
            )
    if not pairs:
        raise FormatError(f"the adapter `{spec}` holds no factors", "save it again")
    return pairs, embeddings


def _check_factors(module: str, a: TensorInfo, b: TensorInfo, spec: str) -> None:
    for info in (a, b):
        if info.dtype not in FLOAT_DTYPES:
            raise FormatError(
                f"`{info.name}` of the adapter `{spec}` is {info.dtype}, expected a float type", _AGAIN
            )
        if len(info.shape) != 2:
            raise FormatError(
                f"`{info.name}` of the adapter `{spec}` has {len(info.shape)} dimensions, expected 2: "
                "the factors of a convolution cannot be merged as B·A",
                MERGE_FIRST,
            )
    if a.shape[0] != b.shape[1]:
        raise FormatError(
            f"the factors of `{module}` in the adapter `{spec}` do not fit: A is {list(a.shape)}, B is "
            f"{list(b.shape)}",
            "save it again",
        )
