"""Finished sweeps side by side and pooled: from their folders to tables, verdicts and files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.command_line import invoke
from support.evaluation_records import experiment
from taskvec.errors import EvaluationError
from taskvec.evaluation.analysis.compare import Split
from taskvec.evaluation.analysis.pooled import Effect, paired_error, pool
from taskvec.evaluation.report.pooling import pool_results
from taskvec.evaluation.report.report import build_report
from taskvec.evaluation.report.several import read_results
from taskvec.evaluation.report.several_page import hold_apart, to_markdown
from taskvec.evaluation.report.side_by_side import table

SEEDS = {"11": (90, 8, 110), "12": (70, 60, 110), "13": (80, 8, 4)}  # gain, rival's gain, donor's gain


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory) -> list[Path]:
    """Three sweeps: one that transfers, one whose rival gains as much, one whose gate is not passed."""
    root = tmp_path_factory.mktemp("sweeps")
    for name, (gain, rival, donor) in SEEDS.items():
        records = experiment(gain=gain, rival=rival, donor_gain=donor, count=700)
        report = build_report(records, split=Split(0.3, int(name)))
        folder = root / name / "report"
        folder.mkdir(parents=True)
        (folder / "report.json").write_text(json.dumps(report.to_json()))
        (folder / "experiment.yaml").write_text("target: t\n")
    return [root / name for name in SEEDS]


def test_every_result_is_a_row_under_its_own_name(sweeps):
    header, rows = table(read_results(sweeps))
    assert header == [
        "result", "reference → donor", "gate", "baseline", "−v", "+0.5 v", "+v", "α", "random vectors",
        "permuted vectors", "SFT vector", "more", "more at v's norm", "p", "verdict",
    ]  # fmt: skip
    assert [row[0] for row in rows] == ["11", "12", "13"]
    assert [row[2] for row in rows] == ["passed", "passed", "not passed"]
    assert [row[-1] for row in rows] == [
        "transferred", "gain; not more than more, more at v's norm", "no claim: gate not passed",
    ]  # fmt: skip
    content = json.loads((sweeps[0] / "report" / "report.json").read_text())
    scores = {a["name"]: a["scores"]["gsm8k"]["exact_match,strict"]["value"] for a in content["arms"]}
    assert rows[0][3] == f"{100 * scores['baseline']:.1f}"
    assert rows[0][5] == f"{100 * scores['alpha=0.5']:.1f}"
    randoms = [scores[f"random-{n}"] for n in (1, 2, 3)]
    assert rows[0][8] == f"{100 * min(randoms):.1f}–{100 * max(randoms):.1f}"


def test_primary_tests_are_pooled_whatever_each_result_shows(sweeps):
    several = pool_results(read_results(sweeps))
    assert (several.passed, several.transferred) == (2, 1)
    by_name = {verdict.against: verdict for verdict in several.verdicts}
    assert list(by_name) == [
        "baseline", "random vectors", "permuted vectors", "the SFT vector", "more", "more at v's norm",
    ]  # fmt: skip
    first = by_name["baseline"]
    effects = []
    for folder in sweeps:
        content = json.loads((folder / "report" / "report.json").read_text())
        (test,) = (
            c for c in content["comparisons"]
            if c["family"] == "primary" and c["against"] == "baseline"
        )  # fmt: skip
        effects.append(Effect(test["difference"], paired_error(test["gained"], test["lost"], test["n"])))
    assert first.pooled == pool(effects)
    assert (first.better, first.count) == (3, 3)
    assert by_name["more"].better == 2
    assert f"{first.better} of {first.count} by themselves" in first.in_words
    assert re.search(r"95 % interval \+\d+\.\d to \+\d+\.\d, p = .*, n = [\d,]+ documents", first.in_words)
    (gate,) = several.gate
    assert (gate.better, gate.count) == (2, 3)
    # Holm over all that +v is held against
    p_values = sorted(v.pooled.p for v in several.verdicts)
    assert min(v.p_holm for v in several.verdicts) == pytest.approx(min(1.0, p_values[0] * len(p_values)))


def test_tasks_of_one_sweep_are_averaged_before_sweeps_are_pooled(tmp_path):
    folders = []
    for name in ("1", "2", "3"):
        records = experiment(tasks=("a", "b"), count=500, gain=60 + 10 * int(name))
        folder = tmp_path / name
        folder.mkdir()
        report = build_report(records, split=Split(0.3, int(name)))
        (folder / "report.json").write_text(json.dumps(report.to_json()))
        folders.append(folder)
    results = read_results(folders)
    assert [(r.label, r.task) for r in results] == [(n, t) for n in "123" for t in "ab"]
    first = next(v for v in pool_results(results).verdicts if v.against == "baseline")
    assert (first.count, first.pooled.count) == (6, 3)
    alone = next(v for v in pool_results(results[:2]).verdicts if v.against == "baseline")
    assert alone.pooled.count == 2


def test_a_metric_that_is_better_when_lower_is_turned(tmp_path):
    content = build_report(experiment(count=300), split=Split(0.3, 1)).to_json()
    content["settings"]["tasks"]["gsm8k"]["higher_is_better"] = False
    (tmp_path / "report.json").write_text(json.dumps(content))
    (result,) = read_results([tmp_path])
    (verdict, *_) = pool_results([result]).verdicts
    test = next(c for c in content["comparisons"] if c["family"] == "primary" and c["against"] == "baseline")
    assert verdict.pooled.difference == pytest.approx(-test["difference"])


def test_the_command_prints_markdown_and_writes_a_page(sweeps, tmp_path, capsys):
    out = tmp_path / "pooled"
    done = invoke(capsys, "report", *sweeps, "-o", out)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "# 3 results side by side"
    rows = [line for line in lines if line.startswith("| 1")]
    assert len(rows) == 3
    assert "reasoning transferred in 1 of 3" in done.out
    assert (out / "report.md").read_text().splitlines()[:12] == lines[:12]
    page = (out / "report.html").read_text()
    assert page.count("<svg ") == 7
    assert {path.name for path in (out / "figures").iterdir()} >= {
        "forest-baseline-points.png", "forest-the-SFT-vector-points.png",
    }  # fmt: skip
    found = invoke(capsys, "report", *sweeps, "--json")
    content = json.loads(found.out)["report"]
    assert content == json.loads((out / "report.json").read_text())
    assert content["results"][0]["label"] == "11"


def test_what_is_no_finished_sweep_is_refused_by_name(sweeps, tmp_path, capsys):
    content = json.loads((sweeps[0] / "report" / "report.json").read_text())

    def written(name: str, text: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "report.json").write_text(text)
        return folder

    old = {
        **content,
        "comparisons": [{k: v for k, v in c.items() if k != "family"} for c in content["comparisons"]],
    }
    for folder, message in (
        (tmp_path, "holds no report.json"),
        (written("cut", "{"), "is damaged"),
        (written("other", "{}"), "is not a report of a sweep"),
        (written("plain", json.dumps({**content, "alpha": None, "conclusions": []})), "nothing to pool"),
        (written("old", json.dumps(old)), "was written before claims had a family"),
    ):
        with pytest.raises(EvaluationError, match=message):
            read_results([sweeps[0], folder])
    with pytest.raises(EvaluationError, match="is named twice"):
        read_results([sweeps[0], sweeps[0] / "report"])
    done = invoke(capsys, "report", tmp_path / "nothing")
    assert (done.code, done.out) == (2, "")
    assert "hint: name the output folder of a finished sweep" in done.err
    for place in (tmp_path / "killed", tmp_path / "demo" / "report"):
        (place / "arms").mkdir(parents=True)
        (place / "arms" / "baseline.json").write_text("{}")
    for name in ("killed", "demo"):
        done = invoke(capsys, "report", tmp_path / name)
        assert done.code == 2
        assert "its sweep has not come to an end" in done.err
        assert "hint: run its command again" in done.err


def test_a_sweeps_own_folder_is_never_written_into(sweeps, tmp_path, capsys):
    before = (sweeps[0] / "report" / "report.json").read_bytes()
    done = invoke(capsys, "report", *sweeps, "-o", sweeps[0] / "report")
    assert done.code == 2
    assert "whose report would be replaced" in done.err
    assert (sweeps[0] / "report" / "report.json").read_bytes() == before
    done = invoke(capsys, "report", *sweeps, "-o", "s3://bucket/report")
    assert (done.code, done.out) == (2, "")
    assert not list(tmp_path.iterdir())
    # a report by itself is one, too; an earlier one of this kind may be replaced
    (tmp_path / "report.json").write_bytes(before)
    with pytest.raises(EvaluationError, match="whose report would be replaced"):
        hold_apart(tmp_path)
    (tmp_path / "report.json").write_text(json.dumps(pool_results(read_results(sweeps)).to_json()))
    hold_apart(tmp_path)
    hold_apart(tmp_path / "new")


def test_an_unevaluated_gate_is_not_known(tmp_path):
    records = [r for r in experiment(count=300) if r.kind != "donor"]
    content = build_report(records, split=Split(0.3, 1)).to_json()
    (tmp_path / "report.json").write_text(json.dumps(content))
    results = read_results([tmp_path])
    header, (row,) = table(results)
    assert row[header.index("gate")] == "–"
    assert row[-1] == "no claim: no gate"
    assert pool_results(results).gate == ()
    assert replace(results[0], label="x").label == "x"


def places(content: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Places of plain data, three deep; of a list the first one."""
    if path:
        yield path
    rows: dict[Any, Any] = content if isinstance(content, dict) else {}
    if isinstance(content, list):
        rows = dict(enumerate(content[:1]))
    for key, value in rows.items() if len(path) < 3 else ():
        yield from places(value, (*path, key))


def test_a_report_that_was_changed_is_named(tmp_path: Path) -> None:
    report = build_report(experiment(gain=5, rival=2, donor_gain=8, count=20), split=Split(0.3, 1)).to_json()
    path, named = tmp_path / "report.json", 0
    for part in ("settings", "alpha", "gate", "conclusions", "arms", "comparisons"):
        for place in places(report[part], (part,)):
            for value in ({}, 3, "x"):
                content = inner = json.loads(json.dumps(report))
                for key in place[:-1]:
                    inner = inner[key]
                inner[place[-1]] = value
                path.write_text(json.dumps(content))
                refusal = None
                try:
                    to_markdown(pool_results(read_results([tmp_path])))
                except EvaluationError as error:  # or nothing rests on it
                    refusal = error
                if refusal is not None:
                    named += 1
                    assert refusal.hint, (place, value)
    assert named > 20
