"""Arms of parts of a vector: their weights against NumPy, their identities, their report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import taskvec as tv
from support.evaluation_models import tiny
from support.evaluation_records import record
from support.models import read_tensors
from taskvec.errors import RecipeError
from taskvec.evaluation.analysis.compare import Split
from taskvec.evaluation.arms import Arm
from taskvec.evaluation.backend.identity import resolve
from taskvec.evaluation.experiment import experiment
from taskvec.evaluation.record import Merged, read_record, write_record
from taskvec.evaluation.report import json_schema
from taskvec.evaluation.report.labels import arm_label
from taskvec.evaluation.report.report import build_report
from taskvec.evaluation.report.write import write_report
from taskvec.evaluation.sweep.merge import Merger, arm_weights
from taskvec.evaluation.sweep.part_arms import part_arms
from taskvec.evaluation.sweep.part_vectors import FOLDER, vector_names

PARTS = {
    "groups": 2, "modules": True, "top": [10], "rank": [2], "sign": True, "without_sft": True,
    "between": [0.5, 2],
}  # fmt: skip


def small(**more):
    models = tiny()
    content = {
        "target": str(models.target),
        "donor": str(models.donor),
        "reference": str(models.reference),
        "base": str(models.target),
        "tasks": ["tiny_gen"],
        "parts": {**PARTS, "also": str(models.target)},
    }
    return experiment({**content, **more})


def arms(given, alpha=0.5) -> dict[str, Arm]:
    return {arm.name: arm for arm in part_arms(given, (alpha,), vector_names(given))}


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    return folder, Merger(small())(list(arms(small()).values()), folder)


def steps(folder: Path, base: Path) -> dict[str, np.ndarray]:
    there = read_tensors(base)
    return {name: array.astype(np.float64) - there[name] for name, array in read_tensors(folder).items()}


def vector() -> dict[str, np.ndarray]:
    return steps(tiny().donor, tiny().reference)


def test_groups_add_up_and_touch_nothing_else(merged):
    folder, made = merged
    v = vector()
    for label in ("layer-0", "layer-1", "outside", "attention", "feed-forward", "norms", "vocabulary"):
        only = steps(folder / f"only-{label}@0.5", tiny().target)
        rest = steps(folder / f"all-but-{label}@0.5", tiny().target)
        for name, array in v.items():
            np.testing.assert_allclose(only[name] + rest[name], 0.5 * array, atol=2e-6)
            assert not only[name].any() or not rest[name].any()
    elements = sum(a.size for n, a in v.items() if ".layers.0." in n)
    assert made["only-layer-0@0.5"].part["bytes"] == 4 * elements
    assert made["only-layer-0@0.5"].command == ""


def test_parts_that_are_computed(merged):
    folder, made = merged
    v = vector()
    whole = np.concatenate([a.reshape(-1) for a in v.values()])
    threshold = np.sort(np.abs(whole))[-round(0.1 * whole.size)]
    for name, array in steps(folder / "top-10@0.5", tiny().target).items():
        kept = np.where(np.abs(v[name]) >= threshold * (1 - 1e-6), v[name], 0)
        np.testing.assert_allclose(array, 0.5 * kept, atol=2e-6)
    for name, array in steps(folder / "sign@0.5", tiny().target).items():
        np.testing.assert_allclose(array, 0.5 * np.sign(v[name]) * np.abs(v[name]).mean(), atol=2e-6)
    assert made["sign@0.5"].part["cosine"] == pytest.approx(0.8, abs=0.1)
    assert made["without-sft@0.5"].part["norm"] < np.linalg.norm(whole) * 1.001


def test_points_between_lie_on_the_reference(merged):
    folder, _ = merged
    for t in (0.5, 2.0):
        found = steps(folder / f"between={t:g}", tiny().reference)
        for name, array in vector().items():
            np.testing.assert_allclose(found[name], t * array, atol=2e-6)


def test_two_donors_are_added(merged):
    folder, _ = merged
    other = steps(tiny().target, tiny().reference)
    found = steps(folder / "v-and-other@0.5", tiny().target)
    for name, array in vector().items():
        np.testing.assert_allclose(found[name], 0.5 * (array + other[name]), atol=2e-6)


def test_computed_vectors_are_taken_up_again_and_others_not(tmp_path, monkeypatch):
    import taskvec.evaluation.sweep.part_vectors as rooms

    calls = []
    derive = rooms.derive
    monkeypatch.setattr(rooms, "derive", lambda *a, **k: calls.append(list(a[1])) or derive(*a, **k))
    given, all_arms = small(), arms(small())
    digests = {model: resolve(model)[1] for model in (given.target, given.donor, given.reference, given.base)}
    Merger(given, digests)([all_arms["sign"], all_arms["top-10"]], tmp_path)
    Merger(given, digests)([all_arms["rank-2"]], tmp_path)
    assert calls == [["top-10", "rank-2", "sign", "without-sft"]]
    made, merged = tmp_path / FOLDER, tmp_path / all_arms["sign"].weights
    for damage in ("[]", "{}", "null", "\0" * 40, '{"digest": 1, "folder": 2}'):
        (made / "sign.json").write_text(damage)
        shutil.rmtree(merged)
        Merger(given, digests)([all_arms["sign"]], tmp_path)
        assert calls.pop() == ["sign"]
    (weights,) = (made / "sign").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-8] + bytes(8))
    shutil.rmtree(merged)
    Merger(given, digests)([all_arms["sign"]], tmp_path)
    assert calls.pop() == ["sign"]
    Merger(given, {**digests, given.donor: "files:other"})([all_arms["without-sft"]], tmp_path)
    assert len(calls) == 2
    assert tv.verify(tmp_path / FOLDER / "sign").ok


def test_identities_follow_what_an_arm_is_made_of():
    given = small()
    digests = {m: m for m in (given.target, given.donor, given.reference, given.base)}
    found = {name: arm_weights(arm, given, digests) for name, arm in arms(given).items()}
    assert len(set(found.values())) == len(found)
    fewer = small(parts={**PARTS, "groups": None, "top": [10, 20]})
    again = {name: arm_weights(arm, fewer, digests) for name, arm in arms(fewer).items()}
    assert all(
        found[name] == value for name, value in again.items() if name in ("top-10", "sign", "between=2")
    )
    moved = {name: arm_weights(arm, given, {**digests, given.base: "b"}) for name, arm in arms(given).items()}
    assert moved["without-sft"] != found["without-sft"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"parts": {"top": [0]}}, "above 0"),
        ({"parts": {"rank": [0]}}, "at least 1"),
        ({"parts": {"groups": 1}}, "`parts.groups`: out of range: the number `1`"),
        ({"parts": {"top": [5, 5]}}, "twice"),
        ({"parts": {"without_sft": True}, "base": None}, "`base`"),
        ({"parts": {"between": [0.5]}, "reference": None, "vector": "v"}, "`parts.between`"),
        ({"parts": {"sign": True}, "alphas": [-1]}, "positive"),
        ({"parts": {"signs": True}}, "no such key"),
    ],
)
def test_what_cannot_be_honoured_is_refused(more, words):
    with pytest.raises(RecipeError, match=words):
        small(**more)


def test_more_groups_than_layers_are_refused_by_name():
    with pytest.raises(RecipeError, match="2 layers"):
        arms(small(parts={"groups": 3}))


# --- the report


def a_report():
    rng = np.random.default_rng(1)
    plain = (rng.random(300) < 0.5).astype(float)

    def better(by: float) -> list[float]:
        return np.where(rng.random(300) < by, 1.0, plain).tolist()

    all_arms = arms(small(parts={**PARTS}), alpha=1.0)
    rows = [
        record(Arm("baseline", "baseline"), {"t": plain.tolist()}),
        record(Arm("alpha=1", "vector", 1.0), {"t": better(0.5)}),
        record(Arm("donor", "donor"), {"t": better(0.6)}),
        record(Arm("reference", "reference"), {"t": better(0.1)}),
        record(Arm("random-1", "random", 1.0, seed=1), {"t": better(0.02)}),
        *(record(arm, {"t": better(0.3)}) for arm in all_arms.values()),
    ]
    merges = {
        r.name: Merged("x", None, {"a": 2.0 if r.kind == "vector" else 1.0}, [], "",
                       {"bytes": 1000, "norm": 1.0, "cosine": 0.5} if r.kind == "part" else None)
        for r in rows if r.kind in ("vector", "part", "between")
    }  # fmt: skip
    return build_report(rows, split=Split(0.3, 1), merges=merges)


def test_parts_are_a_family_of_their_own(tmp_path):
    report = a_report()
    parts = {r.name for r in report.records if r.kind in ("part", "between")}
    assert not parts & {name for c in report.comparisons for name in (c.arm, c.against)}
    assert {c.arm for c in report.part_tests} == parts
    assert {c.family for c in report.part_tests} == {"parts"}
    against = {c.against for c in report.part_tests if c.arm.startswith("between")}
    assert against == {"reference", "donor"}
    assert {c.against for c in report.part_tests if c.arm == "sign"} == {"baseline", "alpha=1"}
    found = {row.arm: row for row in report.parts()}
    assert found["sign"].share == pytest.approx(0.25)
    assert found["sign"].family == "amount"
    assert found["between=2"].share is None
    write_report(report, tmp_path)
    content = json.loads((tmp_path / "report.json").read_text())
    jsonschema.validate(content, json_schema())
    assert content["parts"]["tests"] == len(report.part_tests)
    page = (tmp_path / "report.html").read_text()
    assert "Parts of the vector" in page
    assert {"groups-t.png", "sizes-t.png", "between-t.png"} <= {
        p.name for p in (tmp_path / "figures").iterdir()
    }
    assert "all but layer 0" in page


def test_labels_are_words():
    labels = {name: arm_label(arm) for name, arm in arms(small()).items()}
    assert labels["only-layer-0"] == "only layer 0"
    assert labels["all-but-feed-forward"] == "all but feed-forward"
    assert labels["top-10"] == "largest 10 %"
    assert labels["between=0.5"] == "reference + 0.5 (donor − reference)"
    assert labels["without-sft"] == "v without the SFT direction"


def test_a_record_remembers_its_part(tmp_path):
    one = record(Arm("sign", "part", 1.0, part="sign"), {"t": [1.0, 0.0]})
    write_record(tmp_path / "sign.json", one)
    assert read_record(tmp_path / "sign.json").arm == Arm("sign", "part", 1.0, part="sign")


# --- an alpha for each task


def test_each_chosen_alpha_has_its_own_parts_and_points_between_are_one():
    given = small(choose="task")
    found = part_arms(given, (0.5, 1.0), vector_names(given))
    assert len({arm.name for arm in found}) == len({arm.weights for arm in found}) == len(found)
    signs = [arm for arm in found if arm.part == "sign"]
    assert [(arm.name, arm.alpha, arm_label(arm)) for arm in signs] == [
        ("sign@0.5", 0.5, "signs alone at 0.5"),
        ("sign@1", 1.0, "signs alone at 1"),
    ]
    assert [arm.name for arm in found if arm.kind == "between"] == ["between=0.5", "between=2"]


def test_a_task_is_shown_the_parts_of_its_own_alpha(tmp_path):
    right, wrong = [1.0] * 90 + [0.0] * 10, [1.0] * 10 + [0.0] * 90
    given = small(parts={"sign": True, "groups": 2, "top": [5], "between": [0.5]}, choose="task")
    rows = [
        record(Arm("baseline", "baseline"), {"one": wrong, "two": wrong}),
        record(Arm("alpha=0.5", "vector", 0.5), {"one": right, "two": wrong}),
        record(Arm("alpha=1", "vector", 1.0), {"one": wrong, "two": right}),
        record(Arm("donor", "donor"), {"one": right, "two": right}),
        record(Arm("reference", "reference"), {"one": wrong, "two": wrong}),
        *(record(arm, {"one": right, "two": wrong})
          for arm in part_arms(given, (0.5, 1.0), vector_names(given))),
    ]  # fmt: skip
    merges = {
        r.name: Merged("x", None, {"a": 2.0 if r.kind == "vector" else 1.0}, [], "",
                       {"bytes": 1000, "norm": 1.0, "cosine": 0.5} if r.kind == "part" else None)
        for r in rows if r.kind in ("vector", "part", "between")
    }  # fmt: skip
    report = build_report(rows, split=Split(0.5, 1), merges=merges, choosing="task")
    assert {task: arm.name for task, arm in report.chosen.items()} == {"one": "alpha=0.5", "two": "alpha=1"}
    against = {(c.arm, c.task, c.against) for c in report.part_tests if "sign" in c.arm}
    assert against == {
        ("sign@0.5", "one", "baseline"), ("sign@0.5", "one", "alpha=0.5"),
        ("sign@1", "two", "baseline"), ("sign@1", "two", "alpha=1"),
    }  # fmt: skip
    found = {(row.arm, row.task): row for row in report.parts()}
    assert {arm for arm, task in found if task == "one"} == {
        arm.replace("@1", "@0.5") for arm, task in found if task == "two"
    }
    assert found["sign@0.5", "one"].share == pytest.approx(0.25)
    assert {row.task for row in report.slices()} <= {"one", "two"}
    write_report(report, tmp_path)
    jsonschema.validate(json.loads((tmp_path / "report.json").read_text()), json_schema())
    assert {"groups-one.png", "sizes-two.png", "between-two.png"} <= {
        p.name for p in (tmp_path / "figures").iterdir()
    }
