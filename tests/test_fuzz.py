"""What the fuzz targets of the Python layer began with and what they have found, tried again."""

from __future__ import annotations

import pytest

from fuzz.python_targets import SEEDS, TARGETS, check


@pytest.mark.parametrize("target", TARGETS)
def test_kept_inputs(target: str) -> None:
    kept = sorted((SEEDS / target).iterdir())
    assert len(kept) > 2
    for path in kept:
        data = path.read_bytes()
        check(target, data)
        for length in range(0, len(data), max(1, len(data) // 40)):
            check(target, data[:length])
