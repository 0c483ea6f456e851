"""The demo in one call, with the paper in miniature."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, overload

from taskvec.arguments import number, path, switch
from taskvec.errors import RecipeError
from taskvec.host import cores
from taskvec.shown import counted, watched
from taskvec.text import kind_of

if TYPE_CHECKING:
    from taskvec.evaluation.miniature.demo import Miniature
    from taskvec.evaluation.sweep.events import Event
    from taskvec.selftest.demo import DemoResult

FOLDER = "taskvec-paper"
MOST_JOBS = 4  # more processes wait for each other: the arms come in three portions


@overload
def demo(
    folder: str | os.PathLike[str] | None = None,
    *,
    paper: Literal[False] = False,
    overwrite: bool = False,
    threads: int | None = None,
    progress: Callable[[str], object] | bool | None = None,
) -> DemoResult: ...
@overload
def demo(
    folder: str | os.PathLike[str] | None = None,
    *,
    paper: Literal[True],
    seed: int | None = None,
    pretrained: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    progress: Callable[[Event], object] | bool | None = None,
) -> Miniature: ...
def demo(
    folder: str | os.PathLike[str] | None = None,
    *,
    paper: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    seed: int | None = None,
    pretrained: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    progress: Callable[[Any], object] | bool | None = None,
) -> DemoResult | Miniature:
    """Make three checkpoints, check, transfer and verify them; or run the paper's experiment in miniature.

    >>> tv.demo("tryout").ok  # doctest: +SKIP
    True
    >>> tv.demo(paper=True).report.to_frame()  # doctest: +SKIP

    Parameters
    ----------
    folder : str or path, optional
        Where to write and keep everything: ``instruct``, ``sft``, ``grpo`` and ``merged`` (13 MB); by default
        a temporary folder, removed at the end. With `paper` it receives ``models/`` and ``report/``, and is
        ``taskvec-paper`` by default; what it holds already is kept, and an interrupted run goes on.
    paper : bool
        Train small models and run the paper's experiment on them, with its controls. It takes minutes, and
        needs the extra ``eval``.
    overwrite : bool
        Replace what an earlier demo left in `folder`; without `paper`.
    threads : int, optional
        Worker threads, all cores by default; without `paper`.
    seed : int, optional
        Of the models and their problems, 1 by default; with `paper`.
    pretrained : str or path, optional
        An archive of such models, in place of training; with `paper`.
    jobs : int, optional
        Processes that evaluate, by default one for each core and at most 4; with `paper`.
    progress : callable or bool, optional
        Called with a line of text at each step, or with an `Event` of the sweep; ``True`` shows either.

    Returns
    -------
    DemoResult or Miniature
        The latter's ``report`` has ``to_frame()`` and ``plot()``; whether the vector helped is in it.

    Raises
    ------
    RecipeError
        An argument of the other demo, or `seed` with `pretrained`.
    OutputError
        `folder` holds something else.
    EvaluationError
        The extra ``eval`` is not installed, or `folder` holds models of another seed.
    """
    if folder is not None:
        path(folder, "folder")
    switch(overwrite, "overwrite")
    number(seed, "seed", least=0)
    number(jobs, "jobs", least=1)
    if not isinstance(paper, bool):
        raise RecipeError(
            f"`paper` is True or False, found {kind_of(paper)}",
            "the paper's settings with models of your own are `tv.sweep(paper='1.5b', ...)`",
        )
    of_job: dict[str, Any] = {"overwrite": overwrite, "threads": threads}
    of_paper: dict[str, Any] = {"seed": seed, "pretrained": pretrained, "jobs": jobs}
    idle = of_job if paper else of_paper
    for name, value in idle.items():
        if value not in (None, False):
            raise RecipeError(
                f"`{name}` is not for the demo with `paper`" if paper else f"`{name}` needs `paper=True`",
                "leave it out",
            )
    if not paper:
        from taskvec.selftest.demo import demo as job

        return job(folder, overwrite=overwrite, threads=threads, progress=progress)
    if seed is not None and pretrained is not None:
        raise RecipeError("`seed` goes with training", "leave it out: the archive's models have their own")
    from taskvec.evaluation.miniature.demo import run

    with counted(progress is True or None) as building, watched(progress) as sweeping:
        return run(
            folder or FOLDER,
            seed,
            pretrained,
            jobs=jobs or min(cores(), MOST_JOBS),
            building=building,
            sweeping=sweeping,
        )
