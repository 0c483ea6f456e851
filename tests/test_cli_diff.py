"""``taskvec diff`` and its heat maps."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

import taskvec as tv
from command_line import invoke
from models import Trio
from taskvec import heatmap
from taskvec.errors import OutputError


def test_diff_prints_modules_and_layers(trio: Trio, capsys: pytest.CaptureFixture[str]) -> None:
    done = invoke(capsys, "diff", trio.reference, trio.donor)
    assert done.code == 0, done.err
    assert re.search(r"^module +relative norm +cosine +changed +largest$", done.out, re.MULTILINE)
    assert re.search(r"^mlp\.up_proj +\d\.\d{3}e-\d\d +0\.9\d+ +\d+\.\d%", done.out, re.MULTILINE)
    assert re.search(r"^outside ", done.out, re.MULTILINE)
    assert "model.layers.0" not in done.out
    every = invoke(capsys, "diff", trio.reference, trio.donor, "--tensors")
    assert "model.layers.0.mlp.up_proj.weight" in every.out


def test_diff_of_equal_models_is_nothing(trio: Trio, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads(invoke(capsys, "diff", trio.donor, trio.donor, "--json").out)
    assert record["total"]["changed"] == 0
    assert record["total"]["relative_norm"] == 0


def test_diff_as_json_is_the_library_s(trio: Trio, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads(invoke(capsys, "diff", trio.reference, trio.donor, "--json", "--layers", "1").out)
    expected = tv.diff(trio.reference, trio.donor, layers="1").to_dict()
    assert record["command"] == "diff"
    assert record["tensors"] == expected["tensors"]
    assert {row["layer"] for row in record["layers"]} == {1}


def test_diff_of_vectors(trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tv.extract(trio.donor, trio.reference, tmp_path / "v.vec")
    tv.extract(trio.target, trio.reference, tmp_path / "w.vec")
    done = invoke(capsys, "diff", tmp_path / "v.vec", tmp_path / "w.vec")
    assert done.code == 0, done.err
    assert "overlap" in done.out
    assert "signs agree" in done.out
    mixed = invoke(capsys, "diff", tmp_path / "v.vec", trio.donor)
    assert mixed.code == 2
    assert "hint: name two of one kind" in mixed.err


def test_the_heat_map_is_one_file_without_network(
    trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = invoke(capsys, "diff", trio.reference, trio.donor, "--html", tmp_path / "diff.html")
    assert done.code == 0, done.err
    assert f"written    {tmp_path / 'diff.html'}" in done.out
    text = (tmp_path / "diff.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|<script|src=|@import|url\(", text)
    difference = tv.diff(trio.reference, trio.donor)
    assert text.count("<table>") == len(heatmap.MEASURES["checkpoints"])
    for module in difference.modules:
        assert f"<span>{module}</span>" in text
    pair = difference.grid[1, "mlp.up_proj"]
    assert f">{pair.changed_share:.1%}</td>" in text


def test_names_in_the_heat_map_are_text(trio: Trio, tmp_path: Path) -> None:
    hostile = tmp_path / "<b>&amp;"
    hostile.symlink_to(trio.donor)
    text = heatmap.page(tv.diff(trio.reference, hostile))
    assert "<b>" not in text
    assert "&lt;b&gt;&amp;amp;" in text


def test_the_heat_map_of_equal_models_is_drawn(trio: Trio, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    difference = tv.diff(trio.donor, trio.donor)
    heatmap.write_html(difference, tmp_path / "zero.html")
    heatmap.write_png(difference, tmp_path / "zero.png")
    assert (tmp_path / "zero.png").read_bytes().startswith(b"\x89PNG")


def test_the_heat_map_as_a_picture(trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    done = invoke(capsys, "diff", trio.reference, trio.donor, "--png", tmp_path / "diff.png", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["png"] == str(tmp_path / "diff.png")
    assert (tmp_path / "diff.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_without_matplotlib_says_what_to_install(
    trio: Trio, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = invoke(capsys, "diff", trio.reference, trio.donor, "--png", "diff.png")
    assert done.code == 2
    assert "error: matplotlib is not installed" in done.err
    assert "taskvec[plot]" in done.err


def test_a_file_that_cannot_be_written(trio: Trio, tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        heatmap.write_html(tv.diff(trio.donor, trio.donor), tmp_path / "absent" / "diff.html")
