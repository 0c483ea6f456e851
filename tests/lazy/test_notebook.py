"""Results in a notebook and at a prompt: short forms, tables, heat maps, bars, warnings; a kernel at last."""

from __future__ import annotations

import html
import math
import re
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import numpy as np
import pandas
import pytest

import taskvec as tv
from support.models import Trio
from taskvec import shown
from taskvec.progress import Progress
from taskvec.selftest.demo import demo


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three models of the demo, and what it merged."""
    place = tmp_path_factory.mktemp("demo") / "d"
    assert demo(place).ok
    return place


@pytest.fixture
def held(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What a user holds, one of each kind."""
    monkeypatch.chdir(folder)
    donor, reference, target = tv.open("grpo"), tv.open("sft"), tv.open("instruct")
    vector = donor - reference
    ties = tv.ties(["grpo", "instruct"], base="sft", weight=0.5, density=0.5)
    part = (target + vector).plan().part(0, 2, out=tmp_path / "parts")
    return {
        "Checkpoint": donor,
        "TaskVector": vector,
        "Merge": target + 0.8 * vector,
        "Plan": (target + 0.8 * vector).plan(),
        "RecipeMerge": ties,
        "MergeCheck": tv.check_merge("instruct", "grpo", "merged"),
        "Report": (target + 0.8 * vector).save(tmp_path / "merged"),
        "vector's Report": vector.save(tmp_path / "vector"),
        "Difference": tv.diff(donor, reference),
        "vectors' Difference": tv.diff(vector, target - reference),
        "Composition": tv.analyse(vector),
        "Findings": tv.check("instruct", "grpo", "sft"),
        "Verification": tv.verify("merged"),
        "Inspection": tv.inspect("merged"),
        "Stats": vector.stats(),
        "PartReport": part.run(),
        "Part": part,
        "MethodList": tv.list_methods(),
    }


class Page(HTMLParser):
    """Every element closed in order, and no script."""

    EMPTY = frozenset({"br", "img", "meta", "link", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:  # noqa: ARG002
        self.seen.append(tag)
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(text: str) -> Page:
    page = Page()
    page.feed(text)
    page.close()
    assert not page.open
    assert not {"script", "style", "html", "body"}.intersection(page.seen)
    return page


def test_short_forms_are_short_and_pages_are_whole(held: dict[str, Any]) -> None:
    for name, each in held.items():
        short = repr(each)
        assert len(short) < 400 or name == "MethodList", short
        assert re.match(r"\w+\(", short) or name == "MethodList"
        if name != "Part":
            page = parsed(each._repr_html_())
            assert "table" in page.seen


@pytest.mark.parametrize("name", ["Report", "Difference", "vectors' Difference", "Composition"])
def test_heat_maps_are_in_the_page_and_in_a_figure(held: dict[str, Any], name: str) -> None:
    page = parsed(held[name]._repr_html_())
    assert "self_attn.q_proj" in page.text
    assert page.seen.count("details") >= 3
    figure = held[name].plot()
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(titles) == page.seen.count("details")
    only = held[name].plot(titles[1].removesuffix(" (log10)").upper()[:12])
    assert [axes.get_title() for axes in only.axes if axes.get_title()] == [titles[1]]
    with pytest.raises(tv.Error) as caught:
        held[name].plot("nothing of the kind")
    assert "figure" in caught.value.message
    assert caught.value.hint


def test_the_map_of_a_report_has_the_error_of_its_tensors_together(held: dict[str, Any]) -> None:
    report = held["Report"]
    tensors = report.to_frame()
    layer = tensors[tensors["name"].str.contains(r"layers\.1\.")]
    error = math.sqrt(((layer.step_norm * layer.relative_error) ** 2).sum() / (layer.step_norm**2).sum())
    assert report._map().layers[1].relative_error == pytest.approx(error, rel=1e-12)
    assert report._map().layers[1].rounded_away_share == layer.rounded_away.sum() / layer.changed.sum()


def test_tables_of_pandas_have_the_figures(held: dict[str, Any]) -> None:
    difference = held["Difference"]
    frame = difference.to_frame()
    donor, reference = tv.open("grpo"), tv.open("sft")
    name = "model.layers.1.mlp.up_proj.weight"
    row = frame[frame["name"] == name].iloc[0]
    step = donor[name].astype(np.float64) - reference[name].astype(np.float64)
    assert row.difference_norm == pytest.approx(np.linalg.norm(step), rel=1e-5)
    assert len(frame) == len(donor)
    assert list(difference.to_frame("layers").layer)[1:] == list(range(len(difference.layers) - 1))
    for each in held.values():
        if hasattr(each, "to_frame"):
            assert isinstance(each.to_frame(), pandas.DataFrame)
    with pytest.raises(tv.Error, match="no table `layer`") as caught:
        difference.to_frame("layer")
    assert caught.value.hint == "did you mean `layers`?"


def test_pandas_is_optional(held: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(tv.Error, match="pandas, which is not installed") as caught:
        held["Difference"].to_frame()
    assert caught.value.hint == "pip install pandas"


def test_names_from_files_are_escaped() -> None:
    evil = "<script>alert(1)</script>\x1b[31m"
    ones = np.ones((2, 2), np.float32)
    one, other = (tv.from_state_dict({evil: ones * k}, name=evil) for k in (1, 2))
    vector = other - one
    for each in (one, vector, one + vector, tv.diff(one, other), vector.stats(), (one + vector).plan()):
        page = each._repr_html_()
        parsed(page)
        assert html.escape("<script>") in page
        assert "\x1b" not in page
        assert "\x1b" not in repr(each)


# --- progress=True


class Display:
    """What IPython would show below a cell."""

    def __init__(self) -> None:
        self.pages: list[str] = []

    def __call__(self, page: Any, display_id: bool = False) -> Display:
        assert display_id
        self.pages.append(page.data)
        return self

    def update(self, page: Any) -> None:
        self.pages.append(page.data)


def test_a_bar_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Display()
    monkeypatch.setattr(shown, "in_notebook", lambda: True)
    monkeypatch.setattr(shown, "PATIENCE", 0.0)
    monkeypatch.setattr(shown, "INTERVAL", 0.0)
    monkeypatch.setattr("IPython.display.display", drawn)
    with shown.shown(True) as tell:
        assert tell is not None
        for done in range(5):
            tell(Progress("merge", done * 10**9, 4 * 10**9, 1.0))
    assert "value='0' max='4000000000'" in drawn.pages[0]
    assert "value='4000000000' max='4000000000'" in drawn.pages[-1]
    assert "merging 4.00 GB of 4.00 GB" in drawn.pages[-1]
    for page in drawn.pages:
        parsed(page)


def test_plain_lines_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskvec.bar.LINES_PATIENCE", 0.0)
    with shown._counting(True) as line:
        line._pace = shown.Pace(0.0)
        for done in range(11):
            line.draw("+v: gsm8k", "requests", done, 10)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "+v: gsm8k: 1 of 10 requests"
    assert len(said) == 9


def test_a_notice_is_a_warning() -> None:
    with shown.shown(True) as tell:
        assert tell is not None
        with pytest.warns(tv.TaskvecWarning, match="is removed first"):
            tell(Progress("prepare", 0, 0, 0.0, "the old output is removed first"))


@pytest.mark.parametrize("progress", [1, "bar", [print]])
def test_progress_is_a_function_or_a_truth_value(progress: Any) -> None:
    with pytest.raises(tv.RecipeError, match="`progress`"), shown.shown(progress):
        pass


# --- warnings and errors


def test_findings_of_a_run_are_warnings(folder: Path, tmp_path: Path) -> None:
    donor, reference, target = (dict(tv.open(folder / name).items()) for name in ("grpo", "sft", "instruct"))
    models = [tv.from_state_dict(each) for each in (donor, reference, target)]
    merged = models[2] + (models[0] - models[1])
    with pytest.warns(tv.FindingWarning, match=r"\[config-missing\]") as caught:
        merged.save(tmp_path / "out")
    assert {each.filename for each in caught} == {__file__}
    assert {each.message.finding.id for each in caught} >= {"config-missing"}  # type: ignore[union-attr]
    with warnings.catch_warnings():
        warnings.simplefilter("error", tv.TaskvecWarning)
        with pytest.raises(tv.FindingWarning):
            merged.save(tmp_path / "again")


def test_an_error_of_several_findings_says_what_differs(folder: Path) -> None:
    target = tv.open(folder / "instruct")
    config = {**target.config, "rope_theta": 5.0, "num_attention_heads": 1}
    tensors = dict(target.items())
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:3].copy()
    other = tv.from_state_dict(tensors, config=config, name="other")
    base = tv.from_state_dict(dict(target.items()), config=target.config, name="base")
    with pytest.raises(tv.CompatibilityError) as caught:
        _ = other - base
    message = str(caught.value)
    assert "[config-function]" in message
    assert "[shape]" in message
    assert "rope_theta" in message
    assert "[3]" in message
    assert any('force=["config-function", "shape"]' in note for note in caught.value.__notes__)


def test_hints_are_in_tracebacks(folder: Path) -> None:
    import traceback

    checkpoint = tv.open(folder / "grpo")
    for each in (checkpoint, checkpoint - tv.open(folder / "sft"), tv.ties(
        [checkpoint, folder / "instruct"], base=folder / "sft", weight=1.0
    )):  # fmt: skip
        with pytest.raises(KeyError) as caught:
            _ = each["model.nrm.weight"]
        assert isinstance(caught.value, tv.NotFoundError)
        shown_lines = traceback.format_exception_only(caught.value)
        assert shown_lines[-1] == "hint: did you mean `model.norm.weight`?\n"
    with pytest.raises(tv.RecipeError) as caught_too:
        tv.open(folder / "grpo", revision="main")
    assert caught_too.value.__notes__ == [f"hint: {caught_too.value.hint}"]


# --- a real kernel

CELLS = [
    "import taskvec as tv\nresult = tv.demo('d')\nresult",
    "merged = tv.open('d/instruct') + 0.8 * (tv.open('d/grpo') - tv.open('d/sft'))\nmerged",
    "merged.plan()",
    "merged.save('out', progress=True, overwrite=True)",
    "tv.diff('d/grpo', 'd/sft', progress=True)",
    "tv.diff('d/grpo', 'd/sft').plot('share')",
    "tv.list_methods()",
    "tv.ties(['d/grpo', 'd/instruct'], base='d/sft', weight=0.5, density=0.5).save('ties', threads=1)",
    "merged['model.nrm.weight']",
]


def test_a_notebook_runs_in_a_kernel(tmp_path: Path) -> None:
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    client = nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="hint: did you mean"):
        client.execute()
    for cell in book.cells[:-1]:
        (result,) = [each for each in cell.outputs if each.output_type == "execute_result"]
        streams = [each for each in cell.outputs if each.output_type == "stream"]
        assert not streams, streams
        page = result.data.get("text/html")
        assert page is not None or "image/png" in result.data, cell.source
        if page is not None:
            parsed(page)
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()


def test_a_saved_vector_that_was_opened_as_a_checkpoint_says_so(trio: Trio, tmp_path: Path) -> None:
    tv.extract(trio.donor, trio.reference, tmp_path / "v.vec")
    opened = tv.open(tmp_path / "v.vec")
    assert "taskvec.load_vector" in repr(opened)
    assert "taskvec.load_vector" in opened._repr_html_()
    assert "load_vector" not in repr(tv.open(trio.donor))
