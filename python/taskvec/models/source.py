"""A model as a source of a plan: its path, its name and its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskvec.files import look
from taskvec.models.adapter import WEIGHTS, Adapter
from taskvec.models.model import Model

if TYPE_CHECKING:
    from taskvec.models.assembled import Assembled
    from taskvec.models.saved_vector import SavedVector


def source_path(checkpoint: Model | SavedVector) -> str:
    """Where the engine finds a checkpoint: its folder, or its file if it was opened as a single one."""
    folder = checkpoint.location
    file = Path(checkpoint.spec).name
    is_listed = checkpoint.repository is None and file in checkpoint.file_sizes
    is_file = is_listed and not look.is_folder(folder / file)
    return str(folder / file) if is_file else str(folder)


def local_path(source: Model | SavedVector | Adapter) -> str:
    """The same of any source; of an adapter the file of its weights."""
    return str(source.path / WEIGHTS) if isinstance(source, Adapter) else source_path(source)


def recorded_path(source: Model | SavedVector | Adapter) -> str:
    """Where a source lies, as a plan has it: what is at an address is known by that and by its state.

    So a plan is the same wherever its sources are fetched to.
    """
    if source.repository is None or source.revision is None:
        return local_path(source)
    address = None if isinstance(source, Adapter) else source.address
    address = address or source.repository
    return address if source.revision in address else f"{address}#{source.revision}"


def here(document: Mapping[str, Any], sources: Sequence[Model | SavedVector | Adapter]) -> dict[str, Any]:
    """The engine's part of a plan that is run at once: its sources are named by their paths here."""
    known = zip(document["sources"], sources, strict=True)
    return {**document, "sources": [{**row, "path": local_path(source)} for row, source in known]}


def source_documents(sources: Sequence[Model | SavedVector | Adapter]) -> list[dict[str, Any]]:
    """Sources as the engine's part of a plan has them."""
    documents: list[dict[str, Any]] = []
    for source in sources:
        # models that are stored alike share their tables
        alike = next((n for n, each in enumerate(sources[: len(documents)]) if _is_alike(each, source)), None)
        document = source_document(source, {} if alike is None else documents[alike]["packed"])
        documents.append(document)
    return documents


def _is_alike(one: Model | SavedVector | Adapter, other: Model | SavedVector | Adapter) -> bool:
    if not isinstance(one, Model) or not isinstance(other, Model) or not one.packed:
        return False
    return one.packed is other.packed and one.tensors is other.tensors


def source_document(
    source: Model | SavedVector | Adapter, packed: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A source as the engine's part of a plan has it; ``packed`` is its table, where that is known."""
    if isinstance(source, Adapter):
        return {
            "kind": "lora",
            "path": recorded_path(source),
            "files": [[name, size] for name, size in source.file_sizes.items()],
            "fingerprint": source.fingerprint,
            "base": source.base,
            "factors": source.factors,
            **({"parts": source.parts} if source.parts else {}),
            **(
                {"whole": whole}
                if (whole := {name: info.name for name, info in source.whole.items()})
                else {}
            ),
        }
    document: dict[str, Any] = {
        "kind": source.kind,
        "path": recorded_path(source),
        "files": [[name, size] for name, size in source.file_sizes.items()],
        "fingerprint": source.fingerprint,
    }
    if isinstance(source, Model) and source.sub_models:
        document["listed"] = True
    if isinstance(source, Model) and source.packed:
        document["packed"] = packed or packed_document(source)
    if assembled := assembled_of(source):
        document["assembled"] = assembled
    return document


def packed_document(model: Model) -> dict[str, Any]:
    """The packed weights of a model as the engine's part of a plan has them: each format once."""
    numbers: dict[int, int] = {}
    formats: list[dict[str, Any]] = []
    tensors: dict[str, list[Any]] = {}
    shapes = {name: shape for made in model.assembled.values() for name, shape in made.shapes.items()}
    for name, packed in model.packed.items():
        number = numbers.get(id(packed.format))
        if number is None:
            number = numbers[id(packed.format)] = len(formats)
            formats.append(packed.format.document())
        known = shapes.get(name)
        tensors[name] = [number, known if known is not None else model.tensors[name].shape]
    return {"formats": formats, "tensors": tensors}


def assembled_of(source: Model | SavedVector) -> Mapping[str, Assembled]:
    """The tensors of a source that are made of stored ones; none where it has its own layout."""
    return source.assembled if isinstance(source, Model) else source.model.assembled


def pinned(checkpoint: Model | SavedVector) -> str:
    """The lasting name of a checkpoint: a hub name with its commit, or what the user wrote."""
    return checkpoint.address or checkpoint.spec
