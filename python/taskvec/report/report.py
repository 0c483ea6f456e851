"""The report of a run: what it wrote and measured, and how much of its step survived rounding."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from taskvec.report.drawn import Drawn
from taskvec.report.energy_words import energy_words
from taskvec.report.noise import FOREIGN, FOREIGN_WORDS, Noise, Sums, noise_of, noise_words
from taskvec.report.survival import Status, Survival, status_of, survival_summary, survival_words
from taskvec.report.survival_map import SurvivalMap
from taskvec.report.tables import Tabled, escaped, findings_html
from taskvec.report.token_words import token_words
from taskvec.settings import format_alpha
from taskvec.text import duration, percent, size

if TYPE_CHECKING:
    from pathlib import Path

    from taskvec.compat.findings import Finding
    from taskvec.report.heatmap import Mapped

SCHEMA = 1
ROUNDED_AWAY_LIMIT = 0.05


class Shard(NamedTuple):
    """A weight file that was written: name, bytes, BLAKE3."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True, repr=False)
class Output(Tabled):
    """One folder that was written.

    ``survival`` is that of the whole output, ``None`` where the method adds no step to a base; ``tensors``
    has that of each tensor that takes one, and ``unmeasured`` is the number of merged tensors that take none
    next to them: means, and other values of their own. ``non_finite`` says in which tensor and where how many
    values are NaN or infinite, if ``non-finite`` was forced. ``noise`` says how much of the vector is one,
    where donor and reference are quantised. ``unweighted`` counts the elements of each tensor that matter to
    no model and have the mean by the weights alone.
    """

    folder: str
    alpha: float | None
    shards: tuple[Shard, ...]
    survival: Survival | None
    tensors: Mapping[str, Survival]
    non_finite: tuple[tuple[str, str, int], ...]
    unmeasured: int = 0
    noise: Noise | None = None
    unweighted: Mapping[str, int] = field(default_factory=dict)

    @property
    def survival_status(self) -> Status:
        """Whether the survival was measured, is that of a zero step, or has no length."""
        return status_of(self.survival)

    def _subject(self) -> str:
        return self.folder

    def _facts(self) -> dict[str, str]:
        facts = {} if self.alpha is None else {"alpha": format_alpha(self.alpha)}
        facts["weight files"] = str(len(self.shards))
        facts["survival"] = survival_summary(self.survival)
        return facts

    def _tables(self) -> Mapping[str, Any]:
        return {
            "tensors": lambda: [{"name": name, **_figures_of(row)} for name, row in self.tensors.items()],
            "shards": lambda: [shard._asdict() for shard in self.shards],
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "folder": self.folder,
            "alpha": self.alpha,
            "shards": [shard._asdict() for shard in self.shards],
            "survival": self.survival.to_dict() if self.survival else None,
            "survival_status": self.survival_status,
            "unmeasured": self.unmeasured,
            "tensors": {name: _figures_of(row) for name, row in self.tensors.items()},
            "non_finite": [list(row) for row in self.non_finite],
            **({"noise": self.noise.to_dict()} if self.noise is not None else {}),
            **({"unweighted": dict(self.unweighted)} if self.unweighted else {}),
        }


def _figures_of(row: Survival) -> dict[str, Any]:
    """The figures of a tensor; what its format alone did where it took no step."""
    error = row.format_error
    return row.to_dict() if error is None else {**row.to_dict(), "format_error": error}


@dataclass(frozen=True, slots=True, repr=False)
class Report(Drawn):
    """The outcome of a run.

    Attributes
    ----------
    outputs : tuple of Output
        One per value of alpha, in the order asked for.
    seconds : float
        From the first byte read to the manifest written.
    bytes_read, bytes_written : int
        Weight bytes; each input counted once.
    threads : int
        Worker threads.
    cpu_level : str
        The instruction set that the kernels used.
    resumed_shards : int
        Shards that an earlier, unfinished run had written.
    findings : tuple of Finding
        Those of the plan, and those of this run.
    plan : str
        Digest of the plan.
    vector : mapping or None
        Of a vector that was saved: totals and, under ``tensors``, each tensor's encoding and figures.
    adapter : mapping or None
        Of an adapter that was made of a vector: totals and, under ``modules``, rank and energy of each.
    tokens : mapping or None
        Of a model that was moved to another tokenizer: where the rows of its tokens come from, and how near.
    already_done : bool
        An earlier run of the same plan over the same inputs had finished, and nothing was touched.
    """

    outputs: tuple[Output, ...]
    seconds: float
    bytes_read: int
    bytes_written: int
    threads: int
    cpu_level: str
    resumed_shards: int
    findings: tuple[Finding, ...]
    plan: str
    vector: Mapping[str, Any] | None = None
    already_done: bool = False
    adapter: Mapping[str, Any] | None = None
    tokens: Mapping[str, Any] | None = None

    @property
    def survival(self) -> Survival | None:
        """That of the only output, or of the first; ``None`` where it was not measured."""
        return self.outputs[0].survival if self.outputs else None

    @property
    def survival_status(self) -> Status:
        """What ``survival`` is worth: ``"measured"``, ``"zero"``, ``"not-measured"`` or ``"not-finite"``."""
        return status_of(self.survival)

    @property
    def bytes_per_second(self) -> float:
        """Bytes read and written over the time taken."""
        return (self.bytes_read + self.bytes_written) / self.seconds if self.seconds > 0 else 0.0

    def _subject(self) -> str:
        return ", ".join(output.folder for output in self.outputs)

    def _facts(self) -> dict[str, str]:
        facts = {}
        alphas = [format_alpha(output.alpha) for output in self.outputs if output.alpha is not None]
        if alphas:
            facts["alpha"] = ", ".join(alphas)
        if self.adapter is None and self.tokens is None and self.vector is None:
            survivals = [survival_summary(output.survival) for output in self.outputs]
            facts["survival"] = "; ".join(dict.fromkeys(survivals))
        facts["read and written"] = size(self.bytes_read + self.bytes_written)
        facts["time"] = duration(self.seconds)
        warnings = sum(each.level == "warning" for each in self.findings)
        if warnings:
            facts["warnings"] = str(warnings)
        if self.already_done:
            facts["already done"] = "yes"
        return facts

    def _tables(self) -> Mapping[str, Any]:
        def tensors() -> list[dict[str, Any]]:
            if self.vector is not None:
                return [{"name": name, **row} for name, row in self.vector["tensors"].items()]
            return [
                {"output": output.folder, "alpha": output.alpha, "name": name, **_figures_of(row)}
                for output in self.outputs
                for name, row in output.tensors.items()
            ]

        def outputs() -> list[dict[str, Any]]:
            return [
                {
                    "folder": output.folder,
                    "alpha": output.alpha,
                    "bytes": sum(shard.size for shard in output.shards),
                    **(output.survival.to_dict() if output.survival is not None else {}),
                }
                for output in self.outputs
            ]

        def modules() -> list[dict[str, Any]]:
            return [{"name": name, **row} for name, row in (self.adapter or {})["modules"].items()]

        made = {"modules": modules} if self.adapter is not None else {"tensors": tensors}
        return {**made, "outputs": outputs, "findings": lambda: [each.to_dict() for each in self.findings]}

    def _map(self, output: int = 0) -> Mapped | None:
        chosen = self.outputs[output] if self.outputs else None
        return SurvivalMap(chosen.folder, chosen.tensors) if chosen and chosen.tensors else None

    def _more_html(self) -> str:
        words = [
            f"<p><code>{escaped(output.folder)}</code>: "
            f"{escaped('; '.join(survival_words(output.survival, output.unmeasured)))}</p>"
            for output in self.outputs
            if self.vector is None and self.adapter is None and self.tokens is None
        ]
        found = findings_html(self.findings, notes=False)
        return "".join(words) + found + Drawn._more_html(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the JSON of ``--json``."""
        return {
            "schema": SCHEMA,
            "plan": self.plan,
            "seconds": self.seconds,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "bytes_per_second": self.bytes_per_second,
            "threads": self.threads,
            "cpu_level": self.cpu_level,
            "resumed_shards": self.resumed_shards,
            "already_done": self.already_done,
            "outputs": [output.to_dict() for output in self.outputs],
            "findings": [finding.to_dict() for finding in self.findings],
            "vector": dict(self.vector) if self.vector else None,
            **({"adapter": dict(self.adapter)} if self.adapter else {}),
            **({"tokens": dict(self.tokens)} if self.tokens else {}),
        }

    def __str__(self) -> str:
        lines = []
        for output in self.outputs:
            lines.append(output.folder)
            if self.adapter is not None:
                lines += [f"  {words}" for words in energy_words(self.adapter)]
            elif self.tokens is not None:
                lines += [f"  {words}" for words in token_words(self.tokens)]
            elif self.vector is None:
                lines += [f"  {words}" for words in survival_words(output.survival, output.unmeasured)]
            if output.noise is not None:
                lines += [f"  {words}" for words in noise_words(output.noise)]
        took = f"{size(self.bytes_read + self.bytes_written)} read and written in {duration(self.seconds)}"
        lines.append("already done, nothing was touched" if self.already_done else took)
        return "\n".join(lines)


def rounding_findings(outputs: Sequence[Output], rounding: str, *, is_packed: bool = False) -> list[Finding]:
    """A warning for each output in which more than 5 % of the step was rounded away, with the ways out.

    ``is_packed`` says that weights are written in a packed format, of which a plain type is the way out.
    """
    from taskvec.compat.findings import finding

    findings = []
    for output in outputs:
        row = output.survival
        if row is None or row.status != "measured" or row.rounded_away_share <= ROUNDED_AWAY_LIMIT:
            continue
        ways = [f"`--out-dtype {'bfloat16' if is_packed else 'float32'}`"]
        ways += ["`--rounding stochastic`"] if rounding != "stochastic" else []
        findings.append(
            finding(
                "rounded-away",
                output.folder,
                f"at most {ROUNDED_AWAY_LIMIT:.0%}",
                f"{percent(row.rounded_away_share)} of the changed elements were rounded away",
                f"use {', '.join(ways)} or a larger alpha",
            )
        )
    return findings


def unweighted_findings(outputs: Sequence[Output]) -> list[Finding]:
    """A note on the elements that matter to no model, with how many of which tensors they are."""
    from taskvec.compat.findings import finding

    counts = outputs[0].unweighted if outputs else {}
    if not counts:
        return []
    most = max(counts, key=lambda name: counts[name])
    return [
        finding(
            "importance-zero",
            f"`{most}`" + (f" and {len(counts) - 1:,} more tensors" if len(counts) > 1 else ""),
            "",
            f"{sum(counts.values()):,} elements matter to no model and have the mean by the weights alone",
        )
    ]


def noise_findings(outputs: Sequence[Output]) -> list[Finding]:
    """A warning where most scales of donor and reference differ; the same of every output."""
    from taskvec.compat.findings import finding

    noise = outputs[0].noise if outputs else None
    if noise is None or noise.scales_differ <= FOREIGN:
        return []
    return [
        finding(
            "quantised-rules",
            "donor and reference",
            f"at most {FOREIGN:.0%} of the scales of a small change",
            f"{noise.scales_differ:.1%} of the scales differ: {FOREIGN_WORDS}",
            "take the models that they were quantised from",
        )
    ]


def parse_engine_report(
    text: str,
    out: Path,
    merged: int = 0,
    form: str = "",
    is_matrix: Callable[[str], bool] = lambda _: True,
    logical: Mapping[str, str] = MappingProxyType({}),
) -> tuple[dict[str, Any], tuple[Output, ...]]:
    """The engine's report: its own figures, and its outputs under `out`, each of so many `merged` tensors.

    The figures have ``replaces``: of each output, whether it was made in the state folder of another one
    that it is to replace. ``form`` is what donor and reference are stored as, if they are packed;
    ``is_matrix`` tells the tensors whose changes are like those of packed weights; ``logical`` has the names
    of the weights by those of their stored parts.
    """
    data = json.loads(text, object_hook=_figures)
    outputs = []
    data["replaces"] = [entry["replaces"] for entry in data["outputs"]]
    for entry in data.pop("outputs"):
        survival = entry.get("survival") or {}
        tensors = {logical.get(name, name): row for name, row in survival.get("tensors", ())}
        outputs.append(
            Output(
                folder=str(out / entry["folder"]) if entry["folder"] else str(out),
                alpha=entry.get("alpha"),
                shards=tuple(Shard(s["name"], s["size"], s["digest"]) for s in entry["shards"]),
                survival=Survival.measured(survival.get("total")),
                tensors=tensors,
                non_finite=tuple(
                    (logical.get(name, name), place, count)
                    for name, place, count in entry.get("non_finite", ())
                ),
                unmeasured=max(merged - len(tensors), 0) if tensors else 0,
                noise=_noise(entry.get("noise"), form, is_matrix),
                unweighted={logical.get(name, name): count for name, count in entry.get("unweighted", ())},
            )
        )
    return data, tuple(outputs)


def _noise(entry: Mapping[str, Any] | None, form: str, is_matrix: Callable[[str], bool]) -> Noise | None:
    rows = (entry or {}).get("tensors", ())
    packed = (sums for _, stored, sums in rows if stored == "packed")
    return noise_of(
        form, packed, [sums for name, stored, sums in rows if stored == "plain" and is_matrix(name)]
    )


def _figures(value: dict[str, Any]) -> Any:
    """Survival figures as such, with their tensor's name if there is one.

    At once and not when all are read: as dictionaries, those of a hundred thousand tensors are 60 MB.
    """
    if "reference_squares" in value:
        return value.get("name"), value["stored"], Sums.of(value)
    if "step_norm" not in value:
        return value
    row = Survival.from_dict(value)
    return (value["name"], row) if "name" in value else row
