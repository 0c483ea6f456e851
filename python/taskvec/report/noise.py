"""Signal and noise of a vector that is the difference of two quantised models, from the three files alone.

Where donor and reference have the same scale, rounding makes a difference either zero or a whole step, and
its mean magnitude is on average that of the true one. Its mean square is not: most of it is rounding. Both
together say how much of the difference is a vector (κ, the ratio of mean square to squared mean magnitude,
is taken from tensors that both models keep plain). The length of the change relative to the weights there,
ρ, gives a second estimate: that the two agree is the check.
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
    ("AWQ", 0.10), ("MLX 4", 0.10),
)  # fmt: skip
# More scales that differ than two models of one tool have.
FOREIGN = 0.9


class Sums(NamedTuple):
    """Sums over a difference of donor and reference, of one tensor: the engine's figures."""

    elements: int
    squares: float
    reference_squares: float
    magnitudes: float
    equal_elements: int = 0
    codes_differ: int = 0
    groups: int = 0
    scales_differ: int = 0

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
        Estimated cosine of the difference with the true vector; ``None`` where no two scales are equal.
    cosine_by_size : float or None
        The same from the relative size of the change in plain tensors; ``None`` where there are none.
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
    step: float | None
    own: float | None

    @property
    def signal_to_noise(self) -> float | None:
        """Signal over noise, of squares, from the first estimate that there is."""
        cosine = self.cosine if self.cosine is not None else self.cosine_by_size
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
    squares, reference = (math.fsum(row[at] for row in rows) for at in (1, 2))
    elements, groups = sum(row.elements for row in rows), sum(row.groups for row in rows)
    if not elements or not groups:
        return None
    changed = [row for row in plain if row.magnitudes > 0 and math.isfinite(row.squares)]
    equal = [row for row in rows if row.equal_elements]
    kurtosis = _kurtosis(changed)
    signal = math.fsum(kurtosis * row.elements * (row.magnitudes / row.equal_elements) ** 2 for row in equal)
    ratio = _ratio(
        math.fsum(row.squares for row in changed), math.fsum(row.reference_squares for row in changed)
    )
    return Noise(
        form,
        sum(row.codes_differ for row in rows) / elements,
        sum(row.scales_differ for row in rows) / groups,
        _cosine(signal, math.fsum(row.squares for row in equal)) if equal else None,
        None if ratio is None else _cosine(ratio * reference, squares),
        _root(_ratio(squares, reference)),
        next((own for start, own in OWN_NOISE if form.startswith(start)), None),
    )


def _kurtosis(changed: Sequence[Sums]) -> float:
    """Mean square over squared mean magnitude, averaged over tensors by their elements."""
    total = sum(row.elements for row in changed)
    if not total:
        return LEAST_KURTOSIS
    return math.fsum(row.squares * row.elements**2 / row.magnitudes**2 for row in changed) / total


def _cosine(signal: float, squares: float) -> float | None:
    share = _ratio(signal, squares)
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
        first += "; donor and reference look quantised by different rules, whose rounding does not cancel"
    cosines = [
        f"{cosine:.2f}{how}"
        for cosine, how in ((noise.cosine, ""), (noise.cosine_by_size, " by the size of the change"))
        if cosine is not None
    ]
    parts = []
    if cosines:
        ratio = noise.signal_to_noise
        shown = "" if ratio is None or not 0 < ratio < math.inf else f" (signal:noise {_odds(ratio)})"
        parts.append(f"estimated cosine with the true vector {', '.join(cosines)}{shown}")
    if noise.step is not None:
        parts.append(f"step {percent(noise.step)} of |W|")
    if noise.own is not None:
        parts.append(f"format's own noise {noise.own:.2%}")
    return [first, "; ".join(parts)] if parts else [first]


def _odds(ratio: float) -> str:
    return f"1:{1 / ratio:.3g}" if ratio < 1 else f"{ratio:.3g}:1"
