"""Task vectors: differences of checkpoints, added and scaled like vectors, computed only when asked for."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeGuard, Unpack, overload

from taskvec.arguments import texts
from taskvec.compat.check import check_models, check_vector
from taskvec.compat.findings import enforce
from taskvec.compat.layouts.fit import fitted
from taskvec.errors import RecipeError
from taskvec.lazy.in_place import InPlace
from taskvec.lazy.measured import Measured
from taskvec.lazy.merge import Merge
from taskvec.lazy.plan import Plan
from taskvec.models.model import Model
from taskvec.models.selection import Preset, Selection, both
from taskvec.plan.delta import Step
from taskvec.report.tables import table_html
from taskvec.settings import Options, Settings, format_alpha
from taskvec.shown import shown
from taskvec.text import printable

if TYPE_CHECKING:
    from taskvec.progress import Callback
    from taskvec.report.report import Report
    from taskvec.run.in_place import Kept


class TaskVector(Measured, InPlace):
    """A weighted sum of differences of checkpoints; immutable, and nothing is computed until it is asked for.

    Made by ``donor - reference``. ``-v``, ``0.5 * v``, ``v / 2``, ``v + w``, ``v - w`` and ``sum(vectors)``
    are vectors, ``target + v`` and ``target - v`` are a :class:`taskvec.Merge`. Incompatible models
    raise at the operator. Its attributes are those of :class:`taskvec.plan.delta.Delta`.
    """

    __slots__ = ("_kept",)
    __array_ufunc__ = None  # NumPy leaves `np.float32(0.5) * v` to the vector

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
            The models are incompatible; ``findings`` says where.
        """
        selection = selection or Selection()
        force = texts(force, "force")
        donor = fitted(donor, reference)
        enforce(check_vector(donor, reference, selection=selection), force)
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
            Nothing of the vector is left, or a pattern is not a regular expression.
        """
        return self.select_by(Selection(texts(include, "include"), texts(exclude, "exclude"), preset, layers))

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
        progress: Callback | bool | None = None,
        **settings: Unpack[Options],
    ) -> Report:
        """Save the vector, without loss: each tensor in the type and the encoding that are smallest.

        Parameters
        ----------
        out : str or path
            The output folder.
        dtype : str, optional
            A float type for all values, which loses what it cannot hold.
        progress : callable or bool, optional
            Called with a :class:`taskvec.Progress`; ``True`` draws a bar.
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
        """The plan of :meth:`save`, from headers alone; takes its arguments."""
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

    def __neg__(self) -> TaskVector:
        return self * -1.0

    def __mul__(self, factor: float) -> TaskVector:
        if not _is_number(factor):
            return NotImplemented
        if not math.isfinite(factor):
            raise RecipeError(f"a vector cannot be multiplied by {factor}", "give a finite number")
        factor = float(factor)
        return TaskVector((step._replace(weight=step.weight * factor) for step in self.steps), self.force)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> TaskVector:
        if not _is_number(divisor):
            return NotImplemented
        if not divisor:
            raise RecipeError("a vector cannot be divided by zero")
        return self * (1.0 / divisor)

    @overload
    def __add__(self, other: TaskVector) -> TaskVector: ...
    @overload
    def __add__(self, other: Model | Merge) -> Merge: ...
    def __add__(self, other: TaskVector | Model | Merge) -> TaskVector | Merge:
        if isinstance(other, (Model, Merge)):
            return self.added_to(other)
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

    def __sub__(self, other: TaskVector) -> TaskVector:
        return self + -other if isinstance(other, TaskVector) else NotImplemented

    @overload
    def __radd__(self, other: Model | Merge) -> Merge: ...
    @overload
    def __radd__(self, other: int) -> TaskVector: ...
    def __radd__(self, other: Model | Merge | int) -> Merge | TaskVector:
        return self if isinstance(other, int) and other == 0 else self.added_to(other)

    def __rsub__(self, other: Model | Merge) -> Merge:
        return (-self).added_to(other)

    def added_to(self, other: object) -> Merge:
        """``other + self`` of a model, or of a merge, which gets one vector more."""
        if isinstance(other, Merge):
            vector = other.vector if isinstance(other.vector, TaskVector) else TaskVector(other.vector.steps)
            return Merge.of(other.target, vector + self)
        return Merge.of(other, self) if isinstance(other, Model) else NotImplemented

    def __deepcopy__(self, memo: object) -> TaskVector:
        return TaskVector(self.steps, self.force)  # what it kept of models is not part of a copy

    __copy__ = lambda self: TaskVector(self.steps, self.force)  # noqa: E731

    def __repr__(self) -> str:
        elements = sum(math.prod(shape) for shape in self.tensors.values())
        return f"TaskVector({printable(self)}, tensors: {len(self.tensors):,}, elements: {elements:,})"

    def _repr_html_(self) -> str:
        rows = [
            {"weight": format_alpha(step.weight), "vector": str(step), "selection": str(step.selection)}
            for step in self.steps
        ]
        return table_html(rows, f"TaskVector of {len(self.tensors):,} tensors", limit=len(rows))


def _is_number(value: object) -> TypeGuard[float]:
    # NumPy's numbers of other widths are not floats of Python
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _collected(steps: Iterable[Step]) -> list[Step]:
    """Steps with the weights of equal differences added up."""
    collected: dict[tuple[int, int, Selection], Step] = {}
    for step in steps:
        key = id(step.donor), id(step.reference), step.selection
        known = collected.get(key)
        collected[key] = step if known is None else known._replace(weight=known.weight + step.weight)
    return list(collected.values())


def load_vector(spec: str | os.PathLike[str], *, progress: Callback | bool | None = None) -> TaskVector:
    """Open a task vector that was saved.

    Parameters
    ----------
    spec : str or path
        A folder that ``extract`` or ``save`` wrote, or its name on the hub.
    progress : callable or bool, optional
        Told about the download of one on the hub; ``True`` draws a bar.

    Raises
    ------
    NotFoundError
        Nothing of that name, or it has no manifest.
    FormatError
        It is not a task vector, or damaged.
    """
    from taskvec.resolve.saved_vector import open_vector

    with shown(progress) as tell:
        return TaskVector([Step(1.0, open_vector(spec, tell), None, Selection())])
