"""What the tests of this room share: packed models, an S3 server of the tests' own."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.models import Trio
from support.packed_checks import FP8
from support.packed_models import Values, packed_trio
from support.store_fixtures import quick, s3, s3_server

__all__ = ["packed", "quick", "s3", "s3_server"]


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Trio, tuple[Values, Values, Values]]:
    """Target, donor and reference in block FP8, each in two files, and the values of each."""
    return packed_trio(tmp_path, FP8, shards=2)
