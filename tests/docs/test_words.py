"""What the pages name exists: commands, options, findings, files that they link to."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from support.pages import DOCS, PAGES, ROOT, blocks, commands, text_of
from taskvec import cli
from taskvec.compat.findings import FINDINGS

# Options of other programs that the pages name.
FOREIGN = {
    "--array", "--block", "--cap-add", "--cpus-per-task", "--dependency", "--disable-usage-stats",
    "--exclude", "--head", "--lifecycle-configuration", "--mem", "--no-deps", "--node-ip-address", "--nodes",
    "--ntasks-per-node", "--num-cpus", "--pack", "--port", "--requeue", "--time", "--update-transcripts",
    "--job-name", "--signal", "--cuda", "--lazy-unpickle", "--copy-tokenizer",
    "--version", "--wrap", "--miniature", "--bucket", "--address", "--no-index", "--find-links", "--parsable",
}  # fmt: skip
THEIRS = DOCS / "coming-from-mergekit.md"  # names mergekit's options; a test of its own reads it


def options_of(verb: str) -> set[str]:
    """All spellings of a command's options."""
    command = cli.cli.get_command(click.Context(cli.cli), verb)
    assert command is not None
    names = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    if isinstance(command, click.Group):
        for sub in command.commands.values():
            names |= {name for each in sub.params for name in each.opts}
    return names | {"--help"}


KNOWN = set().union(*map(options_of, cli.VERBS)) | FOREIGN


@pytest.mark.parametrize("page", [page for page in PAGES if page != THEIRS], ids=lambda page: page.name)
def test_every_option_named_exists(page: Path) -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", re.sub(r"<!--.*?-->", "", text_of(page))))
    assert named <= KNOWN


LINES = [(block, line) for page in PAGES for block in blocks(page, "sh", "bash") for line in commands(block)]


@pytest.mark.parametrize(("block", "line"), LINES, ids=[f"{block} {line[:40]}" for block, line in LINES])
def test_every_command_line_shown_parses(block: object, line: str) -> None:
    words = shlex.split(line)
    while "=" in words[0]:
        words.pop(0)
    assert words[1] in {*cli.VERBS, "--help", "--version"}, block
    given = {word.partition("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)}
    verbs = [word for word in words[1:3] if word in cli.VERBS]  # `taskvec plan transfer` has options of both
    assert given <= {"--help", "--version"}.union(*map(options_of, verbs)), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_finding_named_exists(page: Path) -> None:
    text = text_of(page)
    named = set(re.findall(r"(?:error|warning|note)\[([\w-]+)\]", text))
    named |= set(re.findall(r"--force ([\w-]+)", text)) - {"ID", "NAME"}
    assert named <= set(FINDINGS)
    for level, name in re.findall(r"(error|warning|note)\[([\w-]+)\]", text):
        assert FINDINGS[name].level == level


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_between_files_leads_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.is_relative_to(ROOT)
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path), target


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and Zensical make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text_of(page), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
