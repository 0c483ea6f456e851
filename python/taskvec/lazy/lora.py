"""A task vector as a LoRA adapter: planned, and written."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, Unpack

from taskvec.arguments import texts
from taskvec.errors import FormatError, NotFoundError, RecipeError
from taskvec.lazy.plan import Plan
from taskvec.lazy.vector import TaskVector, load_vector
from taskvec.models.model import Model
from taskvec.models.saved_vector import SavedVector
from taskvec.models.selection import Preset, Selection, both
from taskvec.plan.lora import Lora, plan_lora
from taskvec.resolve.open import open as open_model
from taskvec.settings import Options, Settings

if TYPE_CHECKING:
    from taskvec.plan.adapter_division import Embeddings, Others
    from taskvec.progress import Callback
    from taskvec.report.report import Report

Spec = str | os.PathLike[str] | Model | TaskVector


def plan_extract_lora(
    donor: Spec,
    reference: str | os.PathLike[str] | Model | None,
    *,
    rank: int | Literal["auto"],
    energy: float | None = None,
    max_rank: int | None = None,
    embeddings: Embeddings = "lora",
    others: Others = "leave",
    dtype: str | None = None,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    preset: Preset = "full",
    layers: str | None = None,
    **settings: Unpack[Options],
) -> Plan:
    """Say what :func:`extract_lora` would do, from headers alone; takes its arguments but for ``out``."""
    lora = Lora(
        rank=rank, energy=energy, max_rank=max_rank, embeddings=embeddings, others=others, dtype=dtype
    )
    selection = Selection(texts(include, "include"), texts(exclude, "exclude"), preset, layers)
    found, base, own, force = _opened(donor, reference)
    chosen = selection if own is None else both(own, selection)
    record = plan_lora(found, base, lora, selection=chosen, settings=Settings.of(settings), force=force)
    return Plan.of(record)


def extract_lora(
    donor: Spec,
    reference: str | os.PathLike[str] | Model | None,
    out: str | os.PathLike[str],
    *,
    rank: int | Literal["auto"],
    energy: float | None = None,
    max_rank: int | None = None,
    embeddings: Embeddings = "lora",
    others: Others = "leave",
    dtype: str | None = None,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    preset: Preset = "full",
    layers: str | None = None,
    progress: Callback | bool | None = None,
    **settings: Unpack[Options],
) -> Report:
    """Save donor − reference as a LoRA adapter on the reference, which PEFT loads.

    Every module has the best approximation of its difference at a rank, by singular value decomposition: of
    the whole matrix where that is small, and otherwise in a range found with random numbers. One module is
    in memory at a time.

    Parameters
    ----------
    donor : str, path, Checkpoint or TaskVector
        A model, or a vector.
    reference : str, path or Checkpoint, optional
        What the adapter is put on; ``None`` with a vector.
    out : str or path
        The output folder.
    rank : int or "auto"
        Of the factors of every module; ``"auto"`` takes for each the smallest rank that keeps ``energy``.
        Experts that are stored one by one all have the largest of their ranks, since they are loaded as one.
    energy : float, optional
        The share of the squared norm of a module's difference that ``"auto"`` keeps; 0.95 by default.
    max_rank : int, optional
        The largest rank that ``"auto"`` takes; 256 by default.
    embeddings : {"lora", "whole", "leave"}
        Whether embedding and head have factors, are held as in the donor, or are left out.
    others : {"leave", "whole"}
        Whether norms, biases and whatever else is no linear layer is left out, and named in the report, or
        held as in the donor.
    dtype : str, optional
        Float type of the factors; float32 by default.
    include, exclude, preset, layers
        The tensors that belong to the adapter; see :func:`taskvec.transfer`.
    progress : callable or bool, optional
        Called with a :class:`taskvec.Progress`; ``True`` draws a bar.
    **settings
        ``seed``, ``threads``, ``force``, ``overwrite``, ``resume`` and ``rehash`` matter here.

    Returns
    -------
    Report
        Its ``adapter`` has the energy that is kept, in all and of each module.

    Raises
    ------
    taskvec.Error
        One of its subclasses says what is incompatible, missing, damaged or could not be written.
    """
    plan = plan_extract_lora(
        donor, reference, rank=rank, energy=energy, max_rank=max_rank, embeddings=embeddings, others=others,
        dtype=dtype, include=include, exclude=exclude, preset=preset, layers=layers, **settings,
    )  # fmt: skip
    return plan.run(out, settings=Settings.of(settings), progress=progress)


def _opened(
    donor: Spec, reference: str | os.PathLike[str] | Model | None
) -> tuple[Model | SavedVector, Model | None, Selection | None, tuple[str, ...]]:
    """Donor and reference, or a saved vector; of a vector its selection and what it goes on in spite of."""
    if reference is not None:
        if isinstance(donor, TaskVector):
            raise RecipeError(
                f"`{donor}` is a vector, and a reference is given too", "give `None` as reference"
            )
        return open_model(donor), open_model(reference), None, ()
    donor = donor if isinstance(donor, TaskVector) else _vector(donor)
    step = donor.steps[0]
    if len(donor.steps) > 1 or step.weight != 1.0:
        raise RecipeError(
            f"`{donor}` cannot be made an adapter: only one difference can, with weight one",
            "make an adapter of each, and give their weights where they are used",
        )
    return step.donor, step.reference, step.selection, donor.force


def _vector(donor: str | os.PathLike[str] | Model) -> TaskVector:
    """A saved vector, which is all that can be given alone."""
    try:
        return load_vector(donor.spec if isinstance(donor, Model) else donor)
    except (FormatError, NotFoundError) as error:
        raise type(error)(error.message, f"give a reference too, or a saved vector; {error.hint}") from None
