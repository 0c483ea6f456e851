"""What the tests of this room share: an S3 server of the tests' own."""

from __future__ import annotations

from support.store_fixtures import quick, s3, s3_server

__all__ = ["quick", "s3", "s3_server"]
