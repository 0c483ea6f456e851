"""An S3 server for tests, in the environment, and none of this machine's own set-up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from support.s3_server import S3, running_s3


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    """One server for all tests: it takes seconds to start."""
    with running_s3() as server:
        yield server


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials, proxies or waits of this machine; files are fetched into a folder of the test."""
    from taskvec.resolve.store import client

    for name in list(os.environ):
        if name.startswith(("AWS_", "GOOGLE_", "AZURE_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TASKVEC_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # and no profiles
    waits = {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=5), "base": 2}
    monkeypatch.setitem(client.REPEAT, "backoff", waits)
    monkeypatch.setitem(client.REPEAT, "max_retries", 2)


@pytest.fixture
def s3(s3_server: S3, quick: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:  # noqa: ARG001
    """The server, empty, and in the environment."""
    for name, value in s3_server.variables.items():
        monkeypatch.setenv(name, value)
    yield s3_server
    for bucket in s3_server.client.list_buckets()["Buckets"]:
        pages = s3_server.client.get_paginator("list_objects_v2").paginate(Bucket=bucket["Name"])
        for each in (each for page in pages for each in page.get("Contents", ())):
            s3_server.client.delete_object(Bucket=bucket["Name"], Key=each["Key"])
        s3_server.client.delete_bucket(Bucket=bucket["Name"])
