"""Some elements of weights at an address, read by ranges: what a check of a sample looks at."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from taskvec._core import Checkpoint as Reader
from taskvec.models.model import Model, Remote

_NAME = "values"


class _Place(NamedTuple):
    """Where a stored tensor lies."""

    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    nbytes: int


class RangedWeights:
    """The weights of a model at an address, a :class:`taskvec.models.model.Weights`.

    Each call asks the address for what it needs; the engine's reader decodes it.
    """

    def __init__(self, remote: Remote, folder: Path, model: Model) -> None:
        self.remote, self.folder, self.model = remote, folder, model
        self._places: Mapping[str, _Place] | None = None

    @property
    def places(self) -> Mapping[str, _Place]:
        """Where each stored tensor lies, from the headers."""
        if self._places is None:
            rows = Reader(str(self.folder)).tensors()
            self._places = {row[0]: _Place(*row[1:]) for row in rows}
        return self._places

    def read(self, name: str) -> bytes:
        """The bytes of one tensor."""
        place = self.places[name]
        return self._bytes(place, 0, place.nbytes)

    def sample(self, name: str, start: int, count: int) -> bytes:
        """Elements of one tensor as little-endian float32."""
        place = self.places[name]
        elements = math.prod(place.shape)
        width, rest = divmod(place.nbytes, elements or 1)
        if rest or not width:  # several elements to a byte
            return self._with({_NAME: (place, self.read(name))}, lambda it: it.sample(_NAME, start, count))
        part = place._replace(shape=(count,), nbytes=count * width)
        data = self._bytes(place, start * width, (start + count) * width)
        return self._with({_NAME: (part, data)}, lambda it: it.sample(_NAME, 0, count))

    def decode(self, format: bytes, name: str, shape: Sequence[int], start: int, count: int) -> bytes:  # noqa: A002
        """The same of a packed weight, all parts of which are fetched."""
        packed = self.model.packed[name]
        names = [part for part in (*packed.parts, *packed.beside) if part in self.places]
        parts = {part: (self.places[part], self.read(part)) for part in names}
        return self._with(parts, lambda it: it.decode(format, name, shape, start, count))

    @property
    def metadata(self) -> dict[str, str]:
        """The members of the headers besides their tensors."""
        return Reader(str(self.folder)).metadata

    def _bytes(self, place: _Place, start: int, stop: int) -> bytes:
        return self.remote.read(place.file, [(place.offset + start, place.offset + stop)])[0]

    def _with(self, parts: Mapping[str, tuple[_Place, bytes]], read: Callable[[Reader], bytes]) -> bytes:
        """What is read by a reader of these tensors alone."""
        header: dict[str, Any] = {}
        at = 0
        for name, (place, data) in parts.items():
            header[name] = {
                "dtype": place.dtype,
                "shape": list(place.shape),
                "data_offsets": [at, at + len(data)],
            }
            at += len(data)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with tempfile.TemporaryDirectory(prefix="sample-", dir=self.folder.parent) as folder:
            path = Path(folder) / "model.safetensors"
            with open(path, "wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                for _, data in parts.values():
                    file.write(data)
            return read(Reader(str(path)))
