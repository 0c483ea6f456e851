"""What was wrong with an answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from support.evaluation_records import METRIC, record
from taskvec.evaluation.analysis.compare import Split
from taskvec.evaluation.analysis.mistakes import MISTAKES, changes, equations_hold, mistake
from taskvec.evaluation.arms import Arm
from taskvec.evaluation.record import Sample


def wrong(output: str, **more: object) -> Sample:
    found = Sample(
        doc_id=0, doc_hash="d", subtask=None, question="q", target="#### 23", output=output,
        extracted={"strict": "0"}, metrics={METRIC: 0.0}, tokens=9.0, cut=False,
    )  # fmt: skip
    return replace(found, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sample", "kind"),
    [
        (wrong("18+7=26. 26-2=24. #### 24"), "arithmetic"),
        (wrong("18+7=25. 25+2=27. #### 27"), "reading"),
        (wrong("It is 23.", metrics={METRIC: 0.0, "exact_match,flexible": 1.0}), "format"),
        (wrong("It is 23.", metrics={METRIC: 0.0, "exact_match,flexible": 0.0, "f1,none": 1.0}), "unknown"),
        (wrong("so many", extracted={"strict": "[invalid]"}), "format"),
        (wrong("18+7=26, and", cut=True), "cut"),
        (wrong("18+7=26, and", cut=True, extracted={"strict": "[invalid]"}), "cut"),
        (wrong("It must be blue."), "unknown"),
    ],
)
def test_mistakes(sample, kind):
    assert mistake(sample, METRIC) == kind


@pytest.mark.parametrize(
    ("text", "hold"),
    [
        ("He has 1,200 x 2 = 2,400 pens.", [True]),
        ("He has 1,200 × 2 = 2,300 pens.", [False]),
        ("That is $5 * 3 = $15.", [True]),
        ("That is 7 ÷ 2 = 3.5 each, so 10/3 = 3.33, and: 10 / 3 = 3.4", [True, True, False]),
        ("Cost is 0.5*3=1.5. Then 10−3=7.", [True, True]),
        ("That is 10/4=3.", [True]),  # rounded
        ("That is 10/4=4.", [False]),
        ("twice 5 + 3 = 13", []),  # what comes before is a part of the calculation
        ("half of 20 + 3 = 13", []),
        ("There are (2+3)*4 = 20 and 3*(4+1)=16.", [True]),
        ("a 3 x 4 = 12 + 5 = 17", [True]),
        ("Packs 3*4=<<3*4=12>>12 pens.\n12-2=<<12-2=10>>10 left", [True]),
        ("x1+4=9", []),
        ("is 10/0=3", []),
        ("2+2=4 is it", [True]),
        ("", []),
    ],
)  # fmt: skip
def test_equations(text, hold):
    assert equations_hold(text) == hold


def test_changes_are_counted_in_both_directions():
    split = Split(0.0, 0)
    before = record(Arm("baseline", "baseline"), {"t": [0.0, 0.0, 0.0, 1.0, 1.0]})
    after = record(Arm("alpha=1", "vector", 1.0), {"t": [1.0, 1.0, 0.0, 0.0, 1.0]})
    outputs = ("is 1+1=3. #### 3", "is 1+1=2. #### 2", "is 1+1=3. #### 3")
    rows = [replace(row, output=text) for row, text in zip(before.samples["t"], outputs, strict=False)]
    before = replace(before, samples={"t": [*rows, *before.samples["t"][3:]]})
    lost = [replace(row, output="a word") if i == 3 else row for i, row in enumerate(after.samples["t"])]
    gained, gone = changes(before, replace(after, samples={"t": lost}), split)
    nothing = dict.fromkeys(MISTAKES, 0)
    assert (gained.direction, gained.counts) == ("gained", {**nothing, "arithmetic": 1, "reading": 1})
    assert (gone.direction, gone.counts) == ("lost", {**nothing, "unknown": 1})
