"""A local folder that stands for an output at an address: small files are real, weight files are holes.

What is known of local outputs is so known of one at an address too: whether a run has ended there, and how
its report, card and index are made.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from taskvec.errors import Error
from taskvec.files import look
from taskvec.files.names import MANIFEST, STATE
from taskvec.plan.plan import PlanRecord
from taskvec.report.report import Report
from taskvec.run.finished import finished_run
from taskvec.run.inputs import InputRow
from taskvec.run.sink import Sink
from taskvec.settings import Settings


class Shadow:
    """A local folder in the place of an address.

    Attributes
    ----------
    outputs : sequence of str
        The folders of the outputs below the address; one that is empty for the address itself.
    """

    def __init__(self, outputs: Sequence[str], sink: Sink, place: Path) -> None:
        self.outputs, self.sink, self.place = outputs, sink, place
        self.folders = [place / output if output else place for output in outputs]
        self.manifests = [named(output, MANIFEST) for output in outputs]

    def finished(
        self, plan: PlanRecord, rows: Sequence[InputRow] | None, settings: Settings
    ) -> Report | None:
        """The report of a run of this plan that has ended at the address; ``None`` where none has."""
        settings = replace(settings, rehash=False)
        return self.looked_at(settings, lambda: finished_run(plan, self.folders, rows, settings))

    def looked_at(self, settings: Settings, look: Callable[[], Report | None]) -> Report | None:
        """What `look` makes of this folder while it has the manifests at the address, and files of the sizes
        there; ``None`` where manifests are missing, or the output is to be replaced."""
        if settings.overwrite or not settings.resume:
            return None
        found = self.sink.finished(self.manifests)
        if len(found) < len(self.manifests):
            return None
        self.fill(self.sink.sizes())
        for name, data in found.items():
            (self.place / name).write_bytes(data)
        try:
            with self.told():
                report = look()
        finally:
            shutil.rmtree(self.place, ignore_errors=True)
        return None if report is None else self.as_sent(report)

    def fill(self, sizes: Mapping[str, int]) -> None:
        """Files of these sizes that have nothing in them."""
        for name, size in sizes.items():
            path = self.place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as file:
                file.truncate(size)

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Errors that name the address in place of this folder."""
        try:
            yield
        except Error as error:
            place, address = str(self.place), self.sink.address
            told = type(error)(error.message.replace(place, address), error.hint)
            told.__dict__.update({key: value for key, value in vars(error).items() if key not in vars(told)})
            raise told from error.__cause__

    def as_sent(self, report: Report) -> Report:
        """A report with the addresses of the outputs."""
        place = str(self.place)
        outputs = tuple(
            replace(output, folder=output.folder.replace(place, self.sink.address, 1))
            for output in report.outputs
        )
        findings = tuple(
            replace(each, subject=each.subject.replace(place, self.sink.address)) for each in report.findings
        )
        return replace(report, outputs=outputs, findings=findings)

    def others(self, weights: Collection[str]) -> list[tuple[str, Path]]:
        """The files besides weights and manifests, in the order in which they are to be put in place."""
        found: list[tuple[str, Path]] = []
        for output, folder in zip(self.outputs, self.folders, strict=True):
            names = {
                os.path.join(level.path, name): folder / level.path / name
                for level in look.walk(folder)
                for name in level.files
            }
            found += [
                (named(output, name), path)
                for name, path in sorted(names.items(), key=lambda each: _rank(each[0]))
                if name not in weights and name != MANIFEST and not name.startswith(f"{STATE}/")
            ]
        return list(dict(found).items())


def _rank(name: str) -> int:
    """What makes an output look complete comes after the rest."""
    return 2 if name.endswith(".index.json") else 1 if name in ("README.md", "config.json") else 0


def named(folder: str, name: str) -> str:
    """The name at the address of a file in the folder of an output."""
    return f"{folder}/{name}" if folder else name
