"""Records and journals: whole or absent, and recognised."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from support.evaluation_records import outcomes, record
from taskvec.errors import EvaluationError
from taskvec.evaluation.arms import Arm, arm_name, control_arms, plan_arms
from taskvec.evaluation.backend.journal import Journal, block_key
from taskvec.evaluation.record import (
    digest_files,
    finite,
    identity,
    read_record,
    setting_differences,
    write_record,
)

ARM = Arm("alpha=0.5+think~typo", "vector", 0.5, "Think.", "typo")


def a_record(**more):
    return record(ARM, {"sums": outcomes(30, 0.5)}, **more)


# --- records


def test_a_record_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "arms" / "a.json"
    written = a_record()
    write_record(path, written)
    assert read_record(path) == written
    assert read_record(path).arm == ARM
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("keep", [0, 1, 500, -2])
def test_a_record_cut_short_is_recognised(tmp_path, keep):
    path = tmp_path / "a.json"
    write_record(path, a_record())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(EvaluationError, match="cut short") as error:
        read_record(path)
    assert "delete the file" in (error.value.hint or "")


def edited(path: Path, edit) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda c: c["samples"]["sums"].pop(), "29 of 30 samples"),
        (lambda c: c.update(schema=99), "schema 99"),
        (lambda c: c.pop("identity"), "`identity`"),
        (lambda c: c.update(extra=1), "`extra`"),
        (lambda c: c["samples"]["sums"][0].update(tokens="many"), "tokens"),
        (lambda c: c["samples"].update(other=[{}]), "damaged"),
    ],
)
def test_a_damaged_record_says_what_is_wrong(tmp_path, edit, said):
    path = tmp_path / "a.json"
    write_record(path, a_record())
    edited(path, edit)
    with pytest.raises(EvaluationError, match=said):
        read_record(path)


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(EvaluationError, match=r"nothing\.json"):
        read_record(tmp_path / "nothing.json")


def test_finite_makes_plain_json():
    import numpy as np

    content = {
        "a": math.nan,
        "b": [np.float64(1.5), math.inf],
        3: np.int64(4),
        "c": (True, None),
        "d": Path("x"),
    }
    assert finite(content) == {"a": None, "b": [1.5, None], "3": 4, "c": [True, None], "d": "x"}
    json.dumps(finite(content), allow_nan=False)


def test_identity_holds_what_decides_samples():
    settings, versions = {"limit": None}, {"torch": "2.15"}
    first = identity(settings, versions, "w", ARM)
    assert first == identity(dict(settings), dict(versions), "w", ARM)
    renamed = Arm("other", "donor", None, "Think.", "typo")
    assert identity(settings, versions, "w", renamed) == first
    others = [
        identity({"limit": 5}, versions, "w", ARM),
        identity(settings, {"torch": "2.16"}, "w", ARM),
        identity(settings, versions, "x", ARM),
        identity(settings, versions, "w", Arm("a", "vector", 0.5, "Think!", "typo")),
        identity(settings, versions, "w", Arm("a", "vector", 0.5, "Think.", None)),
    ]
    assert len({first, *others}) == 6


def test_digests_hold_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    files = [tmp_path / "a", tmp_path / "b"]
    first = digest_files(files, tmp_path)
    assert digest_files(files[::-1], tmp_path) == first
    (tmp_path / "b").write_text("3")
    assert digest_files(files, tmp_path) != first


def test_setting_differences_are_named():
    one, other = a_record(), a_record(settings={"tasks": ["sums"], "backend": "hf", "chat_template": True})
    assert setting_differences(one, a_record()) == []
    assert setting_differences(one, other) == [
        f"chat_template: `{ARM.name}` has False, `{ARM.name}` has True"
    ]
    lacking = record(Arm("b", "donor"), {"other": outcomes(3, 0.5)}, settings=one.settings)
    assert any("lacks task `sums`" in found for found in setting_differences(one, lacking))


# --- journals


def test_a_journal_gives_back_its_blocks(tmp_path):
    path = tmp_path / "j.jsonl"
    journal = Journal(path, "id")
    assert journal.get("a") is None
    journal.put("a", [["text — ü", 3, False]])
    journal.put("b", [[-1.25, True], [float("-inf"), False]])
    journal.close()
    again = Journal(path, "id")
    assert again.get("a") == [["text — ü", 3, False]]
    assert again.get("b") == [[-1.25, True], [float("-inf"), False]]
    assert again.resumed == 2
    again.remove()
    assert not path.exists()


def test_a_torn_line_is_dropped_and_the_rest_goes_on(tmp_path):
    path = tmp_path / "j.jsonl"
    journal = Journal(path, "id")
    for key in "abc":
        journal.put(key, [key])
    journal.close()
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines()[-1]) + 1):
        path.write_bytes(whole[:-cut])
        torn = Journal(path, "id")
        assert torn.get("a") == ["a"]
        assert torn.get("b") == ["b"]
        if cut > 1:
            assert torn.get("c") is None
    torn.put("d", ["d"])
    torn.close()
    after = Journal(path, "id")
    assert [after.get(key) for key in "abcd"] == [["a"], ["b"], None, ["d"]]


def test_a_flipped_bit_ends_what_is_believed(tmp_path):
    path = tmp_path / "j.jsonl"
    journal = Journal(path, "id")
    for key in "abc":
        journal.put(key, [key])
    journal.close()
    data = bytearray(path.read_bytes())
    data[data.index(b'"b"') + 1] ^= 1
    path.write_bytes(bytes(data))
    again = Journal(path, "id")
    assert again.get("a") == ["a"]
    assert again.get("b") is None
    assert again.get("c") is None


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"{}\n", b"x y\n"])
def test_a_foreign_file_is_no_journal(tmp_path, content):
    path = tmp_path / "j.jsonl"
    path.write_bytes(content)
    journal = Journal(path, "id")
    assert journal.get("a") is None
    journal.put("a", [1])
    journal.close()
    assert Journal(path, "id").get("a") == [1]


def test_a_journal_of_other_settings_is_begun_again(tmp_path):
    path = tmp_path / "j.jsonl"
    journal = Journal(path, "id")
    journal.put("a", [1])
    journal.close()
    other = Journal(path, "another")
    assert other.get("a") is None
    other.put("b", [2])
    other.close()
    assert Journal(path, "id").get("a") is None


def test_block_keys_hold_requests_and_order():
    requests = [("one", {"until": ["x"]}), ("two", {"until": ["x"]})]
    first = block_key("generate_until", requests, 0)
    assert first == block_key("generate_until", [tuple(r) for r in requests], 0)
    others = [
        block_key("loglikelihood", requests, 0),
        block_key("generate_until", requests[::-1], 0),
        block_key("generate_until", requests, 2),
        block_key("generate_until", [("one", {"until": ["y"]}), requests[1]], 0),
    ]
    assert len({first, *others}) == 5


# --- arms


def test_the_arms_of_a_whole_experiment():
    arms = plan_arms(
        alphas=(-1.0, 0.0, 0.5), donor=True, reference=True, base=True, think="T", perturb=("typo", "order")
    )
    assert [arm.name for arm in arms] == [
        "baseline", "alpha=-1", "alpha=0", "alpha=0.5",
        "baseline+think", "alpha=-1+think", "alpha=0+think", "alpha=0.5+think",
        "donor", "reference", "sft", "whole", "baseline~typo", "baseline~order",
    ]  # fmt: skip
    assert len({arm.weights for arm in arms}) == 8
    later = control_arms(alpha=0.5, random=2, permuted=1, think="T", perturb=("typo",))
    assert [arm.name for arm in later] == ["alpha=0.5~typo", "random-1", "random-2", "permuted-1"]
    assert [arm.alpha for arm in later] == [0.5] * 4
    assert later[0].weights == "alpha=0.5"
    assert later[1].weights == "random-1@0.5"


def test_every_arm_can_carry_the_request_to_reason():
    arms = plan_arms(alphas=(1.0,), donor=True, reference=False, base=True, think="T", think_only=True)
    assert [arm.name for arm in arms] == ["baseline+think", "alpha=1+think", "donor+think", "whole+think"]
    assert {arm.think for arm in arms} == {"T"}
    assert {
        arm.think for arm in control_arms(alpha=1.0, random=1, permuted=1, think="T", think_only=True)
    } == {"T"}


def test_names_and_stems():
    assert arm_name("alpha=1", "T", "typo") == "alpha=1+think~typo"
    assert ARM.stem == "alpha=0.5"
    assert ARM.variant().name == "alpha=0.5"
