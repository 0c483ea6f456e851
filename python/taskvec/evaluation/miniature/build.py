"""The checkpoints of the paper in miniature, and the problems that they are tested on.

``python -m taskvec.evaluation.miniature.build FOLDER --seed N`` trains them; with ``--pack FILE`` they are
put into one archive as well, which :func:`unpack` opens elsewhere.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from taskvec.errors import Error, FormatError, NotFoundError, OutputError
from taskvec.evaluation.miniature import continued, grpo, model, tokenizer
from taskvec.evaluation.miniature.recipe import PARENT, RECIPE, Recipe, Role
from taskvec.evaluation.miniature.task import PROBLEMS, TASK, write_task
from taskvec.evaluation.miniature.training import Progress, train
from taskvec.evaluation.miniature.whole import is_whole, whole_folder
from taskvec.evaluation.record import write_whole
from taskvec.evaluation.sweep.scratch import locked
from taskvec.evaluation.sweep.workers import end_with_parent, start_undisturbed
from taskvec.files import look
from taskvec.files.place import make_folders

MARK = "miniature.json"
RUN = "training.json"  # in the donor's folder: the steps that its training took
ARCHIVE = 2  # of folders and archives; the first had no continued SFT
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, LookupError, TypeError, ValueError, RuntimeError)
"""Exceptions that reading a damaged archive raises, or a file that is not one."""


@dataclass(frozen=True, slots=True)
class MiniatureModels:
    """Where the checkpoints and the task are.

    Attributes
    ----------
    base, target, reference, donor : Path
        Folders that transformers loads.
    continued_sft : Path
        The reference after continued SFT, with as many updates and problems as the donor had.
    tasks : Path
        Folder of the lm-eval task files, for ``include_path``.
    task : str
        Name of the task: ``PROBLEMS`` problems, ``DEVELOPMENT`` of them for choosing.
    seed : int
    """

    base: Path
    target: Path
    reference: Path
    donor: Path
    continued_sft: Path
    tasks: Path
    task: str
    seed: int


def build(
    directory: str | os.PathLike[str],
    seed: int,
    progress: Progress | None = None,
    *,
    recipe: Recipe = RECIPE,
    problems: int = PROBLEMS,
) -> MiniatureModels:
    """Train what is missing in a folder: each checkpoint appears there when it is complete.

    The base comes first; then the target is trained in a process of its own, at the same time as reference,
    donor and continued SFT. Every process keeps to one torch thread: the same seed gives the same weights on
    the same machine.

    Parameters
    ----------
    directory : path
        Created if need be. Checkpoints that are there already are kept.
    seed : int
        Of weights, training texts, samples and test problems.
    progress : callable, optional
        Called with a checkpoint's name, the steps done and the most there can be.
    recipe : Recipe, optional
        Another training recipe, for tests.
    problems : int
        How many test problems are written.

    Raises
    ------
    OutputError
        The folder belongs to another seed or recipe.
    """
    directory = Path(directory)
    _claim(directory, {"format": ARCHIVE, "seed": seed, "recipe": repr(recipe)})
    with one_thread(), locked(directory):
        _make(directory, "base", seed, recipe, progress)
        with _training_the_target(directory, seed, recipe):
            _make(directory, "reference", seed, recipe, progress)
            _make(directory, "donor", seed, recipe, progress)
            _make(directory, "continued_sft", seed, recipe, progress)
        _make(directory, "target", seed, recipe, progress)  # if the other process came to nothing
    return _models(directory, seed, problems)


def pack(models: MiniatureModels, file: str | os.PathLike[str]) -> Path:
    """Put the checkpoints into one archive; the same checkpoints give the same bytes."""
    root, file = models.base.parent, Path(file)
    members = [root / MARK]
    for role in PARENT:
        members += sorted(path for path in (root / role).iterdir() if path.is_file())
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(file.name + ".part")
    with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in members:
            archive.writestr(zipfile.ZipInfo(path.relative_to(root).as_posix()), path.read_bytes())
    unfinished.replace(file)
    return file


def unpack(
    file: str | os.PathLike[str], directory: str | os.PathLike[str], *, problems: int = PROBLEMS
) -> MiniatureModels:
    """Checkpoints from an archive of :func:`pack`, in place of training them.

    Raises
    ------
    NotFoundError
        There is no such file.
    FormatError
        It is not an archive of :func:`pack`.
    """
    file, directory = Path(file), Path(directory)
    if not look.is_file(file):
        raise NotFoundError(f"`{file}` is not found", "name an archive that `--pack` wrote")
    try:
        data = io.BytesIO(file.read_bytes())
    except OSError as error:
        raise look.unanswered(file, error) from error
    try:
        with locked(directory), zipfile.ZipFile(data) as archive:
            mark = json.loads(archive.read(MARK))
            seed = int(mark["seed"])
            if mark["format"] != ARCHIVE:
                raise ValueError(f"its format is {mark['format']}, not {ARCHIVE}")
            _claim(directory, mark)
            for role in PARENT:
                names = [name for name in archive.namelist() if name.startswith(f"{role}/")]
                if any(name.count("/") != 1 or ".." in name or "\\" in name for name in names) or not names:
                    raise ValueError(f"its folder `{role}` is missing or has folders in it")
                with whole_folder(directory / role) as folder:
                    if folder is not None:
                        for name in names:
                            (folder / name.split("/")[1]).write_bytes(archive.read(name))
    except Error:
        raise
    except DAMAGE as error:
        raise FormatError(
            f"`{file}` is not an archive of miniature checkpoints: {error}",
            "name an archive that `--pack` wrote",
        ) from error
    return _models(directory, seed, problems)


def _make(directory: Path, role: Role, seed: int, recipe: Recipe, progress: Progress | None) -> None:
    """One checkpoint, unless it is there."""
    with whole_folder(directory / role) as folder:
        if folder is None:
            return
        parent, words = PARENT[role], tokenizer.train()
        weights = model.initialise(seed) if parent is None else load_weights(directory / parent)
        # Every stage reads texts of its own; continued SFT those of the donor.
        own = 10 * seed + list(PARENT).index("donor" if role == "continued_sft" else role)
        if role == "donor":
            weights, steps = grpo.improve(weights, recipe.donor, words, own, progress)
            write_whole(folder / RUN, json.dumps({"steps": steps}) + "\n")
        elif role == "continued_sft":
            steps = json.loads((directory / "donor" / RUN).read_text(encoding="utf-8"))["steps"]
            weights = continued.learn_on(weights, recipe.donor, steps, words, own, progress)
        else:
            weights = train(weights, getattr(recipe, role), words, own, progress)
        save(weights, words, folder)


def save(weights: model.Weights, words: Any, folder: Path) -> None:
    """Write a checkpoint through transformers: weights in float32, configuration, tokenizer."""
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # of its own, for a file that is written in milliseconds
    network = Qwen2ForCausalLM(Qwen2Config(**model.CONFIGURATION))
    network.load_state_dict({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]})
    network.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token=tokenizer.PAD,  # or Qwen2's own is added, past the end of the embedding
        pad_token=tokenizer.PAD,
        eos_token=tokenizer.END,
        padding_side="left",
        model_max_length=model.POSITIONS,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def load_weights(folder: Path) -> model.Weights:
    """The weights that :func:`save` wrote."""
    return load_file(folder / "model.safetensors")


@contextmanager
def _training_the_target(directory: Path, seed: int, recipe: Recipe) -> Iterator[None]:
    """Meanwhile train the target in another process; none is started if the target is there."""
    if is_whole(directory / "target"):
        yield
        return
    process = multiprocessing.get_context("spawn").Process(
        target=_make_alone, args=(directory, "target", seed, recipe), daemon=True
    )
    start_undisturbed(process)
    try:
        yield
        process.join()
    finally:
        process.terminate()
        process.join()


def _make_alone(directory: Path, role: Role, seed: int, recipe: Recipe) -> None:
    end_with_parent()
    torch.set_num_threads(1)
    _make(directory, role, seed, recipe, None)


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread, which gives the same figures whatever the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _claim(directory: Path, content: dict[str, Any]) -> None:
    """Mark a folder as the home of these models, or find that it is already."""
    try:
        make_folders(directory)
        mark = directory / MARK
        if not look.exists(mark):
            write_whole(mark, json.dumps(content) + "\n")
        elif json.loads(mark.read_text(encoding="utf-8")) != content:
            raise OutputError(
                f"`{directory}` holds the models of another seed or recipe",
                "name another folder, or remove it",
            )
    except (OSError, ValueError) as error:
        if isinstance(error, OutputError):
            raise
        way_out = look.way_out(error) if isinstance(error, OSError) else "name another folder, or remove it"
        raise OutputError(f"cannot use `{directory}` for the models: {error}", way_out) from error


def _models(directory: Path, seed: int, problems: int) -> MiniatureModels:
    write_task(directory / "tasks", seed, problems)
    folders = {role: directory / role for role in PARENT}
    return MiniatureModels(**folders, tasks=directory / "tasks", task=TASK, seed=seed)


def main(arguments: list[str] | None = None) -> None:
    """Build the checkpoints in a folder, and pack them if asked."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m taskvec.evaluation.miniature.build", description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pack", metavar="FILE", help="also write the checkpoints to one archive")
    given = parser.parse_args(arguments)
    models = build(given.folder, given.seed, _print)
    if given.pack:
        print(pack(models, given.pack))


def _print(name: str, step: int, steps: int) -> None:
    if step % 20 == 0 or step == steps:
        import sys

        print(f"{name}: {step} of at most {steps} steps", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
