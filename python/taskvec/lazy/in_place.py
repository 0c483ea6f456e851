"""Task vectors added to a model in memory, in place, and taken back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from taskvec.arguments import texts
from taskvec.plan.delta import Delta
from taskvec.settings import Rounding, Settings
from taskvec.shown import shown

if TYPE_CHECKING:
    from taskvec.progress import Callback
    from taskvec.run.in_place import Change, Kept


class InPlace(Delta):
    """The part of a task vector that changes a model in memory."""

    __slots__ = ()

    _kept: list[Kept]

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
        progress: Callback | bool | None = None,
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
            Model and vector are incompatible.
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
            force=(*self.force, *texts(force, "force")),
        )
        kept = self._kept if keep else None
        with shown(progress) as tell:
            return change(self.steps, model, alpha=alpha, settings=settings, kept=kept, progress=tell)

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
        progress: Callback | bool | None = None,
    ) -> Change:
        """Take back what :meth:`apply_` added to a model in memory.

        Exactly, where that kept the originals and nothing else has changed the model since; else
        by subtracting α·v, which is rounded once more: a warning says so.

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
