"""Signal and noise of a vector that is the difference of two quantised models, from the three files alone.

Two estimates of the cosine with the true vector:

- ρ: the length of the change relative to the weights, in matrices that both models keep plain, is taken to
  be that of the packed ones too.
- κ: where donor and reference have the same scale, rounding makes a difference either zero or a whole step,
  and its mean magnitude is on average that of the true one. Its mean square is not: most of it is rounding.
  κ, the ratio of mean square to squared mean magnitude, is taken from the plain matrices.

On synthetic triples (1024 and 2048 squared, steps of one to three ulps of bfloat16 and dense ones, twelve
formats) ρ is within 0.01 of the truth for all but MXFP4 (0.02), of which rounding takes a part of the vector
itself: its largest codes clamp. κ is within 0.013 where scales are powers of two, which hardly ever differ,
MXFP4 among them (0.01). Of other formats it is low by up to 0.05, and by more where few scales are equal: the
largest weight of a group decides its scale, so that those which change are left out. So κ is the estimate
where scales are powers of two and nearly all equal, and ρ is otherwise. κ asks less of the plain matrices:
that the two agree is the check.

Of a sum of several differences (`task_arithmetic` with several donors) each is measured by itself, and what
is estimated is the cosine of their weighted sum if the vectors are not correlated: signal and noise of all
are added, each by the square of its weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from taskvec.text import percent

# Of a dense Gaussian vector: the least that it is where there is no plain tensor to take it from.
LEAST_KURTOSIS = math.pi / 2
# Rounding error over the norm of weights, of synthetic weights whose rows have different scales.
OWN_NOISE = (
    ("MXFP8", 0.027), ("FP8 E5M2", 0.053), ("FP8", 0.0265), ("INT8", 0.0083), ("bitsandbytes INT8", 0.0083),
    ("bitsandbytes", 0.092), ("NVFP4", 0.095), ("MXFP4", 0.117), ("INT4", 0.097), ("GPTQ 4", 0.10),
    ("AWQ", 0.10), ("MLX 4", 0.10), ("MLX MXFP8", 0.027), ("MLX MXFP4", 0.117), ("MLX NVFP4", 0.095),
)  # fmt: skip
# Scales that are powers of two, in the words for a format.
POWERS = ("MXFP", "U8 scales", "F8_E8M0 scales")
# From this share of elements under equal scales on, none are selected by that.
NEARLY_ALL = 0.9
# More scales that differ than a small change of two models of one tool has.
FOREIGN = 0.5
FOREIGN_WORDS = (
    "if the change is small, donor and reference are quantised by different rules, whose rounding does not "
    "cancel"
)


class Sums(NamedTuple):
    """Sums over a difference of donor and reference, of one tensor: the engine's figures.

    Of a sum of several, ``squares`` and ``magnitudes`` are of the difference times its weight, and ``pair``
    says which it is.
    """

    elements: int
    squares: float
    reference_squares: float
    magnitudes: float
    equal_elements: int = 0
    codes_differ: int = 0
    groups: int = 0
    scales_differ: int = 0
    pair: int = 0

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Sums:
        """From the engine's report; a figure that is not finite counts as NaN."""
        return cls(*(_number(row.get(field, 0)) for field in cls._fields))


class Noise(NamedTuple):
    """How much of a vector of quantised models is a vector.

    Attributes
    ----------
    format : str
        What donor and reference are stored as.
    codes_differ, scales_differ : float
        Shares of the codes, and of the groups whose scales differ.
    cosine : float or None
        Estimated cosine of the difference with the true vector: that of the two which is the better for the
        format, or the one that there is.
    cosine_by_size : float or None
        From the relative size of the change in plain matrices, ρ; ``None`` where there are none.
    cosine_by_step : float or None
        From the mean step under equal scales, κ; ``None`` where no two scales are equal. Without
        ``cosine_by_size`` it is the least that the cosine can be.
    step : float or None
        Norm of the difference over that of the reference's weights.
    own : float or None
        The same of the format's own rounding error, where it was measured.
    """

    format: str
    codes_differ: float
    scales_differ: float
    cosine: float | None
    cosine_by_size: float | None
    cosine_by_step: float | None
    step: float | None
    own: float | None

    @property
    def signal_to_noise(self) -> float | None:
        """Signal over noise, of squares."""
        cosine = self.cosine
        if cosine is None:
            return None
        return math.inf if cosine >= 1 else cosine**2 / (1 - cosine**2)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; infinite is null."""
        ratio = self.signal_to_noise
        return {
            **self._asdict(),
            "signal_to_noise": ratio if ratio is None or math.isfinite(ratio) else None,
        }


def noise_of(form: str, packed: Iterable[Sums], plain: Sequence[Sums]) -> Noise | None:
    """The estimates of one output; ``None`` where no difference is of packed weights.

    Parameters
    ----------
    form : str
        What donor and reference are stored as.
    packed : iterable of Sums
        Of each tensor that both store in it.
    plain : sequence of Sums
        Of each matrix that both store plain.
    """
    rows = [row for row in packed if row.elements and math.isfinite(row.squares)]
    elements, groups = sum(row.elements for row in rows), sum(row.groups for row in rows)
    if not elements or not groups:
        return None
    changed = [row for row in plain if row.magnitudes > 0 and math.isfinite(row.squares)]
    pairs = sorted({row.pair for row in rows})
    each = [
        ([row for row in rows if row.pair == pair], [row for row in changed if row.pair == pair])
        for pair in pairs
    ]
    by_size, by_step = (
        _cosine([part for of in each if (part := estimate(*of))]) for estimate in (_size, _step)
    )
    squares, reference = (math.fsum(row[at] for row in rows) for at in (1, 2))
    is_equal = sum(row.equal_elements for row in rows) >= NEARLY_ALL * elements
    preferred = by_step if is_equal and any(words in form for words in POWERS) else by_size
    known = by_step if by_size is None else by_size
    return Noise(
        form,
        sum(row.codes_differ for row in rows) / elements,
        sum(row.scales_differ for row in rows) / groups,
        known if preferred is None else preferred,
        by_size,
        by_step,
        _root(_ratio(squares * len(pairs), reference)),
        next((own for start, own in OWN_NOISE if form.startswith(start)), None),
    )


Parts = tuple[float, float]


def _size(packed: Sequence[Sums], plain: Sequence[Sums]) -> Parts | None:
    """Squares of signal, and of signal and noise, by the size of the change in plain matrices."""
    ratio = _ratio(math.fsum(row.squares for row in plain), math.fsum(row.reference_squares for row in plain))
    if ratio is None:
        return None
    return ratio * math.fsum(row.reference_squares for row in packed), math.fsum(
        row.squares for row in packed
    )


def _step(packed: Sequence[Sums], plain: Sequence[Sums]) -> Parts | None:
    """The same by the mean step under equal scales."""
    equal = [row for row in packed if row.equal_elements]
    kurtosis = _kurtosis(plain)
    signal = (kurtosis * row.elements * (row.magnitudes / row.equal_elements) ** 2 for row in equal)
    return (math.fsum(signal), math.fsum(row.squares for row in equal)) if equal else None


def _kurtosis(changed: Sequence[Sums]) -> float:
    """Mean square over squared mean magnitude, averaged over tensors by their elements."""
    total = sum(row.elements for row in changed)
    if not total:
        return LEAST_KURTOSIS
    return math.fsum(row.squares * row.elements**2 / row.magnitudes**2 for row in changed) / total


def _cosine(parts: Sequence[Parts]) -> float | None:
    share = _ratio(*(math.fsum(part[at] for part in parts) for at in (0, 1)))
    return None if share is None else min(1.0, math.sqrt(share))


def _ratio(one: float, other: float) -> float | None:
    return one / other if other > 0 else None


def _root(value: float | None) -> float | None:
    return None if value is None else math.sqrt(value)


def _number(value: Any) -> Any:
    return math.nan if value is None else value


def noise_words(noise: Noise) -> list[str]:
    """The estimates in two lines."""
    codes = f"{percent(noise.codes_differ)} of codes and {percent(noise.scales_differ)} of scales differ"
    first = f"{noise.format.split(',')[0]}: {codes}"
    if noise.scales_differ > FOREIGN:
        first += f"; {FOREIGN_WORDS}"
    cosines = []
    # with no plain matrix that changes, κ is the least that it can be
    least = "at least " if noise.cosine_by_size is None else ""
    if noise.cosine is not None:
        cosines.append(f"{least}{noise.cosine:.2f}")
    if noise.cosine_by_size is not None and noise.cosine_by_step is not None:
        is_step = noise.cosine == noise.cosine_by_step
        other = (
            (noise.cosine_by_size, "size of the change") if is_step else (noise.cosine_by_step, "mean step")
        )
        cosines.append(f"{other[0]:.2f} by the {other[1]}")
    parts = []
    if cosines:
        ratio = noise.signal_to_noise
        shown = "" if ratio is None or not 0 < ratio < math.inf else f" (signal:noise {least}{_odds(ratio)})"
        parts.append(f"estimated cosine with the true vector {', '.join(cosines)}{shown}")
    if noise.step is not None:
        parts.append(f"step {percent(noise.step)} of |W|")
    if noise.own is not None:
        parts.append(f"format's own noise {noise.own:.2%}")
    return [first, "; ".join(parts)] if parts else [first]


def _odds(ratio: float) -> str:
    return f"1:{1 / ratio:.3g}" if ratio < 1 else f"{ratio:.3g}:1"
