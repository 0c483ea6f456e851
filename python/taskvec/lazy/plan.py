"""Plans as the user has them: the record of a run before it is run, and the run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from taskvec.arguments import path
from taskvec.compat.findings import findings_summary
from taskvec.errors import FormatError, RecipeError, warn
from taskvec.extras import install
from taskvec.plan.plan import ARITHMETIC, FORMAT, PlanRecord
from taskvec.report.tables import Tabled, findings_html
from taskvec.resolve.open import open as open_model
from taskvec.run.dispatch import run_plan
from taskvec.run.sinks import absolute
from taskvec.settings import format_alpha
from taskvec.shown import shown
from taskvec.text import plural, size

if TYPE_CHECKING:
    from taskvec.lazy.part import Part
    from taskvec.progress import Callback
    from taskvec.report.report import Report
    from taskvec.settings import Settings


@dataclass(frozen=True, slots=True, repr=False)
class Plan(Tabled, PlanRecord):
    """A run before it is run; its attributes are those of :class:`taskvec.plan.plan.PlanRecord`."""

    @classmethod
    def of(cls, record: PlanRecord) -> Plan:
        """The same plan, to be run."""
        return cls(**{field.name: getattr(record, field.name) for field in fields(PlanRecord)})

    @classmethod
    def from_json(cls, data: bytes, *, recipe: Mapping[str, Any] | None = None) -> Plan:
        """A plan from the engine's part alone; opens its sources by their paths.

        Parameters
        ----------
        data : bytes
            ``plan.json`` of another plan.
        recipe : mapping, optional
            ``plan.recipe`` of that plan, for the manifest.

        Raises
        ------
        RecipeError
            The bytes are not a plan of this version.
        FormatError
            A source is not what it was when the plan was made.
        """
        from taskvec.resolve.saved_vector import open_vector  # a plan that has just been made needs none

        try:
            document = json.loads(data)
            version = document["format"], document["arithmetic"]
            fingerprints = [source["fingerprint"] for source in document["sources"]]
        except (ValueError, KeyError, TypeError) as error:
            raise RecipeError(f"the bytes are not a plan: {error!r}", "make the plan again") from None
        if version != (FORMAT, ARITHMETIC):
            raise RecipeError(
                f"the plan has format and arithmetic {version}, expected {(FORMAT, ARITHMETIC)}",
                "make the plan again with this version",
            )
        if any(source["kind"] == "memory" for source in document["sources"]):
            raise RecipeError(
                "the plan reads tensors of the process that made it", "run it there, or save the models first"
            )
        checkpoints = [
            open_vector(path) if kind == "vector" else open_model(path)
            for kind, path in ((each["kind"], _address(each["path"])) for each in document["sources"])
        ]
        for checkpoint, fingerprint in zip(checkpoints, fingerprints, strict=True):
            if checkpoint.fingerprint != fingerprint:
                raise FormatError(
                    f"`{checkpoint.spec}` is not what it was when the plan was made", "make the plan again"
                )
        roles = ["target", *["source"] * (len(checkpoints) - 1)]
        return cls.make(document, checkpoints, roles, recipe=recipe, data=data)

    def __reduce__(self) -> Any:
        return Plan.from_bytes, (self.to_bytes(),)

    def __copy__(self) -> Plan:
        return self  # it is never changed

    def __deepcopy__(self, memo: object) -> Plan:
        return self

    def _subject(self) -> str:
        return self.digest[:16]

    def _facts(self) -> dict[str, str]:
        facts = {source.role: f"{source.spec} ({size(source.bytes_in)})" for source in self.sources}
        facts["alpha"] = ", ".join(format_alpha(output.alpha) for output in self.outputs)
        facts["tensors"] = f"{self.merged:,} merged, {self.copied:,} copied"
        facts["written"] = f"{plural(len(self.shards), 'weight file')}, {size(self.bytes_out)}"
        if self.download:
            facts["to download"] = size(self.download)
        found = findings_summary(self.findings)
        return {**facts, "findings": found} if self.findings else facts

    def _tables(self) -> Mapping[str, Any]:
        def tensors() -> list[dict[str, Any]]:
            return [
                {"name": row[0], "type": row[1], "shape": list(row[2]), "file": self.weight_map[row[0]]}
                for row in self.document["tensors"]
                if row[0] in self.weight_map
            ]

        return {
            "tensors": tensors,
            "sources": lambda: [source._asdict() for source in self.sources],
            "shards": lambda: [shard._asdict() for shard in self.shards],
            "findings": lambda: [each.to_dict() for each in self.findings],
        }

    def _more_html(self) -> str:
        return findings_html(self.findings, notes=False)

    def run(
        self,
        out: str | os.PathLike[str],
        *,
        settings: Settings | None = None,
        progress: Callback | bool | None = None,
    ) -> Report:
        """Execute the plan into a folder, or to an address; see :func:`taskvec.run.execute.execute`.

        A folder or an address at which parts of the same plan have been at work is completed. Findings that
        are warnings are warnings of Python too, of the category :class:`taskvec.TaskvecWarning`.
        """
        with shown(progress) as tell:
            report = run_plan(self, out, settings, tell)
        for finding in report.findings:
            if finding.level == "warning":
                warn(f"{finding.message} [{finding.id}]", finding)
        return report

    def run_on_ray(
        self,
        out: str | os.PathLike[str],
        *,
        address: str = "local",
        settings: Settings | None = None,
        progress: Callback | bool | None = None,
    ) -> Report:
        """Execute the plan on a Ray cluster; see :func:`taskvec.run.cluster.execute_on_ray`.

        Parameters
        ----------
        out : str or path
            The output folder, on a file system that all nodes share.
        address : str
            Of the cluster, as ``ray.init`` takes it; ``"local"`` starts one on this machine.
        settings : Settings, optional
            ``threads`` are those of one task.
        progress : callable or bool, optional
            Called with a :class:`taskvec.Progress`; ``True`` draws a bar.

        Raises
        ------
        RecipeError
            Ray is not installed, or the run cannot be divided.
        OutputError
            The cluster cannot be reached, or a node does not see the models or the output.
        """
        try:
            from taskvec.run.cluster import execute_on_ray
        except ModuleNotFoundError as error:
            if error.name != "ray":
                raise
            raise RecipeError("Ray is not installed", f"install it: {install('ray')}") from None
        path(out, "out")
        path(address, "address")
        with shown(progress) as tell:
            return execute_on_ray(self, out, address=address, settings=settings, progress=tell)

    def part(self, number: int, count: int, *, out: str | os.PathLike[str] | None = None) -> Part:
        """One part of the plan, to be run anywhere that has the models and the output folder.

        Parts may run in any order, at once, twice, or be killed and started again: the files are the same as
        those of one process, and so is the report of the one that ends last.

        Parameters
        ----------
        number, count : int
            Part ``number`` of ``count``, counted from 0.
        out : str or path, optional
            The output folder, where ``run`` is to be called without one.

        Raises
        ------
        RecipeError
            There is no such part, or the run cannot be divided.
        """
        from taskvec.lazy.part import Part

        return Part.of(self, number, count, out)

    def to_bytes(self, out: str | os.PathLike[str] | None = None) -> bytes:
        """The plan as a file, which ``taskvec run`` and :meth:`from_bytes` read; it holds no secrets.

        Parameters
        ----------
        out : str or path, optional
            The output folder that it is made for.

        Raises
        ------
        RecipeError
            It reads tensors of this process.
        """
        from taskvec.plan.document import to_file

        return to_file(self, None if out is None else absolute(out))

    @classmethod
    def from_bytes(cls, data: bytes) -> Plan:
        """The plan of :meth:`to_bytes`; its models are opened here.

        Raises
        ------
        RecipeError
            It was edited, or is not a plan of this version.
        FormatError
            A model is not what it was when the plan was made.
        """
        from taskvec.plan.document import from_file

        return cls.of(from_file(data, "the plan").plan)


def _address(path: str) -> str:
    """A path of a plan without the state of the files at an address, which a fingerprint is compared for."""
    return path.rpartition("#")[0] if "://" in path and "#" in path else path
