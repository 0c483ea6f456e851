"""What the tests of this room share."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.models import Trio
from support.packed_checks import FP8
from support.packed_models import Values, packed_trio


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Trio, tuple[Values, Values, Values]]:
    """Target, donor and reference in block FP8, each in two files, and the values of each."""
    return packed_trio(tmp_path, FP8, shards=2)
