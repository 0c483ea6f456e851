"""The report's files: the schema of report.json, the figures, and the page in a real browser."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from support.evaluation_records import experiment, outcomes, record
from taskvec.errors import EvaluationError
from taskvec.evaluation.analysis.compare import Split
from taskvec.evaluation.arms import Arm
from taskvec.evaluation.record import Merged
from taskvec.evaluation.report import json_schema
from taskvec.evaluation.report.figures import PALETTE
from taskvec.evaluation.report.held import SweepReport
from taskvec.evaluation.report.labels import arm_label, arms_label, number, p_value
from taskvec.evaluation.report.report import Report, build_report
from taskvec.evaluation.report.write import write_report


def merges(records) -> dict[str, Merged]:
    modules = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "input_layernorm")
    norms = {
        f"model.layers.{n}.{m}.weight": 0.1 * (n + 1) + i for n in range(6) for i, m in enumerate(modules)
    }
    norms["model.embed_tokens.weight"] = 1.5
    survival = {
        "step_norm": 3.2, "moved_norm": 3.1, "cosine": 0.991, "relative_error": 0.11, "target_norm": 400.0,
        "changed": 900_000, "rounded_away": 30_000, "elements": 1_000_000,
    }  # fmt: skip
    finding = {
        "level": "note", "id": "chat-template", "subject": "tokenizer", "expected": "a", "found": "b",
        "fix": "", "message": "chat templates of donor & target differ <b>",
    }  # fmt: skip
    return {
        r.name: Merged("scratch/x", survival, norms, [finding], f"taskvec transfer --alpha {r.alpha}")
        for r in records
        if r.kind in ("vector", "random", "permuted", "sft", "rival")
    }


def a_report(tasks=("gsm8k", "sciq"), **more: Any) -> Report:
    records = experiment(tasks=tasks, count=400, **more)
    hostile = records[3].samples[tasks[0]]
    rows = [replace(s, output="</script><script>alert(1)</script>\x07 & <b>") for s in hostile]
    records[3] = replace(records[3], samples={**records[3].samples, tasks[0]: rows})
    return build_report(
        records,
        split=Split(0.3, 1234),
        merges=merges(records),
        commands=["taskvec sweep out/experiment.yaml -o out"],
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Report, Path]:
    out = tmp_path_factory.mktemp("report")
    report = a_report()
    paths = write_report(report, out)
    assert all(path.is_file() for path in paths)
    return report, out


# --- report.json


def test_json_is_of_its_schema(written):
    report, out = written
    content = json.loads((out / "report.json").read_text())
    jsonschema.validate(content, json_schema())
    assert content["tests"] == len(content["comparisons"]) == len(report.comparisons)
    assert [arm["name"] for arm in content["arms"]] == [r.name for r in report.records]
    assert content["alpha"]["alpha"] == 0.5
    assert content["gate"][0]["passed"] is True
    assert content["survival"]["alpha=0.5"]["cosine"] == 0.991
    assert content["norms"]["layers"] == list(range(6))
    assert content["commands"] == ["taskvec sweep out/experiment.yaml -o out"]
    assert content["findings"][0]["id"] == "chat-template"
    assert len(content["findings"]) == 1


def test_json_holds_no_nan(tmp_path):
    one = record(Arm("baseline", "baseline"), {"t": [1.0, 0.0]})
    score = replace(next(iter(one.scores["t"].values())), value=math.nan, low=None, high=math.inf)
    report = build_report([replace(one, scores={"t": {"perplexity,none": score}})])
    write_report(report, tmp_path)
    content = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert content["arms"][0]["scores"]["t"]["perplexity,none"]["value"] is None


def test_scores_are_of_the_report_part(written):
    report, _ = written
    baseline = report.records[0]
    score = report.score(baseline, "gsm8k")
    assert score is not None
    rows = [s for s in baseline.samples["gsm8k"] if not report.split.is_development(s.doc_hash)]
    assert score.n == len(rows) < len(baseline.samples["gsm8k"])
    assert score.value == pytest.approx(sum(s.metrics["exact_match,strict"] for s in rows) / len(rows))
    assert all(c.n == score.n for c in report.comparisons)


def test_the_papers_figures_stand_next_to_the_same_comparison(written):
    page = written[0].paper()
    rows = {(row.task, row.what): row for row in page.rows}
    gain = rows[("gsm8k", "+ v, think")]
    assert gain.paper.points == 4.9
    assert (gain.here.arm, gain.here.against) == ("alpha=1+think", "baseline")
    assert rows[("gsm8k", "− v")].here.arm == "alpha=-1"
    assert rows[("sciq", "− v")].paper is None
    assert rows[(None, "− v")].here is None


# --- figures, text


def test_figures_are_png_and_themed_svg(written):
    report, out = written
    names = {path.name for path in (out / "figures").iterdir()}
    assert names == {
        "alpha-gsm8k.png", "differences-gsm8k.png", "alpha-sciq.png", "differences-sciq.png",
        "lengths-gsm8k.png", "lengths-sciq.png", "norms.png",
    }  # fmt: skip
    for path in (out / "figures").iterdir():
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", data[16:24])
        assert width > 600
        assert height > 200
    page = (out / "report.html").read_text()
    assert page.count("<svg ") == len(names)
    svg = "".join(re.findall(r"<svg .*?</svg>", page, re.DOTALL))
    assert not any(colour in svg for colour in PALETTE.values())  # each became a variable of the page
    assert "var(--vector)" in page
    assert len(report.records) == 19


def test_figures_are_the_same_every_time(written, tmp_path):
    write_report(written[0], tmp_path)
    for path in sorted((tmp_path / "figures").iterdir()):
        assert path.read_bytes() == (written[1] / "figures" / path.name).read_bytes()
    assert (tmp_path / "report.html").read_text() == (written[1] / "report.html").read_text()


def test_markdown_says_the_same(written):
    report, out = written
    text = (out / "report.md").read_text()
    assert report.conclusions[0].text in text
    assert "| +0.5 v | gsm8k |" in text
    assert "![" in text
    assert "figures/norms.png" in text
    assert "development share: 0.3 (seed 1234)" in text
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert sum("random 1 | gsm8k" in table for table in tables) >= 1
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def test_a_warning_of_several_arms_is_told_once(tmp_path):
    values = {"gsm8k": outcomes(40, 0.5)}
    names = ["baseline", "donor", "reference", "alpha=1"]
    arms = [Arm(name, "vector" if "=" in name else name, 1.0 if "=" in name else None) for name in names]
    records = [
        replace(record(arm, values), warnings=["of all"] + (["of some"] if number < 3 else []))
        for number, arm in enumerate(arms)
    ]
    records[0] = replace(records[0], warnings=[*records[0].warnings, "of one", "of one"])
    report = build_report(records)
    assert [([r.name for r in of], text) for of, text in report.warnings()] == [
        (names, "of all"),
        (names[:3], "of some"),
        (names[:1], "of one"),
    ]
    write_report(report, tmp_path)
    text, page = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
    for said in ("all 4 arms: of all", "baseline, donor and reference: of some", "baseline: of one"):
        assert text.count(f"- Warning, {said}\n") == 1
        assert page.count(f"<li>{said}</li>") == 1
    assert arms_label(["a", "b", "c", "d"], 9) == "a, b and 2 more"
    assert arms_label(["a"], 1) == "a"


def test_an_evaluation_without_a_vector_is_a_plain_page(tmp_path):
    values = outcomes(60, 0.5)
    one = record(Arm("small", "baseline"), {"t": values})
    other = record(Arm("large", "donor"), {"t": outcomes(60, 0, like=values, moved=20)})
    write_report(build_report([one, other]), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<h1>Evaluation</h1>" in page
    assert "reasoning" not in page.split("</h1>")[0]
    write_report(build_report([one]), tmp_path)
    assert 'id="samples"' not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("arm", "label"),
    [
        (Arm("baseline+think", "baseline", think="T"), "baseline, think"),
        (Arm("alpha=0.5~typo", "vector", 0.5, perturb="typo"), "+0.5 v, typo"),
        (Arm("alpha=-1", "vector", -1.0), "−1 v"),
        (Arm("alpha=0", "vector", 0.0), "0 v"),
        (Arm("mine", "vector"), "mine"),
        (Arm("random-2", "random", 1.0, seed=2), "random 2"),
        (Arm("sft", "sft", 1.0), "SFT vector"),
        (Arm("sft@0.5", "sft", 0.5), "SFT vector × 0.5"),
        (Arm("sft@norm", "sft", 0.4), "SFT vector at v's norm"),
        (Arm("rival-more", "rival", 1.0, origin="more"), "more"),
        (Arm("rival-more@norm", "rival", 0.4, origin="more"), "more at v's norm"),
        (Arm("whole", "whole", 1.0), "donor − base"),
        (Arm("random-2@0.5", "random", 0.5, seed=2), "random 2 at 0.5"),
    ],
)
def test_labels(arm, label):
    assert arm_label(arm) == label


def test_figures_of_numbers():
    assert [number(0.0712, 100), number(-0.0712, 100, signed=True), number(None, 1), number(12.345, 1)] == [
        "7.1", "−7.1", "–", "12.35",
    ]  # fmt: skip
    assert [p_value(p) for p in (1.0, 0.0312, 0.00061, 3.2e-8)] == ["1.000", "0.031", "0.0006", "3e-08"]


# --- the page, in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert found, "the page is tested in Chromium: apt-get install chromium"
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, written) -> Iterator[Any]:
    """The report at a desktop's width; fails on any message in the console, and on any request."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    heard: list[str] = []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("dialog", lambda dialog: heard.append(dialog.message))
    page.on(
        "request",
        lambda asked: heard.append(asked.url) if not asked.url.startswith(("file:", "data:")) else None,
    )
    page.goto((written[1] / "report.html").as_uri())
    yield page
    context.close()
    assert heard == []


def column(page: Any, table: str, index: int) -> list[str]:
    return page.eval_on_selector_all(
        f"#{table} tbody tr", f"rows => rows.map(row => row.cells[{index}].textContent.trim())"
    )


def test_the_page_shows_the_verdict_first(page, written):
    assert page.title().startswith("Evaluation of")
    first = page.locator(".verdicts li").first
    assert first.locator("p").text_content().replace("\u00a0", " ") == written[0].conclusions[0].text
    assert len(column(page, "arms-table", 0)) == 2 * 19


def test_tables_are_sorted_by_their_headers(page):
    header = page.locator("#arms-table thead th", has_text="Score")
    header.locator("button").click()
    scores = [float(text.split()[0]) for text in column(page, "arms-table", 2)]
    assert scores == sorted(scores)
    assert header.get_attribute("aria-sort") == "ascending"
    header.locator("button").click()
    scores = [float(text.split()[0]) for text in column(page, "arms-table", 2)]
    assert scores == sorted(scores, reverse=True)
    page.locator("#arms-table thead th", has_text="Arm").locator("button").press("Enter")
    names = column(page, "arms-table", 0)
    assert names == sorted(names, key=str.lower) or len(set(names)) < len(names)
    assert header.get_attribute("aria-sort") == "none"


def test_cells_without_a_value_sort_last(page):
    header = page.locator("#arms-table thead th", has_text="p (Holm)")
    for _ in range(2):
        header.locator("button").click()
        values = column(page, "arms-table", 4)
        empty = [index for index, text in enumerate(values) if not text]
        assert empty == list(range(len(values) - len(empty), len(values)))


def shown(page: Any) -> int:
    return page.locator(".sample:visible").count()


def test_samples_are_filtered(page, written):
    flips = [*written[0].flips(), *written[0].unchanged()]
    assert page.locator(".sample").count() == len(flips)
    assert shown(page) == min(20, len(flips))
    page.select_option("#sample-direction", "lost")
    lost = [flip for flip in flips if flip.direction == "lost"]
    assert shown(page) == min(20, len(lost))
    page.select_option("#sample-task", "sciq")
    assert shown(page) == len([flip for flip in lost if flip.task == "sciq"])
    page.select_option("#sample-direction", "wrong in both")
    assert (
        0
        < shown(page)
        == min(20, len([f for f in flips if (f.task, f.direction) == ("sciq", "wrong in both")]))
    )
    page.select_option("#sample-direction", "")
    page.fill("#sample-text", "no such words anywhere")
    assert shown(page) == 0
    assert page.locator("#sample-count").text_content() == f"0 of {len(flips)} fit"
    page.fill("#sample-text", f"document {flips[-1].doc_id}")
    assert shown(page) >= 1
    page.fill("#sample-text", "")
    page.select_option("#sample-task", "")
    page.locator("#sample-more").click()
    assert shown(page) == min(120, len(flips))


def test_outputs_are_text_and_never_markup(page):
    text = page.locator(".sample pre", has_text="alert(1)").first.text_content()
    assert text == "</script><script>alert(1)</script>\\x07 & <b>"
    assert page.locator("li", has_text="donor & target differ <b>").count() == 1


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_and_can_be_read(browser, written, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.goto((written[1] / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert contrast(ink, paper) > 7
    soft = page.evaluate("getComputedStyle(document.querySelector('.soft')).color")
    assert contrast(soft, paper) > 4.5
    assert (luminance(paper) < 0.2) is (scheme == "dark")
    text = page.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill")
    assert contrast(text, paper) > 4.5
    heights = page.eval_on_selector_all(
        "figure svg text", "texts => texts.map(text => text.getBoundingClientRect().height)"
    )
    assert min(heights) >= 8
    page.close()


def test_the_page_can_be_printed(browser, written, tmp_path):
    page = browser.new_page()
    page.goto((written[1] / "report.html").as_uri())
    page.pdf(path=tmp_path / "report.pdf")
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert (tmp_path / "report.pdf").stat().st_size > 20_000
    page.close()


def luminance(colour: str) -> float:
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


# --- in a notebook


def test_a_report_is_a_table_and_a_figure(written):
    held = SweepReport.of(written[0])
    arms = held.to_frame()
    assert len(arms) == 2 * len(held.records)
    assert list(arms["arm"][:2]) == ["baseline", "alpha=-1"]
    row = arms[(arms["arm"] == "alpha=0.5") & (arms["task"] == "gsm8k")].iloc[0]
    test = held.comparison("alpha=0.5", "baseline", "gsm8k")
    assert test is not None
    assert (row["difference"], row["p_holm"], row["family"]) == (test.difference, test.p_holm, "primary")
    assert arms[arms["arm"] == "baseline"]["difference"].isna().all()
    tests = held.to_frame("tests")
    assert len(tests) == len(held.comparisons)
    for kind in ("alpha", "differences"):
        figure = held.plot("sciq", kind)
        assert figure.axes[0].get_xlabel()
    assert held.conclusions[0].text in html.unescape(held._repr_html_())
    with pytest.raises(EvaluationError, match="no arm has task `other`"):
        held.plot("other")
    with pytest.raises(EvaluationError, match="no table `rows`"):
        held.to_frame("rows")  # type: ignore[arg-type]
    with pytest.raises(EvaluationError, match="no figure `pie`"):
        held.plot(kind="pie")  # type: ignore[arg-type]


def test_without_pandas_or_matplotlib_one_line_says_what_to_install(written, monkeypatch):
    held = SweepReport.of(written[0])
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(EvaluationError, match="a table needs pandas") as error:
        held.to_frame()
    assert error.value.hint == "pip install pandas"
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(EvaluationError, match="a figure needs matplotlib") as error:
        held.plot()
    assert error.value.hint == "pip install matplotlib"
