"""donor − reference as a task vector on disk: the engine's pass, then the other files of the vector."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from taskvec._core import (
    blake3_hex,
    digest_file,
    extract,
    finish_folder,
    join_vector,
    replace_output,
    write_atomic,
)
from taskvec.files.manifest import File
from taskvec.files.names import CARD, MANIFEST, RECIPE
from taskvec.files.place import sync_folders
from taskvec.models.model import Model
from taskvec.models.saved_vector import COMPARED, FORMATS, INDEX, REFERENCE, fits
from taskvec.models.state_dict import buffers_of
from taskvec.plan.plan import PlanRecord
from taskvec.progress import heard, meter
from taskvec.report import manifest
from taskvec.report.card import vector_card
from taskvec.report.noise import Noise, Sums, noise_of
from taskvec.report.recipe_file import recipe_file
from taskvec.report.report import Output as Written
from taskvec.report.report import Report, Shard, noise_findings
from taskvec.run.job import Job, Piece, format_of
from taskvec.run.locked import engine_paths, place_of
from taskvec.run.publish import copy, hold_complete, hold_or_hide, hold_ours


def execute_extract(job: Job) -> Report:
    """Write a vector into a folder that is locked; see :func:`taskvec.run.execute.execute`."""
    plan, (folder,) = job.plan, job.folders
    reference = job.checkpoints[1]
    assert isinstance(reference, Model)
    engine = _extracted(job, folder) if job.pieces is None else _joined(job, folder, job.pieces)
    out = place_of(folder, engine["replaces"])
    shards = tuple(Shard(row["name"], row["size"], row["digest"]) for row in engine["shards"])
    noise = _noise(engine.pop("noise", ()), plan, reference)
    written = Written(str(folder), None, shards, None, {}, (), noise=noise)
    files = [File(*shard) for shard in shards]
    for name in COMPARED:
        if name in reference.other_files:
            copy(reference, name, out, f"{REFERENCE}/{name}")
            files.append(File(f"{REFERENCE}/{name}", *digest_file(out / REFERENCE / name)))
    job.inputs.hold()
    vector = _vector(engine.pop("tensors"), plan.recipe, reference.config, files)
    contents = job.digests.take(engine.pop("contents", ())) if job.digests else ()
    facts = manifest.provenance(plan, written, vector, contents=contents)
    small = {CARD: vector_card(facts), RECIPE: recipe_file(facts["recipe"])}
    if len(shards) > 1:
        total = sum(row["bytes"] for row in vector["tensors"].values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(engine["weight_map"].items()))}
        small[INDEX] = (json.dumps(index, indent=2) + "\n").encode()
    hold_complete(out, files)
    for name, data in small.items():
        hold_ours(out, plan.json)
        write_atomic(out / name, data)
        files.append(File(name, len(data), blake3_hex(data)))
    sync_folders(out, [file.name for file in files])
    hold_or_hide(out, files)
    hold_ours(out, plan.json)
    run = manifest.run_facts(plan, engine, job.begin, job.rows)
    write_atomic(out / MANIFEST, manifest.text(facts, files=files, run=run))
    if out != folder:
        replace_output(folder)
    finish_folder(folder)
    return Report(
        outputs=(written,),
        seconds=time.monotonic() - job.begin,
        bytes_read=engine["bytes_read"],
        bytes_written=engine["bytes_written"],
        threads=engine["threads"],
        cpu_level=engine["cpu_level"],
        resumed_shards=engine["resumed_shards"],
        findings=(*plan.findings, *noise_findings((written,))),
        plan=plan.digest,
        vector=vector,
    )


def _noise(rows: Iterable[Mapping[str, Any]], plan: PlanRecord, reference: Model) -> Noise | None:
    """How much of the vector is one, where donor and reference are quantised."""
    packed = [Sums.of(row) for row in rows if row["stored"] == "packed"]
    tensors = reference.tensors
    plain = [
        Sums.of(row)
        for row in rows
        if row["stored"] == "plain" and row["name"] in tensors and len(tensors[row["name"]].shape) > 1
    ]
    return noise_of(format_of(plan), packed, plain)


def _extracted(job: Job, folder: Path) -> dict[str, Any]:
    """What the engine reports of writing the vector."""
    settings, buffers = job.settings, buffers_of(job.checkpoints)
    report: dict[str, Any] = json.loads(
        extract(
            job.plan.json,
            folder,
            threads=settings.threads or 0,
            progress=meter(job.progress, "merge"),
            notice=heard(job.progress),
            resume=settings.resume and not buffers,
            overwrite=settings.overwrite,
            rehash=settings.rehash,
            allow_non_finite="non-finite" in settings.force,
            memories=buffers,
            paths=engine_paths(job.checkpoints),
            contents=job.digests.asked if job.digests else (),
        )
    )
    return report


def _joined(job: Job, folder: Path, pieces: Sequence[Piece]) -> dict[str, Any]:
    """The same of joining what parts have extracted."""
    told = [
        {"path": str(piece.path), "size": piece.size, "tensors": [_stored(row) for row in piece.tensors]}
        for piece in pieces
    ]
    report: dict[str, Any] = json.loads(
        join_vector(
            job.plan.json,
            json.dumps(told).encode(),
            folder,
            threads=job.settings.threads or 0,
            progress=meter(job.progress, "merge"),
            notice=heard(job.progress),
            paths=engine_paths(job.checkpoints),
        )
    )
    rows = [dict(row) for piece in pieces for row in piece.tensors]
    noise = [row.pop("noise") for row in rows if "noise" in row]
    for row, file in zip(rows, report.pop("files"), strict=True):
        del row["stored"]
        row["file"] = file
    return {**report, "tensors": rows, "noise": noise}


def _stored(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("name", "origin", "bytes", "stored")
    return {**{name: row[name] for name in names}, "rounded": bool(row.get("rounded"))}


def _vector(
    rows: Iterable[dict[str, Any]],
    recipe: Mapping[str, Any],
    config: Mapping[str, Any],
    files: Iterable[File],
) -> dict[str, Any]:
    """The vector in the manifest: totals, and each tensor's encoding and figures."""
    tensors = {row.pop("name"): row for row in rows}
    values = tensors.values()
    norms, largest = ([row[key] for row in values] for key in ("norm", "largest"))
    return {
        "format": FORMATS[any(row.get("rounded") for row in values)],
        "dtype": recipe.get("dtype"),
        "fits": fits(tensors, config, files),
        "elements": sum(row["elements"] for row in values),
        "changed": sum(row["changed"] for row in values),
        "bytes": sum(row["bytes"] for row in values),
        # null where a value is NaN or infinite, as of the tensor that has it
        "norm": None if None in norms else manifest.rounded(sum(norm * norm for norm in norms) ** 0.5),
        "largest": None if None in largest else max(largest, default=0.0),
        "tensors": tensors,
    }
