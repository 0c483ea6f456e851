"""donor − reference as an artifact of its own: its plan, its run, and what is left behind with the values."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from taskvec import _core, companions, compat, manifest
from taskvec.card import vector_card
from taskvec.checkpoint import Checkpoint
from taskvec.companions import CARD, CONFIG, MANIFEST
from taskvec.layout import DEFAULT_SHARD_SIZE
from taskvec.manifest import File
from taskvec.plan import FORMAT, Output, Plan, Source
from taskvec.planner import pinned, selection_recipe, source_document
from taskvec.progress import Callback, meter
from taskvec.report import Output as Written
from taskvec.report import Report, Shard
from taskvec.saved import REFERENCE, fits
from taskvec.saved_rows import FORMAT as VECTOR_FORMAT
from taskvec.selection import Selection
from taskvec.settings import DTYPE_BYTES, Settings, parse_dtype
from taskvec.state_dict import memories
from taskvec.steps import Step

INDEX = "vector.safetensors.index.json"
# What a target is compared with when the vector is applied.
_COMPARED = (
    CONFIG,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)


def plan_extract(
    donor: Checkpoint,
    reference: Checkpoint,
    *,
    selection: Selection | None = None,
    settings: Settings | None = None,
    dtype: str | None = None,
    force: Iterable[str] = (),
) -> Plan:
    """The plan of saving donor − reference.

    Parameters
    ----------
    donor, reference : Checkpoint
        Headers are enough.
    selection : Selection, optional
        The tensors that belong to the vector.
    settings : Settings, optional
        ``max_shard_size`` and ``force`` matter here.
    dtype : str, optional
        A float type for all values, which loses what it cannot hold; by default each tensor has the narrowest
        type that holds all its values.
    force : iterable of str
        More findings to go on in spite of.

    Raises
    ------
    CompatibilityError
        The models do not fit each other.
    RecipeError
        The selection matches nothing, or a setting cannot be honoured.
    """
    selection, settings = selection or Selection(), settings or Settings()
    dtype = parse_dtype(dtype) if dtype is not None else None
    found = compat.check_models([("donor", donor)], reference, role="reference", selection=selection)
    found = compat.enforce(found, (*settings.force, *force))
    selection.select(reference)
    own = Step(1.0, donor, reference, selection).own()
    models = [("donor", donor), ("reference", reference)]
    document = {
        "format": FORMAT,
        "sources": [source_document(model) for _, model in models],
        "tensors": [
            (name, reference.tensors[name].shape, donor_name, name) for name, (donor_name, _) in own.items()
        ],
        "max_shard_size": settings.max_shard_size or DEFAULT_SHARD_SIZE,
        "dtype": dtype,
    }
    data = json.dumps(document, separators=(",", ":")).encode()
    recipe = {
        "verb": "extract",
        **{role: pinned(model) for role, model in models},
        **selection_recipe(selection),
        "dtype": dtype,
        "max_shard_size": settings.max_shard_size,
        "force": list(settings.force) or None,
    }
    bytes_in = [
        sum(donor.tensors[names[0]].nbytes for names in own.values()),
        sum(reference.tensors[name].nbytes for name in own),
    ]
    return Plan(
        json=data,
        digest=_core.blake3_hex(data),
        kind="vector",
        sources=tuple(
            Source(role, model.spec, model.revision, count, model.download_bytes)
            for (role, model), count in zip(models, bytes_in, strict=True)
        ),
        outputs=(Output("", 1.0),),
        shards=(),
        weight_map=dict.fromkeys(own, ""),
        merged=len(own),
        copied=0,
        # if every element has changed and no difference needs a wider type; known only when it has been read
        bytes_out=_dense_bytes(reference, own, dtype),
        most_inputs=2,
        findings=tuple(found),
        config={},
        recipe={key: value for key, value in recipe.items() if value is not None},
        checkpoints=(donor, reference),
    )


def execute_extract(
    plan: Plan, out: Path, *, settings: Settings, progress: Callback | None, begin: float
) -> Report:
    """Run a plan of :func:`plan_extract`; see :func:`taskvec.execution.execute`."""
    _, reference = (checkpoint.materialise(progress) for checkpoint in plan.checkpoints)
    assert isinstance(reference, Checkpoint)
    handed = memories(plan.checkpoints)
    engine = json.loads(
        _core.extract(
            plan.json,
            out,
            threads=settings.threads or 0,
            progress=meter(progress, "merge"),
            resume=settings.resume and not handed,
            overwrite=settings.overwrite,
            rehash=settings.rehash,
            allow_non_finite="non-finite" in settings.force,
            memories=handed,
        )
    )
    shards = tuple(Shard(row["name"], row["size"], row["digest"]) for row in engine["shards"])
    written = Written(str(out), None, shards, None, {}, ())
    files = [File(*shard) for shard in shards]
    for name in _COMPARED:
        if name in reference.other_files:
            companions.copy(reference, name, out / REFERENCE)
            files.append(File(f"{REFERENCE}/{name}", *_core.digest_file(out / REFERENCE / name)))
    vector = _vector(engine.pop("tensors"), plan.recipe, reference.config, files)
    facts = manifest.provenance(plan, written, vector)
    small = {CARD: vector_card(facts)}
    if len(shards) > 1:
        total = sum(row["bytes"] for row in vector["tensors"].values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(engine["weight_map"].items()))}
        small[INDEX] = (json.dumps(index, indent=2) + "\n").encode()
    for name, data in small.items():
        _core.write_atomic(out / name, data)
        files.append(File(name, len(data), _core.blake3_hex(data)))
    run = manifest.run_facts(plan, engine, begin)
    _core.write_atomic(out / MANIFEST, manifest.text(facts, files=files, run=run))
    _core.finish_folder(out)
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


def _dense_bytes(reference: Checkpoint, names: Iterable[str], dtype: str | None) -> int:
    infos = [reference.tensors[name] for name in names]
    return sum(math.prod(info.shape) * DTYPE_BYTES[dtype or info.dtype] for info in infos)


def _vector(
    rows: Iterable[dict[str, Any]],
    recipe: Mapping[str, Any],
    config: Mapping[str, Any],
    files: Iterable[File],
) -> dict[str, Any]:
    """What the manifest says of the vector: totals, and each tensor's encoding and figures."""
    tensors = {row.pop("name"): row for row in rows}
    values = tensors.values()
    norms = [row["norm"] for row in values if row["norm"] is not None]
    return {
        "format": VECTOR_FORMAT,
        "dtype": recipe.get("dtype"),
        "fits": fits(tensors, config, files),
        "elements": sum(row["elements"] for row in values),
        "changed": sum(row["changed"] for row in values),
        "bytes": sum(row["bytes"] for row in values),
        "norm": manifest.rounded(sum(norm * norm for norm in norms) ** 0.5),
        "largest": max((row["largest"] or 0.0 for row in values), default=0.0),
        "tensors": tensors,
    }
