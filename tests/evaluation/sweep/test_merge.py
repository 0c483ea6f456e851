"""Arms' weights by the engine itself: vectors, controls, the SFT vector, saved vectors."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import taskvec as tv
from support.evaluation_models import tiny
from support.models import read_tensors
from taskvec.errors import CompatibilityError, EvaluationError
from taskvec.evaluation.arms import Arm
from taskvec.evaluation.backend.identity import resolve
from taskvec.evaluation.experiment import Experiment, experiment
from taskvec.evaluation.sweep.merge import UNFINISHED, Merger, arm_weights, transfer_command
from taskvec.evaluation.sweep.scratch import Scratch, read_facts


def vector(alpha: float) -> Arm:
    return Arm(f"alpha={alpha:g}", "vector", alpha)


def control(kind: Any, seed: int, alpha: float = 1.0) -> Arm:
    return Arm(f"{kind}-{seed}", kind, alpha, seed=seed)


SFT = Arm("sft", "sft", 1.0)


def small(**more: Any) -> Experiment:
    models = tiny()
    content = {
        "target": str(models.target),
        "donor": str(models.donor),
        "reference": str(models.reference),
        "base": str(models.target),
        "tasks": ["tiny_gen"],
    }
    return experiment({**content, **more})


def steps(folder: Path) -> dict[str, np.ndarray]:
    """What a merge added to the target."""
    target = read_tensors(tiny().target)
    return {name: array.astype(np.float64) - target[name] for name, array in read_tensors(folder).items()}


def difference(one: Path, other: Path) -> dict[str, np.ndarray]:
    here, there = read_tensors(one), read_tensors(other)
    return {name: here[name].astype(np.float64) - there[name] for name in here}


@pytest.fixture(scope="module")
def merged(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("merged")
    arms = [vector(a) for a in (-1.0, 0.0, 0.5)]
    arms += [control("random", 1), control("random", 2), control("permuted", 1, 0.5), SFT]
    return folder, Merger(small())(arms, folder)


def test_every_arm_has_a_folder_that_is_a_checkpoint(merged):
    folder, made = merged
    names = {"alpha=-1", "alpha=0", "alpha=0.5", "random-1@1", "random-2@1", "permuted-1@0.5", "sft"}
    assert set(made) == names
    assert {path.name for path in folder.iterdir()} == names
    for name in names:
        assert tv.verify(folder / name).ok
        assert (folder / name / "tokenizer.json").is_file()


def test_vectors_are_the_difference_times_alpha(merged):
    folder, made = merged
    wanted = difference(tiny().donor, tiny().reference)
    for alpha in (-1.0, 0.5):
        for name, step in steps(folder / f"alpha={alpha:g}").items():
            np.testing.assert_allclose(step, alpha * wanted[name], atol=2e-7)
    assert all(not step.any() for step in steps(folder / "alpha=0").values())
    norms = made["alpha=-1"].norms
    assert norms == pytest.approx({name: np.linalg.norm(step) for name, step in wanted.items()}, rel=1e-5)
    assert made["alpha=0.5"].norms == pytest.approx(norms, rel=2e-5)
    assert made["alpha=0"].norms == {}


def test_controls_have_the_vectors_norm_and_nothing_else_of_it(merged):
    folder, _ = merged
    wanted = difference(tiny().donor, tiny().reference)
    one, other = steps(folder / "random-1@1"), steps(folder / "random-2@1")
    for name, step in wanted.items():
        if step.size < 1000:
            continue
        assert np.linalg.norm(one[name]) == pytest.approx(np.linalg.norm(step), rel=1e-3)
        for strange in (one[name], other[name]):
            cosine = np.sum(strange * step) / np.linalg.norm(strange) / np.linalg.norm(step)
            assert abs(cosine) < 5 / np.sqrt(step.size)
        assert not np.array_equal(one[name], other[name])
    for name, step in steps(folder / "permuted-1@0.5").items():
        np.testing.assert_allclose(np.sort(step.ravel()), np.sort(0.5 * wanted[name].ravel()), atol=3e-7)


def test_a_permuted_control_leaves_out_what_shuffling_keeps(tmp_path):
    # a donor whose norms are moved in one direction, and its matrices in none
    moved = {
        name: (array + 0.05 * (1 + np.arange(array.size) % 3)).astype(array.dtype)
        if array.ndim == 1
        else array
        for name, array in read_tensors(tiny().donor).items()
    }
    donor = tmp_path / "donor"
    shutil.copytree(tiny().donor, donor)
    save_file(moved, donor / "model.safetensors", {"format": "pt"})
    own = small(donor=str(donor))
    made = Merger(own)([control("permuted", 1)], tmp_path)
    wanted = difference(donor, tiny().reference)
    for name, step in steps(tmp_path / "permuted-1@1").items():
        if step.ndim == 1:
            assert not step.any(), name
        else:
            assert step.any()
            cosine = np.sum(step * wanted[name]) / np.linalg.norm(step) / np.linalg.norm(wanted[name])
            assert abs(cosine) < 5 / np.sqrt(step.size)
    command = made["permuted-1@1"].command
    assert "--exclude" in command
    assert "norm" in command
    assert arm_weights(
        control("permuted", 1), own, dict.fromkeys((own.target, own.donor, own.reference), "x")
    )


def test_a_permuted_control_of_a_saved_vector_leaves_out_all_one_dimensional_tensors(tmp_path):
    saved = tmp_path / "reasoning.vec"
    (tv.open(tiny().donor) - tv.open(tiny().reference)).save(saved)
    whole = small(vector=str(saved), donor=None, reference=None, base=None)
    made = Merger(whole)([control("permuted", 1)], tmp_path / "out")
    for name, step in steps(tmp_path / "out" / "permuted-1@1").items():
        assert step.any() == (step.ndim > 1), name
    assert "--exclude" in made["permuted-1@1"].command


def test_the_whole_difference_is_donor_minus_base(tmp_path):
    Merger(small())([Arm("whole", "whole", 1.0)], tmp_path)
    # the base is the target here, so the sum is the donor itself
    donor = read_tensors(tiny().donor)
    for name, array in read_tensors(tmp_path / "whole").items():
        np.testing.assert_allclose(array, donor[name], atol=2e-7)


def test_the_sft_vector_is_reference_minus_base(merged):
    folder, _ = merged
    # the base is the target here, so the sum is the reference itself
    reference = read_tensors(tiny().reference)
    for name, array in read_tensors(folder / "sft").items():
        np.testing.assert_allclose(array, reference[name], atol=2e-7)


def test_what_the_engine_measured_is_kept(merged):
    _, made = merged
    survival = made["alpha=0.5"].survival
    assert survival["cosine"] == pytest.approx(1.0, abs=1e-3)
    assert survival["changed"] > 0
    json.dumps(made["alpha=0.5"].to_json(), allow_nan=False)


def test_a_saved_vector_gives_the_same_weights(merged, tmp_path):
    folder, _ = merged
    saved = tmp_path / "reasoning.vec"
    (tv.open(tiny().donor) - tv.open(tiny().reference)).save(saved)
    whole = small(vector=str(saved), donor=None, reference=None, base=None)
    Merger(whole)([vector(0.5), vector(-1.0)], tmp_path / "out")
    for name in ("alpha=0.5", "alpha=-1"):
        here, there = read_tensors(tmp_path / "out" / name), read_tensors(folder / name)
        assert all(np.array_equal(here[key], there[key]) for key in there)


def test_options_reach_the_engine(tmp_path):
    whole = small(merge={"include": ["mlp"], "out_dtype": "bfloat16"})
    Merger(whole)([vector(1.0)], tmp_path)
    merged = read_tensors(tmp_path / "alpha=1")
    target = read_tensors(tiny().target)
    changed = {n for n, a in merged.items() if not np.array_equal(a, target[n].astype(a.dtype))}
    assert changed
    assert all("mlp" in name for name in changed)
    assert {str(array.dtype) for array in merged.values()} == {"bfloat16"}


def test_models_that_do_not_fit_are_refused_with_their_findings(tmp_path):
    other = shutil.copytree(tiny().donor, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    with pytest.raises(CompatibilityError):
        Merger(small(donor=str(other)))([vector(1.0)], tmp_path / "out")


def test_commands_repeat_the_merge():
    whole = small(
        target="my target", merge={"exclude": ["lm_head"], "preset": "no-embed", "rounding": "stochastic"}
    )
    command = transfer_command(whole, control("permuted", 3, -0.5))
    assert command.startswith("taskvec transfer --target 'my target' --donor ")
    assert "--alpha -0.5 --control permute --seed 3" in command
    assert command.endswith("--exclude lm_head --preset no-embed --rounding stochastic")
    saved = small(vector="v.vec")
    assert transfer_command(saved, vector(1.0)).endswith("v.vec -o OUT --alpha 1")
    assert transfer_command(saved, vector(1.0)).startswith("taskvec apply ")
    assert f"--donor {tiny().reference} --reference {tiny().target}" in transfer_command(small(), SFT)


def test_commands_are_those_of_the_command_line():
    from taskvec.cli.apply import command as apply_command
    from taskvec.cli.transfer import command as transfer

    whole = small(merge={"preset": "no-embed", "layers": "0-1", "out_dtype": "float32", "force": ["x"]})
    for arm in (vector(-0.5), control("random", 3), SFT):
        words = transfer_command(whole, arm).split()[2:]
        assert transfer.make_context("transfer", words).params["out"] == "OUT"
    words = transfer_command(small(vector="v.vec"), vector(0.5)).split()[2:]
    assert apply_command.make_context("apply", words).params["out"] == "OUT"


def test_weights_are_told_apart_without_merging():
    whole = small()
    models = {m: resolve(m)[1] for m in (whole.target, whole.donor, whole.reference)}
    arms = [
        Arm("baseline", "baseline"), Arm("donor", "donor"), Arm("reference", "reference"),
        vector(0.5), vector(1.0),
        control("random", 1), control("random", 2), control("permuted", 1), SFT,
    ]  # fmt: skip
    found = [arm_weights(arm, whole, models) for arm in arms]
    assert len(set(found)) == len(arms)
    assert arm_weights(vector(0.5).variant(think="T"), whole, models) == found[3]
    changed = small(merge={"preset": "no-embed"})
    assert arm_weights(vector(0.5), changed, models) != found[3]
    assert arm_weights(Arm("baseline", "baseline"), changed, models) == found[0]
    assert resolve(tiny().target)[1] == found[0]


def test_the_sft_vector_needs_its_models():
    with pytest.raises(EvaluationError, match="needs `reference` and `base`"):
        Merger(small(base=None))([SFT], Path("nowhere"))


# --- the scratch folder


def scratch(tmp_path: Path, **more: Any) -> Scratch:
    options = {"model_bytes": 1, **more}
    return Scratch(tmp_path / "scratch", tmp_path / "merges", Merger(small()), **options)


def test_an_unfinished_merge_is_never_taken_for_weights(tmp_path):
    first = scratch(tmp_path)
    (first.folder / UNFINISHED).mkdir()
    (first.folder / UNFINISHED / "model.safetensors").write_bytes(b"half")
    (first.folder / "alpha=1").mkdir()  # a folder without facts: killed before it was whole
    models = first.models([vector(1.0)], {"alpha=1": "id"})
    assert tv.verify(models["alpha=1"]).ok
    facts = read_facts(tmp_path / "merges" / "alpha=1.json")
    assert facts is not None
    assert facts.norms
    first.clear()
    assert not first.folder.exists()


def test_whole_weights_are_used_again_and_others_are_not(tmp_path):
    here = scratch(tmp_path, keep=True)
    path = here.models([vector(1.0)], {"alpha=1": "id"})["alpha=1"] / "model.safetensors"
    stamp = path.stat().st_ino
    assert scratch(tmp_path).models([vector(1.0)], {"alpha=1": "id"})
    assert path.stat().st_ino == stamp
    with path.open("rb"):  # or its number may be given to the new file
        scratch(tmp_path).models([vector(1.0)], {"alpha=1": "other"})
        assert path.stat().st_ino != stamp


def test_weights_that_were_damaged_since_are_made_again(tmp_path):
    here = scratch(tmp_path, keep=True)
    path = here.models([vector(1.0)], {"alpha=1": "id"})["alpha=1"] / "model.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2] + bytes(len(good) - len(good) // 2))
    scratch(tmp_path, keep=True).models([vector(1.0)], {"alpha=1": "id"})
    assert path.read_bytes() == good


def test_facts_are_written_once_the_weights_have_their_name_on_the_disk(tmp_path, monkeypatch):
    done = []
    replace, fsync = Path.replace, os.fsync

    def replaced(self, target):
        if target.name == "alpha=1":
            done.append("named")
        return replace(self, target)

    def flushed(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}") == str((tmp_path / "scratch").resolve()):
            done.append("flushed")
        fsync(descriptor)

    def written(path, _):
        done.append(path.name)

    here = scratch(tmp_path)
    monkeypatch.setattr(Path, "replace", replaced)
    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr("taskvec.evaluation.sweep.scratch.write_whole", written)
    here.models([vector(1.0)], {"alpha=1": "id"})
    assert done[-3:] == ["named", "flushed", "alpha=1.json"]


def test_clearing_spares_what_is_not_ours(tmp_path):
    here = scratch(tmp_path)
    (here.folder / "mine").mkdir()
    here.models([vector(1.0)], {"alpha=1": "id"})
    here.clear()
    assert {path.name for path in here.folder.iterdir()} == {"mine"}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"identity": 1}', '{"identity": "x", "strange": 1}'])
def test_damaged_facts_are_no_facts(tmp_path, content):
    path = tmp_path / "facts.json"
    path.write_text(content)
    assert read_facts(path) is None
