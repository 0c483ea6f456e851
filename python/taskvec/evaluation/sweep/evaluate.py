"""One model evaluated in one call, for a notebook."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack, get_args

from taskvec.arguments import one_of, path, texts
from taskvec.evaluation.arms import Kind, arm_stem
from taskvec.evaluation.keywords import SettingOptions
from taskvec.evaluation.settings import OPTIONS, Settings, key_of
from taskvec.evaluation.sweep.named import named
from taskvec.models.model import Model
from taskvec.run.sinks import hold_folder
from taskvec.shown import watched
from taskvec.text import nearest

if TYPE_CHECKING:
    from taskvec.evaluation.report.held import SweepReport
    from taskvec.evaluation.sweep.events import Progress


def evaluate(
    model: str | os.PathLike[str] | Model,
    *,
    tasks: str | Sequence[str],
    out: str | os.PathLike[str] | None = None,
    name: str | None = None,
    kind: Kind | None = None,
    alpha: float | None = None,
    think: str | None = None,
    perturb: str | Sequence[str] = (),
    progress: Progress | bool | None = None,
    **settings: Unpack[SettingOptions],
) -> SweepReport:
    """Run a model on benchmark tasks through lm-eval, and report on every arm of the output folder.

    >>> report = tv.evaluate("merged", tasks="gsm8k", limit=100)  # doctest: +SKIP
    >>> report.to_frame()  # doctest: +SKIP

    Parameters
    ----------
    model : str, path or Checkpoint
        A folder or a hub id.
    tasks : str or sequence of str
        Of lm-eval, or of YAML tasks in ``include_path``.
    out : str or path, optional
        Folder of the report and the arms; ``eval-NAME`` by default. A second model in the same folder is
        compared with the first, document by document, and an arm that is done is not run again.
    name : str, optional
        Of the arm; by default the model's own.
    kind : str, optional
        The model's part in the experiment: ``baseline``, ``donor``, ``vector`` and others; by default that of
        the first model of a folder is ``baseline``, and that of every other one ``vector``.
    alpha : float, optional
        The factor of a vector that is in the model.
    think : str, optional
        A request to reason, in every prompt.
    perturb : str or sequence of str
        Perturbations, each an arm of its own besides the clean one.
    progress : callable or bool, optional
        Called with an `Event`; ``True`` draws a bar.
    **settings
        Those of `taskvec.evaluation.Settings`: ``limit``, ``chat_template``, ``device``, ``seed`` and others.

    Returns
    -------
    SweepReport
        A `taskvec.evaluation.Report` with ``to_frame()`` and ``plot()``.

    Raises
    ------
    RecipeError
        A setting that cannot be honoured.
    EvaluationError
        The extra ``eval`` is not installed, a task or the model cannot be loaded, or the folder holds arms of
        other settings.
    """
    from taskvec.evaluation.backend.evaluate import require_extra
    from taskvec.evaluation.report.held import SweepReport
    from taskvec.evaluation.sweep.single import evaluate_model

    require_extra()
    model = path(named(model) if isinstance(model, Model) else model, "model")
    if kind is not None:
        one_of(kind, "kind", get_args(Kind))
    place = os.fspath(path(out, "out")) if out is not None else f"eval-{name or arm_stem(model)}"
    hold_folder(place, "an evaluation")
    known = [key_of(name) for name in OPTIONS]
    for key in settings:
        if key not in known:
            near = nearest(key, known)
            raise TypeError(f"unknown setting `{key}`" + (f"; did you mean `{near}`?" if near else ""))
    given = Settings.of({**settings, "tasks": texts(tasks, "tasks")})
    with watched(progress) as tell:
        report = evaluate_model(
            model,
            given,
            Path(place),
            name=name,
            kind=kind,
            alpha=alpha,
            think=think,
            perturb=texts(perturb, "perturb"),
            progress=tell,
        )
    return SweepReport.of(report)
