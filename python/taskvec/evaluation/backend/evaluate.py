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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from taskvec.errors import EvaluationError
from taskvec.evaluation.arms import Arm
from taskvec.evaluation.record import (
    ArmRecord,
    digest_files,
    identity,
    read_record,
    record_path,
    write_record,
)
from taskvec.evaluation.settings import Settings, torch_device

INSTALL = "pip install 'taskvec[eval]'"
OLDEST_LM_EVAL = (0, 4, 13)
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
_VERSIONED = ("lm_eval", "transformers", "torch", "vllm")


def require_extra() -> None:
    """Check that the extra ``eval`` is installed; imports nothing heavy.

    Raises
    ------
    EvaluationError
        It is not; the hint says what to install.
    """
    for package in ("lm_eval", "torch", "transformers", "scipy", "statsmodels", "matplotlib", "jinja2"):
        if importlib.util.find_spec(package) is None:
            raise EvaluationError(f"evaluation needs the extra `eval`: `{package}` is not installed", INSTALL)
    version = importlib.metadata.version("lm_eval")
    if tuple(int(part) for part in version.split(".")[:3] if part.isdigit()) < OLDEST_LM_EVAL:
        oldest = ".".join(map(str, OLDEST_LM_EVAL))
        raise EvaluationError(f"lm-eval {version} is too old: {oldest} or newer is needed", INSTALL)


def versions(settings: Settings) -> dict[str, str]:
    """The versions that decide a score, by package."""
    found = {}
    for package in _VERSIONED:
        if package == "vllm" and settings.backend != "vllm":
            continue
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def settings_identity(settings: Settings) -> dict[str, Any]:
    """`Settings.identity` with what only this machine knows: the kind of device, the local tasks' content."""
    device = "cuda" if settings.backend == "vllm" else torch_device(settings.device).split(":")[0]
    content: dict[str, Any] = {**settings.identity(), "device": device}
    if settings.include_path is not None:
        folder = Path(settings.include_path)
        files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        content["include_path"] = digest_files(files, folder)
    return content


def arm_identity(settings: Settings, weights: str, arm: Arm) -> str:
    """The identity that `evaluate` would give an arm's record."""
    return identity(settings_identity(settings), versions(settings), weights, arm)


def resolve(model: str | os.PathLike[str]) -> tuple[str, str]:
    """Where a model's files are, and what identifies its weights: a digest of local files, or a hub revision.

    A hub model is downloaded if it is not in the cache.
    """
    path = Path(model)
    if path.exists():
        return os.fspath(model), weights_digest(path)
    from taskvec.resolve.open import open as open_model
    from taskvec.resolve.remote import materialised

    checkpoint = materialised(open_model(os.fspath(model)))
    return os.fspath(checkpoint.location), f"hub:{checkpoint.spec}@{checkpoint.revision}"


def weights_digest(model: Path) -> str:
    """A digest of the files of a model or a saved vector: weights, config, tokenizer.

    Files that describe a model, and change nothing of what it computes, do not count.
    """
    if not model.is_dir():
        return f"files:{digest_files([model], model.parent)}"
    files = [
        path
        for path in model.iterdir()
        if path.is_file() and path.suffix != ".md" and path.name not in ("taskvec.json", ".gitattributes")
    ]
    return f"files:{digest_files(files, model)}"


def evaluate(
    model: str | os.PathLike[str],
    settings: Settings,
    *,
    arm: Arm | None = None,
    weights: str | None = None,
    journal: Path | None = None,
    progress: Any | None = None,
    shown: str | None = None,
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
        What identifies the weights; by default a digest of the files.
    journal : Path, optional
        Where finished blocks are kept until the arm is done, so that a killed run goes on.
    progress : callable, optional
        Called as ``progress(task, done, total)``.
    shown : str, optional
        How the record names the model; by default as `model` does.

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
    content, found_versions = settings_identity(settings), versions(settings)
    key = identity(content, found_versions, weights, arm)

    from taskvec.evaluation.backend.gather import gather
    from taskvec.evaluation.backend.journal import Journal
    from taskvec.evaluation.tasks.prepare import PreparedTasks, find_tasks

    book = Journal(journal, key) if journal is not None else None
    with _stdout_to_stderr(), _quiet_lm_eval():
        find_tasks(settings)  # before the model is loaded, which may take minutes
        lm = _wrapped(_load_model(model, settings), settings, book, progress)
        try:
            if settings.chat_template and not lm.chat_template(True):
                raise EvaluationError(
                    f"the tokenizer of `{model}` has no chat template",
                    "run every arm without --chat-template, or give the model a template",
                )
            tasks = PreparedTasks(
                settings, think=arm.think, perturb=arm.perturb, max_length=int(lm.max_length)
            )
            results = _simple_evaluate(lm, tasks, settings)
            record = gather(arm, shown, weights, key, content, found_versions, results, tasks, lm, begun)
        finally:
            if book is not None:
                book.close()
    return record


def arm_stem(model: str | os.PathLike[str]) -> str:
    """A name for a model that can be a file name."""
    name = Path(os.fspath(model)).resolve().name if Path(model).exists() else os.fspath(model).split("/")[-1]
    return "".join(c if c.isalnum() or c in "-_.=+" else "-" for c in name).lstrip(".") or "model"


def _load_model(model: str | os.PathLike[str], settings: Settings) -> Any:
    from lm_eval.api.registry import get_model

    from taskvec.evaluation.backend.blocks import free_memory, is_out_of_memory

    name, arguments = os.fspath(model), dict(settings.model_args)
    if Path(name).is_dir():
        if "tokenizer" not in arguments and not any(
            (Path(name) / file).exists() for file in _TOKENIZER_FILES
        ):
            raise EvaluationError(
                f"`{name}` has no tokenizer: none of {', '.join(_TOKENIZER_FILES)} is there",
                "copy the target's tokenizer files into it, or name one with --model-arg tokenizer=FOLDER",
            )
        if not (Path(name) / "config.json").exists():
            raise EvaluationError(f"`{name}` is no model folder: config.json is not there")
    values: dict[str, Any] = {key: _typed(value) for key, value in arguments.items()}
    values.update(pretrained=name, batch_size=settings.batch)
    if settings.backend == "vllm":
        if importlib.util.find_spec("vllm") is None:
            raise EvaluationError("backend `vllm` is not installed", "pip install vllm, or use --backend hf")
        values.setdefault("seed", settings.seed)
    else:
        values["device"] = torch_device(settings.device)
        import torch

        if values["device"].startswith("cuda") and not torch.cuda.is_available():
            raise EvaluationError(
                f"device `{values['device']}` is asked for, and there is no GPU", "--device cpu"
            )
    try:
        return get_model(settings.backend)(**values)
    except Exception as error:
        if is_out_of_memory(error):
            free_memory()
            raise EvaluationError(
                f"`{name}` does not fit into the memory of {values.get('device', 'the GPU')}",
                "use another --device, --model-arg dtype=bfloat16, or --backend vllm over several GPUs",
            ) from error
        said = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        if "tokenizer" in str(error).lower():
            raise EvaluationError(f"cannot load the tokenizer of `{name}`: {said}") from error
        raise EvaluationError(f"cannot load `{name}` with backend `{settings.backend}`: {said}") from error


def _typed(value: str) -> Any:
    """A backend argument as YAML reads it: numbers and true/false are such."""
    import yaml

    found = yaml.safe_load(value)
    return found if isinstance(found, (int, float, bool)) else value


def _wrapped(inner: Any, settings: Settings, book: Any, progress: Any) -> Any:
    from taskvec.evaluation.backend.blocks import BlockedLM

    return BlockedLM(inner, block=settings.block, seed=settings.seed, journal=book, progress=progress)


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
        said = str(error).strip().splitlines()[0][:300] if str(error).strip() else ""
        names = ", ".join(f"`{task}`" for task in settings.tasks)
        raise EvaluationError(f"lm-eval failed on {names}: {type(error).__name__}: {said}") from error
    if results is None:  # lm-eval gives results to rank 0 alone
        raise EvaluationError(
            "this process is not the first of a distributed launch",
            "start taskvec as one process; --devices runs arms on several GPUs",
        )
    return dict(results)


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """lm-eval prints; stdout is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def _quiet_lm_eval() -> Iterator[None]:
    """Keep lm-eval's talk to errors, its bars away, and from doing anew what costs seconds in every arm.

    That is to collect the environment, to ask git about the current folder, which has nothing to do with the
    model, and to compile a task's templates for each document and use of them.
    """
    import lm_eval.evaluator as evaluator
    import lm_eval.utils as utils
    from tqdm import tqdm

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
) -> ArmRecord:
    """Evaluate an arm into an output folder, or give the record that is there already.

    The record is written as soon as the arm is done; until then the journal beside it keeps what is finished.
    """
    known = finished(out, settings, arm, weights)
    if known is not None:
        return known
    path = record_path(out, arm.name)
    journal = path.with_name(f".{arm.name}.partial.jsonl")
    record = evaluate(
        model, settings, arm=arm, weights=weights, journal=journal, progress=progress, shown=shown
    )
    write_record(path, record)
    journal.unlink(missing_ok=True)
    return record


def finished(out: Path, settings: Settings, arm: Arm, weights: str) -> ArmRecord | None:
    """The record of an arm that was evaluated under these very settings; None if it must be run.

    A file that is cut short counts as not evaluated: it is replaced.
    """
    path = record_path(out, arm.name)
    if not path.exists():
        return None
    try:
        record = read_record(path)
    except EvaluationError:
        return None
    return record if record.identity == arm_identity(settings, weights, arm) and record.arm == arm else None
