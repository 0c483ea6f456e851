"""A run that has finished, and its command given again: there is nothing to do, and nothing is touched."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskvec._core import blake3_hex, digest_file, finish_folder
from taskvec.compat.findings import Finding
from taskvec.errors import FormatError, OutputError
from taskvec.files import look
from taskvec.files.json import read_bytes
from taskvec.files.manifest import MAXIMUM_BYTES, File, files, parse
from taskvec.files.names import CONFIG, MANIFEST, PLAN, STATE, SWAP
from taskvec.models.model import Model
from taskvec.plan.plan import PlanRecord
from taskvec.report.manifest import recipe_of, source_rows
from taskvec.report.noise import Noise
from taskvec.report.report import Output, Report, Shard, rounding_findings
from taskvec.report.survival import Survival
from taskvec.run.contents import InputDigests
from taskvec.run.inputs import InputRow, companions, difference, is_touched
from taskvec.run.publish import config_of
from taskvec.settings import Settings

_WAYS_OUT = "use --overwrite to make it again, or choose another output folder"


def finished_run(
    plan: PlanRecord,
    folders: Sequence[Path],
    rows: Sequence[InputRow] | None,
    settings: Settings,
    *,
    is_locked: bool = False,
) -> Report | None:
    """The report of a run of this plan that has finished in these folders; ``None`` where none has.

    A run over several folders may have been killed between ending the first and ending the last. All
    manifests are in place then, so that what is left is to remove the state of the others.

    Parameters
    ----------
    plan : PlanRecord
    folders : sequence of path
        Of the plan's outputs, in their order.
    rows : sequence or None
        The states of the inputs; ``None`` where they cannot be told.
    settings : Settings
        ``overwrite``, ``resume`` and ``rehash`` matter here.
    is_locked : bool
        Whether this process holds the folders' locks. Without them nothing is told of an output that is being
        put in the place of another.

    Raises
    ------
    OutputError
        It has finished, but an input or a file of the output is not what it was then.
    """
    is_swapping = any(look.exists(folder / STATE / SWAP) for folder in folders)
    is_ending = is_swapping or 0 < sum(look.exists(folder / STATE / PLAN) for folder in folders) < len(
        folders
    )
    if is_swapping and not is_locked:
        return None
    if rows is None or not settings.resume or (settings.overwrite and not is_ending):
        return None
    manifests = [manifest_of(folder) for folder in folders]
    found = [data for data in manifests if data is not None]
    if len(found) < len(folders):
        return None
    alphas = [output.alpha for output in plan.outputs]
    if not all(_is_of(plan, alpha, data, settings) for alpha, data in zip(alphas, found, strict=True)):
        return None
    if settings.overwrite and any(data["run"].get("inputs") != _plain(rows) for data in found):
        return None
    for folder, data in zip(folders, found, strict=True):
        if "inputs" not in data["run"]:
            _hold_content(plan, folder, data, settings)
    return finished_report(folders, found, rows, settings, alphas, plan)


def finished_report(
    folders: Sequence[Path],
    manifests: Sequence[Mapping[str, Any]],
    rows: Sequence[InputRow],
    settings: Settings,
    alphas: Sequence[float | None],
    plan: PlanRecord | None = None,
) -> Report:
    """The report of a finished run from its manifests, once inputs and outputs are found as it left them.

    Raises
    ------
    OutputError
        They are not.
    """
    for folder, data in zip(folders, manifests, strict=True):
        before = data["run"].get("inputs")  # without them, whoever asks has compared the content
        if before is not None and before != _plain(rows):
            _hold_inputs(folder, data, before, rows, settings, plan)
        _hold_files(folder, files(data, folder / MANIFEST), settings)
    for folder in folders:
        if look.exists(folder / STATE):
            tidy(folder)
    outputs = tuple(map(_output, folders, manifests, alphas))
    run = manifests[0]["run"]
    return Report(
        outputs=outputs,
        seconds=0.0,
        bytes_read=0,
        bytes_written=0,
        threads=run["threads"],
        cpu_level=run["cpu_level"],
        resumed_shards=sum(len(output.shards) for output in outputs),
        findings=(
            *(plan.findings if plan else ()),
            *_rounding(plan, outputs, settings),
            *_energy(manifests[0].get("adapter"), folders[0]),
        ),
        plan=run["plan"],
        vector=manifests[0].get("vector"),
        adapter=manifests[0].get("adapter"),
        tokens=manifests[0].get("tokens"),
        already_done=True,
    )


def _hold_inputs(
    folder: Path,
    data: Mapping[str, Any],
    before: Sequence[InputRow],
    rows: Sequence[InputRow],
    settings: Settings,
    plan: PlanRecord | None,
) -> None:
    """Return if files in another state than a manifest says have the same bytes, where that is asked.

    Raises
    ------
    OutputError
        They have not, or it is not asked.
    """
    now = _plain(rows)
    if not is_touched(before, now):
        raise OutputError(
            f"`{folder}` holds a finished output, but {difference(before, now)} since", _WAYS_OUT
        )
    if plan is None or not settings.rehash:
        what = difference(before, now, "was written or replaced")
        raise OutputError(
            f"`{folder}` holds a finished output, but {what} since: sizes are the same, bytes were not "
            "compared",
            _WAYS_OUT if plan is None else _WAYS_OUT.replace("use ", "use --rehash to compare the bytes, "),
        )
    _hold_content(plan, folder, data, settings)


def tidy(folder: Path) -> None:
    """Remove the state of a run whose manifest is in place, unless its own process is about to."""
    try:
        finish_folder(folder)
    except OutputError as error:
        if not is_of_another(error):
            raise


def is_of_another(error: OutputError) -> bool:
    """Whether a folder was refused because another process has its lock."""
    return error.message.startswith("another run is writing")


def _rounding(plan: PlanRecord | None, outputs: Sequence[Output], settings: Settings) -> list[Finding]:
    is_packed = plan is not None and "encodings" in plan.document
    return rounding_findings(outputs, settings.rounding, is_packed=is_packed)


def _energy(adapter: Mapping[str, Any] | None, folder: Path) -> list[Finding]:
    if adapter is None:
        return []
    from taskvec.report.energy import findings  # which most runs do without

    return findings(adapter, str(folder))


def manifests_of_request(request: str, folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The manifests in these folders, if all are there, of this request, and with their inputs; else none."""
    found = [data for folder in folders if (data := manifest_of(folder)) is not None]
    is_all = len(found) == len(folders) and all(
        data["run"].get("request") == request and "inputs" in data["run"] for data in found
    )
    return found if is_all else []


def manifest_of(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished run."""
    path = folder / MANIFEST
    if not look.exists(path):
        return None
    data = read_bytes(path, maximum=MAXIMUM_BYTES)
    try:
        manifest = parse(data, path)
    except FormatError:
        return None
    return manifest if _is_whole(manifest) else None


def _is_whole(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest has all that is read of it here, in its form: others may have written to it."""
    try:
        run = manifest["run"]
        _ = run["threads"], run["cpu_level"], run["plan"], manifest["recipe"]
        _output(Path(), manifest, None)
        rows = run.get("inputs", [])  # a manifest that is the same each time has none
        return isinstance(rows, list) and all(
            isinstance(row, list) and len(row) > 2 and isinstance(row[0], str) and isinstance(row[1], str)
            for row in rows
        )
    except (AttributeError, FormatError, IndexError, KeyError, TypeError, ValueError):
        return False


def _is_of(plan: PlanRecord, alpha: float, data: Mapping[str, Any], settings: Settings) -> bool:
    """Whether a manifest is of this plan, with the same files next to the weights."""
    if data["run"].get("plan") != plan.digest or data["recipe"] != _plain(recipe_of(plan, alpha)):
        return False
    if data["non_finite"] and "non-finite" not in settings.force:
        return False
    listed = {file.name: file.blake3 for file in files(data, Path(MANIFEST))}
    small = dict(plan.files)
    base = plan.checkpoints[0]
    if plan.kind == "checkpoint" and isinstance(base, Model) and CONFIG in base.other_files:
        small[CONFIG] = config_of(base, plan)
    return all(listed.get(name) == blake3_hex(content) for name, content in small.items())


def _hold_content(plan: PlanRecord, folder: Path, data: Mapping[str, Any], settings: Settings) -> None:
    """Return if the inputs have the bytes that a manifest without their times says by digests.

    Raises
    ------
    OutputError
        They have not, or the manifest has no digest of one.
    """
    contents = InputDigests(plan.checkpoints, settings).read(settings.threads or 0)
    now = source_rows(plan, contents)
    before = data.get("sources")
    if not _has_digests(before) or not _has_digests(now):
        raise OutputError(
            f"`{folder}` holds a finished output, but whether it is of these inputs is not known: its "
            "manifest has no digests of them, as after parts, a run that was resumed, or --no-input-digests",
            _WAYS_OUT,
        )
    if not _same_content(now, before):
        raise OutputError(f"`{folder}` holds a finished output, but its inputs have changed since", _WAYS_OUT)
    base = plan.checkpoints[0]
    if plan.kind == "checkpoint" and isinstance(base, Model):
        listed = {file.name: file.blake3 for file in files(data, folder / MANIFEST)}
        for name in companions(base):
            path = base.location / name
            if not look.exists(path) or listed.get(name) not in (None, digest_file(path)[1]):
                raise OutputError(
                    f"`{folder}` holds a finished output, but `{name}` of `{base.spec}` has changed since",
                    _WAYS_OUT,
                )


def _has_digests(rows: Any) -> bool:
    try:
        return all(":" in row["content"] for row in rows)
    except (KeyError, TypeError):
        return False


def _same_content(now: Sequence[Mapping[str, Any]], before: object) -> bool:
    def told(rows: Any) -> list[tuple[Any, ...]]:
        return [(row["role"], row["model"], row["fingerprint"], row["content"]) for row in rows]

    try:
        return told(now) == told(before)
    except (KeyError, TypeError):
        return False


def _hold_files(folder: Path, listed: Sequence[File], settings: Settings) -> None:
    for file in listed:
        path = folder / file.name
        stamp = look.stamp(path)
        if stamp is None:
            problem = "is missing"
        elif stamp.size != file.bytes:
            problem = f"has {stamp.size} bytes, expected {file.bytes}"
        elif settings.rehash and digest_file(path, threads=settings.threads or 0)[1] != file.blake3:
            problem = "has other bytes than its manifest lists"
        else:
            continue
        raise OutputError(f"`{folder}` holds a finished output, but `{file.name}` {problem}", _WAYS_OUT)


def _output(folder: Path, data: Mapping[str, Any], alpha: float | None) -> Output:
    survival = data["survival"]
    weights = [f for f in files(data, folder) if f.name.endswith(".safetensors")]
    return Output(
        folder=str(folder),
        alpha=alpha if data["kind"] == "checkpoint" else None,
        shards=tuple(Shard(*file) for file in weights),
        survival=Survival.measured(Survival(*survival["total"]) if survival["total"] else None),
        tensors={name: Survival(*row) for name, row in survival["tensors"].items()},
        non_finite=tuple(map(tuple, data["non_finite"])),
        unmeasured=survival.get("unmeasured", 0),
        noise=_noise(data.get("noise")),
        unweighted=dict(data.get("unweighted", {})),
    )


def _noise(noise: Mapping[str, Any] | None) -> Noise | None:
    if noise is None:
        return None
    figures: dict[str, Any] = {field: noise.get(field) for field in Noise._fields}
    return Noise(**figures)


def _plain(value: Any) -> Any:
    """A value as it comes back from JSON."""
    return json.loads(json.dumps(value))
