"""``taskvec-yaml``: every option of mergekit-yaml is taken, named as needless, or an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from safetensors.numpy import load_file

from support.command_line import invoke
from support.models import Trio
from taskvec import cli
from taskvec.cli.mergekit import command
from taskvec.cli.needless import NEEDLESS

# `mergekit-yaml --help` of mergekit 0.1.5, without what click adds to every command
SWITCHES = (
    "--allow-crimes", "--unsafe-truncate-embeddings", "--trust-remote-code", "--quiet", "--cuda",
    "--low-cpu-memory", "--lazy-unpickle", "--read-to-gpu", "--multi-gpu", "--async-write",
    "--copy-tokenizer", "--clone-tensors", "--write-model-card", "--safe-serialization",
)  # fmt: skip
VALUES = {
    "--transformers-cache": "cache", "--lora-merge-cache": "cache", "--lora-merge-dtype": "float32",
    "--random-seed": "7", "--device": "cuda:0", "-j": "2", "--num-threads": "2", "--out-shard-size": "5B",
    "--write-threads": "4",
}  # fmt: skip


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def recipe(trio: Trio, tmp_path: Path) -> Path:
    models = [
        {"model": str(folder), "parameters": {"weight": 0.5}} for folder in (trio.donor, trio.reference)
    ]
    place = tmp_path / "recipe.yaml"
    place.write_text(yaml.safe_dump({"merge_method": "linear", "models": models, "dtype": "bfloat16"}))
    return place


def run(capsys: pytest.CaptureFixture[str], *words: object) -> Done:
    code = cli.run([str(word) for word in words], command, "merge")
    found = capsys.readouterr()
    return Done(code, found.out, found.err)


def test_the_bytes_are_those_of_taskvec_merge(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, recipe, tmp_path / "one").code == 0
    assert cli.run(["merge", str(recipe), str(tmp_path / "two")]) == 0
    one, two = (load_file(next((tmp_path / name).glob("*.safetensors"))) for name in ("one", "two"))
    assert all(one[name].tobytes() == two[name].tobytes() for name in two)


@pytest.mark.parametrize("option", [*SWITCHES, *VALUES, "-v", "--gpu-rich"])
def test_every_option_of_mergekit_is_taken(
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    option: str,
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    words = [option, VALUES[option]] if option in VALUES else [option]
    done = run(capsys, recipe, tmp_path / "out", *words)
    assert done.code == 0, done.err
    is_needless = option.lstrip("-").replace("-", "_") in NEEDLESS
    assert (f"`{option}` is not needed" in done.err) == is_needless


@pytest.mark.parametrize("option", [f"--no-{word.removeprefix('--')}" for word in SWITCHES])
def test_and_so_is_every_one_that_turns_something_off(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    done = run(capsys, recipe, tmp_path / "out", option)
    if option == "--no-safe-serialization":
        assert done.code == 2
        assert "hint:" in done.err
        assert not (tmp_path / "out").exists()
        return
    assert done.code == 0, done.err
    assert ("has no effect" in done.err) == (option in ("--no-copy-tokenizer", "--no-write-model-card"))


def test_sizes_of_weight_files(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, recipe, tmp_path / "out", "--out-shard-size", "20K")
    assert done.code == 0, done.err
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    for size in ("x", "-1B", "0", "1e400B"):
        done = run(capsys, recipe, tmp_path / "no", "--out-shard-size", size)
        assert done.code == 2
        assert "hint:" in done.err


@pytest.mark.parametrize(
    ("option", "hint"), [("--cudda", "--cuda"), ("--verbatim", "taskvec merge --help"), ("-q", "--help")]
)
def test_an_unknown_option_is_an_error_with_the_way_out(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, hint: str
) -> None:
    done = run(capsys, recipe, tmp_path / "out", option)
    assert done.code == 2
    assert "not an option of mergekit-yaml" in done.err
    assert hint in done.err
    assert not (tmp_path / "out").exists()


def test_errors_and_results_as_json(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, recipe, tmp_path / "out", "--json")
    assert json.loads(done.out)["outputs"]
    done = run(capsys, tmp_path / "nothing.yaml", tmp_path / "out", "--json")
    assert done.code == 2
    assert "nothing.yaml" in done.err + done.out
    assert "Traceback" not in done.err


@pytest.mark.parametrize("verb", ["merge", "moe"])
def test_its_options_are_told_apart_from_typos(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    for option, words in {
        "--cuda": "leave it out",
        "--no-lazy-unpickle": "leave it out",
        "--allow-crimes": "`--force ID` goes on",
        "--thread": "did you mean `--threads`?",
        "--foo": "--help` explains the options",  # not `--force`
    }.items():
        told = invoke(capsys, verb, "recipe.yaml", "out", option)
        assert (told.code, words in told.err) == (2, True), told.err
    assert "leave it out" not in invoke(capsys, "transfer", "--cuda").err
