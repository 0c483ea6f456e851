"""What a GGUF file holds: its metadata, and its tensors as they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from taskvec.errors import FormatError
from taskvec.extras import install

# Stored types, and those of safetensors that hold their values exactly.
PLAIN = {"F32": "F32", "F16": "F16", "BF16": "BF16"}
PACKED = frozenset(
    {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}
)  # fmt: skip


class Stored(NamedTuple):
    """A stored tensor: its type in GGUF, its shape with the longest stride first, and its bytes."""

    kind: str
    shape: tuple[int, ...]
    data: Any

    @property
    def dtype(self) -> str:
        """The type that holds its values: packed ones are decoded to float32, as ggml does."""
        return PLAIN.get(self.kind, "F32")


class Contents(NamedTuple):
    """The metadata by their keys, and the tensors by their names in GGUF."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Stored]

    def get(self, key: str, default: Any = None) -> Any:
        """A member of the metadata; ``{arch}`` in the key stands for the architecture."""
        return self.metadata.get(key.format(arch=self.architecture), default)

    @property
    def architecture(self) -> str:
        """The architecture as llama.cpp calls it."""
        return str(self.metadata.get("general.architecture"))

    def refuse(self, what: str, hint: str) -> FormatError:
        """An error about this file."""
        return FormatError(f"`{self.path}` {what}", hint)


def read(path: Path) -> Contents:
    """Read the headers of a GGUF file; tensors are mapped, not read.

    Raises
    ------
    FormatError
        It is damaged, of a kind or type that is not known, a part of a split model, or `gguf` is not
        installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise FormatError(
            f"`{path}` is a GGUF file, and gguf, which reads it, is not installed",
            f"install it: `{install('gguf')}`",
        ) from error
    try:
        reader = gguf.GGUFReader(str(path))
        is_turned = reader.endianess != gguf.GGUFEndian.LITTLE
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {
            str(tensor.name): Stored(
                tensor.tensor_type.name, tuple(int(side) for side in reversed(tensor.shape)), tensor.data
            )
            for tensor in reader.tensors
        }
    except Exception as error:  # the reader raises several sorts for a damaged file
        raise FormatError(
            f"`{path}` is not a GGUF file that can be read: {error!r:.200}",
            "it is damaged, incomplete or of another version: copy it again",
        ) from error
    found = Contents(path, metadata, tensors)
    _hold_known(found, is_turned)
    return found


def _hold_known(found: Contents, is_turned: bool) -> None:
    """Return if the file holds a whole model in types that are known."""
    if is_turned:
        raise found.refuse("is a GGUF file in big-endian order", "convert it on a machine of its order")
    if found.metadata.get("split.count", 0) not in (0, 1):
        raise found.refuse(
            f"is one of the {found.metadata['split.count']} files of a split GGUF model",
            "join them with `llama-gguf-split --merge`",
        )
    kind = found.metadata.get("general.type", "model")
    if kind != "model":
        raise found.refuse(f"holds a GGUF of the type `{kind}`", "give the GGUF file of a whole model")
    for name, stored in found.tensors.items():
        if stored.kind not in PLAIN and stored.kind not in PACKED:
            raise found.refuse(
                f"has `{name}` in {stored.kind}, which is not read",
                f"known are {', '.join([*PLAIN, *sorted(PACKED)])}: take a file of one of these",
            )


def decoded(stored: Stored) -> Any:
    """A tensor's values.

    Returns
    -------
    ndarray of ``stored.shape``
        Float32 of a packed tensor; of a plain one its own type, bfloat16 as uint16.
    """
    import gguf
    import numpy as np

    if stored.kind in PACKED:
        found = gguf.dequantize(stored.data, gguf.GGMLQuantizationType[stored.kind])
        return np.ascontiguousarray(found, dtype="<f4").reshape(stored.shape)
    width = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[stored.kind]
    return np.ascontiguousarray(stored.data).reshape(-1).view(width).reshape(stored.shape)
