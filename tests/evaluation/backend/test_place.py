"""Arms made in the target: the tensors of the merged folder, whatever was in it before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import taskvec as tv
from support.evaluation_models import tiny
from taskvec.errors import EvaluationError, NonFiniteError, RecipeError
from taskvec.evaluation.backend import changed, place
from taskvec.evaluation.backend.delta import Delta, Placement
from taskvec.evaluation.backend.load import load_model
from taskvec.evaluation.backend.place import let_go, load_placed
from taskvec.evaluation.settings import Settings

SETTINGS = Settings(tasks=("tiny_choice",), device="cpu", batch_size=4)
TYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


@pytest.fixture(autouse=True)
def _nothing_held() -> Iterator[None]:
    let_go()
    yield
    let_go()


def family(root: Path, dtype: str) -> tuple[Path, Path, Path]:
    """Target, donor and reference in a type; `mixed` keeps norms and biases in float32."""
    made = []
    for folder in (tiny().target, tiny().donor, tiny().reference):
        out = root / folder.name
        shutil.copytree(tiny().target, out)
        values = load_file(folder / "model.safetensors")
        if dtype == "mixed":
            kept = {name: value for name, value in values.items() if value.dim() == 1}
            values = {name: value.bfloat16() for name, value in values.items()} | kept
        else:
            values = {name: value.to(TYPES[dtype]) for name, value in values.items()}
        save_file(values, out / "model.safetensors", {"format": "pt"})
        config = json.loads((out / "config.json").read_text())
        config["dtype"] = {"bf16": "bfloat16", "f16": "float16", "f32": "float32", "mixed": "bfloat16"}[dtype]
        (out / "config.json").write_text(json.dumps(config))
        made.append(out)
    return made[0], made[1], made[2]


def state(loaded: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in loaded.model.state_dict().items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name].view(torch.uint8), value.view(torch.uint8)), name


def deltas(donor: Path, reference: Path, base: Path, saved: Path) -> dict[str, Delta]:
    pair = {"donor": str(donor), "reference": str(reference)}
    return {
        "vector": Delta(**pair, alpha=0.5),
        "minus": Delta(**pair, alpha=-1.0),
        "zero": Delta(**pair, alpha=0.0),
        "tenth": Delta(**pair, alpha=0.3),
        "random": Delta(**pair, alpha=1.5, control="random", seed=3),
        "permuted": Delta(**pair, control="permute", seed=2),
        "sft": Delta(donor=str(reference), reference=str(base)),
        "layer": Delta(**pair, layers="1"),
        "some": Delta(**pair, include=("q_proj",), exclude=("bias",)),
        "no-embed-norm": Delta(**pair, preset="no-embed-norm"),
        "saved": Delta(vector=str(saved), alpha=0.7),
        "saved random": Delta(vector=str(saved), control="random", seed=1),
    }


def merged(target: Path, delta: Delta, out: Path) -> tuple[Path, Any]:
    options = delta.options()
    if delta.vector is not None:
        return out, tv.apply(target, delta.vector, out=out, **options)
    return out, tv.transfer(target, delta.donor, delta.reference, out, **options)


@pytest.mark.parametrize("by_torch", [False, True])
@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32", "mixed"])
def test_every_kind_of_arm_has_the_tensors_and_facts_of_its_merge(
    dtype: str, by_torch: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_torch:  # what a GPU does, on the CPU
        monkeypatch.setattr(place, "EXACT", ("cpu",))
    target, donor, reference = family(tmp_path, dtype)
    tv.extract(donor, reference, tmp_path / "saved")
    own = state(load_model(target, SETTINGS))
    made: set[str] = set()
    known = changed._on_device

    def watched(plan: Any, row: Any, value: Any) -> Any:
        found = known(plan, row, value)
        if found is not None:
            made.add(row[0])
        return found

    monkeypatch.setattr(changed, "_on_device", watched)
    for name, delta in deltas(donor, reference, target, tmp_path / "saved").items():
        folder, report = merged(target, delta, tmp_path / f"merged {name}")
        facts = tmp_path / f"{name}.json"
        placement = Placement(str(target), delta, name, identity=name, command="c", facts=facts)
        loaded = load_placed(str(target), SETTINGS, placement)
        assert_same(state(loaded), state(load_model(folder, SETTINGS)))
        assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
        found, survival = json.loads(facts.read_text()), report.outputs[0].survival
        for key, value in survival.to_dict().items():
            assert (found["survival"][key] is None) == (value is None), (name, key)
            assert value is None or found["survival"][key] == pytest.approx(value, rel=2e-5), (name, key)
        rows = report.outputs[0].tensors
        assert found["norms"].keys() == (set() if delta.alpha == 0 else rows.keys())
        for tensor, norm in found["norms"].items():
            assert norm * abs(delta.alpha) == pytest.approx(rows[tensor].step_norm, rel=2e-5)
        assert [each["id"] for each in found["findings"]] == [each.id for each in report.findings]
    assert_same(state(load_placed(str(target), SETTINGS, Placement(str(target)))), own)
    assert bool(made) is by_torch


def test_donor_and_reference_are_put_into_the_target_and_taken_back(tmp_path: Path) -> None:
    target, donor, reference = family(tmp_path, "bf16")
    config = json.loads((donor / "config.json").read_text())
    config |= {"_name_or_path": "somewhere", "transformers_version": "4.0.0"}
    (donor / "config.json").write_text(json.dumps(config))
    held = load_placed(str(target), SETTINGS, Placement(str(target)))
    own = state(held)
    for folder in (donor, reference, target):
        loaded = load_placed(str(folder), SETTINGS, Placement(str(target)))
        assert loaded is held
        assert_same(state(loaded), state(load_model(folder, SETTINGS)))
    assert_same(state(held), own)


def test_a_donor_that_differs_in_more_than_weights_is_loaded_by_itself(tmp_path: Path) -> None:
    target, donor, _ = family(tmp_path, "bf16")
    config = json.loads((donor / "config.json").read_text())
    (donor / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    held = load_placed(str(target), SETTINGS, Placement(str(target)))
    loaded = load_placed(str(donor), SETTINGS, Placement(str(target)))
    assert loaded is not held
    assert loaded.model.config.rms_norm_eps == 1e-3
    assert_same(
        state(load_placed(str(target), SETTINGS, Placement(str(target)))), state(load_model(target, SETTINGS))
    )


def test_what_was_halved_is_whole_in_the_next_arm(tmp_path: Path) -> None:
    target, donor, reference = family(tmp_path, "bf16")
    load_placed(str(target), SETTINGS, Placement(str(target))).batch_size_per_gpu = 1
    delta = Delta(str(donor), str(reference))
    assert load_placed(str(target), SETTINGS, Placement(str(target), delta)).batch_size_per_gpu == 4


def test_without_room_the_targets_files_have_its_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "memory_available", lambda: 1000)
    target, donor, reference = family(tmp_path, "bf16")
    delta = Delta(str(donor), str(reference), layers="0")
    for change in (delta, Delta(str(donor), str(reference), layers="1")):
        folder, _ = merged(target, change, tmp_path / f"layer-{change.layers}")
        placement = Placement(str(target), change, identity=str(change.layers))
        assert_same(state(load_placed(str(target), SETTINGS, placement)), state(load_model(folder, SETTINGS)))
    assert not place._places[0].originals
    assert_same(
        state(load_placed(str(target), SETTINGS, Placement(str(target)))), state(load_model(target, SETTINGS))
    )


def test_weights_in_a_type_of_their_own_are_cast_as_loading_casts_them(tmp_path: Path) -> None:
    target, donor, reference = family(tmp_path, "f32")
    settings = Settings(
        tasks=("tiny_choice",), device="cpu", batch_size=4, model_args=(("dtype", "bfloat16"),)
    )
    delta = Delta(str(donor), str(reference), alpha=0.3)
    folder, _ = merged(target, delta, tmp_path / "merged")
    loaded = load_placed(str(target), settings, Placement(str(target), delta))
    assert_same(state(loaded), state(load_model(folder, settings)))


def test_tensors_that_are_no_floats_stay(tmp_path: Path) -> None:
    target, donor, reference = family(tmp_path, "bf16")
    for folder in (target, donor, reference):
        values = load_file(folder / "model.safetensors")
        values["model.layers.0.counts"] = torch.arange(5)
        save_file(values, folder / "model.safetensors", {"format": "pt"})
    delta = Delta(str(donor), str(reference))
    plan = delta.plan(str(target))
    assert "model.layers.0.counts" not in changed.changed_names(plan)
    assert changed.is_plain(plan)
    folder, _ = merged(target, delta, tmp_path / "merged")
    loaded = load_placed(str(target), SETTINGS, Placement(str(target), delta))
    assert_same(state(loaded), state(load_model(folder, SETTINGS)))


def test_plans_that_change_more_than_values_are_told(tmp_path: Path) -> None:
    target, donor, reference = family(tmp_path, "bf16")
    plain = Delta(str(donor), str(reference))
    assert changed.is_plain(plain.plan(str(target)))
    assert not changed.is_plain(Delta(str(donor), str(reference), out_dtype="float32").plan(str(target)))
    tv.convert(target, tmp_path / "packed", out_dtype="int8-channel")
    assert not changed.is_plain(plain.plan(str(tmp_path / "packed")))


def test_what_cannot_be_made_leaves_no_half_changed_model(tmp_path: Path) -> None:
    target, donor, reference = family(tmp_path, "bf16")
    own = state(load_placed(str(target), SETTINGS, Placement(str(target))))
    values = load_file(donor / "model.safetensors")
    values["model.norm.weight"][3] = float("nan")
    save_file(values, donor / "model.safetensors", {"format": "pt"})
    with pytest.raises(NonFiniteError, match=r"model\.norm\.weight"):
        load_placed(str(target), SETTINGS, Placement(str(target), Delta(str(donor), str(reference))))
    assert not place._places
    with pytest.raises(RecipeError):
        load_placed(
            str(target), SETTINGS, Placement(str(target), Delta(str(donor), str(reference), layers="9"))
        )
    assert_same(state(load_placed(str(target), SETTINGS, Placement(str(target)))), own)


def test_a_target_of_other_tensors_is_refused(tmp_path: Path) -> None:
    target, *_ = family(tmp_path, "bf16")
    values = load_file(target / "model.safetensors")
    values.pop(next(name for name in values if "q_proj.bias" in name))
    save_file(values, target / "model.safetensors", {"format": "pt"})
    with pytest.raises(EvaluationError, match="other tensors") as error:
        load_placed(str(target), SETTINGS, Placement(str(target)))
    assert error.value.hint == "`--arms merged`"
