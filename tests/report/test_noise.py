"""Signal and noise of a difference of quantised models, against the true vector of a synthetic triple."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from support.models import DTYPES
from support.packed_floats import Parts
from support.packed_models import BY_NAME
from taskvec.report.noise import Noise, Sums, noise_of, noise_words
from taskvec.report.report import Output, noise_findings

# Of each format: how its scales are named, and how many elements share one.
FORMATS = {
    "block FP8, F32 scales": (".weight_scale_inv", (128, 128)),
    "block FP8, U8 scales": (".weight_scale_inv", (128, 128)),
    "CT FP8 channel": (".weight_scale", (1, 512)),
    "CT MXFP4": (".weight_scale", (1, 32)),
    "CT INT4 group 32": (".weight_scale", (1, 32)),
}
SIZE = 512


def weights(rng: np.random.Generator) -> np.ndarray:
    rows = np.exp(rng.standard_normal((SIZE, 1)) * 0.3) * 0.02
    return (rng.standard_normal((SIZE, SIZE)) * rows).astype(DTYPES["BF16"]).astype(np.float64)


def stepped(weight: np.ndarray, rng: np.random.Generator, share: float, size: float) -> np.ndarray:
    """A step of a few bfloat16 ulps on some elements, as reinforcement learning leaves it, or a dense one."""
    if size:
        return weight + rng.standard_normal(weight.shape) * size * np.abs(weight).mean()
    ulp = np.exp2(np.floor(np.log2(np.abs(weight) + 1e-12)) - 7)
    steps = rng.integers(1, 4, weight.shape) * rng.choice([-1, 1], weight.shape)
    return weight + steps * ulp * (rng.random(weight.shape) < share)


def sums(donor: np.ndarray, reference: np.ndarray) -> Sums:
    difference = donor - reference
    return Sums(difference.size, (difference**2).sum(), (reference**2).sum(), np.abs(difference).sum())


def packed_sums(name: str, donor: Parts, reference: Parts) -> tuple[Sums, np.ndarray]:
    end, block = FORMATS[name]
    way = BY_NAME[name]
    d, r = (way.unpack(parts, (SIZE, SIZE)).astype(np.float64) for parts in (donor, reference))
    same = np.repeat(np.repeat(donor[end] == reference[end], block[0], 0), block[1], 1)
    difference = d - r
    return (
        sums(d, r)._replace(
            magnitudes=np.abs(difference[same]).sum(),
            equal_elements=int(same.sum()),
            codes_differ=int((difference != 0).sum()),
            groups=donor[end].size,
            scales_differ=int((donor[end] != reference[end]).sum()),
        ),
        difference,
    )


@pytest.mark.parametrize(
    ("share", "size"), [(0.2, 0.0), (1.0, 0.0), (0.0, 0.05)], ids=["rl .2", "rl 1", "sft"]
)
@pytest.mark.parametrize("name", FORMATS)
def test_the_cosine_with_the_true_vector(name: str, share: float, size: float) -> None:
    rng = np.random.default_rng(7)
    way, packed, true, found, plain = BY_NAME[name], [], 0.0, 0.0, []
    length = 0.0
    for _ in range(3):
        reference = weights(rng)
        donor = stepped(reference, rng, share, size)
        parts = [way.pack(each.astype(np.float32)) for each in (donor, reference)]
        row, difference = packed_sums(name, *parts)
        packed.append(row)
        true += ((donor - reference) * difference).sum()
        found += (difference**2).sum()
        length += ((donor - reference) ** 2).sum()
    for _ in range(2):
        reference = weights(rng)
        plain.append(sums(stepped(reference, rng, share, size), reference))
    noise = noise_of(name, packed, plain)
    assert noise is not None
    cosine = true / math.sqrt(found * length)
    for estimate in (noise.cosine, noise.cosine_by_size):
        assert estimate is None or abs(estimate - cosine) < 0.02
    assert noise.cosine_by_size is not None


def test_without_plain_tensors_the_least_is_taken() -> None:
    row = Sums(100, 4.0, 400.0, 5.0, 50, 10, 4, 1)
    noise = noise_of("NVFP4, F8_E4M3 scales", [row], [])
    assert noise is not None
    assert noise.cosine == pytest.approx(math.sqrt(math.pi / 2 * 100 * 0.1**2 / 4.0))
    assert noise.cosine_by_size is None
    assert (
        "estimated cosine with the true vector at least 0.63 (signal:noise at least 1:1.55)"
        in noise_words(noise)[1]
    )
    assert (noise.codes_differ, noise.scales_differ, noise.step, noise.own) == (0.1, 0.25, 0.1, 0.095)


def test_nothing_packed_is_nothing_measured() -> None:
    assert noise_of("", [], [Sums(4, 1.0, 1.0, 1.0)]) is None


def test_the_words() -> None:
    noise = Noise("FP8 block 128x128, F32 scales", 0.027, 0.2, 0.23, 0.23, 0.24, 0.015, 0.0265)
    assert noise_words(noise) == [
        "FP8 block 128x128: 2.7% of codes and 20.0% of scales differ",
        "estimated cosine with the true vector 0.23, 0.24 by the mean step (signal:noise 1:17.9); "
        "step 1.5% of |W|; format's own noise 2.65%",
    ]
    assert "different rules" in noise_words(noise._replace(scales_differ=0.51))[0]
    assert "different rules" not in noise_words(noise._replace(scales_differ=0.5))[0]
    assert noise.to_dict()["signal_to_noise"] == pytest.approx(0.23**2 / (1 - 0.23**2))


def test_of_several_differences_signal_and_noise_are_added() -> None:
    packed = [
        Sums(100, 4.0 * w * w, 400.0, 5.0 * abs(w), 50, 10, 4, 1, pair) for pair, w in enumerate((1, -2))
    ]
    plain = [Sums(100, 0.09 * w * w, 100.0, 2.0 * abs(w), pair=pair) for pair, w in enumerate((1.0, -2.0))]
    noise = noise_of("FP8", packed, plain)
    assert noise is not None
    # both of one size and kind: the cosine of each, whatever the weights
    assert noise.cosine == noise.cosine_by_size == pytest.approx(math.sqrt(0.0009 * 400 / 4))
    assert noise.step == pytest.approx(math.sqrt((4 + 16) / 400))
    assert noise.codes_differ == 0.1


def test_more_than_half_of_the_scales_is_a_warning() -> None:
    output = Output("out", 1.0, (), None, {}, (), noise=Noise("FP8", 0.1, 0.6, None, None, None, None, None))
    (found,) = noise_findings([output])
    assert (found.id, found.level) == ("quantised-rules", "warning")
    assert output.noise is not None
    assert not noise_findings([replace(output, noise=output.noise._replace(scales_differ=0.5))])
    assert not noise_findings([replace(output, noise=None)])
