"""Merges: a target and what is added to it, computed only when asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from taskvec.arguments import texts
from taskvec.compat.findings import enforce
from taskvec.lazy.mapping import Tensors
from taskvec.lazy.plan import Plan
from taskvec.models.model import Model
from taskvec.plan import transfer as planning
from taskvec.plan.checks import check_step
from taskvec.plan.delta import Delta
from taskvec.report.tables import table_html
from taskvec.settings import Options, Settings, format_alpha, parse_alphas
from taskvec.text import printable

if TYPE_CHECKING:
    import numpy as np

    from taskvec.progress import Callback
    from taskvec.report.report import Report


class Merge(Tensors):
    """A target plus a task vector; immutable, and nothing is computed until it is asked for.

    Made by ``target + vector`` or ``target - vector``; more vectors can be added.

    Attributes
    ----------
    target : Model
        Whose tensor names, order, config and tokenizer the result has.
    vector : TaskVector
        What is added to it.
    """

    __slots__ = ("_plan", "target", "vector")

    def __init__(self, target: Model, vector: Delta) -> None:
        self.target = target
        self.vector = vector
        self._plan: Plan | None = None

    @classmethod
    def of(cls, target: Model, vector: Delta) -> Merge:
        """The merge of a target and a vector that has been compared with it.

        Raises
        ------
        CompatibilityError
            They are incompatible; ``findings`` says where.
        """
        for step in vector.steps:
            enforce(check_step(target, step, vector.force), vector.force)
        return cls(target, vector)

    def plan(
        self, *, alphas: float | str | Sequence[float] | None = None, **settings: Unpack[Options]
    ) -> Plan:
        """The plan of :meth:`save`, from headers alone.

        Parameters
        ----------
        alphas : float or sequence of float, optional
            Factors of the whole vector; several give one output folder each.
        **settings
            The fields of :class:`taskvec.Settings`.

        Raises
        ------
        CompatibilityError
            The models are incompatible.
        RecipeError
            A setting cannot be honoured.
        """
        return self._planned(settings, alphas)

    def _planned(
        self,
        options: Options,
        alphas: float | str | Sequence[float] | None = None,
        *,
        is_plain: bool = False,
    ) -> Plan:
        steps = list(self.vector.steps)
        if alphas is None and len(steps) == 1:
            # target + 0.8 * v is the transfer with alpha 0.8
            alphas, steps = steps[0].weight, [steps[0]._replace(weight=1.0)]
        record = planning.plan_steps(
            self.target,
            steps,
            settings=self._settings(options),
            alphas=parse_alphas(1.0 if alphas is None else alphas),
            is_plain=is_plain,
        )
        return Plan.of(record)

    def save(
        self,
        out: str | os.PathLike[str],
        *,
        alphas: float | str | Sequence[float] | None = None,
        progress: Callback | bool | None = None,
        **settings: Unpack[Options],
    ) -> Report:
        """Compute the merge and write it as a checkpoint, in one streamed pass.

        Parameters
        ----------
        out : str or path
            The output folder; several alphas write ``out/alpha=0.5`` and so on.
        alphas : float or sequence of float, optional
            Factors of the whole vector.
        progress : callable or bool, optional
            Called with a :class:`taskvec.Progress`; ``True`` draws a bar.
        **settings
            The fields of :class:`taskvec.Settings`.

        Raises
        ------
        taskvec.Error
            What is incompatible, missing, damaged or could not be written.
        KeyboardInterrupt
            Stopped; the same call goes on where it was.
        """
        return self.plan(alphas=alphas, **settings).run(
            out, settings=self._settings(settings), progress=progress
        )

    def _settings(self, options: Options) -> Settings:
        force = texts(options.get("force", ()), "force")
        return Settings.of({**options, "force": tuple(dict.fromkeys((*self.vector.force, *force)))})

    def __getitem__(self, name: str) -> np.ndarray:
        """One tensor of the result, computed now, with the bytes that :meth:`save` would write.

        Packed weights are plain here; ``save`` may write them in the target's own format.

        Raises
        ------
        TensorNotFoundError
            The target has no tensor of this name; a ``KeyError`` too.
        """
        from taskvec.run.evaluate import of_plan

        self.target.info(name)
        if self._plan is None:
            self._plan = self._planned({}, is_plain=True)
        ((_, array),) = of_plan(self._plan, [name])
        return array

    def items(self, **settings: Unpack[Options]) -> Iterator[tuple[str, np.ndarray]]:
        """The tensors of the result in file order, computed a few at a time, with the bytes of :meth:`save`.

        Packed weights are plain, unless ``out_dtype`` is ``"target"``: then their stored parts come.

        Parameters
        ----------
        **settings
            ``out_dtype``, ``rounding``, ``seed``, ``threads`` and ``force`` matter here.
        """
        from taskvec.run.evaluate import of_plan

        given = self._settings(settings)
        allowed = "non-finite" in given.force
        plan = self._planned(settings, is_plain=True)
        return of_plan(plan, threads=given.threads, allow_non_finite=allowed)

    def __iter__(self) -> Iterator[str]:
        return iter(self.target.tensors)

    def __len__(self) -> int:
        return len(self.target.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.target.tensors

    if TYPE_CHECKING:  # the vector, which lies above, does both

        def __add__(self, other: Delta) -> Merge: ...
        def __sub__(self, other: Delta) -> Merge: ...

    def __reduce__(self) -> Any:
        return Merge, (self.target, self.vector)

    def __deepcopy__(self, memo: object) -> Merge:
        return self  # immutable, and so is all that it holds

    def __repr__(self) -> str:
        words = str(self.vector)
        words = f"- {words[1:]}" if words.startswith("-") else f"+ {words}"
        return f"Merge({printable(self.target.spec)} {printable(words)}, tensors: {len(self):,})"

    def _repr_html_(self) -> str:
        rows = [
            {"weight": "1", "summand": self.target.spec, "selection": "target"},
            *(
                {"weight": format_alpha(step.weight), "summand": str(step), "selection": str(step.selection)}
                for step in self.vector.steps
            ),
        ]
        return table_html(rows, f"Merge of {len(self):,} tensors", limit=len(rows))
