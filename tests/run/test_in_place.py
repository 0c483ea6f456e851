"""Models in memory: vectors made of state dicts, and added to a model in place with the bytes of a run."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import taskvec as tv
from support.models import DTYPES, Trio, qwen2_config, random_tensors, read_tensors, tuned, write_checkpoint
from support.oracle import ulps
from taskvec.run import live as live_model

MIXED = {
    "model.embed_tokens.weight": ("BF16", (701, 999)),  # several pieces
    "model.layers.0.a.weight": ("F16", (333, 400)),
    "model.layers.0.b.weight": ("F32", (5, 7)),
    "model.layers.1.a.weight": ("F64", (3, 4099)),
    "model.layers.1.b.weight": ("F8_E5M2", (4097,)),
    "model.layers.1.c.weight": ("BF16", ()),
    "model.layers.1.d.weight": ("BF16", (0, 3)),
    "model.norm.weight": ("BF16", (1,)),
    "model.positions": ("I64", (9,)),
}


def as_torch(array: np.ndarray) -> torch.Tensor:
    """A torch tensor of the same type and bytes, in memory of its own."""
    tensor = torch.empty(array.shape, dtype=getattr(torch, array.dtype.name))
    if array.size:
        tensor.reshape(-1).view(torch.uint8).copy_(torch.from_numpy(array.reshape(-1).view(np.uint8).copy()))
    return tensor


def as_bytes(tensor: Any) -> bytes:
    if isinstance(tensor, torch.Tensor):
        return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return np.ascontiguousarray(tensor).tobytes()


def same(live: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name, tensor in live.items():
        assert as_bytes(tensor) == as_bytes(expected[name]), name


KINDS: dict[str, Callable[[np.ndarray], Any]] = {"numpy": np.copy, "torch": as_torch}
Models = tuple[tv.Checkpoint, tv.Checkpoint, tv.Checkpoint]


def live(checkpoint: tv.Checkpoint, kind: str = "numpy") -> dict[str, Any]:
    """A state dict of one's own."""
    return {name: KINDS[kind](array) for name, array in checkpoint.items()}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Target, donor and reference of many types, of which one tensor takes several pieces."""
    root = tmp_path_factory.mktemp("mixed")
    base = random_tensors({name: shape for name, (_, shape) in MIXED.items()}, dtype="F64")
    opened = []
    for seed, name in enumerate(("target", "donor", "reference")):
        moved = tuned(base, seed=seed, share=0.3)
        tensors = {key: moved[key].astype(DTYPES[kind]) for key, (kind, _) in MIXED.items()}
        opened.append(tv.open(write_checkpoint(root / name, tensors, {"model_type": "test"})))
    target, donor, reference = opened
    return target, donor, reference


@pytest.fixture
def models(trio: Trio) -> Models:
    target, donor, reference = map(tv.open, trio)
    return target, donor, reference


SETTINGS: list[dict[str, Any]] = [{}, {"rounding": "stochastic", "seed": 7, "threads": 3}, {"threads": 1}]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [1.0, -0.37])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_bytes_are_those_of_a_run(
    mixed: Models, tmp_path: Path, kind: str, alpha: float, settings: dict[str, Any]
) -> None:
    target, donor, reference = mixed
    report = tv.transfer(*mixed, tmp_path / "out", alpha=alpha, **settings)
    model = live(target, kind)
    change = (donor - reference).apply_(model, alpha=alpha, **settings)
    same(model, read_tensors(tmp_path / "out"))
    assert change.tensors == len(MIXED) - 1
    assert change.survival is not None
    assert report.survival is not None
    assert change.survival.changed == report.survival.changed
    assert change.survival.rounded_away == report.survival.rounded_away
    assert change.survival.step_norm == pytest.approx(report.survival.step_norm, rel=1e-4)
    assert not change.exact


@pytest.mark.parametrize("share", [0.0, 0.01, 0.15, 1.0])
def test_a_saved_vector_is_added_in_place(tmp_path: Path, share: float) -> None:
    shapes = {"model.layers.0.a.weight": (700, 321), "model.layers.0.b.weight": (40,)}
    base = random_tensors(shapes)
    donor = tuned(base, seed=1, share=share)
    folders = {"target": tuned(base, seed=2), "donor": donor, "reference": base}
    target, donor_model, reference = (
        tv.open(write_checkpoint(tmp_path / name, tensors, {"model_type": "test"}))
        for name, tensors in folders.items()
    )
    (donor_model - reference).save(tmp_path / "vector")
    tv.transfer(target, donor_model, reference, tmp_path / "out", alpha=0.6)
    model = live(target, "torch")
    vector = tv.load_vector(tmp_path / "vector")
    change = vector.apply_(model, alpha=0.6)
    same(model, read_tensors(tmp_path / "out"))
    assert change.tensors == sum((donor[name] != base[name]).any() for name in base)


def test_a_sum_of_vectors_is_added_in_one_pass(models: Models) -> None:
    target, donor, reference = models
    vector = 0.5 * (donor - reference) - 0.25 * (target - reference).select(include="mlp")
    model = live(target)
    vector.apply_(model, alpha=2)
    expected = dict((target + vector).items())
    same(live(target), target)
    assert any(as_bytes(model[name]) != as_bytes(expected[name]) for name in model)
    same(model, dict((target + 2 * vector).items()))


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_of_state_dicts_are_those_of_files(mixed: Models, tmp_path: Path, kind: str) -> None:
    target, donor, reference = mixed
    held = live(donor, kind)
    in_memory = tv.from_state_dict(held, config=donor.config)
    vector = donor - reference
    made = in_memory - reference
    assert made.norm() == vector.norm()
    assert made.cosine(vector) == pytest.approx(1.0)
    assert repr(made) == repr(vector).replace(donor.spec, "<state dict>")
    same(dict(made.items()), dict(vector.items()))
    same(dict((target + 0.7 * made).items()), dict((target + 0.7 * vector).items()))
    both = tv.from_state_dict(live(target, kind), config=target.config, name="mine") + 0.7 * made
    report = both.save(tmp_path / "out")
    same(read_tensors(tmp_path / "out"), dict((target + 0.7 * vector).items()))
    assert "<mine>" in repr(both)
    assert report.survival is not None
    assert tv.verify(tmp_path / "out")
    made.save(tmp_path / "vector")
    same(dict(tv.load_vector(tmp_path / "vector").items()), dict(vector.items()))
    same(live(donor, kind), held)


def test_nothing_is_copied(models: Models) -> None:
    _, donor, _ = models
    arrays, tensors = live(donor), live(donor, "torch")
    for held in (tv.from_state_dict(arrays), tv.from_state_dict(tensors)):
        assert list(held) == list(donor)
        assert held.dtypes == donor.dtypes
    name = "model.layers.0.mlp.up_proj.weight"
    shown = tv.from_state_dict(arrays)[name]
    assert np.shares_memory(shown, arrays[name])
    assert not shown.flags.writeable
    tensors[name][0, 0] = 3
    assert tv.from_state_dict(tensors)[name][0, 0] == 3
    with pytest.raises(tv.NotFoundError):
        tv.from_state_dict(arrays)["model.layers.0.mlp.up_proj.wieght"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_kept_comes_back_exactly(models: Models, kind: str) -> None:
    target, donor, reference = models
    vector = donor - reference
    model = live(target, kind)
    vector.apply_(model, alpha=0.3, keep=True)
    vector.apply_(model, alpha=2, keep=True)
    for _ in range(2):
        assert vector.remove_(model).exact
    same(model, target)
    with pytest.warns(UserWarning, match="not kept"):
        change = vector.remove_(model)
    assert not change.exact
    same(model, dict((target - vector).items()))


def test_what_was_changed_since_is_not_thrown_away(models: Models) -> None:
    target, donor, reference = models
    vector = donor - reference
    model = live(target, "torch")
    vector.apply_(model, alpha=0.3, keep=True)
    model["model.norm.weight"] += 1
    norm = model["model.norm.weight"].clone()
    with pytest.warns(UserWarning, match="not kept"):
        vector.remove_(model, alpha=0.3)
    assert (model["model.norm.weight"] - norm).abs().max() < 0.1
    other = live(target, "torch")
    vector.apply_(other, keep=True)
    with pytest.warns(UserWarning, match="not kept"):
        assert not vector.remove_(model).exact
    assert vector.remove_(other).exact


def test_originals_go_with_the_vector(models: Models) -> None:
    target, donor, reference = models
    vector = donor - reference
    vector.apply_(live(target), keep=True)
    kept = weakref.ref(vector._kept[0].originals["model.norm.weight"])
    del vector
    gc.collect()
    assert kept() is None


def test_a_module_is_changed_and_tied_tensors_once(trio: Trio, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    tv.transfer(*trio, tmp_path / "out", alpha=0.5)
    model = AutoModelForCausalLM.from_pretrained(trio.target)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    names = set(model.state_dict())
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= names
    change = (tv.open(trio.donor) - tv.open(trio.reference)).apply_(model, alpha=0.5)
    assert change.tensors == len(names) - 1
    assert not [each for each in change.findings if each.level != "note"]
    same(model.state_dict(), AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict())


def test_names_of_one_memory_are_one_tensor(models: Models) -> None:
    target, donor, reference = models
    model = live(target)
    tied = {"lm_head.weight": model["model.embed_tokens.weight"], **model}
    (donor - reference).apply_(tied, alpha=0.5)
    expected = dict((target + 0.5 * (donor - reference)).items())
    same(model, expected)
    assert as_bytes(tied["lm_head.weight"]) == as_bytes(expected["model.embed_tokens.weight"])


def test_tensors_that_are_not_contiguous(models: Models) -> None:
    target, donor, reference = models
    vector = donor - reference
    name = "model.layers.0.mlp.up_proj.weight"
    expected = dict((target + vector).items())
    turned = live(target)
    turned[name] = np.asfortranarray(turned[name])
    vector.apply_(turned)
    same(turned, expected)
    tensors = live(target, "torch")
    wide = torch.zeros(64, 64, dtype=torch.bfloat16)
    wide[:, :32] = tensors[name]
    tensors[name] = wide[:, :32]
    vector.apply_(tensors, keep=True)
    same(tensors, expected)
    assert not wide[:, 32:].any()
    assert vector.remove_(tensors).exact
    same(tensors, target)


def test_memory_is_never_changed_twice_nor_under_the_vector(models: Models) -> None:
    target, donor, reference = models
    model = live(target)
    name, other = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.gate_proj.weight"
    block = np.zeros((96, 32), model[name].dtype)
    overlapping = {**model, name: block[:64], other: block[32:]}
    with pytest.raises(tv.RecipeError, match="share part of their memory"):
        (donor - reference).apply_(overlapping)
    vector = tv.from_state_dict(model) - reference
    with pytest.raises(tv.RecipeError, match="computed from"):
        vector.apply_(model)
    same(model, target)
    vector.apply_(live(target))


@pytest.mark.parametrize("place", ["target", "donor"])
def test_values_that_are_not_finite_change_nothing(models: Models, place: str) -> None:
    target, donor, reference = models
    held = {"target": live(target), "donor": live(donor)}
    held[place]["model.layers.1.mlp.up_proj.weight"][3, 4] = np.inf
    before = {name: array.copy() for name, array in held["target"].items()}
    vector = tv.from_state_dict(held["donor"]) - reference
    with pytest.raises(tv.NonFiniteError, match=r"1 in .*model\.layers\.1\.mlp\.up_proj\.weight"):
        vector.apply_(held["target"])
    same(held["target"], before)
    vector.apply_(held["target"], force="non-finite")
    assert np.isinf(held["target"]["model.layers.1.mlp.up_proj.weight"][3, 4])


def test_a_result_that_overflows_changes_nothing() -> None:
    shapes = {"model.layers.0.a.weight": (5,)}
    base = random_tensors(shapes, dtype="F16")
    donor = {name: array + np.float16(60000) for name, array in base.items()}
    model = {name: array + np.float16(60000) for name, array in base.items()}
    vector = tv.from_state_dict(donor) - tv.from_state_dict(base)
    before = {name: array.copy() for name, array in model.items()}
    with pytest.raises(tv.NonFiniteError, match="the result for"):
        vector.apply_(model)
    same(model, before)


def test_an_interrupt_before_the_change_leaves_everything(mixed: Models) -> None:
    target, donor, reference = mixed
    model = live(target)
    phases = []

    def stop(event: tv.Progress) -> None:
        phases.append(event.phase)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        (donor - reference).apply_(model, progress=stop)
    assert phases == ["prepare"]
    same(model, target)


def test_a_change_that_has_begun_is_completed(mixed: Models) -> None:
    target, donor, reference = mixed
    model = live(target)

    def stop(event: tv.Progress) -> None:
        if event.phase == "merge":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="complete"):
        (donor - reference).apply_(model, progress=stop)
    same(model, dict((target + (donor - reference)).items()))


def test_other_threads_run_meanwhile() -> None:
    size = 24_000_000
    donor = {"model.layers.0.a.weight": torch.full((size,), 0.5, dtype=torch.bfloat16)}
    base = {"model.layers.0.a.weight": torch.full((size,), 0.25, dtype=torch.bfloat16)}
    model = {"model.layers.0.a.weight": torch.full((size,), 1.0, dtype=torch.bfloat16)}
    vector = tv.from_state_dict(donor) - tv.from_state_dict(base)
    done, most, count = threading.Event(), 0, 0

    def work() -> None:
        nonlocal count
        while not done.is_set():
            count += 1

    thread = threading.Thread(target=work)
    thread.start()
    before = count
    vector.apply_(model)
    most = count - before
    done.set()
    thread.join()
    assert most > 1000
    assert (model["model.layers.0.a.weight"] == 1.25).all()


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_another_device_uses_the_same_formula(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    base = random_tensors({"model.layers.0.a.weight": (300, 321)}, dtype="F32")
    kinds = [tuned(base, seed=seed) for seed in range(3)]
    target, donor, reference = ({n: a.astype(DTYPES[dtype]) for n, a in each.items()} for each in kinds)
    vector = 0.9 * (tv.from_state_dict(donor) - tv.from_state_dict(reference))
    here = {name: as_torch(array) for name, array in target.items()}
    vector.apply_(here, alpha=0.4)
    there = {name: as_torch(array) for name, array in target.items()}
    # what lies on another device has no bytes that the engine could change
    monkeypatch.setattr(live_model, "live_tensor", lambda _, each, info: live_model.Live(each, info, None))
    change = vector.apply_(there, alpha=0.4, keep=True)
    assert (change.tensors, change.survival) == (1, None)
    name = "model.layers.0.a.weight"
    engine, torchs = (np.frombuffer(as_bytes(each[name]), DTYPES[dtype]) for each in (here, there))
    distance = ulps(engine, torchs)
    assert distance.max() <= 1
    assert (distance == 0).mean() > 0.999
    assert vector.remove_(there).exact
    same(there, target)
    there[name][0, 0] = torch.inf
    with pytest.raises(tv.NonFiniteError):
        vector.apply_(there)
    with pytest.raises(tv.RecipeError, match="stochastically"):
        vector.apply_(there, rounding="stochastic")


@pytest.mark.parametrize("is_here", [True, False])
def test_one_expert_of_a_fused_tensor(monkeypatch: pytest.MonkeyPatch, is_here: bool) -> None:
    """The selected expert changes, the others keep their bytes: on the CPU and on another device."""
    stem = "model.layers.0.mlp.experts"
    shapes = {f"{stem}.gate_up_proj": (3, 48, 16), f"{stem}.down_proj": (3, 16, 24)}
    base = random_tensors(shapes, dtype="F32")
    target, donor, reference = (tuned(base, seed=seed) for seed in range(3))
    target[f"{stem}.gate_up_proj"][0, 0, 0] = -0.0
    vector = tv.from_state_dict(donor) - tv.from_state_dict(reference)
    if not is_here:
        monkeypatch.setattr(
            live_model, "live_tensor", lambda _, each, info: live_model.Live(each, info, None)
        )
    there = {name: as_torch(array) for name, array in target.items()}
    vector.select(include=[r"experts\.1\.(gate|down)"]).apply_(there, alpha=0.5)
    for name, rows in ((f"{stem}.gate_up_proj", slice(0, 24)), (f"{stem}.down_proj", slice(None))):
        wanted = target[name].copy()
        step = donor[name].astype(np.float64) - reference[name].astype(np.float64)
        wanted[1, rows] = target[name][1, rows] + 0.5 * step[1, rows]
        found = np.frombuffer(as_bytes(there[name]), np.float32).reshape(wanted.shape)
        assert np.allclose(found, wanted, rtol=1e-6, atol=1e-7)
        still = np.ones(wanted.shape, bool)
        still[1, rows] = False
        assert found[still].tobytes() == target[name][still].tobytes()


def test_refusals_name_the_tensor(models: Models) -> None:
    target, donor, reference = models
    vector = donor - reference
    name = "model.norm.weight"
    frozen = live(target)
    frozen[name].flags.writeable = False
    with pytest.raises(tv.FormatError, match=r"`model\.norm\.weight` is read-only"):
        vector.apply_(frozen)
    empty = live(target, "torch")
    empty[name] = torch.empty(32, dtype=torch.bfloat16, device="meta")
    with pytest.raises(tv.FormatError, match=r"`model\.norm\.weight` has no data"):
        vector.apply_(empty)
    longer = live(target)
    longer[name] = np.zeros(33, longer[name].dtype)
    with pytest.raises(tv.CompatibilityError, match=r"model\.norm\.weight"):
        vector.apply_(longer)
    fewer = live(target)
    with pytest.raises(tv.CompatibilityError):
        vector.apply_({f"other.{key}": array for key, array in fewer.items()})
    with pytest.raises(tv.RecipeError, match="a model in memory is expected, found the text"):
        vector.apply_("a path")
    for wrong, match in (
        ({name: [1.0, 2.0]}, "is list"),
        ({name: np.zeros(3, "U4")}, "is <U4"),
        ({name: empty[name]}, "is on `meta`"),
        ({name: torch.zeros(4, 4).t()[:2]}, "not contiguous"),
        ({name: np.zeros((4, 4))[:, :2]}, "not contiguous"),
        ({name: np.zeros(4, ">f4")}, "is >f4"),
    ):
        with pytest.raises(tv.FormatError, match=match):
            tv.from_state_dict(wrong)


def test_a_model_of_another_function_is_refused(models: Models) -> None:
    target, donor, reference = models

    class Config:
        def to_dict(self) -> dict[str, Any]:
            return {**target.config, "rope_theta": 1e4}

    class Module:
        config = Config()

        def state_dict(self) -> dict[str, Any]:
            return live(target)

    with pytest.raises(tv.CompatibilityError, match="rope_theta"):
        (donor - reference).apply_(Module())
    other = tv.from_state_dict(live(donor), config=qwen2_config(rope_theta=1e4))
    with pytest.raises(tv.CompatibilityError, match="rope_theta"):
        _ = other - reference


def test_a_plan_of_tensors_in_memory_stays_in_its_process(models: Models) -> None:
    target, donor, reference = models
    plan = (tv.from_state_dict(live(target)) + (donor - reference)).plan()
    assert plan.recipe["target"] == "<state dict>"
    with pytest.raises(tv.RecipeError, match="tensors of the process that made it"):
        tv.Plan.from_json(plan.json)


@pytest.mark.parametrize("how", [KeyboardInterrupt, RuntimeError])
def test_originals_are_kept_of_a_change_that_does_not_end(how: type[BaseException]) -> None:
    rng = np.random.default_rng(0)
    tensors = {"a.weight": rng.standard_normal((700, 999)).astype(np.float32)}
    other = {"a.weight": tensors["a.weight"] + np.float32(0.1)}
    vector = tv.from_state_dict(other) - tv.from_state_dict(tensors)
    model = {"a.weight": rng.standard_normal((700, 999)).astype(np.float32)}
    before = model["a.weight"].copy()

    def progress(event: tv.Progress) -> None:
        if event.phase == "merge":
            raise how

    with pytest.raises(how):
        vector.apply_(model, alpha=0.3, keep=True, progress=progress)
    if (model["a.weight"] != before).any():
        assert vector.remove_(model).exact
    assert model["a.weight"].tobytes() == before.tobytes()
