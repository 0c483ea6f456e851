"""``taskvec.json``: what made a folder and what is in it; written last, so that its presence means complete.

The members are documented by :func:`schema`. All of them but ``run`` depend on the inputs and on what was
asked for alone: the same merge gives the same bytes there, on any machine and with any number of threads.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from taskvec._core import __version__
from taskvec.files.manifest_schema import VERSION
from taskvec.files.seal import sealed
from taskvec.host import is_repeatable, now
from taskvec.models.source_contents import content_of, file_rows
from taskvec.models.state_dict import is_computed
from taskvec.plan.plan import ARITHMETIC
from taskvec.report import reproduce
from taskvec.report.licence import licence_of
from taskvec.report.survival import Survival

if TYPE_CHECKING:
    from taskvec.files.manifest import File
    from taskvec.models.adapter import Adapter
    from taskvec.models.model import Model
    from taskvec.models.saved_vector import SavedVector
    from taskvec.models.source_contents import Contents
    from taskvec.plan.plan import PlanRecord
    from taskvec.report.report import Output


def provenance(
    plan: PlanRecord,
    output: Output,
    vector: Mapping[str, Any] | None = None,
    adapter: Mapping[str, Any] | None = None,
    tokens: Mapping[str, Any] | None = None,
    contents: Contents = (),
) -> dict[str, Any]:
    """How an output came about, as its manifest has it; the model card is written from it too.

    ``vector`` describes a saved vector, ``adapter`` one that a vector was made into; neither has a survival.
    ``tokens`` are the figures of a model that was moved to another tokenizer. ``contents`` has the digests
    of the weight files of each source.
    """
    return {
        **heading(plan.kind, recipe_of(plan, output.alpha)),
        "sources": source_rows(plan, contents),
        "findings": [finding.to_dict() for finding in plan.findings],
        "survival": {
            "status": output.survival_status,
            "fields": list(Survival._fields),
            "total": list(output.survival) if output.survival else None,
            "tensors": output.tensors,
            **({"unmeasured": output.unmeasured} if output.unmeasured else {}),
        },
        **({"noise": output.noise.to_dict()} if output.noise is not None else {}),
        "non_finite": [list(row) for row in output.non_finite],
        **({"unweighted": dict(output.unweighted)} if output.unweighted else {}),
        **({"vector": dict(vector)} if vector else {}),
        **({"adapter": dict(adapter)} if adapter else {}),
        **({"tokens": dict(tokens)} if tokens else {}),
    }


def heading(kind: str, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What every manifest begins with."""
    return {
        "schema": VERSION,
        "kind": kind,
        "engine": {"name": "taskvec", "version": __version__, "arithmetic": ARITHMETIC},
        "recipe": recipe,
    }


def recipe_of(plan: PlanRecord, alpha: float | None) -> dict[str, Any]:
    """The recipe of one output as its manifest has it."""
    recipe = dict(plan.recipe)
    return {**recipe, "alpha": alpha} if "alpha" in recipe else recipe


def run_facts(
    plan: PlanRecord, engine: Mapping[str, Any], begin: float, inputs: Sequence[Sequence[Any]] | None
) -> dict[str, Any]:
    """The facts of this run alone; none of them tells when or how fast, where ``SOURCE_DATE_EPOCH`` is set.

    ``begin`` is when it began, on the monotonic clock; ``inputs`` are the states of its input files, by which
    the same command given again knows that there is nothing to do.
    """
    return {
        "plan": plan.digest,
        "finished": now().isoformat(timespec="seconds"),
        "seconds": 0.0 if is_repeatable() else round(time.monotonic() - begin, 3),
        "threads": engine["threads"],
        "cpu_level": engine["cpu_level"],
        **({"inputs": inputs} if inputs is not None and not is_repeatable() else {}),
        **({"request": plan.request.digest} if plan.request is not None else {}),
    }


def text(facts: Mapping[str, Any], *, files: Sequence[File], run: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest: its provenance, the files, and what is true of this run alone."""
    ordered = {
        **{key: facts[key] for key in ("schema", "kind", "engine", "recipe")},
        "command": reproduce.command(facts["recipe"]),
        "sources": facts["sources"],
        "files": [file._asdict() for file in sorted(files)],
        **{
            key: facts[key]
            for key in (
                "findings",
                "survival",
                "noise",
                "non_finite",
                "unweighted",
                "importance",
                "vector",
                "adapter",
                "tokens",
            )
            if key in facts
        },
        "run": dict(run),
    }
    out = io.BytesIO()
    _dump(out, ordered, 3)
    out.write(b"\n")
    return sealed(out.getvalue())


def with_id(data: bytes, identifier: str) -> bytes:
    """The bytes of a manifest with what tells its run from others that write to the same address."""
    head, found, tail = data.rpartition(b'"run": {\n')
    assert found
    return sealed(head + found + b'    "id": ' + json.dumps(identifier).encode() + b",\n" + tail)


def rounded(value: float) -> float:
    """Six significant digits, as the engine reports: sums may differ in the last bits."""
    return float(f"{value:.5e}")


def source_rows(plan: PlanRecord, contents: Contents = ()) -> list[dict[str, Any]]:
    """What a manifest says of the models of a plan, with the digests of their weight files."""
    return [
        source_row(source.role, checkpoint, contents[number] if contents else {})
        for number, (source, checkpoint) in enumerate(zip(plan.sources, plan.checkpoints, strict=True))
        if not is_computed(checkpoint)
    ]


def source_row(
    role: str, checkpoint: Model | SavedVector | Adapter, contents: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """What a manifest says of a model that was read; ``contents`` are the digests of its weight files."""
    files, licence = file_rows(checkpoint, contents), licence_of(checkpoint)
    hub = {"repository": checkpoint.repository, "revision": checkpoint.revision}
    return {
        "role": role,
        "model": checkpoint.spec,
        **{key: value for key, value in hub.items() if value},
        "fingerprint": checkpoint.fingerprint,
        "content": content_of(checkpoint, files, contents),
        **({"license": licence} if licence else {}),
        "files": files,
    }


def _dump(out: io.BytesIO, value: Any, depth: int, indent: bytes = b"") -> None:
    """JSON with its upper levels spread over lines: small for 100 000 tensors, and still readable."""
    is_row = isinstance(value, (list, tuple)) and not any(isinstance(item, (dict, list)) for item in value)
    if depth == 0 or not isinstance(value, (Mapping, list)) or not value or is_row:
        out.write(json.dumps(value, ensure_ascii=True).encode())
        return
    deeper = indent + b"  "
    before = b"\n" + deeper
    out.write(b"{" if isinstance(value, Mapping) else b"[")
    if isinstance(value, Mapping):
        for key, item in value.items():
            out.write(before + json.dumps(key).encode() + b": ")
            _dump(out, item, depth - 1, deeper)
            before = b",\n" + deeper
        out.write(b"\n" + indent + b"}")
        return
    for item in value:
        out.write(before)
        _dump(out, item, 0)
        before = b",\n" + deeper
    out.write(b"\n" + indent + b"]")
