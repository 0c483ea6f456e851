"""Every example of the pages is run as a reader would run it: in order, each in a process of its own."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from support.page_models import WORLDS
from support.page_world import Reader, make_models, make_world
from support.pages import PAGES, blocks


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("demo") / "models")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_example_runs(page: Path, models: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    make_world(home, models)
    with contextlib.ExitStack() as stack:
        made = WORLDS[page.name](home, models) if page.name in WORLDS else {}
        variables = made if isinstance(made, dict) else stack.enter_context(made)
        reader = Reader(home, tmp_path / "tools", variables)
        for block in blocks(page):
            reader.follow(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_not_run_has_a_reason(page: Path) -> None:
    for block in blocks(page, "sh", "bash", "python"):
        assert block.mark != "not run" or block.value.split()[0] in REASONS, block


# What an example has to begin its reason with, if it is not run.
REASONS = {"builds", "fetches", "needs", "takes", "installs", "it"}
