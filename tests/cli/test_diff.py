"""``taskvec diff`` and its heat maps."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import taskvec as tv
from support.command_line import invoke
from support.models import Trio, read_tensors
from taskvec.errors import OutputError
from taskvec.extras import install
from taskvec.report import heatmap


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


def test_vectors_are_compared_layer_by_layer(
    trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cosine, overlap of the supports and agreement of the signs, in the table and in JSON, against NumPy."""
    tv.extract(trio.donor, trio.reference, tmp_path / "v.vec")
    tv.extract(trio.target, trio.reference, tmp_path / "w.vec", exclude="bias")
    record = json.loads(invoke(capsys, "diff", tmp_path / "v.vec", tmp_path / "w.vec", "--json").out)
    table = invoke(capsys, "diff", tmp_path / "v.vec", tmp_path / "w.vec").out
    t, d, r = (
        {name: array.astype(np.float64).reshape(-1) for name, array in read_tensors(folder).items()}
        for folder in trio
    )
    shared = [name for name in t if "bias" not in name]
    assert set(record["unmatched"].values()) == {"only in the left"}
    assert [row["layer"] for row in record["layers"]] == [None, 0, 1]
    for row in [*record["layers"], record["total"]]:
        marks = {None: "", 0: "layers.0.", 1: "layers.1."}
        mark = marks[row["layer"]] if row.get("layer") is not None else ""
        names = [name for name in shared if mark in name]
        if "layer" in row and row["layer"] is None:
            names = [name for name in shared if "layers" not in name]
        x = np.concatenate([d[name] - r[name] for name in names])
        y = np.concatenate([t[name] - r[name] for name in names])
        cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
        both, either = (x != 0) & (y != 0), (x != 0) | (y != 0)
        assert row["cosine"] == pytest.approx(cosine, abs=1e-5)
        assert row["overlap"] == np.count_nonzero(both) / np.count_nonzero(either)
        assert row["sign_agreement"] == np.count_nonzero((x * y)[both] > 0) / np.count_nonzero(both)
        label = "all" if "layer" not in row else "outside" if row["layer"] is None else str(row["layer"])
        cells = f"{row['cosine']:.4f} +{100 * row['overlap']:.1f}% +{100 * row['sign_agreement']:.1f}%"
        assert re.search(rf"^{label} +{cells}", table, re.MULTILINE), table


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
    difference = tv.diff(trio.donor, trio.donor)
    heatmap.write_html(difference, tmp_path / "zero.html")
    heatmap.write_png(difference, tmp_path / "zero.png")
    assert (tmp_path / "zero.png").read_bytes().startswith(b"\x89PNG")


def test_the_heat_map_as_a_picture(trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert install("plot") in done.err.replace("\n", "")


def test_a_file_that_cannot_be_written(trio: Trio, tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        heatmap.write_html(tv.diff(trio.donor, trio.donor), tmp_path / "absent" / "diff.html")
