"""The recording in README is of what the program prints: its words, if not its figures."""

from __future__ import annotations

import html
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from support.pages import DOCS, README, text_of

SVG = DOCS / "assets" / "demo.svg"


@pytest.fixture(scope="module")
def record() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record", DOCS / "record.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words(svg: str) -> list[str]:
    """The lines of the drawing without figures and units, which change from run to run."""
    rows: dict[str, str] = {}
    for y, text in re.findall(r'<text class="demo-r\d+" x="[\d.]+" y="([\d.]+)"[^>]*>(.*?)</text>', svg):
        rows[y] = rows.get(y, "") + html.unescape(text).replace("\xa0", " ")
    figures = r"[\d.,]+( ?(GB/s|GB|MB|kB|ms|s|M|k|%))?|avx\w*|neon|scalar|\d+ threads?"
    return [" ".join(re.sub(figures, "#", row).split()) for row in rows.values() if row.strip()]


def test_it_shows_what_is_printed(record: ModuleType, request: pytest.FixtureRequest) -> None:
    drawn = record.draw(record.run())
    if request.config.getoption("--update-transcripts"):
        SVG.write_text(drawn, encoding="utf-8")
    assert len(words(drawn)) > 20
    assert words(text_of(SVG)) == words(drawn), "run with --update-transcripts"


def test_it_loads_nothing_from_elsewhere() -> None:
    assert not re.search(r"(?:src|href)=|url\(['\"]?https?:|@import|@font-face", text_of(SVG))


def test_readme_shows_it() -> None:
    assert str(Path("docs/assets/demo.svg")) in text_of(README)
