"""The pages of the documentation as the tests read them: their text, and their blocks of code.

A block may have a comment on the line before it, which readers do not see:

``<!-- file: ties.yaml -->``
    Its text is written under this name before the blocks that follow are run.
``<!-- not run: reason -->``
    It is read, not run; the reason says what is lacking.
``<!-- fails: 2 -->``
    It ends with this exit code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, *sorted(DOCS.glob("*.md"))]

_BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[\w ]+): (?P<value>.*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_MARKS = ("file", "not run", "fails")


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code.

    Attributes
    ----------
    page : Path
        The page that it is on.
    line : int
        The line of its first line of code, counted from 1.
    language : str
        What stands behind the fence.
    text : str
        The code.
    mark, value : str
        The comment before it; empty where there is none.
    """

    page: Path
    line: int
    language: str
    text: str
    mark: str = ""
    value: str = ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def text_of(page: Path) -> str:
    """The text of a page."""
    return page.read_text(encoding="utf-8")


def blocks(page: Path, *languages: str) -> list[Block]:
    """The blocks of a page in order, of all languages unless some are named."""
    text = text_of(page)
    found = []
    for match in _BLOCK.finditer(text):
        mark, value, language, code = (
            match["mark"] or "",
            match["value"] or "",
            match["language"],
            match["text"],
        )
        assert not mark or mark in _MARKS, f"{page.name}: a mark `{mark}` is not known"
        line = text.count("\n", 0, match.start("text")) + 1
        if not languages or language in languages:
            found.append(Block(page, line, language, code, mark, value))
    return found


def commands(block: Block) -> list[str]:
    """The lines of a shell block that call taskvec, continued ones joined, up to a ``#`` or a pipe."""
    joined = block.text.replace("\\\n", " ")
    lines = (re.sub(r"(^|\s)[#|].*", "", line).strip() for line in joined.splitlines())
    return [line for line in lines if re.match(r"(?:\w+=\S+ )*taskvec\s", line)]
