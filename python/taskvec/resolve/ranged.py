"""Some elements of weights at an address, read by ranges: what a check of a sample looks at."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from taskvec._core import Checkpoint as Reader
from taskvec.models.model import Model, Remote
from taskvec.resolve.sub_models import reader_of
from taskvec.resolve.threads import each

_NAME = "values"
# Bytes of one request for a large tensor; some are on their way at a time.
_PIECE = 8 << 20


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
        self._expected: dict[tuple[str, int, int], bytes] = {}
        self._last: tuple[str, dict[str, tuple[_Place, bytes]]] | None = None

    @property
    def places(self) -> Mapping[str, _Place]:
        """Where each stored tensor lies, from the headers."""
        if self._places is None:
            rows = reader_of(self.model, self.folder).tensors()
            self._places = {row[0]: _Place(*row[1:]) for row in rows}
        return self._places

    def expect(self, wanted: Iterable[tuple[str, int, int]]) -> None:
        """Fetch together what is to be sampled next."""
        parts = [self._part(*one) for one in wanted if self._width(one[0])]
        ranges = dict.fromkeys((part.file, part.offset, part.offset + part.nbytes) for part in parts)
        self._expected = dict(each(lambda one: self._asked(*one), ranges))

    def read(self, name: str) -> bytes:
        """The bytes of one tensor."""
        return self._bytes(self.places[name])

    def sample(self, name: str, start: int, count: int) -> bytes:
        """Elements of one tensor as little-endian float32."""
        if not self._width(name):
            return self._with(
                {_NAME: (self.places[name], self.read(name))}, lambda it: it.sample(_NAME, start, count)
            )
        part = self._part(name, start, count)
        return self._with({_NAME: (part, self._bytes(part))}, lambda it: it.sample(_NAME, 0, count))

    def decode(self, format: bytes, name: str, shape: Sequence[int], start: int, count: int) -> bytes:  # noqa: A002
        """The same of a packed weight, all parts of which are fetched, once for several samples in a row."""
        if self._last is None or self._last[0] != name:
            packed = self.model.packed[name]
            names = [part for part in (*packed.parts, *packed.beside) if part in self.places]
            self._last = None
            self._last = name, {part: (self.places[part], self.read(part)) for part in names}
        return self._with(self._last[1], lambda it: it.decode(format, name, shape, start, count))

    @property
    def metadata(self) -> dict[str, str]:
        """The members of the headers besides their tensors."""
        return reader_of(self.model, self.folder).metadata

    def _width(self, name: str) -> int:
        """Bytes of one element; 0 where several share a byte."""
        place = self.places[name]
        width, rest = divmod(place.nbytes, math.prod(place.shape) or 1)
        return 0 if rest else width

    def _part(self, name: str, start: int, count: int) -> _Place:
        """Where some elements lie."""
        place, width = self.places[name], self._width(name)
        return place._replace(shape=(count,), offset=place.offset + start * width, nbytes=count * width)

    def _bytes(self, place: _Place) -> bytes:
        begin, end = place.offset, place.offset + place.nbytes
        found = self._expected.get((place.file, begin, end))
        if found is not None:
            return found
        pieces = [(at, min(at + _PIECE, end)) for at in range(begin, end, _PIECE)]
        parts = dict(each(lambda piece: self._asked(place.file, *piece), pieces))
        return b"".join(parts[piece] for piece in pieces)

    def _asked(self, file: str, start: int, stop: int) -> bytes:
        return self.remote.read(file, [(start, stop)])[0]

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
