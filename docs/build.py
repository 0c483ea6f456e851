"""Builds the site: the pages of this folder, those that are written from the code, and Zensical's HTML.

python docs/build.py            # target/docs/site/index.html; warnings are errors

The pages are copied first, since Zensical wants them below its configuration. Links that leave ``docs/`` lead
into the site there, and the names of findings and methods lead to their catalogues.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS))
import generate  # noqa: E402

ROOT = DOCS.parent
WORK = ROOT / "target" / "docs"
# Files above docs/ that pages lead to, and what they are called in the site.
ABOVE = {
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
# What is not prose: blocks of code, links, headings, comments.
_CODE = re.compile(r"^```.*?^```$|\[[^\]]*\]\([^)]*\)|^#[^\n]*$|<!--.*?-->", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")


def main(work: Path = WORK) -> int:
    """Build the site anew; 0 if Zensical has nothing to complain about."""
    write(work)
    return zensical(work)


def zensical(work: Path) -> int:
    """Turn what was written into HTML; warnings are errors."""
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "-f", "zensical.toml"]
    environment = {**os.environ, "NO_COLOR": "1"}
    return subprocess.run(command, cwd=work, env=environment, check=False).returncode


def write(work: Path) -> None:
    """Write all pages in Markdown, their files and the configuration into a folder."""
    pages = work / "pages"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(DOCS / "assets", pages / "assets")
    written = {page.name: page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("*.md"))}
    written |= {name: (ROOT / above).read_text(encoding="utf-8") for above, name in ABOVE.items()}
    for path in sorted((DOCS / "notebooks").glob("*.ipynb")):
        written[f"notebooks/{path.stem}.md"] = notebook(path, pages / "notebooks")
    generated = generate.pages()
    written = {name: prepared(name, text, pages) for name, text in written.items()} | generated
    for name, text in written.items():
        path = pages / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    configuration = (DOCS / "zensical.toml").read_text(encoding="utf-8")
    places = {"SOURCES": str(ROOT / "python"), "ROLES": str(DOCS / "roles.py")}
    configuration = configuration.replace('"REFERENCE"', menu())
    for name, place in places.items():
        configuration = configuration.replace(f'"{name}"', json.dumps(place))
    (work / "zensical.toml").write_text(configuration, encoding="utf-8")


def menu() -> str:
    """The generated pages as entries of the menu, in TOML."""
    entries = [
        f"{{ {json.dumps(title)} = {json.dumps(names)} }}" for title, names in generate.navigation().items()
    ]
    return ", ".join(entries)


def prepared(name: str, text: str, pages: Path) -> str:
    """A page of the repository as a page of the site."""
    text = re.sub(r"^<!-- [\w ]+: .*? -->\n(?=```)", "", text, flags=re.MULTILINE)  # marks for the tests
    text = _LINK.sub(lambda match: match[1] + target(name, match[2], pages) + match[3], text)
    text = re.sub(r"^\|.*\\\|.*\|$", lambda match: bars(match[0]), text, flags=re.MULTILINE)
    return outside_code(text, catalogued)


def bars(row: str) -> str:
    """A row of a table whose code has bars in it, which GitHub and Zensical escape in different ways."""
    return re.sub(r"`([^`]*\\\|[^`]*)`", lambda match: generate.code(match[1].replace(r"\|", "|")), row)


def target(page: str, link: str, pages: Path) -> str:
    """Where a link leads in the site; files that are not pages come along."""
    if re.match(r"[a-z]+:|#", link) or page.startswith("notebooks/"):
        return link
    place, _, anchor = link.partition("#")
    base = ROOT if page in ABOVE.values() else DOCS
    path = (base / place).resolve()
    if path.parent == ROOT and path.name in ABOVE:
        found = ABOVE[path.name]
    elif path.name == "README.md":
        found = "index.md"
    elif path.is_relative_to(DOCS):
        found = (
            path.relative_to(DOCS).with_suffix(".md" if path.suffix == ".ipynb" else path.suffix).as_posix()
        )
    else:
        found = f"files/{path.relative_to(ROOT).as_posix()}"
    if not found.endswith(".md") and not found.startswith("assets/"):
        (pages / found).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, pages / found)
    return f"{found}#{anchor}" if anchor else found


def catalogued(prose: str) -> str:
    """Prose in which the names of findings lead to the catalogue."""

    def link(match: re.Match[str]) -> str:
        name = match["name"] or match["plain"]
        return f"[{match[0]}](reference/findings.md#{name})" if name in generate.FINDINGS else match[0]

    return re.sub(r"`(?:(?:error|warning|note)\[(?P<name>[\w-]+)\]|(?P<plain>\w+-[\w-]+))`", link, prose)


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """A text of which all but code, links and headings is changed."""
    done, end = [], 0
    for match in _CODE.finditer(text):
        done += [change(text[end : match.start()]), match[0]]
        end = match.end()
    return "".join([*done, change(text[end:])])


def notebook(path: Path, folder: Path) -> str:
    """A notebook as a page: its text, its code, what it printed, and its pictures, which go into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            text.append(source)
            continue
        text.append(f"```python\n{source}\n```")
        for number, output in enumerate(cell["outputs"]):
            data = output.get("data", {})
            printed = output.get("text") or data.get("text/plain", "")
            if "image/png" in data:
                name = f"{path.stem}-{cell['id']}-{number}.png"
                (folder / name).write_bytes(base64.b64decode(data["image/png"]))
                text.append(f"![What the code above draws]({name})")
            elif printed:
                text.append("```text\n" + "".join(printed).rstrip() + "\n```")
    return "\n\n".join(text) + "\n"


if __name__ == "__main__":
    sys.exit(main())
