"""``taskvec apply`` as users meet it: several vectors, several factors, the transfer's bytes and figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import taskvec as tv
from support.command_line import invoke
from support.models import Tensors, Trio, family, read_tensors, write_checkpoint
from support.oracle import narrow, same_files, ulps
from support.pairs import killed, pair

ALPHAS = (-1, 0, 0.5, 1)


@pytest.fixture
def vector(sharded_trio: Trio, tmp_path: Path) -> Path:
    tv.extract(sharded_trio.donor, sharded_trio.reference, tmp_path / "vec")
    return tmp_path / "vec"


def same_weights(one: Path, other: Path) -> None:
    paths = sorted(one.glob("*.safetensors*"))
    assert paths
    for path in paths:
        assert path.read_bytes() == (other / path.name).read_bytes()


@pytest.mark.parametrize("alpha", ["0.8", "-1.5", "1"])
def test_the_command_is_the_transfer(
    sharded_trio: Trio, vector: Path, tmp_path: Path, alpha: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    done = invoke(capsys, "apply", sharded_trio.target, vector, "-o", out, "--alpha", alpha)
    assert (done.code, done.out) == (0, f"{out}\n")
    tv.transfer(*sharded_trio, tmp_path / "transferred", alpha=float(alpha))
    same_weights(tmp_path / "transferred", out)
    assert invoke(capsys, "verify", out).code == 0
    sources = json.loads((out / "taskvec.json").read_text())["sources"]
    assert [source["role"] for source in sources] == ["target", "vector"]


def test_several_factors_of_one_vector(
    sharded_trio: Trio, vector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    done = invoke(capsys, "apply", sharded_trio.target, vector, "-o", out, "--alpha", "-1,0,0.5,1")
    assert done.out.split() == [str(out / f"alpha={alpha}") for alpha in ALPHAS]
    for alpha in ALPHAS:
        tv.apply(sharded_trio.target, vector, out=tmp_path / "one", alpha=alpha, overwrite=True)
        same_files(out / f"alpha={alpha}", tmp_path / "one")


def test_what_no_factor_changes_is_one_file(sharded_trio: Trio, tmp_path: Path) -> None:
    """Weight files without a selected tensor, tokenizer and the like."""
    options = {"alpha": [-1, 0, 0.5], "include": "embed_tokens"}
    report = tv.transfer(*sharded_trio, tmp_path / "out", **options)
    folders = [tmp_path / "out" / f"alpha={alpha}" for alpha in (-1, 0, 0.5)]
    changed, same = sorted(path.name for path in folders[0].glob("*.safetensors"))
    files = {name: {(folder / name).stat().st_ino for folder in folders} for name in (changed, same)}
    assert [len(files[name]) for name in (changed, same)] == [3, 1]
    tokenizers = {(folder / "tokenizer.json").stat().st_ino for folder in folders}
    assert len(tokenizers) == (3 if can_clone(tmp_path) else 1)
    for folder, alpha in zip(folders, (-1, 0, 0.5), strict=True):
        tv.transfer(*sharded_trio, tmp_path / "one", alpha=alpha, include="embed_tokens", overwrite=True)
        same_files(folder, tmp_path / "one")
        assert tv.verify(folder).ok
    sizes = [(folders[0] / name).stat().st_size for name in (changed, same)]
    assert report.bytes_written == 3 * sizes[0] + sizes[1]
    original = read_tensors(sharded_trio.target)
    (folders[0] / same).unlink()  # the others keep it
    assert tv.verify(folders[1]).ok
    for name, array in read_tensors(folders[2]).items():
        assert name == "model.embed_tokens.weight" or array.tobytes() == original[name].tobytes()


def can_clone(root: Path) -> bool:
    """Whether files can share blocks here (reflinks), which small files prefer to second names."""
    from taskvec.run.publish import share

    (root / "a").write_bytes(b"1" * 8192)
    share(root / "a", root, "b")
    return (root / "a").stat().st_ino != (root / "b").stat().st_ino


@pytest.mark.parametrize(("factors", "weights"), [("0.8,-0.3", (0.8, -0.3)), ("0.5", (0.5, 0.5))])
def test_several_vectors_with_their_factors(
    sharded_trio: Trio,
    vector: Path,
    tmp_path: Path,
    factors: str,
    weights: tuple[float, float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    tv.extract(sharded_trio.target, sharded_trio.reference, tmp_path / "other", exclude="norm")
    out = tmp_path / "out"
    command = ["apply", sharded_trio.target, vector, tmp_path / "other", "-o", out, f"--alpha={factors}"]
    assert invoke(capsys, *command).code == 0
    t, d, r = (
        {name: array.astype(np.float64) for name, array in read_tensors(folder).items()}
        for folder in sharded_trio
    )
    for name, array in read_tensors(out).items():
        second = 0.0 if "norm" in name else weights[1] * (t[name] - r[name])
        expected = narrow(t[name] + weights[0] * (d[name] - r[name]) + second, array.dtype)
        assert ulps(array, expected).max() <= 1
    target, donor, reference = map(tv.open, sharded_trio)
    first, other = donor - reference, (target - reference).select(exclude="norm")
    (target + weights[0] * first + weights[1] * other).save(tmp_path / "algebra")
    same_weights(tmp_path / "algebra", out)


@pytest.mark.parametrize("share", [0.01, 0.2])
def test_its_figures_are_those_of_the_transfer(tmp_path: Path, share: float) -> None:
    """Also of the tensors in which the vector is zero, of which nothing is stored."""
    trio = family(tmp_path, share)
    tv.extract(trio.donor, trio.reference, tmp_path / "vec")
    one = tv.transfer(*trio, tmp_path / "transferred", alpha=[0.3, 1])
    other = tv.apply(trio.target, tmp_path / "vec", out=tmp_path / "applied", alpha=[0.3, 1])
    for mine, theirs in zip(one.outputs, other.outputs, strict=True):
        assert mine.survival == theirs.survival
        assert mine.tensors == theirs.tensors
    plans = tv.plan_transfer(*trio), tv.plan_apply(trio.target, tmp_path / "vec")
    assert plans[0].merged == plans[1].merged


def test_a_vector_that_is_zero_everywhere(trio: Trio, tmp_path: Path) -> None:
    tv.extract(trio.reference, trio.reference, tmp_path / "vec")
    report = tv.apply(trio.target, tmp_path / "vec", out=tmp_path / "out", alpha=2)
    target = read_tensors(trio.target)
    for name, array in read_tensors(tmp_path / "out").items():
        assert array.tobytes() == target[name].tobytes()
    survival = report.outputs[0].survival
    assert survival is not None
    assert (survival.changed, survival.elements) == (0, sum(array.size for array in target.values()))


def test_nothing_is_written_over(trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tv.extract(trio.donor, trio.reference, tmp_path / "vec")
    command = ["apply", trio.target, tmp_path / "vec", "-o", tmp_path / "out"]
    assert invoke(capsys, *command).code == 0
    done = invoke(capsys, *command, "--alpha", "0.5")
    assert done.code == 2
    assert "--overwrite" in done.err
    assert invoke(capsys, *command, "--alpha", "0.5", "--overwrite").code == 0
    tv.transfer(*trio, tmp_path / "transferred", alpha=0.5)
    same_weights(tmp_path / "transferred", tmp_path / "out")
    for inside in (tmp_path / "vec", tmp_path / "vec" / "out", trio.target):
        done = invoke(capsys, "apply", trio.target, tmp_path / "vec", "-o", inside, "--overwrite")
        assert done.code == 2
        assert "hint:" in done.err


@pytest.mark.parametrize("alpha", [[0.5], [-1, 0.5]])
def test_a_killed_run_goes_on(tmp_path: Path, alpha: list[float]) -> None:
    donor, reference = pair(tmp_path, 0.15, tensors=24)
    tensors: Tensors = read_tensors(reference)
    target = write_checkpoint(tmp_path / "target", tensors, shards=12)
    tv.extract(donor, reference, tmp_path / "vec")
    out = tmp_path / "out"
    killed(f"tv.apply({str(target)!r}, {str(tmp_path / 'vec')!r}, out=out, alpha={alpha})", out)
    assert not list(out.rglob("taskvec.json"))
    report = tv.apply(target, tmp_path / "vec", out=out, alpha=alpha)
    assert report.resumed_shards >= 1
    tv.apply(target, tmp_path / "vec", out=tmp_path / "undisturbed", alpha=alpha)
    same_files(out, tmp_path / "undisturbed")
