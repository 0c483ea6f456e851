"""What the elements of a model matter on some tasks: the diagonal of its Fisher information, as a folder."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from taskvec._core import FolderLock, blake3_hex, cpu_level, finish_folder, replace_output, write_atomic
from taskvec.arguments import path, watcher
from taskvec.errors import EvaluationError, RecipeError
from taskvec.evaluation.backend.evaluate import quietly, require_extra
from taskvec.evaluation.backend.identity import hold_unchanged, resolve, source
from taskvec.evaluation.importance.asked import Asked, Dtype, Labels, asked_for
from taskvec.evaluation.importance.delivered import delivered
from taskvec.evaluation.importance.kept import Counts, keep, restore
from taskvec.evaluation.importance.report import ImportanceReport
from taskvec.evaluation.importance.written import names_of, write_others, write_weights
from taskvec.evaluation.keywords import MapOptions
from taskvec.evaluation.settings import torch_device
from taskvec.evaluation.tasks.apart import keep_apart
from taskvec.files import look
from taskvec.files import manifest as files
from taskvec.files.names import MANIFEST, STATE, SWAP
from taskvec.files.place import sync_folders
from taskvec.report import manifest
from taskvec.report.survival import Survival
from taskvec.resolve.open import open as open_model
from taskvec.run.begun import begin, hold_space
from taskvec.run.contents import InputDigests
from taskvec.run.finished import manifest_of, tidy
from taskvec.run.sinks import hold_local, is_address
from taskvec.settings import Settings
from taskvec.shown import counted

if TYPE_CHECKING:
    from taskvec.evaluation.importance.answers import Example
    from taskvec.evaluation.importance.squares import Squares
    from taskvec.files.manifest import File
    from taskvec.models.model import Model

Progress = Callable[[str, int, int], None]

# Sums are kept this often, so that a killed run loses little: seconds.
_EVERY = 300.0


def importance(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    tasks: str | Sequence[str],
    labels: Labels = "reference",
    dtype: Dtype = "float32",
    overwrite: bool = False,
    resume: bool = True,
    progress: Progress | bool | None = None,
    **settings: Unpack[MapOptions],
) -> ImportanceReport:
    """Write what each element of a model matters on some tasks: the diagonal of its Fisher information.

    The mean over the documents of the squared gradient of log p(answer | prompt), one document at a time. A
    recipe names the folder by ``importance:`` (methods ``fisher`` and ``sar``). Needs the extra ``eval``.

    Parameters
    ----------
    model : str or path
        A folder, hub id or address.
    out : str or path
        The output: files and tensors are called as the model's. A folder, or an address of an object store
        or the hub, to which the map is sent from the scratch folder.
    tasks : str or sequence of str
        Of lm-eval, or of YAML tasks in ``include_path``.
    labels : {"reference", "model"}
        Whose answers: the task's (the empirical Fisher information), or drawn from the model, token by token,
        at most as long as the reference.
    dtype : {"float32", "bfloat16"}
        Type of the map.
    overwrite : bool
        Replace an output that is there.
    resume : bool
        Go on with an unfinished run.
    progress : callable or bool, optional
        Called as ``progress(task, done, total)``; ``True`` draws a bar.
    **settings
        ``limit``, ``seed``, ``chat_template``, ``include_path``, ``data``, ``device``, ``model_args``: those
        of :class:`taskvec.evaluation.Settings`. Models are computed in float32 unless
        ``model_args={"dtype": ...}`` says otherwise.

    Returns
    -------
    ImportanceReport

    Raises
    ------
    RecipeError
        A setting that cannot be honoured.
    EvaluationError
        A task or model that cannot be loaded, memory that does not suffice, no document with an answer.
    OutputError
        The output holds something else.
    HubError
        An address refuses, or cannot be reached.
    NonFiniteError
        A gradient that is not finite.
    """
    require_extra()
    hold_local(path(out, "out"))
    watcher(progress, "progress")
    asked = asked_for(path(model, "model"), tasks, labels, dtype, settings)
    keep_apart(asked.settings, out)
    opened = _opened(asked)
    place, weights = resolve(asked.model)
    plan = asked.plan(weights)
    hold = partial(hold_unchanged, [source(place, weights)])

    def make(folder: Path, overwrite: bool) -> ImportanceReport:
        with (
            counted(progress) as tell,
            FolderLock(folder, inputs=[place], plan=plan, resume=resume, overwrite=overwrite),
        ):
            return _make(asked, place, opened, plan, folder, resume, hold, tell)

    if is_address(out):
        return delivered(
            str(out), blake3_hex(plan), overwrite=overwrite, resume=resume,
            finished=lambda folder: _finished(folder, plan, asked),
            make=lambda folder: make(folder, not resume),
        )  # fmt: skip
    done = None if overwrite or not resume else _finished(Path(out), plan, asked)
    return done or make(Path(out), overwrite)


def forecast(
    model: str | os.PathLike[str], *, tasks: str | Sequence[str], **settings: Unpack[MapOptions]
) -> dict[str, int]:
    """What a map takes, from headers alone.

    Parameters
    ----------
    model : str or path
    tasks : str or sequence of str
    **settings
        As :func:`importance` takes them.

    Returns
    -------
    dict
        ``elements`` of the model, and ``memory`` in bytes for weights, gradients and sums; that of a
        document's activations comes on top.
    """
    asked = asked_for(path(model, "model"), tasks, "reference", "float32", settings)
    elements = _elements(_opened(asked))
    each = {"float64": 8, "bfloat16": 2, "float16": 2}.get(dict(asked.settings.model_args)["dtype"], 4)
    return {"elements": elements, "memory": elements * (2 * each + max(each, 4))}


def _elements(model: Model) -> int:
    return sum(math.prod(info.shape) for info in model.tensors.values())


def _opened(asked: Asked) -> Model:
    """The model's headers."""
    if "+" in asked.model and not look.exists(asked.model):
        raise RecipeError(
            f"`{asked.model}`: an importance map is of a model, without an adapter on it",
            "merge the adapter into the model first, and make the map of that",
        )
    opened = open_model(asked.model)
    if opened.packed:
        raise RecipeError(
            f"`{asked.model}` is stored packed, and has no gradients",
            "make the map of the model that it was quantised from, or `taskvec convert` it to plain weights",
        )
    return opened


def _finished(folder: Path, plan: bytes, asked: Asked) -> ImportanceReport | None:
    """The report of an earlier run that has made this very map; what was left of its state goes."""
    if not look.exists(folder / MANIFEST) or look.exists(folder / STATE / SWAP):
        return None
    data = manifest_of(folder)
    if data is None or data["run"]["plan"] != blake3_hex(plan) or "importance" not in data:
        return None
    for file in files.files(data, folder):
        stamp = look.stamp(folder / file.name)
        if stamp is None or stamp.size != file.bytes:
            return None
    try:
        facts = {key: value for key, value in data["importance"].items() if key != "documents_total"}
        listed = {key: tuple(facts[key]) for key in ("without_gradient", "unknown")}
        report = ImportanceReport(
            str(folder), **{**facts, **listed}, device=torch_device(asked.settings.device),
            seconds=data["run"]["seconds"], already_done=True,
        )  # fmt: skip
    except (AttributeError, KeyError, TypeError):  # another hand has written to it
        return None
    if look.exists(folder / STATE):
        tidy(folder)
    return report


def _make(
    asked: Asked,
    model: str,
    opened: Model,
    plan: bytes,
    folder: Path,
    resume: bool,
    hold: Callable[[], None],
    progress: Progress | None,
) -> ImportanceReport:
    """Make a map in a folder that is locked."""
    from taskvec.evaluation.backend.load import load_model
    from taskvec.evaluation.backend.memory import is_out_of_memory
    from taskvec.evaluation.importance.answers import examples
    from taskvec.evaluation.importance.squares import Squares
    from taskvec.evaluation.tasks.find import find_tasks
    from taskvec.evaluation.tasks.prepare import PreparedTasks

    begun, settings = time.monotonic(), asked.settings
    with quietly():
        find_tasks(settings)
        lm = load_model(model, settings)
        tasks = PreparedTasks(settings, think=None, perturb=None, max_length=int(lm.max_length))
        every = list(examples(tasks, settings, lm))
        if all(each.answer is None for each in every):
            raise EvaluationError(
                f"no document of {', '.join(settings.tasks)} has a reference answer", "name other tasks"
            )
        hold_space(folder, _elements(opened) * (8 if asked.dtype == "float32" else 6))
        place = begin(folder, plan, resume=resume)
        try:
            squares = Squares(lm.model)
            hold()  # sums of another model are not added up, nor kept
            counts = restore(place, squares)
            resumed = counts.seen
            _pass(asked, lm, squares, counts, every, place, hold, progress)
            hold()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise EvaluationError(
                f"the gradients of `{asked.model}` do not fit into the memory of {lm.device}",
                "use another --device, or `--model-arg dtype=bfloat16`",
            ) from error
        names = names_of(opened, lm.model, squares)
        weights = write_weights(place, names, squares, counts.total, asked.dtype)
    report = ImportanceReport(
        out=str(folder),
        documents=counts.documents,
        left_out=counts.left_out,
        tokens=counts.tokens,
        tensors=sum(map(len, names.files.values())),
        without_gradient=names.without_gradient,
        unknown=names.unknown,
        device=str(lm.device),
        seconds=time.monotonic() - begun,
        resumed=resumed,
    )
    _publish(asked, opened, plan, place, weights, report)
    if place != folder:
        replace_output(folder)
    finish_folder(folder)
    return report


def _pass(
    asked: Asked,
    lm: Any,
    squares: Squares,
    counts: Counts,
    every: Sequence[Example],
    place: Path,
    hold: Callable[[], None],
    progress: Progress | None,
) -> None:
    """Take every document once; what is done is kept when the run is stopped, and now and then."""
    from taskvec.evaluation.importance.answers import tokens_of
    from taskvec.evaluation.importance.squares import drawn

    ends = frozenset(each for each in (lm.eot_token_id, lm.tokenizer.eos_token_id) if isinstance(each, int))
    kept = time.monotonic()
    try:
        for number, example in enumerate(every):
            if number < counts.seen:
                continue
            tokens = tokens_of(lm, example)
            if tokens is not None and asked.labels == "model":
                tokens = drawn(lm.model, tokens, asked.settings.seed * 1_000_003 + number, ends)
            if tokens is None:
                counts.left_out += 1
            else:
                squares.add(tokens)
                counts.documents[example.task] = counts.documents.get(example.task, 0) + 1
                counts.tokens += tokens.answer
            counts.seen += 1
            if progress is not None:
                progress(example.task, counts.seen, len(every))
            if time.monotonic() - kept > _EVERY:
                hold()
                keep(place, squares, counts)
                kept = time.monotonic()
    except KeyboardInterrupt:
        with contextlib.suppress(EvaluationError):  # of a model that has changed meanwhile nothing is kept
            hold()
            keep(place, squares, counts)
        raise


def _publish(
    asked: Asked, opened: Model, plan: bytes, place: Path, weights: Sequence[File], report: ImportanceReport
) -> None:
    """Write the files next to the weights, the manifest last."""
    import torch

    told = ("documents", "left_out", "tokens", "tensors", "without_gradient", "unknown")
    facts = {key: value for key, value in report.to_dict().items() if key in told}
    listed = [
        *weights,
        *write_others(place, opened, {**facts, "documents_total": sum(report.documents.values())}),
    ]
    provenance = {
        **manifest.heading("checkpoint", asked.recipe()),
        "sources": [manifest.source_row("model", opened, InputDigests([opened], Settings()).read()[0])],
        "findings": [],
        "survival": {
            "status": "not-measured", "fields": list(Survival._fields), "total": None, "tensors": {},
        },
        "non_finite": [],
        "importance": facts,
    }  # fmt: skip
    run = {
        "plan": blake3_hex(plan),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(report.seconds, 3),
        "threads": torch.get_num_threads(),
        "cpu_level": cpu_level(),
    }
    sync_folders(place, [file.name for file in listed])
    write_atomic(place / MANIFEST, manifest.text(provenance, files=listed, run=run))
