"""donor − reference as a LoRA adapter: the factors of one module after the other, then the other files."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from taskvec._core import blake3_hex, cpu_level, digest_file, finish_folder, replace_output, write_atomic
from taskvec.dtypes import numpy_dtype
from taskvec.errors import NonFiniteError, RecipeError
from taskvec.files.manifest import File
from taskvec.files.names import CARD, MANIFEST, RECIPE
from taskvec.files.place import sync_folders
from taskvec.host import cores
from taskvec.models.adapter import WEIGHTS, Adapter
from taskvec.models.adapter_config import CONFIG
from taskvec.models.adapter_written import (
    factor_names,
    module_in_memory,
    settings,
    whole_tensor_name,
)
from taskvec.models.model import Model
from taskvec.models.saved_vector import SavedVector
from taskvec.plan.adapter_division import Part
from taskvec.plan.delta import Term
from taskvec.plan.plan import PlanRecord
from taskvec.progress import meter
from taskvec.report import manifest
from taskvec.report.adapter_card import adapter_card
from taskvec.report.energy import figures, findings
from taskvec.report.recipe_file import recipe_file
from taskvec.report.report import Output as Written
from taskvec.report.report import Report, Shard
from taskvec.run.begun import begin, hold_space
from taskvec.run.compare import compare
from taskvec.run.evaluate import of_terms, stored
from taskvec.run.factor_files import FactorFiles, numbered
from taskvec.run.job import Job
from taskvec.run.low_rank import Decomposer, LowRank, Wanted, decomposer
from taskvec.run.publish import hold_complete, hold_or_hide, hold_ours
from taskvec.text import plural


def execute_lora(job: Job) -> Report:
    """Write an adapter into a folder that is locked; see :func:`taskvec.run.execute.execute`."""
    plan, (folder,) = job.plan, job.folders
    hold_space(folder, 2 * plan.bytes_out)
    place = begin(folder, plan.json, resume=job.settings.resume and job.rows is not None)
    files = FactorFiles(place, blake3_hex(plan.json + json.dumps(job.rows).encode()))
    parts = [Part(*row[:5]) for row in plan.document["factors"]]
    done = dict(numbered(files, len(parts) + 1, rehash=job.settings.rehash)) if job.rows is not None else {}
    resumed = len(done)
    _factorise(job, files, parts, done)
    _level(files, parts, done)
    if plan.document["whole"] and len(parts) not in done:
        done[len(parts)] = _hold_whole(job, files, len(parts), {part.module for part in parts})
    job.inputs.hold()
    rows = {part.name: done[number] for number, part in enumerate(parts)}
    adapter = figures(rows, _squares(job), plan.document)
    if not adapter["square"]:
        raise RecipeError(
            f"the adapter would hold no factors: the difference is zero in {plural(len(parts), 'module')}",
            "give the model that the donor was trained from as reference",
        )
    numbers = [number for number, part in enumerate(parts) if rows[part.name]["rank"]]
    files.assemble(place, WEIGHTS, [*numbers, *([len(parts)] if plan.document["whole"] else [])])
    weights = File(WEIGHTS, *digest_file(place / WEIGHTS, threads=job.settings.threads or 0))
    written = Written(str(folder), None, (Shard(*weights),), None, {}, ())
    found = (*plan.findings, *findings(adapter, str(folder)))
    _publish(job, place, weights, written, adapter)
    if place != folder:
        replace_output(folder)
    finish_folder(folder)
    return Report(
        outputs=(written,),
        seconds=time.monotonic() - job.begin,
        bytes_read=sum(source.bytes_in for source in plan.sources),
        bytes_written=weights.bytes,
        threads=_threads(job),
        cpu_level=cpu_level(),
        resumed_shards=resumed,
        findings=found,
        plan=plan.digest,
        adapter=adapter,
    )


def _squares(job: Job) -> dict[str, float]:
    """The squared norm of what has no factors, by name: held whole, or left out."""
    document = job.plan.document
    stored_names = {name: tuple(own) for name, own in document["others"].items()}
    model = _base(job)
    pairs = compare(
        [_term(job, stored_names)],
        (),
        {name: model.tensors[name].shape for name in stored_names},
        threads=job.settings.threads,
    )
    return {name: pair.left_square for name, pair in pairs.items()}


def _threads(job: Job) -> int:
    return job.settings.threads or cores()


def _factorise(job: Job, files: FactorFiles, parts: Sequence[Part], done: dict[int, dict[str, Any]]) -> None:
    """Compute the factors of the modules that are not done, one after the other."""
    document = job.plan.document
    stored_names = {row[0]: tuple(row[5]) for row in document["factors"]}
    numbers = {part.name: number for number, part in enumerate(parts) if number not in done}
    shapes = {name: parts[number].shape for name, number in numbers.items()}
    wanted = Wanted(document["rank"], document["energy"], document["seed"])
    tell = meter(job.progress, "merge")
    total = sum(4 * part.shape[0] * part.shape[1] for part in parts)
    passed = total - sum(4 * rows * columns for rows, columns in shapes.values())
    with decomposer(_threads(job)) as decompose:
        for name, array in of_terms([_term(job, stored_names)], shapes):
            part = parts[numbers[name]]
            done[numbers[name]] = _put(job, files, numbers[name], part, array, wanted, decompose)
            passed += 4 * array.size
            if tell is not None:
                tell(passed, total)


def _put(
    job: Job,
    files: FactorFiles,
    number: int,
    part: Part,
    array: np.ndarray,
    wanted: Wanted,
    decompose: Decomposer,
) -> dict[str, Any]:
    """Compute and keep the factors of one module; the facts of its report."""
    dtype = job.plan.document["dtype"]
    matrix = array.T if part.transposed else array
    found = decompose(matrix, wanted, part.name)
    with np.errstate(over="ignore"):
        a, b = (factor.astype(numpy_dtype(dtype)) for factor in (found.a, found.b))
    if not all(np.isfinite(factor.astype(np.float32)).all() for factor in (a, b)):
        raise NonFiniteError(
            f"values that are not finite: the factors of `{part.name}` are beyond the range of {dtype}",
            "choose a wider type (`--dtype float32`), or exclude the tensor (`--exclude`)",
        )
    has_factors = found.total > 0 or part.role == "expert"
    facts = {
        "rank": a.shape[0] if has_factors else 0,
        "shape": list(matrix.shape),
        "role": part.role,
        "square": found.total,
        "kept": found.kept(found.rank) * found.total,
        "curve": curve(found),
        "exact": found.is_exact,
    }
    module = module_in_memory(part.module, _base(job).config)
    names = factor_names(module, part.role == "embedding")
    tensors = {name: (dtype, factor) for name, factor in zip(names, (a, b), strict=True)}
    files.put(number, tensors if has_factors else {}, facts)
    return facts


def curve(found: LowRank) -> list[list[float]]:
    """The squared norm that is kept at ranks 1, 2, 4 and so on, up to that of the factors."""
    ranks = [1 << power for power in range(found.rank.bit_length()) if 1 << power < found.rank]
    return [[rank, found.kept(rank) * found.total] for rank in [*ranks, found.rank]]


def _level(files: FactorFiles, parts: Sequence[Part], done: dict[int, dict[str, Any]]) -> None:
    """Give all experts the rank of the largest: they are loaded as one, with one rank."""
    experts = [number for number, part in enumerate(parts) if part.role == "expert"]
    rank = max((done[number]["rank"] for number in experts), default=0)
    for number in experts:
        more = rank - done[number]["rank"]
        if not more:
            continue
        (a_name, a_type, a), (b_name, b_type, b) = files.arrays(number)
        a, b = np.pad(a, ((0, more), (0, 0))), np.pad(b, ((0, 0), (0, more)))
        done[number] = {**done[number], "rank": rank}
        files.put(number, {a_name: (a_type, a), b_name: (b_type, b)}, done[number])


def _term(job: Job, stored_names: Mapping[str, tuple[str, ...]]) -> Term:
    """The difference as the engine reads it, without tensors in which a saved vector is zero."""
    sources = tuple(source for source in job.checkpoints if not isinstance(source, Adapter))
    zero = sources[0].zero if isinstance(sources[0], SavedVector) else frozenset()
    return Term(1.0, sources, {name: own for name, own in stored_names.items() if name not in zero})


def _base(job: Job) -> Model:
    """The model that the adapter is put on; of a saved vector its names and settings."""
    source = job.checkpoints[-1]
    if isinstance(source, SavedVector):
        return source.model
    assert isinstance(source, Model)
    return source


def _hold_whole(job: Job, files: FactorFiles, number: int, adapted: set[str]) -> dict[str, Any]:
    """Keep what the adapter holds as it is in the donor; what is not selected is the reference's."""
    donor, reference = job.checkpoints
    assert isinstance(donor, Model)
    assert isinstance(reference, Model)
    tensors: dict[str, tuple[str, np.ndarray]] = {}
    for name, own in job.plan.document["whole"]:
        model, at = (reference, name) if own is None else (donor, own[0])
        module, _, kind = name.rpartition(".")
        place = whole_tensor_name(module_in_memory(module, reference.config), kind, module in adapted)
        tensors[place] = model.tensors[at].dtype, stored(model, at)
    files.put(number, tensors, {})
    return {}


def _publish(job: Job, place: Path, weights: File, written: Written, adapter: Mapping[str, Any]) -> None:
    """Write the files next to the weights, the manifest last."""
    plan = job.plan
    contents = job.digests.read(job.settings.threads or 0) if job.digests else ()
    facts = manifest.provenance(plan, written, adapter=adapter, contents=contents)
    small = {
        CONFIG: (json.dumps(_settings(job, adapter), indent=2) + "\n").encode(),
        CARD: adapter_card(facts),
        RECIPE: recipe_file(facts["recipe"]),
    }
    files = [weights]
    hold_complete(place, files)
    for name, data in small.items():
        hold_ours(place, plan.json)
        write_atomic(place / name, data)
        files.append(File(name, len(data), blake3_hex(data)))
    sync_folders(place, [file.name for file in files])
    hold_or_hide(place, files)
    hold_ours(place, plan.json)
    engine = {"threads": _threads(job), "cpu_level": cpu_level()}
    run = manifest.run_facts(plan, engine, job.begin, job.rows)
    write_atomic(place / MANIFEST, manifest.text(facts, files=files, run=run))


def _settings(job: Job, adapter: Mapping[str, Any]) -> dict[str, Any]:
    """adapter_config.json."""
    plan, base = job.plan, _base(job)
    parts = [Part(*row[:5]) for row in plan.document["factors"]]
    config = base.config
    by_module = {module_in_memory(part.module, config): part for part in parts}
    ranks = {m: adapter["modules"][part.name]["rank"] for m, part in by_module.items()}
    ranks = {module: rank for module, rank in ranks.items() if rank}
    experts = [ranks[m] for m, part in by_module.items() if part.role == "expert" and m in ranks]
    counted = Counter(ranks.values())
    rank = experts[0] if experts else max(counted, key=lambda each: (counted[each], each), default=1)
    adapted = {part.module for part in parts if adapter["modules"][part.name]["rank"]}
    whole = dict.fromkeys(name.rpartition(".")[0] for name, _ in plan.document["whole"])
    modules = [n.removesuffix(".weight") for n in base.tensors if n.endswith(".weight")]
    model, revision = _named(plan)
    return settings(
        ranks,
        rank,
        modules=[module_in_memory(module, config) for module in modules],
        whole=[module_in_memory(module, config) for module in whole if module not in adapted],
        is_conv1d=any(part.transposed and part.role == "linear" for part in parts),
        base=model,
        revision=revision,
        classes=config.get("architectures") or (),
    )


def _named(plan: PlanRecord) -> tuple[str | None, str | None]:
    """The model that the adapter is for, as PEFT finds it, and its revision."""
    source = plan.checkpoints[-1]
    if isinstance(source, SavedVector):
        found = next((s for s in source.manifest["sources"] if s["role"] == "reference"), {})
        return found.get("repository") or found.get("model"), found.get("revision")
    if isinstance(source, Model) and source.kind == "memory":
        return None, None
    return source.repository or source.spec, source.revision if source.repository else None
