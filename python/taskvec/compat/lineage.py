"""Who descends from whom: distances between three models, from a sample of their weights.

A vector carries what a fine-tune learned only if the reference is what the donor was trained from. The
config cannot say so, the weights can: fine-tunes of one ancestor differ by per cents, unrelated models by
more than their own norm.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from taskvec.compat.counterparts import counterparts
from taskvec.compat.findings import Finding, finding
from taskvec.compat.integers import check_integers
from taskvec.compat.tied_heads import TieDecision, tie_decision
from taskvec.files import look

if TYPE_CHECKING:
    from taskvec.models.model import Model

# Tensors spread evenly over the model, and blocks spread evenly over each: about 50 kB of bf16 per model,
# which is read in a few milliseconds, and enough elements to see the sparse step of an RL run.
TENSORS = 24
BLOCKS = 2
ELEMENTS = 512
# Where the sample shows no difference at all, this many elements per tensor are looked at before saying so.
MORE_ELEMENTS = 1 << 16

# Two independent tensors of equal norm are sqrt(2) apart; a fine-tune is below 0.1 from its parent, RL
# below 0.01. 0.7 is a correlation of three quarters: too low for a descendant.
UNRELATED = 0.7
# Fine-tunes of one ancestor are about equally far from each other. A model that is this many times nearer
# to a third one than to its supposed partner was probably given in the wrong place.
SWAPPED = 4.0


class Distances(NamedTuple):
    """Root mean square over the sampled tensors of ‖a − b‖ / ‖reference‖."""

    donor_reference: float
    target_reference: float
    donor_target: float
    tensors: int
    elements: int

    def __str__(self) -> str:
        return (
            f"‖donor − reference‖ = {self.donor_reference:.2g}, "
            f"‖target − reference‖ = {self.target_reference:.2g}, "
            f"‖donor − target‖ = {self.donor_target:.2g} of ‖reference‖, from {self.tensors} tensors"
        )


def lineage(target: Model, donor: Model, reference: Model, tie: TieDecision | None = None) -> list[Finding]:
    """Say whether the three models look like target, donor and reference of one transfer.

    Reads some tens of kilobytes of each model; call it when the headers are found to fit. Non-finite
    elements are left out. ``tie`` is what :func:`tie_decision` says of the three, where it is known already.

    Returns
    -------
    list of Finding
        Warnings with the numbers, or a note with them. Empty for models of which only the headers are here,
        and for a donor that is the reference, which the headers have shown.
    """
    if target.path is None or donor.path is None or reference.path is None or same_files(donor, reference):
        return []
    findings = check_integers("target", target, [("donor", donor), ("reference", reference)])
    distances = measure(target, donor, reference, tie)
    if distances is not None:
        findings += _judge(distances)
    return findings


def same_files(one: Model, other: Model) -> str | None:
    """The name of both, in words, where two checkpoints are the same files."""
    if one.repository and (one.repository, one.revision) == (other.repository, other.revision):
        return f"`{one.repository}` at `{one.revision}`"
    if one.path is None or other.path is None or one.file_sizes.keys() != other.file_sizes.keys():
        return None
    if all(look.is_same(one.path / file, other.path / file) for file in one.file_sizes):
        return f"`{one.path}`"
    return None


def measure(
    target: Model, donor: Model, reference: Model, tie: TieDecision | None = None
) -> Distances | None:
    """Distances of the three models; ``None`` where no tensor can be compared."""
    others = [("donor", donor), ("reference", reference)]
    tie = tie or tie_decision(target, others)
    # Vectors (norms, biases) are too small to tell; they are taken where there is nothing else.
    stored = [info for info in target.tensors.values() if info.name not in target.permuted]
    wide = [info.name for info in stored if len(info.shape) > 1 and info.nbytes > 8]
    everything = [info.name for info in stored if info.nbytes]
    # Of a hundred thousand tensors, a few hundred are looked through first: mostly all have counterparts.
    for candidates in (spread(wide, 16 * TENSORS), wide, everything):
        pairs = counterparts(target, others, candidates, tie)
        if pairs:
            break
    else:
        return None
    chosen = spread(list(pairs), TENSORS)
    models = [target, donor, reference]
    compared = [(name, *pairs[name]) for name in chosen]
    distances = _distances(models, compared, BLOCKS, ELEMENTS)
    if distances is not None and distances.donor_reference == 0:
        equal = _equal_elements(donor, reference, compared)
        distances = (
            distances._replace(elements=equal) if equal else _distances(models, compared, 1, MORE_ELEMENTS)
        )
    return distances


def spread(names: list[str], most: int) -> list[str]:
    """At most so many of the names, evenly spread."""
    return names if len(names) <= most else [names[i * len(names) // most] for i in range(most)]


def _equal_elements(donor: Model, reference: Model, stored: Sequence[tuple[str, ...]]) -> int:
    """How many elements in a larger sample of donor and reference are all equal; 0 if one differs."""
    total = 0
    for _, theirs, others in stored:
        count = min(MORE_ELEMENTS, _count(donor, theirs))
        start = (_count(donor, theirs) - count) // 2
        if donor.sample(theirs, start, count) != reference.sample(others, start, count):
            return 0
        total += count
    return total


def _count(checkpoint: Model, name: str) -> int:
    return math.prod(checkpoint.tensors[name].shape)


def _distances(
    models: Sequence[Model], stored: Sequence[tuple[str, ...]], blocks: int, elements: int
) -> Distances | None:
    # 25 000 elements take 1 ms so; importing NumPy for them would take 100 ms or more.
    squares, used, total = [0.0, 0.0, 0.0], 0, 0
    places = [_places(_count(models[0], names[0]), blocks, elements) for names in stored]
    for number, model in enumerate(models):
        model.expect(
            (names[number], start, count)
            for names, (starts, count) in zip(stored, places, strict=True)
            for start in starts
        )
    for names, (starts, count) in zip(stored, places, strict=True):
        samples = [sampled(model, name, starts, count) for model, name in zip(models, names, strict=True)]
        norm, steps = _lengths(samples)
        if not math.isfinite(norm + sum(steps)):
            rows = [row for row in zip(*samples, strict=True) if all(map(math.isfinite, row))]
            if not rows:
                continue
            samples = [array("f", column) for column in zip(*rows, strict=True)]
            norm, steps = _lengths(samples)
        if norm > 0:
            for i, step in enumerate(steps):
                squares[i] += (step / norm) ** 2
            used, total = used + 1, total + len(samples[0])
    if not used:
        return None
    between = [math.sqrt(square / used) for square in squares]
    return Distances(between[0], between[1], between[2], used, total)


def _lengths(samples: Sequence[array[float]]) -> tuple[float, list[float]]:
    """The reference's length, and those of donor - reference, target - reference and donor - target."""
    t, d, r = map(tuple, samples)
    return math.hypot(*r), [math.dist(d, r), math.dist(t, r), math.dist(d, t)]


def _places(size: int, blocks: int, elements: int) -> tuple[list[int], int]:
    """The first elements of blocks spread evenly over a tensor, and how many each has."""
    count = min(elements, size)
    return sorted({(size - count) * (2 * block + 1) // (2 * blocks) for block in range(blocks)}), count


def sampled(checkpoint: Model, name: str, starts: Sequence[int], count: int) -> array[float]:
    values = array("f")
    for start in starts:
        values.frombytes(checkpoint.sample(name, start, count))
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _judge(distances: Distances) -> list[Finding]:
    dr, tr, dt = distances.donor_reference, distances.target_reference, distances.donor_target
    numbers = str(distances)
    if dr == 0:
        return [
            finding(
                "zero-vector",
                "donor and reference",
                "a difference",
                f"{distances.elements:,} sampled elements are equal",
                "give the model that the donor was trained from as reference",
            )
        ]
    findings = []
    if dr > UNRELATED:
        expected = f"‖donor − reference‖ below {UNRELATED} of ‖reference‖"
        fix = "give the model that the donor was trained from as reference"
        findings.append(finding("unrelated-reference", "reference", expected, numbers, fix))
    elif dt * SWAPPED < dr:
        fix = "the donor is nearest to the target: did you swap target and reference?"
        findings.append(
            finding("swapped-roles", "target and reference", "donor and reference nearest", numbers, fix)
        )
    elif 0 < tr * SWAPPED < dr:
        fix = "the reference is nearest to the target: did you swap target and donor?"
        findings.append(
            finding("swapped-roles", "target and donor", "donor and reference nearest", numbers, fix)
        )
    elif tr > UNRELATED:
        expected = f"‖target − reference‖ below {UNRELATED} of ‖reference‖"
        fix = "a vector carries over between models of one ancestor; measure what it does"
        findings.append(finding("unrelated-target", "target", expected, numbers, fix))
    return findings or [finding("lineage", "distances", "", numbers)]
