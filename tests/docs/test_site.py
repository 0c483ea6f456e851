"""The site: it is built without a warning, is complete, and loads nothing from elsewhere."""

from __future__ import annotations

import html
import importlib.util
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

import taskvec as tv
from support.pages import DOCS, PAGES, README
from taskvec import cli
from taskvec.compat.explanations import ERRORS
from taskvec.compat.findings import FINDINGS
from taskvec.methods.catalogue import METHODS


@pytest.fixture(scope="module")
def build() -> Iterator[ModuleType]:
    """The script that builds the site."""
    spec = importlib.util.spec_from_file_location("docs_build", DOCS / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(DOCS))


@pytest.fixture(scope="module")
def site(build: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as HTML, built as `python docs/build.py` builds it, with warnings as errors."""
    work = tmp_path_factory.mktemp("site")
    assert build.main(work) == 0
    return work / "site"


@pytest.fixture(scope="module")
def texts(site: Path) -> dict[str, str]:
    """The pages by their path in the site."""
    return {
        path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")
    }


def test_every_page_is_in_it(texts: dict[str, str]) -> None:
    wanted = {page.name.replace(".md", ".html") for page in PAGES if page != README}
    assert wanted <= set(texts)
    assert {f"notebooks/{path.stem}.html" for path in (DOCS / "notebooks").glob("*.ipynb")} <= set(texts)


def test_every_page_is_in_the_menu(texts: dict[str, str]) -> None:
    reached: set[str] = set()
    for name, text in texts.items():
        menu = "".join(re.findall(r"<nav[^>]*>.*?</nav>", text, re.DOTALL))
        for link in re.findall(r'href="?([^"#> ]+\.html)', menu):
            reached.add((Path("/") / Path(name).parent / link).resolve().relative_to("/").as_posix())
    assert set(texts) - {"404.html", "index.html"} <= reached


def ids(text: str) -> set[str]:
    return set(re.findall(r'\bid="?([^"> ]+)', text))


def test_every_command_and_option_is_in_the_reference(texts: dict[str, str]) -> None:
    for verb in cli.VERBS:
        text = html.unescape(texts[f"reference/commands/{verb}.html"])
        context = click.Context(cli.cli)
        command = cli.cli.get_command(context, verb)
        assert command is not None
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.hidden or f"{parameter.opts[-1]}" in text
            else:
                assert f"<code>{parameter.make_metavar(context)}</code>" in text
        assert "--help" in text


def test_every_method_is_in_the_gallery(texts: dict[str, str]) -> None:
    text = html.unescape(texts["reference/methods.html"])
    plain = html.unescape(re.sub(r"<[^>]+>", "", texts["reference/methods.html"]))
    assert set(METHODS) <= ids(text)
    for method in METHODS.values():
        assert method.formula in text
        for parameter in method.parameters:
            assert re.sub("`", "", parameter.text) in plain


def test_every_finding_and_error_is_in_its_catalogue(texts: dict[str, str]) -> None:
    assert set(FINDINGS) <= ids(texts["reference/findings.html"])
    assert {name.lower() for name in ERRORS} <= ids(texts["reference/errors.html"])


def test_every_name_of_the_package_is_in_the_reference(build: ModuleType, texts: dict[str, str]) -> None:
    listed = [name for names in build.generate.subjects().values() for name in names]
    assert sorted(listed) == sorted(build.generate.public_names())
    text = "".join(text for name, text in texts.items() if name.startswith("reference/python/"))
    known = ids(text)
    for name in listed:
        assert build.generate.path_of(name) in known, name
        assert getattr(tv, name).__doc__


def test_every_link_leads_somewhere(texts: dict[str, str], site: Path) -> None:
    for name, text in texts.items():
        if name == "404.html":  # is shown at any depth: its links are the root's
            continue
        for link in re.findall(r'(?:href|src)="?([^"> ]+)', text):
            link = html.unescape(link)
            if re.match(r"[a-z]+:", link):
                continue
            place, _, anchor = link.partition("#")
            path = ((site / name).parent / place.partition("?")[0]).resolve() if place else site / name
            assert path.exists(), f"{name}: {link}"
            if anchor and path.suffix == ".html" and not anchor.startswith("__"):
                assert anchor in ids(texts[path.relative_to(site).as_posix()]), f"{name}: {link}"


def test_no_style_script_font_or_picture_is_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*"):
        if path.suffix == ".html":
            text = path.read_text(encoding="utf-8")
            for tag in re.findall(r"<(?:link|script|img|iframe|source)\b[^>]*>", text):
                canonical = 'rel="canonical"' in tag
                assert canonical or not re.search(r'(?:href|src)="?(?:https?:)?//', tag), f"{path}: {tag}"
        if path.suffix in (".css", ".html", ".svg"):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"@import|url\(\s*['\"]?(?:https?:)?//", text), path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert found, "the site is tested in Chromium: apt-get install chromium"
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("name", ["index", "concepts", "commands", "recipes", "reference/commands/sweep"])
def test_a_browser_asks_nobody_else_and_nothing_is_wider_than_the_window(
    browser: Any, site: Path, name: str, width: int, scheme: str
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: asked.append(f"error: {error}"))
    page.goto((site / f"{name}.html").as_uri())
    page.wait_for_load_state("load")
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.body.dataset.mdColorScheme") == (
        "slate" if scheme == "dark" else "default"
    )
    context.close()


def test_a_broken_link_fails_the_build(build: ModuleType, tmp_path: Path) -> None:
    build.write(tmp_path / "work")
    page = tmp_path / "work" / "pages" / "index.md"
    page.write_text(page.read_text() + "\n[nowhere](nowhere.md)\n")
    assert build.zensical(tmp_path / "work") != 0
