"""donor − reference as a task vector on disk: the engine's pass, then the other files of the vector."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from taskvec._core import blake3_hex, digest_file, extract, finish_folder, write_atomic
from taskvec.files.manifest import File
from taskvec.files.names import CARD, MANIFEST
from taskvec.files.place import sync_folders
from taskvec.models.model import Model
from taskvec.models.saved_vector import COMPARED, FORMATS, INDEX, REFERENCE, fits
from taskvec.models.state_dict import buffers_of
from taskvec.plan.plan import PlanRecord
from taskvec.progress import Callback, meter
from taskvec.report import manifest
from taskvec.report.card import vector_card
from taskvec.report.report import Output as Written
from taskvec.report.report import Report, Shard
from taskvec.resolve.remote import materialised
from taskvec.run.inputs import InputRow, Inputs
from taskvec.run.publish import copy, hold_complete, hold_ours
from taskvec.settings import Settings


def execute_extract(
    plan: PlanRecord,
    out: Path,
    *,
    settings: Settings,
    progress: Callback | None,
    begin: float,
    rows: Sequence[InputRow] | None,
) -> Report:
    """Run a plan of :func:`plan_extract`; see :func:`taskvec.run.execute.execute`."""
    sources = [materialised(checkpoint, progress) for checkpoint in plan.checkpoints]
    reference = sources[1]
    assert isinstance(reference, Model)
    inputs = Inputs(sources)
    buffers = buffers_of(plan.checkpoints)
    engine = json.loads(
        extract(
            plan.json,
            out,
            threads=settings.threads or 0,
            progress=meter(progress, "merge"),
            resume=settings.resume and not buffers,
            overwrite=settings.overwrite,
            rehash=settings.rehash,
            allow_non_finite="non-finite" in settings.force,
            memories=buffers,
        )
    )
    shards = tuple(Shard(row["name"], row["size"], row["digest"]) for row in engine["shards"])
    written = Written(str(out), None, shards, None, {}, ())
    files = [File(*shard) for shard in shards]
    for name in COMPARED:
        if name in reference.other_files:
            copy(reference, name, out, f"{REFERENCE}/{name}")
            files.append(File(f"{REFERENCE}/{name}", *digest_file(out / REFERENCE / name)))
    inputs.hold()
    vector = _vector(engine.pop("tensors"), plan.recipe, reference.config, files)
    facts = manifest.provenance(plan, written, vector)
    small = {CARD: vector_card(facts)}
    if len(shards) > 1:
        total = sum(row["bytes"] for row in vector["tensors"].values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(engine["weight_map"].items()))}
        small[INDEX] = (json.dumps(index, indent=2) + "\n").encode()
    for name, data in small.items():
        hold_ours(out, plan.json)
        write_atomic(out / name, data)
        files.append(File(name, len(data), blake3_hex(data)))
    sync_folders(out, [file.name for file in files])
    hold_complete(out, files)
    hold_ours(out, plan.json)
    run = manifest.run_facts(plan, engine, begin, rows)
    write_atomic(out / MANIFEST, manifest.text(facts, files=files, run=run))
    finish_folder(out)
    return Report(
        outputs=(written,),
        seconds=time.monotonic() - begin,
        bytes_read=engine["bytes_read"],
        bytes_written=engine["bytes_written"],
        threads=engine["threads"],
        cpu_level=engine["cpu_level"],
        resumed_shards=engine["resumed_shards"],
        findings=plan.findings,
        plan=plan.digest,
        vector=vector,
    )


def _vector(
    rows: Iterable[dict[str, Any]],
    recipe: Mapping[str, Any],
    config: Mapping[str, Any],
    files: Iterable[File],
) -> dict[str, Any]:
    """The vector in the manifest: totals, and each tensor's encoding and figures."""
    tensors = {row.pop("name"): row for row in rows}
    values = tensors.values()
    norms = [row["norm"] for row in values if row["norm"] is not None]
    return {
        "format": FORMATS[any(row.get("rounded") for row in values)],
        "dtype": recipe.get("dtype"),
        "fits": fits(tensors, config, files),
        "elements": sum(row["elements"] for row in values),
        "changed": sum(row["changed"] for row in values),
        "bytes": sum(row["bytes"] for row in values),
        "norm": manifest.rounded(sum(norm * norm for norm in norms) ** 0.5),
        "largest": max((row["largest"] or 0.0 for row in values), default=0.0),
        "tensors": tensors,
    }
