"""target + alpha * (donor - reference) by torch on any device, with the bits that the engine gives.

bfloat16 is computed in float32, all else in float64, and rounded once. As in the engine, a factor that
float32 does not hold makes product and sum float64's, and so do sums that cancel or leave float32; where the
target is the reference, alpha 1 gives the donor. Nothing here is fused: each operation is one rounding.
"""

from __future__ import annotations

import math
from typing import Any

import torch

CANCELLED = 1 / 4096  # |sum| below this share of |target| is computed again
PIECE = 1 << 24  # elements at once: temporaries in float64 are eight times as large

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def stepped(
    target: torch.Tensor, donor: torch.Tensor, reference: torch.Tensor, alpha: float
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The sum in the target's type and shape, and what became of the step.

    Parameters
    ----------
    target, donor, reference : Tensor
        Of one shape and device; each of bfloat16, float16, float32 or float64.
    alpha : float
        Factor.

    Returns
    -------
    Tensor, dict
        The sums are those of :meth:`taskvec.report.survival.Survival.of_sums`. Values that are not finite
        are in the result as they come.
    """
    parts = [each.reshape(-1).split(PIECE) for each in (target, donor, reference)]
    made, rows = [], []
    for t, d, r in zip(*parts, strict=True):
        out, delta = _piece(t, d, r, alpha)
        made.append(out)
        rows.append(_sums(t, delta, out, alpha))
    whole = torch.cat(made) if len(made) != 1 else made[0]
    return whole.reshape(target.shape), {key: sum(row[key] for row in rows) for key in rows[0]}


def _piece(
    target: torch.Tensor, donor: torch.Tensor, reference: torch.Tensor, alpha: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum, and the difference in the type that it is computed in."""
    is_narrow = all(each.dtype == torch.bfloat16 for each in (target, donor, reference))
    wide = torch.float32 if is_narrow else torch.float64
    t, d, r = (each.to(wide) for each in (target, donor, reference))
    delta = d - r
    if alpha == 0:
        return target.clone(), delta
    if is_narrow and not _holds(alpha):
        moved = _odd(_sum(t.double(), delta.double(), alpha))
    else:
        moved = _sum(t, delta, alpha)
    if is_narrow:
        again = ((moved.abs() < t.abs() * CANCELLED) | ~moved.isfinite()) & (delta != 0)
        if bool(again.any()):
            exact = _sum(t[again].double(), d[again].double() - r[again].double(), alpha)
            moved[again] = _odd(exact)
    moved = torch.where(delta == 0, t, moved)
    if alpha == 1:
        moved = torch.where(_same(t, r), d, moved)
    return _narrowed(moved, target.dtype), delta


def _sum(target: torch.Tensor, delta: torch.Tensor, alpha: float) -> torch.Tensor:
    """Two operations, so two roundings: none of the devices may fuse them."""
    product = delta * alpha
    return product.add_(target)


def _holds(alpha: float) -> bool:
    """Whether float32 has all digits of a factor."""
    return float(torch.tensor(alpha, dtype=torch.float32)) == alpha


def _odd(values: torch.Tensor) -> torch.Tensor:
    """float64 as float32, rounded to odd: rounding that to fewer digits is as if there had been one step."""
    nearest = values.float()
    back = nearest.double()
    bits = nearest.view(torch.int32)
    below = bits - (back.abs() > values.abs()).to(torch.int32)
    kept = (back == values) | ~nearest.isfinite()
    return torch.where(kept, bits, below | 1).view(torch.float32)


def _same(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Where two numbers are one, zeros with their signs."""
    bits = torch.int32 if one.dtype == torch.float32 else torch.int64
    return (one == other) & (one.view(bits) == other.view(bits))


def _narrowed(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rounded once; torch takes float64 to 16 bits by way of float32, which would be twice."""
    if values.dtype == torch.float64 and dtype in (torch.bfloat16, torch.float16):
        values = _odd(values)
    return values.to(dtype)


def _sums(target: torch.Tensor, delta: torch.Tensor, out: torch.Tensor, alpha: float) -> dict[str, Any]:
    """What the engine measures of a step, in float64."""
    step = delta.double()
    t = target.double()
    moved = out.double() - t
    changed = delta != 0
    squares = float(step.square().sum())
    step = step * alpha
    return {
        "step": alpha * (alpha * squares),
        "moved": float(moved.square().sum()),
        "dot": float((step * moved).sum()),
        "error": float((moved - step).square().sum()),
        "target": float(t.square().sum()),
        "changed": int(changed.sum()),
        "lost": int((changed & (moved == 0)).sum()),
        "elements": math.prod(target.shape),
    }
