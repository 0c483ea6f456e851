"""Paired tests between arms, document by document, corrected over the family."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from taskvec.errors import EvaluationError
from taskvec.evaluation.analysis import statistics
from taskvec.evaluation.analysis.pairs import baselines
from taskvec.evaluation.record import ArmRecord, Sample, setting_differences
from taskvec.text import minus

Part = Literal["development", "report", "all"]
Family = Literal["primary", "secondary", "parts"]
Keep = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One paired test between two arms on one task.

    Attributes
    ----------
    difference, low, high : float
        `arm` minus `against`, in the metric's units, with its 95 % interval.
    p, p_holm : float
        As tested, and corrected over all comparisons of its family.
    verdict : str
        ``better``, ``worse`` or ``no difference shown``, by `p_holm`.
    n, gained, lost : int
        Pairs, and pairs in which the arm is above or below the other.
    detectable : float
        The smallest difference that these pairs would have shown with a probability of 80 %.
    detail : str
        The verdict in plain words.
    part : str
        Which documents: ``report`` or ``development`` where they were divided, else ``all``.
    family : str
        ``primary``: the tests on which a claim rests, fixed beforehand; ``parts``: those of the parts of a
        vector; all others are ``secondary``.
    """

    arm: str
    against: str
    task: str
    metric: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    test: statistics.Test
    verdict: statistics.Verdict
    n: int
    gained: int
    lost: int
    detectable: float
    detail: str
    part: Part
    family: Family = "secondary"


@dataclass(frozen=True, slots=True)
class Split:
    """The division of every task's documents into a development and a report part.

    A document's part follows from its hash and the seed alone, so it is the same in every arm and every run.
    """

    share: float
    seed: int

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise EvaluationError(f"development share {self.share} is not in [0, 1)")

    def is_development(self, doc_hash: str) -> bool:
        """Whether a document belongs to the development part."""
        digest = hashlib.blake2b(f"{self.seed}:{doc_hash}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.share * 2**64

    def keep(self, part: Part) -> Keep:
        """The documents of a part; all of them where nothing was divided."""
        if self.share == 0 or part == "all":
            return lambda _doc_hash: True
        return self.is_development if part == "development" else lambda doc: not self.is_development(doc)

    def holds(self, part: Part, record: ArmRecord, task: str) -> bool:
        """Whether a part has a document of a task that an arm was evaluated on."""
        keep = self.keep(part)
        return any(keep(sample.doc_hash) for sample in record.samples.get(task, ()))

    def part(self, part: Part) -> Part:
        """The name of a part, ``all`` where nothing was divided."""
        return part if self.share else "all"


def check_comparable(records: Sequence[ArmRecord]) -> None:
    """Refuse arms that were not run under the same settings.

    Raises
    ------
    EvaluationError
        Two arms differ; the message names the setting.
    """
    if not records:
        raise EvaluationError("there is no finished arm to report on")
    repeated = [name for name, count in Counter(record.name for record in records).items() if count > 1]
    if repeated:
        raise EvaluationError(f"two arms are named `{repeated[0]}`")
    first = records[0]
    for other in records[1:]:
        found = setting_differences(first, other)
        if found:
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise EvaluationError(
                f"arms `{first.name}` and `{other.name}` were run under different settings and cannot be "
                f"compared: {found[0]}{more}",
                "evaluate both under the same settings, or in output folders of their own",
            )


def pair(
    one: Iterable[Sample], other: Iterable[Sample], metric: str, keep: Keep
) -> tuple[list[float], list[float]]:
    """The values of two arms on the documents that both have, pair by pair.

    Documents are matched by hash; equal documents of one task are matched in their order.
    """
    left, right = _by_document(one, metric, keep), _by_document(other, metric, keep)
    shared = [key for key in left if key in right]
    return [left[key] for key in shared], [right[key] for key in shared]


def _by_document(samples: Iterable[Sample], metric: str, keep: Keep) -> dict[tuple[str, str, int], float]:
    seen: Counter[tuple[str, str]] = Counter()
    values: dict[tuple[str, str, int], float] = {}
    for sample in sorted(samples, key=lambda sample: (sample.subtask or "", sample.doc_id)):
        key = (sample.subtask or "", sample.doc_hash)
        if metric in sample.metrics and keep(sample.doc_hash):
            values[(*key, seen[key])] = sample.metrics[metric]
        seen[key] += 1
    return values


Test = tuple[ArmRecord, ArmRecord, str]


def compare(
    pairs: Sequence[tuple[ArmRecord, ArmRecord]], split: Split, part: Part, *, seed: int
) -> list[Comparison]:
    """Test the first of each pair against the second on every task that both have; see `compare_tests`."""
    tests = [(arm, against, task) for arm, against in pairs for task in arm.tasks if task in against.tasks]
    return compare_tests(tests, split, part, seed=seed)


def compare_tests(
    tests: Sequence[Test],
    split: Split,
    part: Part,
    *,
    seed: int,
    primary: Collection[tuple[str, str, str]] = (),
) -> list[Comparison]:
    """Test an arm against another on a task, with Holm's correction over each family.

    Tasks without a metric per sample (a perplexity, say) are left out: there is nothing to pair. So are tasks
    of which two arms share no document in this part; where that leaves nothing at all, it is an error.

    Parameters
    ----------
    tests : sequence of tuple
        Arm, the one that it is held against, task.
    split, part, seed
        The documents, and the seed of bootstraps.
    primary : collection of tuple of str
        The tests that are one family, by the names of arm, other arm and task; all others are another.
    """
    asked = [test for test in tests if test[0].tasks[test[2]].metric is not None]
    tested = [(*names, found) for names in asked if (found := _test(*names, split, part, seed)) is not None]
    if asked and not tested:
        _nothing_shared(*asked[0], split, part)
    families: list[Family] = [
        "primary" if (arm.name, against.name, task) in primary else "secondary"
        for arm, against, task, _ in tested
    ]
    corrected, sizes = _corrected([found.p for *_, found in tested], families), Counter(families)
    return [
        _comparison(arm, against, task, found, p_holm, sizes[family], split.part(part), family)
        for (arm, against, task, found), p_holm, family in zip(tested, corrected, families, strict=True)
    ]


def _corrected(p_values: Sequence[float], families: Sequence[Family]) -> list[float]:
    """Holm's correction within each family, in the order of the tests."""
    found = [0.0] * len(p_values)
    for family in set(families):
        own = [at for at, name in enumerate(families) if name == family]
        for at, p_holm in zip(own, statistics.holm([p_values[at] for at in own]), strict=True):
            found[at] = p_holm
    return found


def _test(
    arm: ArmRecord, against: ArmRecord, task: str, split: Split, part: Part, seed: int
) -> statistics.PairedTest | None:
    metric = arm.tasks[task].metric
    assert metric is not None
    one, other = pair(arm.samples[task], against.samples[task], metric, split.keep(part))
    return statistics.paired(one, other, seed=seed) if one else None


def _nothing_shared(arm: ArmRecord, against: ArmRecord, task: str, split: Split, part: Part) -> NoReturn:
    where = f" in the {part} part" if split.share else ""
    raise EvaluationError(
        f"arms `{arm.name}` and `{against.name}` share no document of task `{task}`{where}",
        "raise --limit, or set the development share to 0" if split.share else None,
    )


def _comparison(
    arm: ArmRecord,
    against: ArmRecord,
    task: str,
    found: statistics.PairedTest,
    p_holm: float,
    tests: int,
    part: Part,
    family: Family,
) -> Comparison:
    facts = arm.tasks[task]
    assert facts.metric is not None
    binary = found.test == "mcnemar"
    detectable = statistics.detectable(
        found.n,
        discordant=(found.gained + found.lost) / found.n if binary else None,
        spread=None if binary else found.spread,
        tests=tests,
    )
    verdict = statistics.verdict(found.difference, p_holm, higher_is_better=facts.higher_is_better)
    return Comparison(
        arm=arm.name,
        against=against.name,
        task=task,
        metric=facts.metric,
        difference=found.difference,
        low=found.low,
        high=found.high,
        p=found.p,
        p_holm=p_holm,
        test=found.test,
        verdict=verdict,
        n=found.n,
        gained=found.gained,
        lost=found.lost,
        detectable=detectable,
        detail=_in_words(verdict, found, detectable, against.name),
        part=part,
        family=family,
    )


def _in_words(
    verdict: statistics.Verdict, found: statistics.PairedTest, detectable: float, against: str
) -> str:
    shown = in_figures(found)
    if verdict == "no difference shown":
        seen = f"{100 * detectable:.1f} points" if found.test == "mcnemar" else f"{detectable:.3g}"
        return (
            f"no difference to {against} shown ({shown}); one of {seen} would have been seen with a "
            f"probability of 80 %"
        )
    return f"{verdict} than {against} ({shown})"


def in_figures(found: Comparison | statistics.PairedTest) -> str:
    """``+3.1 points, 95 % interval +1.2 to +5.0, n = 923``."""
    scale, unit, form = (100, " points", "+.1f") if found.test == "mcnemar" else (1, "", "+.3g")
    size, low, high = (
        minus(f"{scale * value:{form}}") for value in (found.difference, found.low, found.high)
    )
    return f"{size}{unit}, 95 % interval {low} to {high}, n = {found.n:,}"


@dataclass(frozen=True, slots=True)
class Sameness:
    """Whether alpha = 0 gave the baseline's samples, one by one, as it must."""

    arm: str
    against: str
    samples: int
    different: int


def zero_checks(records: Sequence[ArmRecord]) -> list[Sameness]:
    """Compare every alpha = 0 arm with its baseline, output by output."""
    base, found = baselines(records), []
    for record in records:
        baseline = base.get(record.arm.condition)
        if record.kind != "vector" or record.alpha != 0 or baseline is None:
            continue
        count = different = 0
        for task, samples in record.samples.items():
            for one, other in zip(samples, baseline.samples[task], strict=True):
                count += 1
                different += (one.output, one.metrics) != (other.output, other.metrics)
        found.append(Sameness(record.name, baseline.name, count, different))
    return found
