"""The plan: what a run reads, computes and writes. Plain data made from headers; the border to the engine."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from taskvec._core import blake3_hex
from taskvec.host import cores
from taskvec.models.model import Model
from taskvec.models.storage import logical
from taskvec.plan.config_changes import output_changes
from taskvec.plan.memory import of_encodings
from taskvec.plan.rows import Rows, encode
from taskvec.settings import format_alpha
from taskvec.text import plural, size

if TYPE_CHECKING:
    from taskvec.compat.findings import Finding
    from taskvec.models.adapter import Adapter
    from taskvec.models.saved_vector import SavedVector
    from taskvec.plan.token_rows import Approximation

FORMAT = 1
ARITHMETIC = 3
SCHEMA = 1

Kind = Literal["checkpoint", "vector", "adapter"]


class Source(NamedTuple):
    """A model that a plan reads: how much of it, and how much of that is still to be downloaded, in bytes."""

    role: str
    spec: str
    revision: str | None
    bytes_in: int
    download: int


class Output(NamedTuple):
    """A folder that a plan writes, relative to the output folder, and its factor."""

    folder: str
    alpha: float


class Shard(NamedTuple):
    """A weight file that a plan writes into each output; the bytes are those of its tensors."""

    name: str
    tensors: int
    parameters: int
    bytes: int


class Request(NamedTuple):
    """A recipe of several documents, of which a plan is one: what a finished run is told by.

    Attributes
    ----------
    digest : str
        BLAKE3 over the documents and the settings.
    inputs : sequence or None
        The states of the files of all models that are read, as a manifest has them.
    """

    digest: str
    inputs: Sequence[list[Any]] | None


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """A run before it is run, as plain data; made from a :class:`taskvec.plan.draft.Draft`, never changed.

    Attributes
    ----------
    json : bytes
        The engine's part: the same bytes for a dry run, a run, a resumed run, and on another machine that has
        the sources at the same paths.
    document : mapping
        The same as data; its ``tensors`` are rows as :class:`taskvec.plan.rows.Rows` has them.
    digest : str
        BLAKE3 of these bytes.
    kind : {"checkpoint", "vector", "adapter"}
        What is written.
    sources, outputs, shards : tuple
        What is read and written.
    weight_map : mapping
        Stored output tensor -> its shard, in file order.
    merged, copied : int
        Output tensors that are computed, and those that are the target's bytes (converted where ``out_dtype``
        asks).
    bytes_out : int
        Tensor bytes written, all outputs together.
    findings : tuple of Finding
        Those of the compatibility check; an error among them has been forced.
    config : mapping
        Keys of config.json that the output changes, and their values, ``None`` where it has them no more;
        nested ones as ``text_config.dtype``.
    recipe : mapping
        What was asked for, as the manifest records it.
    checkpoints : tuple of Model, SavedVector or Adapter
        The opened sources. The other files of the first come along to the outputs.
    files : mapping of str to bytes
        Files that the outputs have instead of the first source's.
    left : tuple of str
        Files of the first source that the outputs do not have: they declare packed weights that are written
        plain.
    encoded : int
        Bytes that a thread needs for the packed tensors of the outputs.
    request : Request or None
        The recipe of several documents whose last one this is.
    tokens : Approximation or None
        Rows of tokens that are computed first, where a model is moved to another tokenizer.
    """

    json: bytes = field(repr=False)
    document: Mapping[str, Any] = field(repr=False, compare=False)
    digest: str
    kind: Kind
    sources: tuple[Source, ...]
    outputs: tuple[Output, ...]
    shards: tuple[Shard, ...]
    weight_map: Mapping[str, str] = field(repr=False)
    merged: int
    copied: int
    bytes_out: int
    most_inputs: int
    findings: tuple[Finding, ...]
    config: Mapping[str, Any]
    recipe: Mapping[str, Any]
    checkpoints: tuple[Model | SavedVector | Adapter, ...] = field(repr=False)
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    left: tuple[str, ...] = ()
    encoded: int = 0
    request: Request | None = field(default=None, repr=False, compare=False)
    tokens: Approximation | None = field(default=None, repr=False, compare=False)

    @classmethod
    def make(
        cls,
        document: Mapping[str, Any],
        checkpoints: Sequence[Model | SavedVector | Adapter],
        roles: Sequence[str],
        *,
        kind: Kind = "checkpoint",
        findings: Sequence[Finding] = (),
        recipe: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
        left: Sequence[str] = (),
        data: bytes | None = None,
    ) -> Self:
        """A plan from the engine's part as a dictionary, and its sources in the same order.

        The planner calls this. ``config`` are the changes of config.json, by default those that follow from
        the types of the tensors; ``data`` the document's bytes where they are known.
        """
        data = data or encode(document)
        if config is None:
            config, left = output_changes(document, checkpoints[0])
        return cls(
            json=data,
            document=document,
            digest=blake3_hex(data),
            kind=kind,
            findings=tuple(findings),
            recipe=dict(recipe or {"verb": "plan"}),
            checkpoints=tuple(checkpoints),
            files=dict(files or {}),
            left=tuple(left),
            config=dict(config),
            sources=_read(document, checkpoints, roles),
            **written(document, checkpoints),
        )

    @property
    def tensors(self) -> int:
        """Tensors of one output."""
        return self.merged + self.copied

    @property
    def parameters(self) -> int:
        """Elements of one output."""
        return sum(shard.parameters for shard in self.shards)

    @property
    def bytes_in(self) -> int:
        """Tensor bytes read, each once whatever the number of outputs."""
        return sum(source.bytes_in for source in self.sources)

    @property
    def download(self) -> int:
        """Bytes that a run would fetch from the hub first."""
        return sum(source.download for source in self.sources)

    def memory(self, threads: int | None = None) -> int:
        """Anonymous memory of a run besides the interpreter's own, in bytes, at most.

        A block of 1 MiB per thread for each input and output, tiles, patches and bands of packed tensors, and
        the coefficients of a merge along columns; the engine bounds its threads by the same formula where
        ``max_memory`` is given.
        """
        each = (len(self.outputs) + self.most_inputs) * ((1 << 20) + (64 << 10)) + (256 << 10) + self.encoded
        first = self.tokens.working if self.tokens is not None else 0
        return max(first, (16 << 20) + _kept(self.document) + (threads or cores()) * each)

    def to_dict(self) -> dict[str, Any]:
        """The plan's facts as plain data (``schema`` 1); the engine's part is ``json``."""
        return {
            "schema": SCHEMA,
            "digest": self.digest,
            "kind": self.kind,
            "recipe": dict(self.recipe),
            "sources": [source._asdict() for source in self.sources],
            "outputs": [output._asdict() for output in self.outputs],
            "shards": [shard._asdict() for shard in self.shards],
            "tensors": self.tensors,
            "merged": self.merged,
            "copied": self.copied,
            "parameters": self.parameters,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "download": self.download,
            "memory": self.memory(),
            "config": dict(self.config),
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def __str__(self) -> str:
        alphas = ", ".join(format_alpha(output.alpha) for output in self.outputs)
        lines = [f"plan {self.digest[:16]}"]
        lines += [f"  {source.role:<9} {source.spec} ({size(source.bytes_in)})" for source in self.sources]
        lines.append(f"  alpha     {alphas}")
        lines.append(f"  tensors   {self.merged:,} merged, {self.copied:,} copied")
        lines.append(f"  output    {plural(len(self.shards), 'weight file')}, {size(self.bytes_out)}")
        lines += [f"  {finding.level}[{finding.id}]: {finding.message}" for finding in self.findings]
        return "\n".join(lines)


def _kept(document: Mapping[str, Any]) -> int:
    """Bytes of the coefficients that are kept of whole tensors, at most: two groups of tensors at a time.

    Rows of up to 512 elements, and columns of up to 16, are looked at again and again instead. A plan of a
    vector has no operations; one of an adapter says what its largest matrix takes.
    """
    if "working" in document:
        return document["working"]
    group, largest = 64 << 20, 0
    for number, operation in enumerate(document.get("operations", ())):
        is_rows = operation["kind"] == "nuslerp" and not operation.get("flatten", True)
        is_columns = is_rows and operation.get("row_wise", False)
        if not is_rows and not operation.get("filter_wise", False):
            continue
        for _, _, shape, _, own, *_ in document["tensors"]:
            if own != number or len(shape) < 2 or not math.prod(shape):
                continue
            length = math.prod(shape[:-1]) if is_columns else shape[-1]
            if length > (16 if is_columns else 512):
                # of each term two numbers of eight bytes a row or column; its elements have a byte or more
                kept = math.prod(shape) // length * len(operation["terms"]) * 16
                largest = max(largest, kept, -(-group * 16 // length))
    return 2 * largest


def _bytes(checkpoint: Model | SavedVector | Adapter, names: Sequence[str]) -> int:
    """The bytes of these tensors; one that serves twice is read once."""
    distinct, tensors = set(names), checkpoint.tensors
    if isinstance(checkpoint, Model) and checkpoint.packed:
        # a part that is copied is read by its stored name
        return sum((tensors.get(name) or checkpoint.stored[name]).nbytes for name in distinct)
    if len(distinct) == len(tensors):
        return sum(info.nbytes for info in tensors.values())
    return sum(tensors[name].nbytes for name in distinct)


def _beside(checkpoints: Sequence[Model | SavedVector | Adapter]) -> dict[str, Sequence[int] | None]:
    """The shape of the weight that stored codes are, and of other parts of a packed weight ``None``."""
    shapes: dict[str, Sequence[int] | None] = {}
    # models that are stored alike share their tables
    models = {
        (id(model.packed), id(model.tensors)): model
        for model in checkpoints
        if isinstance(model, Model) and model.packed
    }
    for model in models.values():
        for name, packed in model.packed.items():
            shapes |= dict.fromkeys((*packed.parts, *packed.beside))
            if name in model.tensors:
                places = dict(zip((part for part, _ in packed.format.parts), packed.parts, strict=True))
                shapes[places["codes"]] = model.tensors[name].shape
    return shapes


def _flat_inputs(tensors: Any) -> Iterator[Sequence[Any]]:
    """Of each row its inputs: source, stored name, source, stored name, and so on."""
    if isinstance(tensors, Rows):
        return tensors.inputs()
    return (list(itertools.chain.from_iterable(row[5])) for row in tensors)


def _read(
    document: Mapping[str, Any], checkpoints: Sequence[Model | SavedVector | Adapter], roles: Sequence[str]
) -> tuple[Source, ...]:
    """The sources of a plan, and how much of each it reads."""
    used: list[list[str]] = [[] for _ in checkpoints]
    for flat in _flat_inputs(document["tensors"]):
        for source, stored in zip(flat[::2], flat[1::2], strict=True):
            used[source].append(stored)
    return tuple(
        Source(
            role, checkpoint.spec, checkpoint.revision, _bytes(checkpoint, names), checkpoint.download_bytes
        )
        for role, checkpoint, names in zip(roles, checkpoints, used, strict=True)
    )


def written(
    document: Mapping[str, Any], checkpoints: Sequence[Model | SavedVector | Adapter]
) -> dict[str, Any]:
    """The attributes of a plan of a checkpoint that say what it writes."""
    copies = {index for index, operation in enumerate(document["operations"]) if operation["kind"] == "copy"}
    names = document["shards"]
    tensors, parameters, size = [0] * len(names), [0] * len(names), [0] * len(names)
    weight_map: dict[str, str] = {}
    copied = most_inputs = 0
    beside = _beside(checkpoints)
    encoded: list[Any] = []
    for name, form, shape, shard, operation, inputs, *packed in document["tensors"]:
        tensor = logical(name, form, tuple(shape))
        for part in tensor.parts:
            weight_map[part.name] = names[shard]
            size[shard] += part.nbytes
        if packed and packed[0][1] == "codes":
            encoded.append(packed[0])
        # of a packed weight its codes count, with the elements that they stand for
        if packed:
            whole = packed[0][3] if packed[0][1] == "codes" else None
        elif document["operations"][operation].get("stored"):
            whole = beside.get(inputs[0][1], shape)
        else:
            whole = shape
        if whole is not None:
            tensors[shard] += 1
            parameters[shard] += math.prod(whole)
            copied += operation in copies
        most_inputs = max(most_inputs, len(inputs))
    return {
        "outputs": tuple(Output(output["folder"], output["alpha"]) for output in document["outputs"]),
        "shards": tuple(map(Shard, names, tensors, parameters, size)),
        "weight_map": weight_map,
        "merged": sum(tensors) - copied,
        "copied": copied,
        "most_inputs": most_inputs,
        "encoded": of_encodings(document, encoded) if encoded else 0,
        "bytes_out": sum(size) * len(document["outputs"]),
    }
