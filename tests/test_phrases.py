"""Phrases that readers of English stumble over, and what to write instead, held against every text."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import taskvec

ROOT = Path(taskvec.__file__).parent
PROJECT = ROOT.parents[1]
# A block of code, or code in a line; a string of Rust.
_CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_RUST = re.compile(r'(?<!\\)"((?:[^"\\]|\\.)*)"')

# What is not written, and what is.
PHRASES = {
    r"step (taken|asked for)": "requested and realised update",
    r"(of that name|own name) wins|\bfits wins": "takes precedence",
    r"means of the machine": "resource limits",
    r"[Hh]as learned what|before it learned that": "the fine-tuned model to take the change from",
    r"\bthey (do not )?fit\b(?! (on|in|into) )|\bfits? each other|[Ww]hat does not fit\b": "compatible",
    r"cannot be made yet": "is not supported for models with different vocabularies",
    r"(?<![Tt]here )\b(is|are) no (address|architecture|array|checkpoint|device|directory|file|float|floats|"
    r"fault|folder|layout|list|matrix|model|name|number|path|prose|recipe|target|tensor|token|tokens|vector|weight)"
    r"\b": "is not an X",
    r"\b(is|are|was|were) not there\b": "not found, does not exist",
    r"\bw(as|ere) \w+ and \w+ exchanged": "did you swap",
    r"\b[Aa] remark\b|\bremark on\b": "note",
    r"\bslip of\b|\bis no slip\b": "typo",
    r"not a wish": "probably a typo",
    r"^Looking\b(?! for files)": "Inspect",
    r"When it says no": "Troubleshooting",
    r"nobody tuned": "not used for tuning",
    r"Whatever comes out": "does not depend on the outcome",
    r"these do too, the vector": "an effect that the controls share is not due to the vector",
    r"findings are errors": "what differs",
    r"\bsaid:|\banew\b": "plain words",
    r"(?<!`)\bbeside\b": "next to, besides",
    r"\d ?[KMG]iB\b": "kB, MB, GB: one unit everywhere",
}
# What a user may write all the same, or a contract has.
ALLOWED = {
    "settings.py": r"``512MiB`` \(binary\)",
    "plan/plan.py": r"A block of 1 MiB",
    # words of the texts that are made for a test of models
    "evaluation/tasks/perturb.py": r"^beside$",
    # what the operating system, the store or the record of a measurement counts in
    "docs/benchmarks.md": r"cgroup of 512 MiB",
    "docs/small-machines.md": r"cgroup of 512 MiB",
    "docs/many-machines.md": r"requests of 8 MiB|parts of 16 MiB",
    "CHANGELOG.md": r"\d MiB",
}


def texts() -> Iterator[tuple[str, str]]:
    """Every text and docstring of the package, its templates, pages and messages of the engine."""
    for path in sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md")]):
        yield path.relative_to(PROJECT).as_posix(), _CODE.sub("`x`", path.read_text(encoding="utf-8"))
    for path in sorted(PROJECT.glob("rust/*/**/*.rs")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.lstrip().startswith("//"):
                for match in _RUST.finditer(line):
                    yield path.relative_to(PROJECT).as_posix(), match[1]
    for path in sorted(ROOT.rglob("*")):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix in (".j2", ".yaml"):
            yield name, path.read_text(encoding="utf-8")
        elif path.suffix == ".py":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value for part in node.values if isinstance(part, ast.Constant))
                    yield name, "…".join(map(str, parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield name, node.value


@cache
def plain() -> list[tuple[str, str]]:
    """The same, each on one line, without what is allowed."""
    found = []
    for name, text in texts():
        line = re.sub(r"\s+", " ", text)
        found.append((name, re.sub(ALLOWED[name], "", line) if name in ALLOWED else line))
    return found


@pytest.mark.parametrize("phrase", PHRASES)
def test_no_text_has_the_phrase(phrase: str) -> None:
    found = [
        f"{name}: …{text[max(0, match.start() - 40) : match.end() + 40]}…"
        for name, text in plain()
        for match in re.finditer(phrase, text)
    ]
    assert not found, f"write {PHRASES[phrase]}:\n" + "\n".join(dict.fromkeys(found))


def test_the_phrases_would_be_found() -> None:
    """Each pattern finds the words that it was made of."""
    examples = [
        "step taken against step asked for", "a local folder of that name wins", "the means of the machine",
        "Has learned what is transferred.", "they do not fit", "cannot be made yet", "`x` is no device",
        "`x` is not there", "were target and reference exchanged?", "a remark on each", "a slip of the pen",
        "not a wish", "Looking", "When it says no", "six seeds that nobody tuned", "Whatever comes out",
        "what these do too, the vector does not explain", "2 findings are errors", "said: no", "beside it",
        "512MiB",
    ]  # fmt: skip
    for phrase, example in zip(PHRASES, examples, strict=True):
        assert re.search(phrase, example), (phrase, example)
