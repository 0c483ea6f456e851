"""Task vectors: differences of checkpoints, added and scaled like vectors, computed only when asked for."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, Unpack

from taskvec.compat.check import check_models
from taskvec.compat.findings import enforce
from taskvec.errors import CompatibilityError, NotFoundError, RecipeError
from taskvec.lazy.merge import Merge
from taskvec.lazy.plan import Plan
from taskvec.models.model import Model
from taskvec.models.selection import Preset, Selection, both
from taskvec.plan.delta import Delta, Step
from taskvec.report.difference import Pair
from taskvec.run.compare import compare
from taskvec.settings import Options, Rounding, Settings

if TYPE_CHECKING:
    import numpy as np

    from taskvec.progress import Callback
    from taskvec.report.report import Report
    from taskvec.run.in_place import Change, Kept


class TensorStats(NamedTuple):
    """Figures of a vector, or of one of its tensors."""

    elements: int
    changed: int
    norm: float
    largest: float

    @property
    def changed_share(self) -> float:
        """Share of the elements that are not zero."""
        return self.changed / self.elements if self.elements else 0.0


class Stats(NamedTuple):
    """Figures of a whole vector, and of each of its tensors."""

    total: TensorStats
    tensors: dict[str, TensorStats]


class TaskVector(Delta):
    """A weighted sum of differences of checkpoints; immutable, and nothing is computed until it is asked for.

    Made by ``donor - reference``. ``-v``, ``0.5 * v``, ``v / 2``, ``v + w``, ``v - w`` and ``sum(vectors)``
    are vectors, ``target + v`` and ``target - v`` are a :class:`taskvec.Merge`. Models that do not fit each
    other raise at the operator. Its attributes are those of :class:`taskvec.plan.delta.Delta`.
    """

    __slots__ = ("_kept",)

    def __init__(self, steps: Iterable[Step], force: Iterable[str] = ()) -> None:
        super().__init__(steps, force)
        self._kept: list[Kept] = []

    @classmethod
    def difference(
        cls,
        donor: Model,
        reference: Model,
        *,
        selection: Selection | None = None,
        force: str | Iterable[str] = (),
    ) -> TaskVector:
        """The vector donor − reference.

        Parameters
        ----------
        donor, reference : Model
            Headers are enough.
        selection : Selection, optional
            The tensors that belong to the vector; the others count as zero.
        force : str or iterable of str
            Identifiers of findings to go on in spite of.

        Raises
        ------
        CompatibilityError
            The models do not fit each other; ``findings`` says where.
        """
        selection = selection or Selection()
        force = (force,) if isinstance(force, str) else tuple(force)
        found = check_models([("donor", donor)], reference, role="reference", selection=selection)
        enforce(found, force)
        return cls([Step(1.0, donor, reference, selection)], force)

    def select(
        self,
        *,
        include: str | Iterable[str] = (),
        exclude: str | Iterable[str] = (),
        preset: Preset = "full",
        layers: str | None = None,
    ) -> TaskVector:
        """The vector on some of its tensors; the others count as zero.

        Parameters
        ----------
        include, exclude, preset, layers
            As those of :class:`taskvec.Selection`.

        Raises
        ------
        RecipeError
            Nothing of the vector is left, or a pattern is no regular expression.
        """
        words = [(part,) if isinstance(part, str) else tuple(part) for part in (include, exclude)]
        return self.select_by(Selection(words[0], words[1], preset, layers))

    def select_by(self, selection: Selection) -> TaskVector:
        """The same from a :class:`taskvec.Selection`."""
        selected = TaskVector(
            (step._replace(selection=both(step.selection, selection)) for step in self.steps), self.force
        )
        if self.tensors and not selected.tensors:
            selection.select(self.tensors)
        return selected

    def save(
        self,
        out: str | os.PathLike[str],
        *,
        dtype: str | None = None,
        progress: Callback | None = None,
        **settings: Unpack[Options],
    ) -> Report:
        """Save the vector, without loss: each tensor in the narrowest exact type and the smallest encoding.

        Parameters
        ----------
        out : str or path
            The output folder.
        dtype : str, optional
            A float type for all values, which loses what it cannot hold.
        progress : callable, optional
            Called with a :class:`taskvec.Progress`.
        **settings
            ``max_shard_size``, ``threads``, ``force``, ``overwrite``, ``resume`` and ``rehash`` matter here.

        Raises
        ------
        RecipeError
            It is not a single difference of two models with weight one.
        taskvec.Error
            What is missing, damaged or could not be written.
        """
        given = Settings.of(settings)
        return self.plan(dtype=dtype, **settings).run(out, settings=given, progress=progress)

    def plan(self, *, dtype: str | None = None, **settings: Unpack[Options]) -> Plan:
        """What :meth:`save` would do, from headers alone; takes its arguments."""
        from taskvec.plan.extract import plan_extract

        step = self.steps[0]
        if len(self.steps) > 1 or step.weight != 1.0 or step.reference is None:
            raise RecipeError(
                f"`{self}` cannot be saved: only a difference of two models can, with weight one",
                "save the differences, and give their weights when they are applied",
            )
        (_, donor), (_, reference) = step.models
        record = plan_extract(
            donor,
            reference,
            selection=step.selection,
            settings=Settings.of(settings),
            dtype=dtype,
            force=self.force,
        )
        return Plan.of(record)

    def apply_(
        self,
        model: Any,
        *,
        alpha: float = 1.0,
        keep: bool = False,
        rounding: Rounding = "nearest",
        seed: int = 0,
        threads: int | None = None,
        force: str | Iterable[str] = (),
        progress: Callback | None = None,
    ) -> Change:
        """Add α·v to a model in memory, in place; on the CPU the bytes are those of a run over files.

        Everything is computed once beforehand, so that an error leaves the model as it was. Ctrl-C does so
        too, until the change begins; a change that has begun is completed. No other thread may use the model
        meanwhile.

        Parameters
        ----------
        model : Module or mapping of str to Tensor or ndarray
            Tied tensors are changed once. Tensors that are not on the CPU are changed there by torch, with
            the same formula.
        alpha : float
            Factor.
        keep : bool
            Keep a copy of the tensors before the change, with which :meth:`remove_` puts them back exactly.
        rounding, seed, threads, force, progress
            As in :func:`taskvec.transfer`.

        Returns
        -------
        Change
            How many tensors were changed, and what of the step survived rounding.

        Raises
        ------
        CompatibilityError
            Model and vector do not fit each other.
        NonFiniteError
            A value would not be finite.
        RecipeError
            The vector is computed from the very tensors that it would change.
        """
        from taskvec.run.in_place import change

        settings = Settings(
            rounding=rounding,
            seed=seed,
            threads=threads,
            force=(*self.force, *Settings.of({"force": force}).force),
        )
        kept = self._kept if keep else None
        return change(self.steps, model, alpha=alpha, settings=settings, kept=kept, progress=progress)

    def remove_(
        self,
        model: Any,
        *,
        alpha: float | None = None,
        keep: bool = False,
        rounding: Rounding = "nearest",
        seed: int = 0,
        threads: int | None = None,
        force: str | Iterable[str] = (),
        progress: Callback | None = None,
    ) -> Change:
        """Take back what :meth:`apply_` added to a model in memory.

        Exactly, where that was told to keep the originals and nothing else has changed the model since; else
        by subtracting α·v, which is rounded anew: a warning says so.

        Parameters
        ----------
        model, rounding, seed, threads, force, progress
            As in :meth:`apply_`.
        alpha : float, optional
            The factor that was added; by default that of the kept originals, or 1.
        keep : bool
            Keep a copy of the tensors before a subtraction.

        Returns
        -------
        Change
            Its ``exact`` says which of the two it was.
        """
        from taskvec.run.in_place import restored, say_inexact

        back = restored(self._kept, model, alpha, Settings(threads=threads))
        if back is not None:
            return back
        say_inexact()
        return self.apply_(
            model,
            alpha=-(1.0 if alpha is None else alpha),
            keep=keep,
            rounding=rounding,
            seed=seed,
            threads=threads,
            force=force,
            progress=progress,
        )

    def norm(self) -> float:
        """The L2 norm; reads the weights once, in bounded memory."""
        return self.stats().total.norm

    def stats(self, *, progress: Callback | None = None) -> Stats:
        """Elements, elements that are not zero, norm and largest magnitude, per tensor and in all.

        Reads the weights once, in bounded memory.
        """
        pairs = compare(self.terms(), (), self.tensors, progress=progress)
        tensors = {name: _stats(pair) for name, pair in pairs.items()}
        return Stats(_stats(Pair.total(pairs.values())), tensors)

    def cosine(self, other: TaskVector) -> float:
        """The cosine between two vectors; ``nan`` where one of them is zero. Reads the weights once.

        Raises
        ------
        CompatibilityError
            The vectors have tensors of one name and different shapes.
        """
        cosine = Pair.total(self.compare(other).values()).cosine
        return math.nan if cosine is None else cosine

    def compare(self, other: TaskVector, *, progress: Callback | None = None) -> dict[str, Pair]:
        """Norms, dot product, supports and signs of two vectors, per tensor. Reads the weights once.

        A tensor that only one of them has is zero in the other.

        Raises
        ------
        CompatibilityError
            The vectors have tensors of one name and different shapes.
        """
        for name, shape in self.tensors.items():
            theirs = other.tensors.get(name, shape)
            if theirs != shape:
                raise CompatibilityError(
                    f"`{name}` has shape {list(shape)}, and {list(theirs)} in the other vector",
                    "compare vectors of one architecture",
                )
        shapes = {**self.tensors, **other.tensors}
        return compare(self.terms(), other.terms(), shapes, progress=progress)

    def __getitem__(self, name: str) -> np.ndarray:
        """One tensor of the vector, computed now: float32, or float64 where something is stored so.

        Raises
        ------
        NotFoundError
            The vector has no tensor of this name.
        """
        from taskvec.run.evaluate import of_terms

        if name not in self.tensors:
            raise NotFoundError(f"the vector has no tensor `{name}`", "`keys()` lists the names")
        ((_, array),) = of_terms(self.terms(), {name: self.tensors[name]})
        return array

    def items(self) -> Iterator[tuple[str, np.ndarray]]:
        """Computes the tensors, a few at a time."""
        from taskvec.run.evaluate import of_terms

        return of_terms(self.terms(), self.tensors)

    def keys(self) -> Iterator[str]:
        """The names of the tensors."""
        return iter(self.tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __neg__(self) -> TaskVector:
        return self * -1.0

    def __mul__(self, factor: object) -> TaskVector:
        if not _is_number(factor):
            return NotImplemented
        if not math.isfinite(factor):
            raise RecipeError(f"a vector cannot be multiplied by {factor}", "give a finite number")
        return TaskVector((step._replace(weight=step.weight * factor) for step in self.steps), self.force)

    __rmul__ = __mul__

    def __truediv__(self, divisor: object) -> TaskVector:
        if not _is_number(divisor):
            return NotImplemented
        if not divisor:
            raise RecipeError("a vector cannot be divided by zero")
        return self * (1.0 / divisor)

    def __add__(self, other: object) -> TaskVector:
        if not isinstance(other, TaskVector):
            return NotImplemented
        force = tuple(dict.fromkeys((*self.force, *other.force)))
        base, (role, _), *_ = self.steps[0].base, self.steps[0].models[-1]
        for step in other.steps:
            if step.base is not base:
                models = [(f"other {name}", model) for name, model in step.models]
                found = check_models(models, base, role=role, selection=step.wanted)
                enforce(found, force)
        return TaskVector(_collected([*self.steps, *other.steps]), force)

    def __sub__(self, other: object) -> TaskVector:
        return self + -other if isinstance(other, TaskVector) else NotImplemented

    def __radd__(self, other: object) -> Any:
        return self if isinstance(other, int) and other == 0 else self._added_to(other)

    def __rsub__(self, other: object) -> Merge:
        return (-self)._added_to(other)

    def _added_to(self, other: object) -> Merge:
        """A model plus this vector, or a merge with one vector more."""
        if isinstance(other, Merge):
            vector = other.vector if isinstance(other.vector, TaskVector) else TaskVector(other.vector.steps)
            return Merge.of(other.target, vector + self)
        return Merge.of(other, self) if isinstance(other, Model) else NotImplemented

    def __repr__(self) -> str:
        elements = sum(math.prod(shape) for shape in self.tensors.values())
        return f"TaskVector({self}, tensors: {len(self.tensors):,}, elements: {elements:,})"

    def _repr_html_(self) -> str:
        return self.table()


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _stats(pair: Pair) -> TensorStats:
    return TensorStats(pair.elements, pair.left_nonzero, pair.left_norm, pair.largest)


def _collected(steps: Iterable[Step]) -> list[Step]:
    """Steps with the weights of equal differences added up."""
    collected: dict[tuple[int, int, Selection], Step] = {}
    for step in steps:
        key = id(step.donor), id(step.reference), step.selection
        known = collected.get(key)
        collected[key] = step if known is None else known._replace(weight=known.weight + step.weight)
    return list(collected.values())


def load_vector(spec: str | os.PathLike[str], *, progress: Callback | None = None) -> TaskVector:
    """Open a task vector that was saved.

    Parameters
    ----------
    spec : str or path
        A folder that ``extract`` or ``save`` wrote, or its name on the hub.
    progress : callable, optional
        Told about the download of one on the hub.

    Raises
    ------
    NotFoundError
        Nothing of that name, or it has no manifest.
    FormatError
        It is no task vector, or damaged.
    """
    from taskvec.resolve.saved_vector import open_vector

    return TaskVector([Step(1.0, open_vector(spec, progress), None, Selection())])
