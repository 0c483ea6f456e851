"""The ways in which rows of tokens are approximated, by name and in words."""

from __future__ import annotations

from typing import Literal

Method = Literal["omp", "nearest", "subword"]
WAYS = {
    "omp": "orthogonal matching pursuit",
    "nearest": "the nearest shared tokens",
    "subword": "the mean of their pieces",
}
