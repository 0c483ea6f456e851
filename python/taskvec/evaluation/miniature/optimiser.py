"""Muon for the matrices, AdamW for the rest: the optimiser that trains the base from nothing.

On the one seed where both were tried, 240 steps took the loss to 0.6 with Muon and to 1.1 with AdamW alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

MOMENTUM = 0.95
QUINTIC = (3.4445, -4.7750, 2.0315)
"""Newton-Schulz coefficients of Jordan et al., https://kellerjordan.github.io/posts/muon: five rounds bring
every singular value near 1."""


class Optimiser:
    """Takes steps on leaf tensors and clears their gradients.

    Parameters
    ----------
    weights : mapping of str to Tensor
        Leaves that require gradients.
    rate : float
        AdamW's learning rate.
    muon : float, optional
        Muon's learning rate for matrices other than the embedding; AdamW has them, too, if it is left out.
    """

    def __init__(self, weights: Mapping[str, Tensor], rate: float, muon: float | None = None) -> None:
        self._matrices: list[Tensor] = []
        if muon is not None:
            self._matrices = [w for name, w in weights.items() if w.ndim == 2 and "embed" not in name]
        others = [w for w in weights.values() if not any(w is matrix for matrix in self._matrices)]
        self._momenta = [torch.zeros_like(matrix) for matrix in self._matrices]
        self._rate, self._muon = rate, muon or 0.0
        self._others = others
        self._adam = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)

    def step(self, scale: float = 1.0) -> None:
        """One step at ``scale`` times the learning rates; AdamW's gradient is clipped to norm 1."""
        torch.nn.utils.clip_grad_norm_(self._others, 1.0)
        for group in self._adam.param_groups:
            group["lr"] = self._rate * scale
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        with torch.no_grad():
            for matrix, momentum in zip(self._matrices, self._momenta, strict=True):
                assert matrix.grad is not None
                momentum.lerp_(matrix.grad, 1 - MOMENTUM)
                direction = orthogonal(matrix.grad.lerp(momentum, MOMENTUM))
                # The root makes an element's step about as large as AdamW's, whatever the shape.
                matrix.add_(direction, alpha=-self._muon * scale * 0.2 * max(matrix.shape) ** 0.5)
                matrix.grad = None


def orthogonal(matrix: Tensor) -> Tensor:
    """The nearest matrix of orthonormal rows or columns, roughly: singular values end between 0.7 and 1.2."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix) / (matrix.norm() + 1e-7)
    a, b, c = QUINTIC
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x
