"""`taskvec analyse`: what it prints, what it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.models import write_trio
from taskvec.cli import run


@pytest.fixture
def trio(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_trio(tmp_path)
    return tmp_path


def test_figures_of_two_models(trio, capsys):
    assert (
        run(["analyse", "donor", "reference", "--sft", "target", "--groups", "2", "-o", "out", "--json"]) == 0
    )
    content = json.loads(capsys.readouterr().out)
    assert content["vector"] == "donor - reference"
    assert [row["group"] for row in content["groups"]][:2] == ["layer-0", "layer-1"]
    assert set(content["cosines"]) == {"v", "SFT"}
    written = json.loads((trio / "out" / "analysis.json").read_text())
    assert written["total"] == content["total"]
    assert (trio / "out" / "analysis.html").is_file()


def test_a_table_for_people(trio, capsys):
    assert run(["extract", "donor", "reference", "-o", "v.vec", "--quiet"]) == 0
    assert run(["analyse", "v.vec", "-o", "out", "--no-ranks"]) == 0
    text = capsys.readouterr().out
    assert "kind of module" in text
    assert "energy" not in text
    assert "analysis.html" in text
    assert (trio / "out" / "analysis.html").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["donor"], "needs a reference"),
        (["donor", "reference", "--groups", "9"], "layers"),
        (["nowhere", "reference"], "nowhere"),
    ],
)
def test_what_is_refused_is_named_and_writes_nothing(trio, capsys, words, message):
    assert run(["analyse", *words, "-o", "out"]) == 2
    assert message in capsys.readouterr().err
    assert not (trio / "out").exists()


def test_an_output_at_an_address_is_refused(trio, capsys):
    assert run(["analyse", "donor", "reference", "-o", "s3://bucket/out"]) == 2
    assert "an analysis goes to a folder" in capsys.readouterr().err
    assert not (trio / "s3:").exists()
