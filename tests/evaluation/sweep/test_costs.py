"""What a sweep will cost: scaled from measured arms, and said to be not measured otherwise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from support.evaluation_records import record
from taskvec.evaluation.arms import Arm
from taskvec.evaluation.record import ArmRecord, write_record
from taskvec.evaluation.settings import Settings
from taskvec.evaluation.sweep import costs as module
from taskvec.evaluation.sweep.costs import Cost, costs

BASE, VECTOR = Arm("baseline", "baseline"), Arm("alpha=1", "vector", 1.0)
THINK = Arm("baseline+think", "baseline", think="T")
SETTINGS = {"tasks": ["t"], "limit": 10}
VERSIONS = {"lm_eval": "1"}


@pytest.fixture
def out(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(module, "settings_identity", lambda _: {**SETTINGS, "limit": None})
    monkeypatch.setattr(module, "versions", lambda _: VERSIONS)
    return tmp_path


def keep(out: Path, arm: Arm, *, documents: int = 10, seconds: float = 5.0, **more: object) -> ArmRecord:
    made = record(arm, {"t": [1.0] * documents}, settings=SETTINGS)
    made = replace(made, **{"seconds": seconds, "versions": VERSIONS, **more})
    write_record(out / "arms" / f"{arm.name}.json", made)
    return made


def of(out: Path | None, *arms: Arm, documents: dict[str, int] | None = None) -> list[Cost]:
    return costs(arms, Settings(tasks=("t",)), out, {"t": 100} if documents is None else documents)


def test_nothing_is_known_without_a_sample(out):
    assert of(None, BASE) == [Cost("baseline", 100, None, None, "not measured", 0)]
    assert of(out, BASE)[0].source == "not measured"
    keep(out, BASE)
    assert of(out, BASE, documents={}) == [Cost("baseline", None, None, None, "not measured", 0)]


def test_an_arm_is_scaled_from_its_own_sample_and_others_from_the_mean(out):
    one = keep(out, BASE, seconds=5.0)
    other = keep(out, VECTOR, seconds=7.0)
    tokens = [sum(s.tokens or 0 for s in made.samples["t"]) for made in (one, other)]
    first, second, third = of(out, BASE, VECTOR, Arm("donor", "donor"))
    assert (first.tokens, first.seconds, first.source) == (pytest.approx(10 * tokens[0]), 50.0, "this arm")
    assert (second.seconds, second.sample) == (70.0, 10)
    assert (third.source, third.sample) == ("other arms", 20)
    assert third.tokens == pytest.approx(10 * sum(tokens) / 2)
    assert third.seconds == pytest.approx(60.0)


def test_arms_that_think_are_scaled_from_arms_that_think(out):
    keep(out, BASE, seconds=5.0)
    keep(out, THINK, seconds=50.0)
    thinking = Arm("alpha=1+think", "vector", 1.0, think="T")
    assert of(out, thinking)[0].seconds == 500.0
    assert of(out, VECTOR)[0].seconds == 50.0


def test_a_finished_arm_has_its_own_figures(out):
    # a perturbation leaves documents out: what was left is all of it
    keep(out, BASE, documents=90, seconds=40.0, settings={**SETTINGS, "limit": None})
    (cost,) = of(out, BASE)
    assert (cost.source, cost.seconds) == ("done", 40.0)


def test_other_settings_versions_and_damaged_files_are_no_sample(out):
    keep(out, BASE, settings={**SETTINGS, "chat_template": True})
    keep(out, VECTOR, versions={"lm_eval": "2"})
    (out / "arms" / "donor.json").write_text("{")
    assert of(out, BASE)[0].source == "not measured"
