"""A hub, an S3 server and a web server of the tests' own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from support.hub_server import Hub
from support.s3_server import S3, running_s3
from support.web_server import Web, running_web


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub of our own in place of the public one, with an empty cache."""
    from huggingface_hub import constants

    with Hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.chdir(tmp_path)
        yield server


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
        for each in s3_server.client.list_objects_v2(Bucket=bucket["Name"]).get("Contents", ()):
            s3_server.client.delete_object(Bucket=bucket["Name"], Key=each["Key"])
        s3_server.client.delete_bucket(Bucket=bucket["Name"])


@pytest.fixture
def web(quick: None) -> Iterator[Web]:  # noqa: ARG001
    """A web server, empty."""
    with running_web() as server:
        yield server
