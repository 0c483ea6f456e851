"""``taskvec extract --lora``: the factors against NumPy's decomposition, what is said of them, going on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from safetensors.numpy import load_file

import taskvec as tv
from support.command_line import invoke
from support.models import Trio, read_tensors, write_checkpoint
from support.oracle import same_files
from support.pairs import killed
from support.s3_server import S3
from taskvec.files.manifest_schema import schema
from taskvec.run.low_rank import Wanted, decomposer

NAME = "model.layers.{}.mlp.up_proj.weight"


def best(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, float]:
    """The nearest matrix of a rank, and the share of the squared norm that it has."""
    u, s, v = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank], float((s[:rank] ** 2).sum() / (s**2).sum())


def product(folder: Path, module: str) -> np.ndarray:
    stored = load_file(folder / "adapter_model.safetensors")
    a, b = (stored[f"base_model.model.{module}.lora_{each}.weight"].astype(np.float64) for each in "AB")
    return b @ a


def models(
    root: Path, shape: tuple[int, int] = (40, 24), layers: int = 1, rank: int | None = None, **config: Any
) -> tuple[Path, Path]:
    """A donor and a reference of a few matrices, whose difference is a product of a rank if one is given."""
    rng = np.random.default_rng(0)
    reference = {NAME.format(n): rng.standard_normal(shape).astype(np.float32) for n in range(layers)}
    donor = {}
    for name, array in reference.items():
        step = rng.standard_normal(shape)
        if rank is not None:
            step = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))
        donor[name] = (array + 0.1 * step).astype(np.float32)
    for role, tensors in (("donor", donor), ("reference", reference)):
        write_checkpoint(
            root / role, tensors, {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **config}
        )
    return root / "donor", root / "reference"


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (1, 9), (600, 520), (520, 600), (1650, 1600)])
@pytest.mark.parametrize("rank", [1, 7, 300])
def test_factors_of_small_matrices_are_the_best_there_are(
    shape: tuple[int, int], rank: int, tmp_path: Path
) -> None:
    donor, reference = models(tmp_path, shape)
    report = tv.extract_lora(donor, reference, tmp_path / "lora", rank=rank)
    d, r = (read_tensors(folder)[NAME.format(0)].astype(np.float64) for folder in (donor, reference))
    want, energy = best(d - r, rank)
    assert report.adapter is not None
    row = report.adapter["modules"][NAME.format(0)]
    assert row["exact"] == (min(shape) <= 1536 or rank == 300)
    assert row["rank"] == min(rank, *shape)
    if row["exact"]:
        np.testing.assert_allclose(product(tmp_path / "lora", NAME.format(0)[:-7]), want, atol=1e-5)
        assert row["energy"] == pytest.approx(energy, rel=1e-5)
    else:
        kept = (
            1
            - np.square(d - r - product(tmp_path / "lora", NAME.format(0)[:-7])).sum()
            / np.square(d - r).sum()
        )
        assert row["energy"] == pytest.approx(kept, abs=1e-5)
        assert 0.97 * energy <= kept <= energy + 1e-6


@pytest.mark.parametrize("shape", [(1700, 1600), (1600, 1700)])
def test_large_matrices_of_a_low_rank_are_found_whole(shape: tuple[int, int], tmp_path: Path) -> None:
    donor, reference = models(tmp_path, shape, rank=5)
    report = tv.extract_lora(
        donor, reference, tmp_path / "lora", rank="auto", energy=0.99999, dtype="float32"
    )
    d, r = (read_tensors(folder)[NAME.format(0)].astype(np.float64) for folder in (donor, reference))
    assert report.adapter is not None
    row = report.adapter["modules"][NAME.format(0)]
    assert (row["rank"], row["exact"]) == (5, False)
    np.testing.assert_allclose(product(tmp_path / "lora", NAME.format(0)[:-7]), d - r, atol=2e-5)
    assert not report.findings or "not-low-rank" not in {each.id for each in report.findings}


def test_the_smallest_rank_that_keeps_the_energy(tmp_path: Path) -> None:
    donor, reference = models(tmp_path, (60, 50), layers=3)
    report = tv.extract_lora(donor, reference, tmp_path / "lora", rank="auto", energy=0.8)
    d, r = read_tensors(donor), read_tensors(reference)
    assert report.adapter is not None
    for name, row in report.adapter["modules"].items():
        delta = d[name].astype(np.float64) - r[name]
        assert best(delta, row["rank"])[1] >= 0.8 > best(delta, row["rank"] - 1)[1]
        for rank, share in row["curve"]:
            assert share == pytest.approx(best(delta, rank)[1], rel=1e-4)
    assert report.adapter["factors_energy"] >= 0.8


@pytest.mark.parametrize("shape", [(900, 300), (3000, 800), (1700, 1600)])
def test_the_bytes_do_not_depend_on_threads_and_depend_on_the_seed(
    shape: tuple[int, int], tmp_path: Path
) -> None:
    donor, reference = models(tmp_path, shape, layers=2)
    for threads in (1, 2, 5):
        tv.extract_lora(donor, reference, tmp_path / f"lora{threads}", rank=8, threads=threads)
        same_files(tmp_path / "lora1", tmp_path / f"lora{threads}")
    tv.extract_lora(donor, reference, tmp_path / "seeded", rank=8, seed=1)
    one, other = (
        (tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("lora1", "seeded")
    )
    assert (one == other) == (min(shape) <= 1536)


def test_a_decomposition_of_a_transposed_matrix_is_the_transposed_one() -> None:
    matrix = np.random.default_rng(0).standard_normal((700, 1300)).astype(np.float32)
    with decomposer(2) as decompose:
        one, other = (decompose(each, Wanted(4, None, 0), "x") for each in (matrix, matrix.T))
    np.testing.assert_allclose(one.b @ one.a, (other.b @ other.a).T, atol=1e-4)


def test_what_is_left_out_is_named_and_measured(trio: Trio, tmp_path: Path) -> None:
    report = tv.extract_lora(trio.donor, trio.reference, tmp_path / "lora", rank=4)
    d, r = (
        {n: a.astype(np.float64) for n, a in read_tensors(each).items()}
        for each in (trio.donor, trio.reference)
    )
    adapter = report.adapter
    assert adapter is not None
    assert set(adapter["left"]) | set(adapter["modules"]) == set(d)
    for name, row in adapter["left"].items():
        assert d[name].ndim == 1
        assert row["norm"] == pytest.approx(np.linalg.norm(d[name] - r[name]), rel=1e-5)
    total = sum(np.square(d[name] - r[name]).sum() for name in d)
    kept = sum(row["energy"] * row["norm"] ** 2 for row in adapter["modules"].values())
    assert adapter["energy"] == pytest.approx(kept / total, rel=1e-4)
    assert "not-low-rank" in {each.id for each in report.findings}
    jsonschema.validate(json.loads((tmp_path / "lora" / "taskvec.json").read_text()), schema())
    assert tv.verify(tmp_path / "lora").ok
    assert not tv.verify(tmp_path / "lora").extra


def test_a_saved_vector_gives_the_same_adapter(trio: Trio, tmp_path: Path) -> None:
    tv.extract(trio.donor, trio.reference, tmp_path / "vec")
    tv.extract_lora(trio.donor, trio.reference, tmp_path / "models", rank=4)
    tv.extract_lora(tmp_path / "vec", None, tmp_path / "vector", rank=4)
    tv.extract_lora(tv.open(trio.donor) - tv.open(trio.reference), None, tmp_path / "lazy", rank=4)
    weights = [
        (tmp_path / each / "adapter_model.safetensors").read_bytes() for each in ("models", "vector", "lazy")
    ]
    assert weights[0] == weights[1] == weights[2]
    settings = json.loads((tmp_path / "vector" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(trio.reference)
    with pytest.raises(tv.RecipeError, match="cannot be held whole"):
        tv.extract_lora(tmp_path / "vec", None, tmp_path / "whole", rank=4, others="whole")
    vector = tv.load_vector(tmp_path / "vec")
    with pytest.raises(tv.RecipeError, match="only one difference"):
        tv.extract_lora(0.5 * vector, None, tmp_path / "half", rank=4)
    with pytest.raises(tv.Error) as caught:
        tv.extract_lora(trio.donor, None, tmp_path / "one", rank=4)
    assert "give a reference too" in str(caught.value.hint)


def test_shards_make_no_difference(trio: Trio, sharded_trio: Trio, tmp_path: Path) -> None:
    tv.extract_lora(trio.donor, trio.reference, tmp_path / "one", rank=4)
    tv.extract_lora(sharded_trio.donor, sharded_trio.reference, tmp_path / "many", rank=4)
    one, many = (load_file(tmp_path / each / "adapter_model.safetensors") for each in ("one", "many"))
    assert one.keys() == many.keys()
    assert all(np.array_equal(one[name], many[name]) for name in one)


def test_the_command_is_the_call(trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "command"
    command = [
        "extract",
        trio.donor,
        trio.reference,
        "-o",
        place,
        "--exclude",
        "embed",
        "--html",
        tmp_path / "map.html",
    ]
    done = invoke(capsys, *command, "--lora", "4", "--dtype", "bf16", "--others", "whole", "--json")
    assert done.code == 0
    told = json.loads(done.out)
    report = tv.extract_lora(
        trio.donor,
        trio.reference,
        tmp_path / "call",
        rank=4,
        dtype="bfloat16",
        others="whole",
        exclude="embed",
    )
    same_files(place, tmp_path / "call")
    assert told["adapter"] == json.loads(json.dumps(report.adapter))
    page = (tmp_path / "map.html").read_text()
    assert "self_attn.q_proj" in page
    assert page.count("<table>") == 3
    again = json.loads((place / "taskvec.json").read_text())["command"]
    assert invoke(capsys, *re.sub("OUT", str(tmp_path / "again"), again).split()[1:]).code == 0
    same_files(place, tmp_path / "again")
    assert invoke(capsys, *command, "--rank", "auto", "--dry-run").code == 0
    assert invoke(capsys, "verify", place).code == 0


def test_it_is_done_once(trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["extract", trio.donor, trio.reference, "-o", tmp_path / "lora", "--lora"]
    assert invoke(capsys, *command, "4").code == 0
    before = (tmp_path / "lora" / "taskvec.json").stat().st_mtime_ns
    done = invoke(capsys, *command, "4")
    assert (done.code, "already done" in done.err) == (0, True)
    assert "not low-rank" in done.err
    assert "warning[not-low-rank]" in done.err
    assert (tmp_path / "lora" / "taskvec.json").stat().st_mtime_ns == before
    refused = invoke(capsys, *command, "5")
    assert (refused.code, "--overwrite" in refused.err) == (2, True)
    assert invoke(capsys, *command, "5", "--overwrite").code == 0
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["r"] == 5
    assert tv.verify(tmp_path / "lora").ok
    assert not tv.verify(tmp_path / "lora").extra
    assert not (tmp_path / "lora" / ".taskvec").exists()


def test_a_checkpoint_is_replaced_when_the_adapter_is_whole(trio: Trio, tmp_path: Path) -> None:
    tv.convert(trio.target, tmp_path / "out", out_dtype="float32")

    def stop(progress: tv.Progress) -> None:
        if progress.phase == "merge":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tv.extract_lora(trio.donor, trio.reference, tmp_path / "out", rank=4, overwrite=True, progress=stop)
    assert tv.verify(tmp_path / "out").ok
    report = tv.extract_lora(trio.donor, trio.reference, tmp_path / "out", rank=4, overwrite=True)
    assert report.resumed_shards == 1
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "adapter_config.json", "adapter_model.safetensors", "README.md", "taskvec.json",
        "taskvec_recipe.yaml",
    }  # fmt: skip


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    donor, reference = models(tmp_path, (700, 600), layers=24)
    out = tmp_path / "lora"
    killed(f"tv.extract_lora({str(donor)!r}, {str(reference)!r}, out, rank=8)", out, "00000[3-9]")
    assert not (out / "taskvec.json").exists()
    with pytest.raises(tv.VerificationError, match="unfinished"):
        tv.verify(out)
    with pytest.raises(tv.OutputError, match="unfinished"):
        tv.extract_lora(donor, reference, out, rank=9)
    report = tv.extract_lora(donor, reference, out, rank=8)
    assert 1 <= report.resumed_shards < 24
    tv.extract_lora(donor, reference, tmp_path / "undisturbed", rank=8)
    same_files(out, tmp_path / "undisturbed")


WRONG = [
    (["--lora", "0"], "not a rank"),
    (["--lora", "many"], "not a rank"),
    (["--lora", "4", "--energy", "0.9"], "only `auto` takes it"),
    (["--lora", "auto", "--energy", "0"], "out of range"),
    (["--lora", "auto", "--energy", "nan"], "out of range"),
    (["--lora", "auto", "--max-rank", "0"], "not a rank"),
    (["--energy", "0.9"], "without `--lora`"),
    (["--others", "whole"], "without `--lora`"),
    (["--lora", "4", "--max-shard-size", "1GB"], "one file"),
    (["--lora", "4", "--include", "norm"], "no factors"),
    (["--lora", "4", "--include", "nothing"], "matches none"),
    (["--lora", "4", "--dtype", "int8"], "not a float type"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG)
def test_what_cannot_be_is_refused_before_anything_is_made(
    arguments: list[str], words: str, trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = invoke(capsys, "extract", trio.donor, trio.reference, "-o", tmp_path / "lora", *arguments)
    assert done.code == 2
    assert words in done.err
    assert "hint:" in done.err
    assert not (tmp_path / "lora").exists()


def test_the_same_models_have_no_adapter(trio: Trio, tmp_path: Path) -> None:
    with pytest.raises(tv.RecipeError, match="the difference is zero"):
        tv.extract_lora(trio.donor, trio.donor, tmp_path / "lora", rank=4)
    assert not (tmp_path / "lora" / "taskvec.json").exists()


def test_factors_beyond_their_type_are_an_error(tmp_path: Path) -> None:
    for role, value in (("donor", 1e12), ("reference", 0.0)):
        tensors = {NAME.format(0): np.full((8, 8), value, np.float32)}
        write_checkpoint(tmp_path / role, tensors, {"model_type": "llama"})
    with pytest.raises(tv.NonFiniteError, match="beyond the range of F16"):
        tv.extract_lora(
            tmp_path / "donor", tmp_path / "reference", tmp_path / "lora", rank=2, dtype="float16"
        )


def test_values_that_are_not_finite_are_an_error(trio: Trio, tmp_path: Path) -> None:
    tensors = read_tensors(trio.donor)
    name = next(each for each in tensors if each.endswith("up_proj.weight"))
    tensors[name] = np.full_like(tensors[name], np.nan)
    write_checkpoint(tmp_path / "nan", tensors, json.loads((trio.donor / "config.json").read_text()))
    with pytest.raises(tv.NonFiniteError, match="up_proj"):
        tv.extract_lora(
            tmp_path / "nan", trio.reference, tmp_path / "lora", rank=4, force=["tokenizer-missing"]
        )


def test_of_quantised_models_it_is_the_difference_of_what_they_decode_to(trio: Trio, tmp_path: Path) -> None:
    for role in ("donor", "reference"):
        tv.convert(getattr(trio, role), tmp_path / "packed" / role, out_dtype="fp8-channel")
    report = tv.extract_lora(
        tmp_path / "packed" / "donor", tmp_path / "packed" / "reference", tmp_path / "lora", rank=4
    )
    donor, reference = (tv.open(tmp_path / "packed" / role) for role in ("donor", "reference"))
    name = next(each for each in donor.packed if each.endswith("up_proj.weight"))
    want, energy = best(donor[name].astype(np.float64) - reference[name], 4)
    assert report.adapter is not None
    assert report.adapter["modules"][name]["energy"] == pytest.approx(energy, rel=1e-5)
    np.testing.assert_allclose(product(tmp_path / "lora", name.removesuffix(".weight")), want, atol=1e-6)


def test_it_is_one_file_of_one_process(
    trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["extract", str(trio.donor), str(trio.reference), "--lora", "4"]
    for more in (["-o", str(tmp_path / "out"), "--part", "0/2"], ["-o", str(tmp_path / "out"), "--ray"]):
        done = invoke(capsys, *words, *more)
        assert done.code == 2
        assert "one file, which one process writes" in done.err
    done = invoke(capsys, "plan", *words, "--to", "out", "-o", str(tmp_path / "plan.json"))
    assert done.code == 2
    assert "cannot be run elsewhere" in done.err
    assert not list(tmp_path.glob("plan.json")) + list(tmp_path.glob("out"))


def test_warnings_are_errors_where_they_are_to_be(trio: Trio, tmp_path: Path) -> None:
    with pytest.raises(tv.CompatibilityError, match="tied to the embedding"):
        tv.extract_lora(trio.donor, trio.reference, tmp_path / "out", rank=4, strict=True)
    assert not (tmp_path / "out").exists()
    tv.extract_lora(trio.donor, trio.reference, tmp_path / "out", rank=4, strict=True, force="tied-head")


def test_in_a_bucket_it_is_the_same_adapter(s3: S3, trio: Trio, tmp_path: Path) -> None:
    s3.client.create_bucket(Bucket="results")
    here = tv.extract_lora(trio.donor, trio.reference, tmp_path / "out", rank=4)
    there = tv.extract_lora(trio.donor, trio.reference, "s3://results/out", rank=4)
    assert there.outputs[0].shards == here.outputs[0].shards
    assert tv.verify("s3://results/out", rehash=True).ok
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        stored = s3.client.get_object(Bucket="results", Key=f"out/{name}")["Body"].read()
        assert stored == (tmp_path / "out" / name).read_bytes()
