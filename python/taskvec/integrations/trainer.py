"""A callback of transformers' ``Trainer`` that saves task vectors and merges checkpoints during training."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from taskvec.errors import Error, RecipeError
from taskvec.files import look
from taskvec.models.adapter_config import CONFIG as ADAPTER_CONFIG

CHECKPOINT = "{checkpoint}"
"""What stands in a recipe for the checkpoint that has just been saved."""

_LOG = logging.getLogger("taskvec")


class TaskVectorCallback(TrainerCallback):
    """Save what was learned as a task vector, and merge, each time that a checkpoint has been saved.

    Everything is read from the checkpoint's own folder, tensor by tensor: the model is not copied in memory.
    Of a trainer that runs in several processes the first one does the work.

    Parameters
    ----------
    reference : str or path
        The model before training: what the vector is the difference from.
    out : str or path
        Folder of the results: ``vector-STEP``, ``merged-STEP``, ``average``.
    vectors : bool
        Whether vectors are saved. They are lossless and sparse where that takes fewer bytes.
    dtype : str, optional
        A smaller type for the vectors, with loss: ``bfloat16``.
    recipe : mapping, path or str, optional
        A merge recipe that is run for each checkpoint; ``{checkpoint}`` stands for its folder.
    target : str or path, optional
        A model that takes the step of each checkpoint instead: target + alpha * (checkpoint - reference).
    alpha : float
        The factor of that step.
    average : int, optional
        At the end, the mean of the last so many checkpoints.
    stop_on_error : bool
        Whether an error ends the training; otherwise it is logged, and the training goes on.
    **settings
        Those of :class:`taskvec.Settings`.

    Attributes
    ----------
    saved : list of str
        The folders that were written, in their order.

    Raises
    ------
    RecipeError
        A recipe that does not name ``{checkpoint}``, or a recipe and a target.
    """

    def __init__(
        self,
        reference: str | os.PathLike[str],
        out: str | os.PathLike[str],
        *,
        vectors: bool = True,
        dtype: str | None = None,
        recipe: Mapping[str, Any] | str | os.PathLike[str] | None = None,
        target: str | os.PathLike[str] | None = None,
        alpha: float = 1.0,
        average: int | None = None,
        stop_on_error: bool = False,
        **settings: Any,
    ) -> None:
        if recipe is not None and target is not None:
            raise RecipeError(
                "both a recipe and a target are given", "give the one that says what is to be merged"
            )
        self.recipe = None if recipe is None else _documents(recipe)
        if self.recipe is not None and CHECKPOINT not in json.dumps(self.recipe):
            raise RecipeError(
                f"the recipe does not name `{CHECKPOINT}`, which stands for the checkpoint that is merged",
                f"write it where the trained model belongs: `- model: '{CHECKPOINT}'`",
            )
        if average is not None and average < 2:
            raise RecipeError(f"the average of {average} checkpoints", "give 2 or more")
        self.reference, self.out = os.fspath(reference), Path(out)
        self.vectors, self.dtype = vectors, dtype
        self.target, self.alpha = None if target is None else os.fspath(target), alpha
        self.average, self.stop_on_error, self.settings = average, stop_on_error, settings
        self.saved: list[str] = []

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """A checkpoint has been saved."""
        if state.is_world_process_zero:
            place = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            self._guarded(lambda: self.of_checkpoint(place, state.global_step))
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """The training has ended."""
        if state.is_world_process_zero and self.average is not None:
            self._guarded(lambda: self._average(Path(args.output_dir)))
        return control

    def of_checkpoint(self, place: Path, step: int) -> None:
        """Save the vector of one checkpoint, and merge it.

        Raises
        ------
        taskvec.Error
            The checkpoint was not found, is not compatible with the reference, or nothing can be written.
        """
        import taskvec as tv

        is_adapter = look.exists(place / ADAPTER_CONFIG)
        if is_adapter and self.vectors and self.recipe is None and self.target is None:
            _LOG.info("taskvec: %s holds an adapter, which is a vector already: none is saved", place)
        settings = {"overwrite": True, **self.settings}
        if self.vectors and not is_adapter:
            out = self.out / f"vector-{step}"
            known = {key: value for key, value in settings.items() if key in _of_vectors()}
            tv.extract(place, self.reference, out, dtype=self.dtype, **known)
            self.saved.append(str(out))
        out = self.out / f"merged-{step}"
        if self.recipe is not None:
            name = f"{self.reference}+{place}" if is_adapter else str(place)
            tv.merge(_filled(self.recipe, name), out, **settings)
        elif self.target is not None and is_adapter:
            model = f"{self.target}+{place}"
            scale = {"parameters": {"scale": self.alpha}} if self.alpha != 1.0 else {}
            if scale:
                raise RecipeError(
                    "an adapter is added to the target with its own scale, and alpha is not 1",
                    "leave out `alpha`, or give a recipe",
                )
            tv.merge({"merge_method": "passthrough", "models": [{"model": model}]}, out, **settings)
        elif self.target is not None:
            tv.transfer(self.target, place, self.reference, out, alpha=self.alpha, **settings)
        else:
            return
        self.saved.append(str(out))

    def _average(self, folder: Path) -> None:
        import taskvec as tv

        found = [name for name in look.listing(folder) if name.startswith("checkpoint-")]
        steps = sorted(int(name.removeprefix("checkpoint-")) for name in found if name[11:].isdigit())
        last = [str(folder / f"checkpoint-{step}") for step in steps[-(self.average or 0) :]]
        if len(last) < 2:
            raise RecipeError(
                f"{len(last)} checkpoints are left in `{folder}`, and an average takes two or more",
                "raise `save_total_limit` of the trainer",
            )
        settings: dict[str, Any] = {"overwrite": True, **self.settings}
        tv.average(last, self.out / "average", **settings)
        self.saved.append(str(self.out / "average"))

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except (Error, OSError) as error:
            if self.stop_on_error:
                raise
            hint = getattr(error, "hint", None)
            _LOG.error("taskvec: %s%s; the training goes on", error, f" (hint: {hint})" if hint else "")


def _of_vectors() -> frozenset[str]:
    """The settings that saving a vector takes."""
    from taskvec.option import options_of
    from taskvec.settings import Settings

    return frozenset(name for name, option in options_of(Settings).items() if option.for_vectors)


def _documents(recipe: Mapping[str, Any] | str | os.PathLike[str]) -> Any:
    if isinstance(recipe, Mapping):
        return dict(recipe)
    from taskvec.recipe.load import read

    _, _, documents = read(recipe)
    return [document.plain() for document in documents]


def _filled(value: Any, checkpoint: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _filled(each, checkpoint) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(each, checkpoint) for each in value]
    return value.replace(CHECKPOINT, checkpoint) if isinstance(value, str) else value
