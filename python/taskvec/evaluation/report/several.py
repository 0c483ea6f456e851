"""Finished sweeps read back, one row each: what ``taskvec report`` puts side by side and pools."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskvec.errors import Error, EvaluationError
from taskvec.evaluation.report.report import SCHEMA
from taskvec.files import look

NAME = "report.json"
AGAIN = "run the sweep's command again: arms that are done are not evaluated again"
PLAIN = "report"  # a folder of this name says nothing: the one that it is in does


@dataclass(frozen=True, slots=True)
class Result:
    """One task of one finished sweep.

    Attributes
    ----------
    label : str
        Of the sweep.
    task : str
    content : dict
        The content of the sweep's ``report.json``.
    """

    label: str
    task: str
    content: dict[str, Any]

    @property
    def alpha(self) -> float:
        """The alpha that claims are made of."""
        chosen = self.content["alpha"]
        return chosen.get("by_task", {}).get(self.task, chosen["alpha"])

    @property
    def metric(self) -> str:
        """The metric that was compared."""
        return self.content["settings"]["tasks"][self.task]["metric"]

    @property
    def higher_is_better(self) -> bool:
        """Its direction."""
        return self.content["settings"]["tasks"][self.task]["higher_is_better"]

    @property
    def gate(self) -> dict[str, Any]:
        """Whether the donor beats its reference."""
        return next(gate for gate in self.content["gate"] if gate["task"] == self.task)

    @property
    def conclusion(self) -> dict[str, Any]:
        """What may be said."""
        return next(item for item in self.content["conclusions"] if item["task"] == self.task)

    @property
    def primary(self) -> list[dict[str, Any]]:
        """The tests on which the claim rests."""
        tests = self.content["comparisons"]
        return [test for test in tests if test["task"] == self.task and test["family"] == "primary"]

    def arm(self, name: str) -> dict[str, Any]:
        """An arm by its name."""
        return next(arm for arm in self.content["arms"] if arm["name"] == name)

    @property
    def plain_arms(self) -> list[dict[str, Any]]:
        """The unperturbed arms under the prompt that claims are made under."""
        think = self.content["settings"]["think"]
        return [arm for arm in self.content["arms"] if arm["think"] == think and arm["perturb"] is None]

    def score(self, arm: dict[str, Any]) -> float | None:
        """The score of an arm on this task."""
        found = arm["scores"].get(self.task, {}).get(self.metric)
        return found["value"] if found else None


def read_results(folders: Sequence[Path]) -> list[Result]:
    """Every task of every sweep, in the order of the folders.

    Raises
    ------
    EvaluationError
        A folder holds no report of a sweep, one that this version cannot read, or one without a vector.
    """
    if not folders:
        raise EvaluationError("no results were named", "name the output folders of sweeps")
    contents = [_read(folder) for folder in folders]
    labels = _labels(folders)
    found: list[Result] = []
    for label, content in zip(labels, contents, strict=True):
        with as_written(label):
            tasks: dict[str, Any] = content["settings"]["tasks"]
            found += [
                Result(label, task, content) for task, facts in tasks.items() if facts["metric"] is not None
            ]
    return found


@contextlib.contextmanager
def as_written(label: str) -> Iterator[None]:
    """Around what reads the report of a sweep, which another hand may have written to.

    Raises
    ------
    EvaluationError
        Something that every report has is missing from it, or is of another kind.
    """
    try:
        yield
    except Error:
        raise
    except StopIteration:  # as a cause it would pass for the end of this generator
        raise EvaluationError(
            f"the report of `{label}` is damaged, or was changed: a row is missing", AGAIN
        ) from None
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise EvaluationError(
            f"the report of `{label}` is damaged, or was changed: {reason}", AGAIN
        ) from error


def _read(folder: Path) -> dict[str, Any]:
    path = folder / NAME if not look.is_file(folder) else folder
    if not look.exists(path):
        inner = folder / PLAIN / NAME  # of `taskvec demo --paper`
        if not look.exists(inner):
            if look.listing(folder / "arms") or look.listing(inner.parent / "arms"):
                raise EvaluationError(
                    f"`{folder}` holds no {NAME}: its sweep has not come to an end",
                    "run its command again: arms that are done are not evaluated again",
                )
            raise EvaluationError(f"`{folder}` holds no {NAME}", "name the output folder of a finished sweep")
        path = inner
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EvaluationError(f"cannot read `{path}`: {error.strerror}", look.way_out(error)) from error
    except ValueError as error:
        raise EvaluationError(f"`{path}` is damaged: it is not JSON ({error})", AGAIN) from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or "comparisons" not in content:
        raise EvaluationError(f"`{path}` is not a report of a sweep of schema {SCHEMA}", AGAIN)
    if not content.get("alpha") or not content.get("conclusions"):
        raise EvaluationError(
            f"`{path}` has no vector with a positive alpha, so there is nothing to pool",
            "name the output folders of sweeps",
        )
    tests = content["comparisons"]
    if not isinstance(tests, list) or not all(isinstance(test, dict) for test in tests):
        raise EvaluationError(f"`{path}` is damaged: its comparisons are not a list of tests", AGAIN)
    if any("family" not in test for test in tests):
        raise EvaluationError(f"`{path}` was written before claims had a family of tests of their own", AGAIN)
    return content


def _labels(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the folders' paths that tell them apart."""
    parts = [path.resolve().parts for path in folders]
    parts = [p[:-1] if p[-1] in (PLAIN, NAME) else p for p in parts]
    parts = [p[:-1] if p[-1] == PLAIN else p for p in parts]
    if len(set(parts)) < len(parts):
        twice = next(folder for folder, own in zip(folders, parts, strict=True) if parts.count(own) > 1)
        raise EvaluationError(f"`{twice}` is named twice", "name every result once: pooling counts each")
    length = next(n for n in range(1, 99) if len({p[-n:] for p in parts}) == len(parts))
    return ["/".join(p[-length:]) for p in parts]
