"""What proposes candidates: CMA-ES, random points, or Optuna's tree of Parzen estimators.

All are asked for a generation and told its losses. From the same seed and the same losses they propose the
same points again, so that a search which was killed goes on by telling what its journal has.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from taskvec.errors import EvaluationError
from taskvec.evaluation.search.form import Optimiser
from taskvec.evaluation.search.free import Free
from taskvec.evaluation.search.space import Point
from taskvec.extras import install


class Proposer(Protocol):
    """A source of candidates."""

    def ask(self) -> list[Point]:
        """The points of the next generation."""
        ...

    def tell(self, losses: Sequence[float]) -> None:
        """The losses of the points that were asked for last; less is better."""
        ...


def losses(scores: Sequence[float | None]) -> list[float]:
    """What is told of scores in the order in which they were found: less is better.

    A missing one is worse than every other up to then, by as much as scores are large.
    """
    known = [-score for score in scores if score is not None]
    worst = max(known, default=0.0)
    return [worst + max(1.0, abs(worst)) if score is None else -score for score in scores]


def proposer(free: Sequence[Free], given: Optimiser, population: int, start: Point) -> Proposer:
    """The optimiser that a space names.

    Raises
    ------
    EvaluationError
        The package that it needs is not installed.
    """
    if given.name == "random":
        return RandomPoints(free, given.seed, population)
    if given.name == "tpe":
        return _Tpe(free, given.seed, population)
    if all(each.kind == "number" for each in free):
        return _Continuous(given, population, start)
    return _Mixed(free, given, population, start)


class RandomPoints:
    """Points drawn uniformly from the space."""

    def __init__(self, free: Sequence[Free], seed: int | list[int], population: int) -> None:
        self._free, self._population = free, population
        self._draw = np.random.default_rng(seed)

    def ask(self) -> list[Point]:
        return [tuple(self._one(each) for each in self._free) for _ in range(self._population)]

    def tell(self, losses: Sequence[float]) -> None:
        """Nothing: no draw depends on the others."""

    def _one(self, free: Free) -> float | int:
        if free.kind == "number":
            return float(self._draw.random())
        low, high = (0, len(free.choices) - 1) if free.kind == "choice" else (int(free.low), int(free.high))
        return int(self._draw.integers(low, high + 1))


class _Continuous:
    """CMA-ES (Hansen 2016, arXiv 1604.00772) over numbers alone."""

    def __init__(self, given: Optimiser, population: int, start: Point) -> None:
        cmaes = _package("cmaes", "cma")
        mean = np.array(start, dtype=np.float64)
        # a mean on the border would draw half of its points from outside
        mean = mean.clip(given.sigma / 4, 1 - given.sigma / 4)
        self._inner = cmaes.CMA(
            mean=mean,
            sigma=given.sigma,
            bounds=np.array([[0.0, 1.0]] * len(start)),
            seed=_seed(given.seed),
            population_size=population,
        )
        self._asked: list[Any] = []

    def ask(self) -> list[Point]:
        self._asked = [self._inner.ask() for _ in range(self._inner.population_size)]
        return [tuple(float(value) for value in point) for point in self._asked]

    def tell(self, losses: Sequence[float]) -> None:
        self._inner.tell(list(zip(self._asked, map(float, losses), strict=True)))


class _Mixed:
    """CatCMA with margin (Hamano et al. 2025, arXiv 2504.07884): numbers and choices at once."""

    def __init__(self, free: Sequence[Free], given: Optimiser, population: int, start: Point) -> None:
        cmaes = _package("cmaes", "cma")
        self._free = free
        numbers, whole, choices = (
            [at for at, each in enumerate(free) if each.kind == kind]
            for kind in ("number", "integer", "choice")
        )
        ranges = [list(range(int(free[at].low), int(free[at].high) + 1)) for at in whole]
        mean = [min(max(start[at], 0.05), 0.95) for at in numbers] + [start[at] for at in whole]
        width = [given.sigma] * len(numbers) + [max(0.5, given.sigma * (r[-1] - r[0])) for r in ranges]
        self._order = [*numbers, *whole, *choices]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._inner = cmaes.CatCMAwM(
                x_space=[[0.0, 1.0]] * len(numbers) or None,
                z_space=ranges or None,
                c_space=[len(free[at].choices) for at in choices] or None,
                population_size=population,
                mean=np.array(mean, dtype=np.float64) if mean else None,
                sigma=1.0 if mean else None,
                cov=np.diag(np.square(width)) if mean else None,
                seed=_seed(given.seed),
            )
        self._asked: list[Any] = []

    def ask(self) -> list[Point]:
        self._asked = [self._inner.ask() for _ in range(self._inner.population_size)]
        return [self._point(solution) for solution in self._asked]

    def tell(self, losses: Sequence[float]) -> None:
        with (
            warnings.catch_warnings()
        ):  # as long as all losses are equal there is no spread to take a mean of
            warnings.simplefilter("ignore", RuntimeWarning)
            self._inner.tell(list(zip(self._asked, map(float, losses), strict=True)))

    def _point(self, solution: Any) -> Point:
        parts: list[float | int] = []
        if solution.x is not None:
            parts += [float(value) for value in solution.x]
        if solution.z is not None:
            parts += [round(float(value)) for value in solution.z]
        if solution.c is not None:
            parts += [int(np.argmax(row)) for row in solution.c]
        return tuple(
            part for _, part in sorted(zip(self._order, parts, strict=True), key=lambda pair: pair[0])
        )


class _Tpe:
    """The tree of Parzen estimators of Optuna."""

    def __init__(self, free: Sequence[Free], seed: int, population: int) -> None:
        optuna = _package("optuna", "tpe")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        places = optuna.distributions
        self._population = population
        self._ranges = {
            each.name: places.FloatDistribution(0.0, 1.0)
            if each.kind == "number"
            else places.IntDistribution(int(each.low), int(each.high))
            if each.kind == "integer"
            else places.CategoricalDistribution(range(len(each.choices)))
            for each in free
        }
        self._study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=_seed(seed)))
        self._asked: list[Any] = []

    def ask(self) -> list[Point]:
        self._asked = [self._study.ask(self._ranges) for _ in range(self._population)]
        return [tuple(trial.params[name] for name in self._ranges) for trial in self._asked]

    def tell(self, losses: Sequence[float]) -> None:
        for trial, loss in zip(self._asked, losses, strict=True):
            self._study.tell(trial, float(loss))


def _seed(seed: int) -> int:
    """A seed as NumPy's older generators take it."""
    return seed % 2**32


def _package(name: str, optimiser: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        command = install("eval") if name == "cmaes" else f"pip install {name}"
        raise EvaluationError(
            f"the optimiser `{optimiser}` needs the package `{name}`, which is not installed",
            f"{command}, or `optimiser: {{name: random}}`",
        ) from None
