"""A vector that parts extract to an address: each part sends pieces, and the last one joins them there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace

from taskvec._core import assemble_output
from taskvec._core import extract as engine_extract
from taskvec.errors import OutputError
from taskvec.files.json import read_bytes
from taskvec.files.names import INPUTS, STATE
from taskvec.plan.part import of_piece
from taskvec.progress import heard
from taskvec.report.report import Report
from taskvec.run.deliver_whole import finish_made
from taskvec.run.delivery import Delivery, Unit
from taskvec.run.execute import execute
from taskvec.run.job import Piece
from taskvec.run.locked import paths_of
from taskvec.run.shadow import Shadow
from taskvec.run.sink import Sent
from taskvec.run.supply import Brought
from taskvec.text import size

# The only file of a vector that is not divided.
_VECTOR = "vector.safetensors"


class PieceDelivery(Delivery):
    """A vector on its way to an address.

    What is stored of a tensor does not depend on the others, the files of the vector do: so pieces lie at the
    address until all are there, and whoever finds that fetches and joins them, and sends the vector.
    """

    def _foresee(self) -> None:
        """Return: a vector has no files besides its weights that could not be made."""

    def _compute(self, unit: Unit, brought: Brought) -> tuple[list[Sent], int]:
        (number,) = unit
        place = self._made_at(unit)
        report = json.loads(
            engine_extract(
                of_piece(self.plan, number),
                place,
                threads=self.settings.threads or 0,
                progress=self.tell.of_unit(unit),
                notice=heard(self.progress),
                allow_non_finite="non-finite" in self.settings.force,
                paths=brought.paths,
            )
        )
        self.inputs.hold()
        mark = self._mark(json.loads(read_bytes(place / STATE / INPUTS)))
        (made,), (name,) = report["shards"], self.names[number]
        line = {"shard": self.files[number].name, "size": made["size"], "digest": made["digest"]}
        line["extra"] = report["tensors"]
        (place / name).parent.mkdir(parents=True)
        (place / _VECTOR).rename(place / name)
        sent = Sent(name, made["size"], made["digest"], self.identity, mark, json.dumps(line))
        return [sent], int(report["bytes_read"])

    def _bytes(self, unit: Unit, made: Sequence[Sent]) -> int:  # noqa: ARG002
        return sum(sent.size for sent in made)

    def _ended(self, shadow: Shadow, done: Mapping[str, Sent]) -> Report:
        own = [done[name] for (name,) in self.names]
        self._hold_room(own)
        folder = self.place / "pieces"
        try:
            found = self.sink.bring(own, folder)
            extras = [json.loads(sent.line)["extra"] for sent in own]
            pieces = [
                Piece(found[sent.name], sent.size, extra) for sent, extra in zip(own, extras, strict=True)
            ]
            report = self._joined(shadow, pieces)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        finish_made(report, shadow, self.sink, done, self.identity, self.progress)
        return shadow.as_sent(report)

    def _hold_room(self, pieces: Sequence[Sent]) -> None:
        """Return if the scratch folder may hold the vector twice: in pieces, and joined.

        Raises
        ------
        OutputError
        """
        need, limit = 2 * sum(piece.size for piece in pieces), self.settings.scratch_size
        if limit is not None and need > limit:
            raise OutputError(
                f"joining the pieces of the vector needs {size(need)} of scratch ({need:,} bytes), and "
                f"`--scratch-size` allows {size(limit)}",
                f"all pieces are there: run any part again with `--scratch-size {need}` or more",
            )

    def _joined(self, shadow: Shadow, pieces: Sequence[Piece]) -> Report:
        """The vector in the folder that stands for the address, made of its pieces."""
        sources = self.supply.sources
        shutil.rmtree(shadow.place, ignore_errors=True)
        shadow.place.mkdir(parents=True)
        settings = replace(self.settings, overwrite=False, resume=True, rehash=False)
        with shadow.told():
            assemble_output(shadow.place, paths_of(sources), self.plan.json, [])
            return execute(
                self.plan, shadow.place, settings=settings, progress=self.progress, pieces=pieces,
                checkpoints=sources,
            )  # fmt: skip
