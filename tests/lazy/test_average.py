"""Averages of a training run against a few lines of NumPy in float64."""

from __future__ import annotations

import json
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import taskvec as tv
from support.command_line import invoke
from support.families import config_of, shapes_of, write_adapter
from support.models import DTYPES, random_tensors, read_tensors, tuned, write_checkpoint
from taskvec.errors import CompatibilityError, FormatError, NotFoundError, RecipeError
from taskvec.recipe.training.checkpoints import TrainingCheckpoint, chosen, find, step_of
from taskvec.recipe.training.metrics import best, read
from taskvec.recipe.training.schedule import weights
from taskvec.report import reproduce

STEPS = (100, 200, 300, 400, 500, 1000)


def write_run(root: Path, steps: Sequence[int], *, shards: int = 1, dtype: str = "F32") -> Path:
    """A run of training: every checkpoint a step away from one start."""
    start = random_tensors(shapes_of("llama", 2), seed=7, dtype="F32")
    for step in steps:
        tensors = {
            name: value.astype(DTYPES[dtype]) for name, value in tuned(start, seed=step, step=0.05).items()
        }
        folder = write_checkpoint(
            root / f"checkpoint-{step}", tensors, {**config_of("llama", 2), "step_of_test": 0}, shards=shards
        )
        (folder / "optimizer.pt").write_bytes(b"not weights")
        (folder / "trainer_state.json").write_text(json.dumps(state(step, steps)))
    return root


def state(step: int, steps: Sequence[int]) -> dict[str, Any]:
    """What a trainer knows at a step: losses of the training at each, of the evaluation at those so far."""
    log: list[dict[str, Any]] = []
    for each in steps:
        if each <= step:
            log.append({"step": each, "loss": 1.0, "learning_rate": 1e-5})
            log.append({"step": each, "eval_loss": abs(each - 310) / 100, "epoch": each / 1000})
    return {"global_step": step, "log_history": log}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("training") / "run", STEPS)


def mean(run: Path, shares: dict[int, float]) -> dict[str, np.ndarray]:
    """The weighted mean in float64."""
    read_ = {step: read_tensors(run / f"checkpoint-{step}") for step in shares}
    names = read_[max(shares)]
    return {
        name: sum(share * read_[step][name].astype(np.float64) for step, share in shares.items())
        for name in names
    }


def shares_of(steps: Sequence[int], values: Sequence[float]) -> dict[int, float]:
    total = sum(values)
    return {step: value / total for step, value in zip(steps, values, strict=True)}


UNIFORM = shares_of(STEPS, [1] * 6)
CASES: dict[str, tuple[dict[str, Any], dict[int, float]]] = {
    "uniform": ({}, UNIFORM),
    "linear": ({"schedule": "linear"}, shares_of(STEPS, [1, 2, 3, 4, 5, 6])),
    "1-sqrt": (
        {"schedule": "1-sqrt"},
        {step: np.sqrt((i + 1) / 6) - np.sqrt(i / 6) for i, step in enumerate(STEPS)},
    ),
    "ema": (
        {"schedule": "ema", "half_life": 250},
        shares_of(STEPS, [0.5 ** ((1000 - step) / 250) for step in STEPS]),
    ),
    "range": ({"first": 200, "last": 400}, shares_of((200, 300, 400), [1, 1, 1])),
    "every": ({"every": 200, "last": 500}, shares_of((100, 300, 500), [1, 1, 1])),
    "every, from a step": ({"first": 200, "every": 200}, shares_of((200, 400, 1000), [1, 1, 1])),
    "best": ({"best": 3}, shares_of((200, 300, 400), [1, 1, 1])),
    "weights": (
        {"first": 200, "last": 400, "weights": [0.5, -1.25, 1.5]},
        dict(zip((200, 300, 400), (0.5, -1.25, 1.5), strict=True)),
    ),
    "best, linear": ({"best": 2, "schedule": "linear"}, shares_of((300, 400), [1, 2])),
}


@pytest.mark.parametrize("case", CASES)
def test_an_average_is_the_weighted_mean(case: str, run: Path, tmp_path: Path) -> None:
    options, shares = CASES[case]
    tv.average(run / "checkpoint-*", tmp_path / "out", **options)
    got, wanted = read_tensors(tmp_path / "out"), mean(run, shares)
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-6, atol=1e-7, err_msg=name)
    recipe = json.loads((tmp_path / "out" / "taskvec.json").read_text())["recipe"]
    assert recipe["steps"] == sorted(shares)
    np.testing.assert_allclose(recipe["weights"], [shares[step] for step in sorted(shares)])


def test_one_input_of_many_is_rounded_once(tmp_path: Path) -> None:
    """In bfloat16 the mean is that of float64, rounded to nearest, even; a quarter is a number of float32."""
    run = write_run(tmp_path / "run", STEPS[:4], dtype="BF16")
    tv.average([run], tmp_path / "out")
    got, wanted = read_tensors(tmp_path / "out"), mean(run, dict.fromkeys(STEPS[:4], 0.25))
    for name, value in wanted.items():
        np.testing.assert_array_equal(got[name], value.astype(np.float32).astype(DTYPES["BF16"]), name)


def test_the_output_is_the_newest_ones(run: Path, tmp_path: Path) -> None:
    tv.average([run / "checkpoint-1000", run / "checkpoint-100"], tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "config.json" in names
    assert not names & {"optimizer.pt", "trainer_state.json"}
    manifest = json.loads((tmp_path / "out" / "taskvec.json").read_text())
    assert manifest["sources"][0]["model"].endswith("checkpoint-1000")
    assert tv.verify(tmp_path / "out").ok


def test_two_hundred_checkpoints_with_few_open_files(tmp_path: Path) -> None:
    steps = range(10, 2010, 10)
    run = write_run(tmp_path / "run", steps, shards=2)
    code = (
        "import resource, sys, taskvec as tv\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "tv.average(sys.argv[1], sys.argv[2], threads=2, max_memory='500MB')\n"
    )
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] > 64
    subprocess.run([sys.executable, "-c", code, str(run), str(tmp_path / "out")], check=True)
    got, wanted = read_tensors(tmp_path / "out"), mean(run, dict.fromkeys(steps, 1 / 200))
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


def test_parts_and_a_plan_from_a_file_give_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", STEPS, shards=3)
    words = ["average", str(run / "checkpoint-*"), "--schedule", "linear"]
    for number in range(2):
        assert invoke(capsys, *words, "-o", str(tmp_path / "parts"), "--part", f"{number}/2").code == 0
    plan = str(tmp_path / "plan.json")
    assert invoke(capsys, "plan", *words, "--to", str(tmp_path / "planned"), "-o", plan).code == 0
    assert invoke(capsys, "run", plan).code == 0
    tv.average(run, tmp_path / "out", schedule="linear")
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) == 3
    for other in ("parts", "planned"):
        for name in files:
            assert (tmp_path / other / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_the_command(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parent)
    words = ["average", "run/checkpoint-*", "-o", str(tmp_path / "out"), "--best", "2"]
    dry = json.loads(invoke(capsys, *words, "--dry-run", "--json").out)
    assert dry["plan"]["recipe"]["checkpoints"] == ["run/checkpoint-300", "run/checkpoint-400"]
    assert not (tmp_path / "out").exists()
    done = invoke(capsys, *words, "--schedule", "ema", "--half-life", "100")
    assert (done.code, done.out) == (0, f"{tmp_path / 'out'}\n")
    assert "average of 2 checkpoints, ema" in done.err
    assert "already done" in invoke(capsys, *words, "--schedule", "ema", "--half-life", "100").err
    manifest = json.loads((tmp_path / "out" / "taskvec.json").read_text())
    assert manifest["recipe"]["best"] == {"metric": "eval_loss", "better": "lower", "values": [0.1, 0.9]}
    again = shlex.split(manifest["command"].replace("OUT", str(tmp_path / "again")))
    assert invoke(capsys, *again[1:]).code == 0
    one, two = (read_tensors(tmp_path / name) for name in ("out", "again"))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert "0.666667 * run/checkpoint-400" in (tmp_path / "out" / "README.md").read_text()


def test_the_command_that_repeats_given_weights(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parent)
    words = ["average", "run/checkpoint-[12]00", "-o", str(tmp_path / "out")]
    assert "`x` is not a number" in invoke(capsys, *words, "--weights", "1,x").err
    assert invoke(capsys, *words, "--weights=-0.5,1.5").code == 0
    manifest = json.loads((tmp_path / "out" / "taskvec.json").read_text())
    again = shlex.split(manifest["command"].replace("OUT", str(tmp_path / "again")))
    assert "--weights=-0.5,1.5" in again
    assert invoke(capsys, *again[1:]).code == 0
    lines = reproduce.python(manifest["recipe"])
    assert lines is not None
    exec(lines.replace("'OUT'", repr(str(tmp_path / "python"))), {})
    for name in ("again", "python"):
        assert (tmp_path / name / "model.safetensors").read_bytes() == (
            tmp_path / "out" / "model.safetensors"
        ).read_bytes()


def test_checkpoints_that_do_not_fit(run: Path, tmp_path: Path) -> None:
    other = write_checkpoint(
        tmp_path / "checkpoint-9", random_tensors(shapes_of("llama", 3)), config_of("llama", 3)
    )
    with pytest.raises((CompatibilityError, RecipeError)):
        tv.average([run / "checkpoint-100", other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- which checkpoints ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("run/checkpoint-500", 500), ("global_step1000", 1000), ("iter_0002000/", 2000), ("step=7", 7),
        ("qwen2.5-step40", 40), ("org/name@step1000-tokens4B", 1000), ("0012", 12), ("epoch-3", 3),
        ("model", None), ("org/name@main", None), ("checkpoint_last", None),
    ],
)  # fmt: skip
def test_steps_of_names(name: str, step: int | None) -> None:
    assert step_of(name) == step


def test_steps_of_a_trainers_state(tmp_path: Path) -> None:
    for name, step in (("b-final", 30), ("a", 10)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    found = find([tmp_path / "b-final", tmp_path / "a", tmp_path / "b-final"])
    assert [each.step for each in found] == [10, 30]
    (tmp_path / "c").mkdir()
    assert [each.step for each in find([tmp_path / "b-final", tmp_path / "c", tmp_path / "a"])] == [
        30,
        None,
        10,
    ]


def test_the_folder_of_a_run(run: Path) -> None:
    assert [each.step for each in find([run])] == list(STEPS)
    assert [each.step for each in find([run / "checkpoint-[12]*"])] == [100, 200, 1000]


def test_weights_that_are_not_safetensors_are_named(tmp_path: Path) -> None:
    for name, files in (("dcp", (".metadata", "__0_0.distcp")), ("bin", ("pytorch_model.bin",))):
        for step in (1, 2):
            folder = tmp_path / name / f"checkpoint-{step}"
            folder.mkdir(parents=True)
            for file in files:
                (folder / file).touch()
    with pytest.raises(FormatError, match=r"not the metadata of a distributed checkpoint"):
        tv.plan_average(tmp_path / "dcp")
    with pytest.raises(FormatError, match=r"pickle form"):
        tv.plan_average(tmp_path / "bin")


SOME = [TrainingCheckpoint(f"c-{step}", step) for step in STEPS]


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"first": 2000}, "no checkpoint lies in the range: there are steps 100 to 1000", "--from"),
        ({"last": 50}, "no checkpoint lies in the range", "--to"),
        ({"every": 2}, "the checkpoints are 100 steps apart", "`--every 200` takes every second one"),
        ({"every": 0}, "the checkpoints are 100 steps apart", "--every 200"),
        ({"first": 150, "every": 1000}, "no checkpoint is a multiple of 1000 steps from 150", "--from"),
    ],
)
def test_ranges_that_hold_nothing(options: dict[str, int], message: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        chosen(SOME, **options)
    assert message in str(caught.value)
    assert hint in (caught.value.hint or "")


def test_a_range_needs_steps() -> None:
    with pytest.raises(RecipeError, match="the training step of `x` is not known"):
        chosen([*SOME, TrainingCheckpoint("x", None)], first=3)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (["run/checkpoint-1*"], {"last": 100}, "an average of 1 checkpoint: run/checkpoint-100"),
        (["run/nothing-*"], {}, "no folder matches `run/nothing-*`"),
        (["run"], {"schedule": 7}, "schedule `7` is not known"),
        (["run"], {"schedule": "ema"}, "`ema` needs a half-life"),
        (["run"], {"half_life": 5}, "`uniform` has no half-life"),
        (["run"], {"schedule": "ema", "half_life": 0}, "is not a number above zero"),
        (["run"], {"schedule": "ema", "half_life": float("nan")}, "is not a number above zero"),
        (["run"], {"schedule": "lineer"}, "schedule `lineer` is not known"),
        (["run"], {"weights": [1, 2]}, "2 weights for 6 checkpoints (steps 100, 200, 300, 400, 500, 1000)"),
        (["run"], {"weights": [1] * 5 + [float("nan")]}, "are not all finite numbers"),
        (["run"], {"weights": "111111"}, "are not all finite numbers"),
        (["run"], {"weights": [1] * 6, "schedule": "linear"}, "weights and a schedule"),
        (["run"], {"best": 9}, "the best 9 of 6 checkpoints"),
        (["run"], {"metric": "eval_loss"}, "a metric chooses nothing by itself"),
        (["run"], {"best": 2, "metric": "eval_los"}, "has no metric `eval_los`"),
        (["run"], {"best": 2, "metrics": "none.csv"}, "`none.csv` does not exist"),
    ],
)
def test_what_cannot_be_averaged(
    arguments: list[str], options: dict[str, Any], message: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    with pytest.raises((RecipeError, NotFoundError)) as caught:
        tv.plan_average(arguments, **options)
    assert message in str(caught.value)
    assert caught.value.hint or "does not exist" in message


# --- weights and metrics ----------------------------------------------------------------------------------


def test_weights_sum_to_one_and_1_sqrt_is_a_decay_of_the_learning_rate() -> None:
    for schedule in ("uniform", "linear", "1-sqrt"):
        assert abs(sum(weights([None] * 57, schedule)) - 1) < 1e-12
    # With θ_i the sum of the steps up to i, the average is the sum of the steps times what remains of 1 − √x.
    steps = np.random.default_rng(3).standard_normal(8)
    averaged = np.dot(weights([None] * 8, "1-sqrt"), np.cumsum(steps))
    decayed = np.dot(steps, [1.0, *(1 - np.sqrt(np.arange(1, 8) / 8))])
    np.testing.assert_allclose(averaged, decayed)
    assert weights([1, None, 9], "ema", 1) == pytest.approx([1 / 7, 2 / 7, 4 / 7])
    assert weights([0, 10], "ema", 10) == pytest.approx([1 / 3, 2 / 3])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("f.csv", "step, acc\n100,0.5\n200,0.9\n300,\n400,nan\n500,0.7\n"),
        ("f.csv", "\ufeffStep;acc\r\n100;0.5\r\n200;0.9\r\n300;\r\n500;0.7\r\n"),  # of a spreadsheet
        ("f.csv", "Step;acc\n100;0,5\n200;0,9\n300;\n500;7e-1\n"),  # of one with decimal commas
        ("f.csv", 'Wall time,Step,acc\n17.5,100,0.5\n18.5,200,0.9\n19.5,500,0.7\n'),  # of TensorBoard
        (
            "f.jsonl",  # of a run of Weights & Biases: its own steps count what was logged
            '{"_step": 500, "train/global_step": 100, "acc": 0.5}\n'
            '{"_step": 100, "train/global_step": 200, "acc": 0.9, "_runtime": 3}\n'
            '{"_step": 300, "train/global_step": 500, "acc": 0.7}\n',
        ),
        ("f.csv", "checkpoint,acc\nrun/checkpoint-100,0.5\ncheckpoint-200,0.9\ncheckpoint-500,0.7\n"),
        ("f.tsv", "global_step\tacc\n100\t0.5\n200\t0.9\n500\t0.7\n"),
        ("f.json", '[{"step": 100, "acc": 0.5}, {"step": 200, "acc": 0.9}, {"step": 500, "acc": 0.7}]'),
        ("f.json", '{"checkpoint-100": {"acc": 0.5}, "200": {"acc": 0.9}, "500": {"acc": 0.7}}'),
        ("f.jsonl", '{"step": 100, "acc": 0.1}\n{"step": 100, "acc": 0.5}\n{"step": 200, "acc": 0.9}\n'
         '{"step": 500, "acc": 0.7}\n{"step": 1000, "acc": NaN}\n'),
    ],
)  # fmt: skip
def test_figures_of_a_file(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert read(tmp_path / name)["acc"] == {100: 0.5, 200: 0.9, 500: 0.7}
    found = best(SOME, 2, tmp_path / name)
    assert ([each.step for each in found.checkpoints], found.values) == ([200, 500], [0.9, 0.7])
    assert [each.step for each in best(SOME, 1, tmp_path / name, better="lower").checkpoints] == [100]
    with pytest.raises(RecipeError, match=r"3 of 6 checkpoints have a value of `acc`.*none has `c-300`"):
        best(SOME, 4, tmp_path / name)


def test_of_equal_values_the_newer(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text("step,loss\n100,1\n200,1\n300,1\n")
    assert [each.step for each in best(SOME, 2, tmp_path / "f.csv").checkpoints] == [200, 300]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("f.csv", "", "has no figures"),
        ("f.csv", "a,b\n1,2\n", "has no figures"),
        ("f.json", "{", "neither JSON nor JSON lines"),
        ("f.json", "[" * 100_000, "neither JSON nor JSON lines"),
        ("f.json", '{"log_history": []}', "has no figures"),
        ("f.csv", "step,a,b\n100,1,2\n", "has several metrics: `a` and `b`"),
        ("f.csv", "step,weirdness\n100,1\n", "whether lower or higher values of `weirdness` are better"),
        ("f.csv", "step,loss_accuracy\n100,1\n", "whether lower or higher values"),
    ],
)
def test_files_that_say_nothing(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(RecipeError) as caught:
        best(SOME, 1, tmp_path / name)
    assert message in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["tmp-checkpoint-600", "checkpoint-600.tmp", "checkpoint-600.partial"])
def test_what_a_trainer_still_writes_is_left_out(run: Path, tmp_path: Path, name: str) -> None:
    place = tmp_path / "run"
    shutil.copytree(run, place)
    plain = tv.plan_average(place)
    shutil.copytree(run / "checkpoint-500", place / name)
    for given in (place, f"{place}/*checkpoint-*"):
        plan = tv.plan_average(given)
        assert plan.recipe["checkpoints"] == plain.recipe["checkpoints"]
        notes = [each for each in plan.findings if each.id == "checkpoints-left"]
        assert name in notes[0].found
        assert notes[0].level == "note"
    # By its own name it is asked for.
    named = tv.plan_average([place / "checkpoint-500", place / name])
    assert len(named.recipe["checkpoints"]) == 2
    assert not [each for each in named.findings if each.id == "checkpoints-left"]


def test_a_newest_checkpoint_without_weights(run: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    shutil.copytree(run, place)
    (place / "checkpoint-2000").mkdir()
    (place / "checkpoint-2000" / "config.json").write_text("{}")
    plan = tv.plan_average(place)
    assert plan.recipe["steps"] == list(STEPS)
    assert any(each.id == "checkpoints-left" and "checkpoint-2000" in each.found for each in plan.findings)
    # A pattern asks for it.
    with pytest.raises(NotFoundError, match="step 2000 is damaged or still being written") as caught:
        tv.plan_average(f"{place}/checkpoint-*")
    assert str(caught.value.hint) == "wait until it is saved, or `--to 1000` leaves it out"
    whole = (run / "checkpoint-1000" / "model.safetensors").read_bytes()
    (place / "checkpoint-2000" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match="truncated; the checkpoint of step 2000") as damaged:
        tv.plan_average(f"{place}/checkpoint-*")
    assert "`--to 1000`" in str(damaged.value.hint)
    assert tv.plan_average(f"{place}/checkpoint-*", last=1000).recipe["steps"] == list(STEPS)


def test_adapters_of_a_run_are_averaged_on_their_model(tmp_path: Path) -> None:
    base = random_tensors(shapes_of("llama", 2), seed=7, dtype="F32")
    write_checkpoint(tmp_path / "base", base, config_of("llama", 2))
    steps = (10, 20, 30)
    for step in steps:
        folder = write_adapter(tmp_path / f"checkpoint-{step}", "llama", 2, rank=2)
        stored = load_file(folder / "adapter_model.safetensors")
        save_file({name: each * step for name, each in stored.items()}, folder / "adapter_model.safetensors")
        (folder / "optimizer.pt").write_bytes(b"not weights")
    with pytest.raises(FormatError, match="is a LoRA adapter: a mean of its factors is not") as caught:
        tv.plan_average(f"{tmp_path}/checkpoint-*")
    assert "BASE+" in str(caught.value.hint)
    # As the hint says.
    models = [{"model": f"{tmp_path / 'base'}+{tmp_path}/checkpoint-{step}"} for step in steps]
    recipe = {"merge_method": "linear", "models": models, "parameters": {"weight": 1}, "dtype": "float32"}
    tv.merge(recipe, tmp_path / "out")
    out = read_tensors(tmp_path / "out")
    for name, value in base.items():
        expected = value.astype(np.float64)
        if "q_proj" in name:
            key = f"base_model.model.{name.removesuffix('.weight')}.lora_"
            deltas = []
            for step in steps:
                factors = load_file(tmp_path / f"checkpoint-{step}" / "adapter_model.safetensors")
                a, b = (factors[f"{key}{part}.weight"].astype(np.float64) for part in "AB")
                deltas.append(2.0 * b @ a)  # alpha 4, rank 2
            expected = expected + np.mean(deltas, axis=0)
        np.testing.assert_allclose(out[name], expected, rtol=1e-6, atol=1e-4)
