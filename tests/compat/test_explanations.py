"""Every finding and every error is explained, in sentences, and what the explanations name exists."""

from __future__ import annotations

import re

import click
import pytest

from taskvec import cli, errors
from taskvec.compat import explanations
from taskvec.compat.explanations import Explanation
from taskvec.compat.findings import FINDINGS

ALL = {**explanations.FINDINGS, **explanations.ERRORS}


def test_every_finding_is_explained() -> None:
    assert list(explanations.FINDINGS) == list(FINDINGS)


def test_every_error_is_explained() -> None:
    known = {
        name
        for name, each in vars(errors).items()
        if isinstance(each, type) and issubclass(each, errors.Error)
    }
    assert set(explanations.ERRORS) == known


@pytest.mark.parametrize("name", ALL)
def test_explanations_are_sentences(name: str) -> None:
    explained: Explanation = ALL[name]
    for text in explained:
        assert re.match(r"[A-Z`(]|config|lm-eval|tokenizer_config|transformers", text), text
        assert text.endswith((".", "?"))
        assert "  " not in text


@pytest.mark.parametrize("name", ALL)
def test_the_options_named_exist(name: str) -> None:
    known = set()
    for verb in cli.VERBS:
        command = cli.cli.get_command(click.Context(cli.cli), verb)
        assert command is not None
        known |= {spelling for each in command.params for spelling in each.opts}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", " ".join(ALL[name]))) <= known


def test_forcing_is_offered_only_where_it_is_possible() -> None:
    for name, explained in explanations.FINDINGS.items():
        for forced in re.findall(r"--force ([\w-]+)", " ".join(explained)):
            assert forced == name
            assert FINDINGS[name].forced
