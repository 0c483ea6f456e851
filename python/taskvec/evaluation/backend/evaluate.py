"""One arm through lm-eval: `evaluate` gives its record."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import logging
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from taskvec.errors import EvaluationError
from taskvec.evaluation.analysis.compare import Keep, Split
from taskvec.evaluation.arms import Arm, arm_stem
from taskvec.evaluation.backend.decoding import habits
from taskvec.evaluation.backend.delta import Placement
from taskvec.evaluation.backend.identity import (
    Source,
    arm_identity,
    hold_unchanged,
    resolve,
    settings_identity,
    source,
    versions,
)
from taskvec.evaluation.backend.load import load_model
from taskvec.evaluation.record import (
    ArmRecord,
    identity,
    read_record,
    record_path,
    write_record,
    writing,
)
from taskvec.evaluation.settings import PartSettings, Settings
from taskvec.evaluation.tasks.metrics import as_chosen
from taskvec.extras import install
from taskvec.files import look

OLDEST_LM_EVAL = (0, 4, 13)
SIZES = ".batch-sizes"


def require_extra() -> None:
    """Check that the extra ``eval`` is installed; imports nothing heavy.

    Raises
    ------
    EvaluationError
        It is not; the hint says what to install.
    """
    for package in ("lm_eval", "torch", "transformers", "scipy", "matplotlib", "jinja2"):
        if importlib.util.find_spec(package) is None:
            raise EvaluationError(
                f"evaluation needs the extra `eval`: `{package}` is not installed", install("eval")
            )
    version = importlib.metadata.version("lm_eval")
    if tuple(int(part) for part in version.split(".")[:3] if part.isdigit()) < OLDEST_LM_EVAL:
        oldest = ".".join(map(str, OLDEST_LM_EVAL))
        raise EvaluationError(f"lm-eval {version} is too old: {oldest} or newer is needed", install("eval"))


def evaluate(
    model: str | os.PathLike[str],
    settings: Settings,
    *,
    arm: Arm | None = None,
    weights: str | None = None,
    journal: Path | None = None,
    progress: Any | None = None,
    shown: str | None = None,
    placement: Placement | None = None,
    sources: Sequence[Source] = (),
) -> ArmRecord:
    """Run one model on benchmark tasks.

    Parameters
    ----------
    model : path or str
        A folder, or a hub name (``org/name``).
    settings : Settings
        Tasks and how they are run.
    arm : Arm, optional
        Name and prompt of the arm; by default the model's own name, plain prompts.
    weights : str, optional
        The identity of the weights; by default a digest of the files.
    journal : Path, optional
        Where finished blocks are kept until the arm is done, so that a killed run goes on.
    progress : callable, optional
        Called as ``progress(task, done, total)``.
    shown : str, optional
        How the record names the model; by default as `model` does.
    placement : Placement, optional
        The target in which the model's weights are made; by default the model is loaded.
    sources : sequence of Source
        Models and vectors that the weights are made of: they have to be what they were when all is
        answered.

    Returns
    -------
    ArmRecord

    Raises
    ------
    EvaluationError
        An unknown task, a model without tokenizer, no sample, memory that does not suffice, and the like.
    """
    require_extra()
    begun = time.monotonic()
    arm = arm or Arm(arm_stem(model), "baseline")
    shown = shown or os.fspath(model)
    if weights is None:
        model, weights = resolve(model)
        sources = [source(model, weights)]
    identified, found_versions = settings_identity(settings), versions(settings)
    content = identified
    key = identity(content, found_versions, weights, arm)

    from taskvec.evaluation.backend.gather import gather
    from taskvec.evaluation.backend.journal import Journal
    from taskvec.evaluation.tasks.find import find_tasks
    from taskvec.evaluation.tasks.prepare import PreparedTasks

    hold = functools.partial(hold_unchanged, sources)
    book = Journal(journal, key, hold) if journal is not None else None
    with quietly():
        find_tasks(settings)  # before the model is loaded, which may take minutes
        lm = _wrapped(_loaded(model, settings, placement), settings, book, progress)
        try:
            if settings.chat_template and not lm.chat_template(True):
                raise EvaluationError(
                    f"the tokenizer of `{model}` has no chat template",
                    "run every arm without --chat-template, or give the model a template",
                )
            tasks = PreparedTasks(
                settings,
                think=arm.think,
                perturb=arm.perturb,
                max_length=int(lm.max_length),
                keep=_keep(settings),
            )
            if settings.decoding == "model":
                content = {**content, "generation_config": habits(getattr(lm.inner, "model", None))}
            if settings.samples and lm.streams:
                drawn = _drawing(settings, arm, lm)
                if drawn.tasks:
                    asked = lm.foreseen.asked(lambda: _simple_evaluate(lm, drawn, settings))
                    lm.foreseen.follow(asked, settings.samples)
            results = _simple_evaluate(lm, tasks, settings)
            record = gather(arm, shown, weights, key, content, found_versions, results, tasks, lm, begun)
            if settings.samples:
                record = _drawn(record, lm, settings, arm, begun)
            hold()
            if settings_identity(settings) != identified:
                raise EvaluationError(
                    f"the tasks in `{settings.include_path}` have changed since this run began",
                    "run the same command again: it asks them as they are then",
                )
        finally:
            if book is not None:
                book.close()
    return record


def _drawn(record: ArmRecord, lm: Any, settings: Settings, arm: Arm, begun: float) -> ArmRecord:
    """The record with the answers that are drawn besides those that are scored.

    Every draw asks all questions again. The seeds of its blocks follow from the settings' and its number. An
    engine of vLLM has answered them with those that are scored.
    """
    from taskvec.evaluation.backend.gather import with_draws

    drawn, tasks = [], None
    for _ in range(settings.samples):
        tasks = _drawing(settings, arm, lm)
        if not tasks.tasks:
            return record
        lm.lengths = defaultdict(list)
        drawn.append((_simple_evaluate(lm, tasks, settings), lm.lengths))
    assert tasks is not None
    found = with_draws(record, drawn, tasks)
    return replace(found, seconds=round(time.monotonic() - begun, 3))


def _drawing(settings: Settings, arm: Arm, lm: Any) -> Any:
    """The tasks whose answers are drawn."""
    from taskvec.evaluation.tasks.prepare import PreparedTasks

    return PreparedTasks(
        settings,
        think=arm.think,
        perturb=arm.perturb,
        max_length=int(lm.max_length),
        keep=_keep(settings),
        drawn=True,
    )


def _loaded(model: str | os.PathLike[str], settings: Settings, placement: Placement | None) -> Any:
    """The model, in the one from before where that is asked for, or the settings allow it."""
    if placement is not None:
        from taskvec.evaluation.backend.place import load_placed

        return load_placed(os.fspath(model), settings, placement)
    if settings.backend == "vllm":
        from taskvec.evaluation.backend.engine import load_engine

        return load_engine(os.fspath(model), settings)
    if isinstance(settings, PartSettings) and settings.holds:
        from taskvec.evaluation.backend.held import load_held

        return load_held(os.fspath(model), settings)
    return load_model(model, settings)


def _keep(settings: Settings) -> Keep | None:
    """Which documents are asked, by their hashes; None for all of them."""
    if not isinstance(settings, PartSettings):
        return None
    return Split(settings.share, settings.division).keep(settings.part)


def document_hashes(settings: Settings, perturb: str | None = None) -> dict[str, list[str]]:
    """lm-eval's hashes of every task's documents, by the name under which a task is reported.

    With a perturbation, of the documents that it can change, and an error where there are none.

    Raises
    ------
    EvaluationError
        The data of a task cannot be had, or the perturbation changes nothing.
    """
    from taskvec.evaluation.tasks.prepare import PreparedTasks

    with quietly():
        return PreparedTasks(settings, think=None, perturb=perturb).hashes()


def _wrapped(inner: Any, settings: Settings, book: Any, progress: Any) -> Any:
    from taskvec.evaluation.backend.blocks import BlockedLM
    from taskvec.evaluation.backend.load import first_batch, grows
    from taskvec.evaluation.backend.sizes import Sizes

    sizes = None
    if grows(settings):
        sizes = Sizes(book.path.with_name(SIZES) if book is not None else None)
    batch = first_batch(settings)
    return BlockedLM(
        inner,
        block=settings.block,
        batch=batch if isinstance(batch, int) else None,
        sizes=sizes,
        seed=settings.seed,
        journal=book,
        progress=progress,
    )


def _simple_evaluate(lm: Any, tasks: Any, settings: Settings) -> dict[str, Any]:
    from lm_eval.evaluator import simple_evaluate

    try:
        results = simple_evaluate(
            model=lm,
            tasks=list(settings.tasks),
            task_manager=tasks,
            apply_chat_template=settings.chat_template,
            log_samples=True,
            bootstrap_iters=1000,
            random_seed=settings.seed,
            numpy_random_seed=settings.seed,
            torch_random_seed=settings.seed,
            fewshot_random_seed=settings.seed,
            confirm_run_unsafe_code=settings.allow_unsafe_code,
        )
    except EvaluationError:
        raise
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:
        text = str(error).strip().splitlines()[0][:300] if str(error).strip() else ""
        names = ", ".join(f"`{task}`" for task in settings.tasks)
        hint = look.way_out(error) if isinstance(error, OSError) else None
        raise EvaluationError(f"lm-eval failed on {names}: {type(error).__name__}: {text}", hint) from error
    if results is None:  # lm-eval gives results to rank 0 alone
        raise EvaluationError(
            "this process is not the first of a distributed launch",
            "start taskvec as one process; --devices runs arms on several GPUs",
        )
    return dict(results)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Around what lm-eval does: it prints, and says much that is nobody's business here."""
    with _stdout_to_stderr(), _quiet_lm_eval():
        yield


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """lm-eval prints; stdout is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def _quiet_lm_eval() -> Iterator[None]:
    """Keep lm-eval's messages to errors, its bars away, and spare what costs seconds in every arm.

    That is asking the hub for data sets, collecting the environment, asking git about the current folder,
    which has nothing to do with the model, and compiling a task's templates for each document and use of
    them.
    """
    import lm_eval.evaluator as evaluator
    import lm_eval.utils as utils
    from tqdm import tqdm

    from taskvec.evaluation.tasks.datasets import loaded_once

    logger = logging.getLogger("lm_eval")
    level, collect, begin = logger.level, evaluator.add_env_info, tqdm.__init__
    ask_git = evaluator.get_git_commit_hash
    if not logger.isEnabledFor(logging.DEBUG):
        logger.setLevel(logging.ERROR)
    evaluator.add_env_info = lambda _storage: None  # type: ignore[assignment]
    evaluator.get_git_commit_hash = lambda: None  # type: ignore[assignment]
    tqdm.__init__ = functools.partialmethod(begin, disable=True)  # type: ignore[method-assign]
    compiled = utils.env.from_string
    utils.env.from_string = functools.lru_cache(maxsize=256)(compiled)  # type: ignore[method-assign]
    try:
        with loaded_once():
            yield
    finally:
        logger.setLevel(level)
        evaluator.add_env_info = collect
        evaluator.get_git_commit_hash = ask_git
        tqdm.__init__ = begin  # type: ignore[method-assign]
        utils.env.from_string = compiled  # type: ignore[method-assign]


def evaluate_into(
    out: Path,
    model: str | os.PathLike[str],
    settings: Settings,
    arm: Arm,
    weights: str,
    *,
    progress: Any | None = None,
    shown: str | None = None,
    placement: Placement | None = None,
    sources: Sequence[Source] = (),
) -> ArmRecord:
    """Evaluate an arm into an output folder, or give the record that is there already.

    The record is written as soon as the arm is done; until then its journal keeps what is finished.
    """
    known = finished(out, settings, arm, weights)
    if known is not None:
        return known
    journal = _journal(out, arm)
    record = evaluate(
        model, settings, arm=arm, weights=weights, journal=journal, progress=progress, shown=shown,
        placement=placement, sources=sources,
    )  # fmt: skip
    write_record(record_path(out, arm.name), record)
    _remove(journal)
    return record


def _journal(out: Path, arm: Arm) -> Path:
    return record_path(out, arm.name).with_name(f".{arm.name}.partial.jsonl")


def _remove(journal: Path) -> None:
    with writing(journal):
        journal.unlink(missing_ok=True)


def finished(out: Path, settings: Settings, arm: Arm, weights: str) -> ArmRecord | None:
    """The record of an arm that was evaluated under these very settings; None if it must be run.

    A file that is cut short counts as not evaluated: it is replaced. The journal of an arm whose run was
    killed once its record was written goes.
    """
    path = record_path(out, arm.name)
    if not look.exists(path):
        return None
    try:
        record = read_record(path)
    except EvaluationError as error:
        if isinstance(error.__cause__, OSError):  # it may be whole
            raise
        return None
    if record.identity != arm_identity(settings, weights, arm) or record.arm != arm:
        return None
    found = as_chosen(record, settings)
    if found is not None:
        _remove(_journal(out, arm))
    return found
