"""A hub, an S3 server and a web server of the tests' own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.hub_server import Hub
from support.store_fixtures import quick, s3, s3_server
from support.web_server import Web, running_web

__all__ = ["quick", "s3", "s3_server"]


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


@pytest.fixture
def web(quick: None) -> Iterator[Web]:  # noqa: ARG001
    """A web server, empty."""
    with running_web() as server:
        yield server
