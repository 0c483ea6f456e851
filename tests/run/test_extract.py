"""``taskvec extract`` as users meet it: sizes, what is written, refusals before reading, going on."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import taskvec as tv
from support.command_line import invoke
from support.models import Trio, read_tensors, write_checkpoint, write_weights
from support.oracle import decode, narrow, same_files
from support.pairs import killed, pair


@pytest.mark.parametrize(
    ("share", "limit", "encoding"), [(0.01, 0.05, "index"), (0.15, 0.40, "mask"), (1.0, 1.01, "dense")]
)
def test_sizes(
    tmp_path: Path, share: float, limit: float, encoding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    donor, reference = pair(tmp_path, share)
    done = invoke(capsys, "extract", donor, reference, "-o", tmp_path / "vec", "--json")
    assert done.code == 0
    vector = json.loads(done.out)["vector"]
    assert vector["changed"] == round(share * vector["elements"])
    rows = vector["tensors"].values()
    assert {(row["encoding"], row["dtype"]) for row in rows} == {(encoding, "BF16")}
    size = sum(path.stat().st_size for path in (tmp_path / "vec").glob("*.safetensors"))
    assert size <= limit * tv.open(donor).total_bytes
    d, r = read_tensors(donor), read_tensors(reference)
    for name, array in decode(tmp_path / "vec").items():
        assert np.array_equal(
            array.astype(np.float64), d[name].astype(np.float64) - r[name].astype(np.float64)
        )


def test_the_command_is_the_call(
    sharded_trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "command"
    selection = ["--include", "mlp", "--layers", "1"]
    done = invoke(
        capsys, "extract", sharded_trio.donor, sharded_trio.reference, "-o", place, *selection,
        "--max-shard-size", "4KB",
    )  # fmt: skip
    assert (done.code, done.out) == (0, f"{place}\n")
    assert "vector" in done.err
    tv.extract(
        sharded_trio.donor, sharded_trio.reference, tmp_path / "call", include="mlp", layers="1",
        max_shard_size="4KB",
    )  # fmt: skip
    same_files(place, tmp_path / "call")
    assert len(list(place.glob("*.safetensors"))) > 1
    assert invoke(capsys, "verify", place).code == 0
    assert "vector" in invoke(capsys, "inspect", place).out


def test_a_dry_run_writes_nothing(trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = invoke(capsys, "extract", trio.donor, trio.reference, "-o", tmp_path / "vec", "--dry-run")
    assert done.code == 0
    assert not (tmp_path / "vec").exists()


def test_loss_is_a_named_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((30, 40)).astype(np.float32) for _ in range(2)]
    for role, array in zip(("donor", "reference"), arrays, strict=True):
        write_checkpoint(tmp_path / role, {"w": array})
    for name, arguments in (("exact", []), ("lossy", ["--dtype", "bf16"])):
        command = ["extract", tmp_path / "donor", tmp_path / "reference", "-o", tmp_path / name]
        done = invoke(capsys, *command, *arguments)
        assert done.code == 0
        assert ("with loss" in done.err) == bool(arguments)
        assert ("with loss" in (tmp_path / name / "README.md").read_text()) == bool(arguments)
        facts = json.loads((tmp_path / name / "taskvec.json").read_text())
        assert facts["vector"]["dtype"] == ("BF16" if arguments else None)
    difference = arrays[0].astype(np.float64) - arrays[1]
    assert np.array_equal(decode(tmp_path / "exact")["w"], difference)
    rounded = narrow(difference, np.dtype(ml_dtypes.bfloat16))
    assert np.array_equal(decode(tmp_path / "lossy")["w"].astype(ml_dtypes.bfloat16), rounded)


def test_an_output_folder_that_will_not_do_is_refused_before_reading(trio: Trio, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    tensors = read_tensors(trio.donor)
    tensors["model.norm.weight"] = np.full_like(tensors["model.norm.weight"], np.nan)
    write_weights(trio.donor, tensors)
    with pytest.raises(tv.NonFiniteError):  # what reading finds
        tv.extract(trio.donor, trio.reference, tmp_path / "vec")
    for out, text in (
        (tmp_path / "full", "not empty"),
        (trio.donor, "input"),
        (trio.reference / "vec", "input"),
        (trio.reference.parent, "input"),
    ):
        with pytest.raises(tv.OutputError, match=text) as caught:
            tv.extract(trio.donor, trio.reference, out)
        assert caught.value.hint
    assert not (trio.reference / "vec").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]


def test_overwriting_is_asked_for(trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["extract", trio.donor, trio.reference, "-o", tmp_path / "vec"]
    assert invoke(capsys, *command).code == 0
    done = invoke(capsys, *command, "--include", "mlp")
    assert done.code == 2
    assert "--overwrite" in done.err
    assert invoke(capsys, *command, "--include", "mlp", "--overwrite").code == 0
    assert all("mlp" in name for name in tv.load_vector(tmp_path / "vec"))
    assert tv.verify(tmp_path / "vec").ok
    assert not tv.verify(tmp_path / "vec").extra


def test_a_killed_extraction_goes_on(tmp_path: Path) -> None:
    donor, reference = pair(tmp_path, 0.15, tensors=24)
    out, limit = tmp_path / "vec", 500_000
    killed(f"tv.extract({str(donor)!r}, {str(reference)!r}, out, max_shard_size={limit})", out)
    assert not (out / "taskvec.json").exists()
    with pytest.raises(tv.VerificationError, match="unfinished"):
        tv.verify(out)
    report = tv.extract(donor, reference, out, max_shard_size=limit)
    assert 2 <= report.resumed_shards < 24
    tv.extract(donor, reference, tmp_path / "undisturbed", max_shard_size=limit)
    same_files(out, tmp_path / "undisturbed")
