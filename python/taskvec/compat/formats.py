"""Models that are not plain numbers: quantised checkpoints and LoRA adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from taskvec.compat.findings import Finding, finding
from taskvec.compat.packed import packed_weights
from taskvec.errors import FormatError
from taskvec.files.json import parse_object
from taskvec.files.names import MANIFEST
from taskvec.models.quantised.rules import PARTS_ALONE
from taskvec.models.saved_vector import REFERENCE
from taskvec.text import listed

if TYPE_CHECKING:
    from taskvec.models.model import Model, TensorInfo

# The way out where a format is refused.
_DEQUANTISE = "take the unquantised checkpoint, or dequantise it once with the tool that wrote it"


class Mark(NamedTuple):
    """A tensor that only one format has: the end of its name, and what the name of its weight ends in.

    Where ``needs`` is given, the mark counts only if there is also a tensor that ends so.
    """

    suffix: str
    weight: str
    needs: str = ""


class Format(NamedTuple):
    """A way to store quantised weights.

    Attributes
    ----------
    name : str
        What its users call it.
    methods : tuple of str
        How `quant_method` of config.json says it; none where only names tell.
    marks : tuple of Mark
        How the names of tensors show it; none where only the config tells.
    refused : str or None
        The way out, if it cannot be computed with.
    """

    name: str
    methods: tuple[str, ...] = ()
    marks: tuple[Mark, ...] = ()
    refused: str | None = _DEQUANTISE


FORMATS = (
    Format("block FP8", ("fp8",), (Mark(".weight_scale_inv", ".weight"),)),
    Format("MXFP4", ("mxfp4",), (Mark("_blocks", "_blocks", needs="_scales"),)),
    Format("compressed-tensors", ("compressed-tensors",), (Mark(".weight_packed", ".weight_packed"),)),
    Format("scaled FP8 or INT8 (compressed-tensors or ModelOpt)", (), (Mark(".weight_scale", ".weight"),)),
    Format("NVFP4 (ModelOpt)", (), (Mark(".weight_scale_2", ".weight"),)),
    Format("ModelOpt", ("modelopt",)),
    Format("GPTQ or AWQ", (), (Mark(".qweight", ".qweight"),)),
    Format("GPTQ", ("gptq",)),
    Format("AWQ", ("awq",)),
    Format("bitsandbytes", ("bitsandbytes",)),
    Format("bitsandbytes 8-bit", (), (Mark(".SCB", ".weight"),)),
    Format("bitsandbytes 4-bit", (), (Mark(".weight.absmax", ".weight"),)),
    Format("bitsandbytes NF4", (), (Mark(".weight.quant_state.bitsandbytes__nf4", ".weight"),)),
    Format("bitsandbytes FP4", (), (Mark(".weight.quant_state.bitsandbytes__fp4", ".weight"),)),
    Format("FBGEMM FP8", ("fbgemm_fp8",)),
    Format("AutoRound", ("auto-round",)),
    Format("Quanto", ("quanto",)),
    Format("HQQ", ("hqq",)),
    Format("AQLM", ("aqlm",)),
    Format("EETQ", ("eetq",)),
    Format("torchao", ("torchao",)),
    Format("BitNet", ("bitnet",)),
)
_MLX = Format("MLX")
_PART = Format("an unknown quantised format, parts of a packed weight without the others")
_BY_METHOD = {method: kind for kind in FORMATS for method in kind.methods}
_BY_SUFFIX = {mark.suffix: (kind, mark) for kind in FORMATS for mark in kind.marks}
_SUFFIXES = tuple(sorted(_BY_SUFFIX, key=len, reverse=True))
# What else belongs to such a weight; no format is told by these alone.
_SIBLINGS = (
    *("_scales", ".scales", ".qzeros", ".g_idx", ".input_scale", ".weight_shape", ".weight_zero_point"),
    *(".weight_scale", ".weight_scale_2", ".weight.quant_map", ".weight.nested_absmax"),
)


# Keys of the headers that declare one, without the underscores around them.
_IN_METADATA = ("quantization_metadata", "quantization_config", "quantization")
# Keys of config.json, or of a model within it, that declare a format: the last one is MLX's.
_DECLARING = ("quantization_config", "compression_config", "quantization")


def declared_format(checkpoint: Model) -> Format | None:
    """The quantised format that config.json, the headers or a file next to them declare."""
    config = checkpoint.config
    for source in (config, *(inner for inner in config.values() if isinstance(inner, dict))):
        for key in _DECLARING:
            if source.get(key) and isinstance(source[key], (dict, str)):
                return _named(source[key], _MLX if key == "quantization" else None)
    metadata = checkpoint.weights.metadata if checkpoint.kind == "checkpoint" and checkpoint.weights else {}
    key = next((key for key in metadata if key.strip("_") in _IN_METADATA), None)
    if key is not None and metadata[key].lstrip().startswith("{"):
        return Format(f"the file's metadata `{key}` says")
    return next(filter(None, map(partial(_declared_by, checkpoint), checkpoint.other_files)), None)


def _named(declared: Any, unnamed: Format | None = None) -> Format:
    """The format that a declaration names."""
    facts = declared if isinstance(declared, dict) else {"quant_method": declared}
    method = facts.get("quant_method") or facts.get("quant_type") or facts.get("quant_algo")
    if method is None and unnamed is not None and {"bits", "group_size"} & facts.keys():
        return unnamed
    word = str(method or "of an unnamed method").lower()
    return _BY_METHOD.get(word) or Format(f"`{word}`")


def _declared_by(checkpoint: Model, name: str) -> Format | None:
    """The format that a file such as hf_quant_config.json or quantize_config.json declares."""
    if "/" in name or "quant" not in name or not name.endswith(".json"):
        return None
    try:
        facts = parse_object(checkpoint.read_file(name), name)
    except FormatError:
        return Format(f"`{name}` says")
    inner = facts.get("quantization", facts)
    if not inner or (isinstance(inner, dict) and "quant_algo" in inner and not inner["quant_algo"]):
        return None  # ModelOpt writes the file for a quantised cache too
    method = inner.get("quant_method") if isinstance(inner, dict) else None
    return _BY_METHOD.get(str(method).lower()) or Format(f"`{name}` says")


def quantised_tensors(checkpoint: Model) -> dict[str, Format]:
    """Tensors that belong to a quantised weight, and the format that their names show."""
    found: dict[str, Format] = {}
    tensors = checkpoint.tensors
    for name in tensors:
        if not name.endswith(_SUFFIXES):
            continue
        kind, mark = _BY_SUFFIX[next(suffix for suffix in _SUFFIXES if name.endswith(suffix))]
        stem = name.removesuffix(mark.suffix)
        if mark.needs and stem + mark.needs not in tensors:
            continue
        found[name] = kind
        found.update((stem + end, kind) for end in (mark.weight, *_SIBLINGS) if stem + end in tensors)
    for name in tensors:
        if name.endswith(PARTS_ALONE) and name not in checkpoint.packed:
            found.setdefault(name, _PART)
    for name, companions in packed_weights(tensors).items():
        kind = found.get(name) or _unnamed(name, companions, tensors)
        for part in (name, *companions):
            found.setdefault(part, kind)
    return found


def _unnamed(name: str, companions: Sequence[str], tensors: Mapping[str, TensorInfo]) -> Format:
    """The format of a packed weight that no mark tells."""
    dtype = tensors[name].dtype
    if dtype == "U32" and f"{name.rpartition('.')[0]}.scales" in companions:
        return _MLX
    beside = f" next to `{companions[0]}`" if companions else ""
    return Format(f"an unknown quantised format ({dtype}{beside})")


def check_formats(models: Sequence[tuple[str, Model]], selected: Sequence[str]) -> Iterator[Finding]:
    """Quantised weights among the selected tensors, and adapters in place of models.

    `selected` are names of the first model's tensors. Where the config declares a format that the names do
    not show, any tensor may be meant.
    """
    wanted = set(selected)
    base, in_base = models[0][1], quantised_tensors(models[0][1])
    for role, checkpoint in models:
        is_same = checkpoint.fingerprint == base.fingerprint
        tensors = in_base if is_same else quantised_tensors(checkpoint)
        # of a model that a saved vector was made from, config and names alone are kept
        is_here = checkpoint.file_sizes or checkpoint.kind == "memory"
        declared = declared_format(checkpoint) if is_here and not checkpoint.packed else None
        yield from _check_quantised(role, declared, tensors, wanted, checkpoint.unreadable)
        if is_adapter(checkpoint):
            yield finding(
                "lora-adapter",
                role,
                "a whole model",
                "a LoRA adapter",
                "merge it into its base (`merge_and_unload` of peft), or write `base+adapter` in a recipe",
            )


def check_vectors(models: Sequence[tuple[str, Model]]) -> list[Finding]:
    """Saved task vectors in places of checkpoints: whatever else is compared with one says nothing."""
    return [
        finding(
            "saved-vector",
            role,
            "a checkpoint",
            f"`{model.spec}` is a saved task vector",
            "add it to a checkpoint with `taskvec apply TARGET VECTOR`, or give the model itself",
        )
        for role, model in models
        if is_saved_vector(model)
    ]


def is_saved_vector(model: Model) -> bool:
    """Whether a folder that was opened as a checkpoint is a saved vector, as far as its manifest says."""
    if MANIFEST not in model.other_files:
        return False
    if not any(name.startswith(f"{REFERENCE}/") for name in model.other_files):
        return False  # and the manifest of a large model need not be read to know it
    try:
        return parse_object(model.read_file(MANIFEST), MANIFEST).get("kind") == "vector"
    except FormatError:
        return False


def _check_quantised(
    role: str, declared: Format | None, tensors: Mapping[str, Format], wanted: set[str], problem: str | None
) -> Iterator[Finding]:
    # `X.qweight` is the weight `X.weight` of another model
    touched = [name for name in tensors if name in wanted or f"{name.rpartition('.')[0]}.weight" in wanted]
    kind = declared or next((tensors[name] for name in (*touched, *tensors)), None)
    if kind is None or kind.refused is None:
        return
    if touched or not tensors:
        where = f"{listed(touched)} are" if touched else "its weights are"
        found = f"{where} stored as {kind.name}" + (f": {problem}" if problem else "")
        yield finding("quantised", role, "plain BF16, F16, F32 or F64 weights", found, kind.refused)
    else:
        found = f"{len(tensors):,} tensors of {kind.name} are not selected, so they are copied or left out"
        yield finding("quantised-copied", role, "", found)


def is_adapter(checkpoint: Model) -> bool:
    """Whether a checkpoint is a LoRA adapter: an adapter_config.json, or nothing but its factors."""
    if "adapter_config.json" in checkpoint.other_files and not checkpoint.config:
        return True
    names = list(checkpoint.tensors)
    return bool(names) and all(".lora_" in name or ".modules_to_save." in name for name in names[:50])
