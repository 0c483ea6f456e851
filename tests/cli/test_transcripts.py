"""Whole transcripts of the main commands, compared with tests/data/transcripts.

``pytest tests/cli/test_transcripts.py --update-transcripts`` renews them; look at the difference before
committing it. Figures that depend on the machine, paths and digests are replaced by words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.command_line import PLAIN, Outcome, invoke, on_terminal
from support.models import Trio, edit_json

TRANSCRIPTS = Path(__file__).parents[1] / "data" / "transcripts"

RULES = [
    (r'("(?:seconds|bytes_per_second|free_space|memory|threads)": )[-\d.e+]+', r"\1<figure>"),
    (r'("(?:expected|found)_bytes": )\d+', r"\1<figure>"),
    (r'("(?:taskvec|engine|version|engine_version)": )"\d+\.\d+\.\d+[^"]*"', r'\1"<version>"'),
    (r'("(?:created|date)": )"[^"]*"', r'\1"<date>"'),
    (r"\b[0-9a-f]{64}\b", "<digest>"),
    (r"\b[0-9a-f]{16,40}\b", "<digest>"),
    (r"\b\d+ min \d\d s\b|\b\d+(?:\.\d+)? s\b(?=[ ,;)]|$)", "<time>"),
    (r"\b\d+\.\d+ GB/s", "<rate>"),
    (r"\b\d+ threads?\b", "<threads>"),
    (r"\b(?:avx512|avx2|neon|scalar)\b", "<level>"),
    (r"[\d.]+ [kMGT]?B, <time>", "<size>, <time>"),
    (r"[\d.]+ [kMGT]?B free", "<size> free"),
    (r"[\d.]+ [kMGT]?B at most", "<size> at most"),
    (r"taskvec \d+\.\d+\.\d+\S*", "taskvec <version>"),
]  # fmt: skip


def normalised(text: str, root: Path) -> str:
    """`text` without what differs from machine to machine."""
    text = text.replace(str(root), "<tmp>")
    for pattern, word in RULES:
        text = re.sub(pattern, word, text, flags=re.MULTILINE)
    return "\n".join(line.rstrip() for line in text.splitlines())


Check = Callable[..., Outcome]


@pytest.fixture
def transcript(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Check]:
    """Runs commands and compares all that they print with the file of the test's name."""
    monkeypatch.setenv("TASKVEC_PROGRESS", "none")  # how far a slow machine has come is written in lines
    pieces: list[str] = []

    def run(*arguments: object, terminal: int | None = None) -> Outcome:
        words = [str(argument) for argument in arguments]
        command = "$ taskvec " + " ".join(f"'{word}'" if " " in word else word for word in words)
        if terminal is None:
            done = invoke(capsys, *words)
            parts = [command, "--- stdout", done.out, "--- stderr", done.err]
        else:
            environment = {
                **PLAIN,
                "COLUMNS": str(terminal),
                "TERM": "dumb",
            }  # no progress bar, however slow the machine
            done = on_terminal(words, environment=environment)
            parts = [command, f"--- terminal of {terminal} columns", done.out]
        assert "internal error" not in done.err
        parts.append(f"--- exit code {done.code}")
        pieces.extend(normalised(part, tmp_path) for part in parts if part)
        return done

    def compare() -> None:
        found = "\n".join(pieces) + "\n"
        path = TRANSCRIPTS / f"{request.node.name.removeprefix('test_')}.txt"
        if request.config.getoption("--update-transcripts"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(found, encoding="utf-8")
        assert path.exists(), f"no transcript {path.name}: run with --update-transcripts"
        wanted = path.read_text(encoding="utf-8")
        assert found == wanted, f"{path.name}: read the difference, then run with --update-transcripts"

    yield run
    compare()


@pytest.fixture
def models(trio: Trio, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The options that name the three models, relative to the working folder."""
    monkeypatch.chdir(tmp_path)
    assert {path.parent for path in trio} == {tmp_path}
    return ["--target", "target", "--donor", "donor", "--reference", "reference"]


def test_check(transcript: Check, models: list[str]) -> None:  # noqa: ARG001
    transcript("check", "target", "donor", "reference")


def test_check_that_fails(transcript: Check, models: list[str], tmp_path: Path) -> None:  # noqa: ARG001
    edit_json(tmp_path / "donor" / "config.json", rope_theta=10000.0)
    transcript("check", "target", "donor", "reference")
    transcript("check", "target", "donor", "reference", "--json")


def test_check_of_a_zero_vector(transcript: Check, models: list[str]) -> None:  # noqa: ARG001
    transcript("check", "target", "donor", "donor")


def test_transfer(transcript: Check, models: list[str]) -> None:
    transcript("transfer", *models, "-o", "out", "--alpha", "0.8")
    transcript("verify", "out")
    transcript("transfer", *models, "-o", "out")


def test_transfer_json(transcript: Check, models: list[str]) -> None:
    transcript("transfer", *models, "-o", "out", "--layers", "1", "--include", "norm", "--json", "--quiet")


def test_transfer_dry_run(transcript: Check, models: list[str]) -> None:
    transcript(
        "transfer", *models, "-o", "out", "--out-dtype", "float32", "--preset", "no-embed", "--dry-run"
    )
    transcript("transfer", *models, "-o", "out", "--alpha", "-1,0.5", "--dry-run", "--json")


def test_transfer_of_several_alphas(transcript: Check, models: list[str]) -> None:
    transcript("transfer", *models, "-o", "out", "--alpha", "-1,0,0.5,1")


def test_transfer_that_rounds_away(transcript: Check, models: list[str]) -> None:
    transcript("transfer", *models, "-o", "out", "--alpha", "0.01")


def test_transfer_that_is_refused(transcript: Check, models: list[str], tmp_path: Path) -> None:
    edit_json(tmp_path / "donor" / "config.json", rope_theta=10000.0)
    transcript("transfer", *models, "-o", "out")


def test_transfer_on_a_terminal(transcript: Check, models: list[str]) -> None:
    transcript("transfer", *models, "-o", "narrow", "--alpha", "0.01", terminal=80)
    transcript("transfer", *models, "-o", "wide", "--alpha", "0.01", terminal=120)


def test_inspect(transcript: Check, models: list[str]) -> None:
    transcript("inspect", "target")
    transcript("transfer", *models, "-o", "out", "--quiet")
    transcript("inspect", "out")


def test_extract_and_apply(transcript: Check, models: list[str]) -> None:  # noqa: ARG001
    transcript("extract", "donor", "reference", "-o", "reasoning.vec")
    transcript("inspect", "reasoning.vec")
    transcript("apply", "target", "reasoning.vec", "-o", "out", "--alpha", "0.8")
    transcript("apply", "target", "reasoning.vec", "reasoning.vec", "-o", "two", "--alpha", "0.8,-0.3")
    transcript("apply", "target", "reasoning.vec", "-o", "three", "--alpha", "1,2", "--dry-run")
    transcript("apply", "target", "donor", "-o", "four")


RECIPE = """\
merge_method: ties
base_model: reference
models:
  - model: donor
    parameters: {weight: 1, density: 0.5}
  - model: target
    parameters: {weight: 0.5, density: 0.5}
parameters:
  normalize: true
"""


def test_merge(transcript: Check, models: list[str], tmp_path: Path) -> None:  # noqa: ARG001
    (tmp_path / "ties.yaml").write_text(RECIPE)
    (tmp_path / "mistyped.yaml").write_text(RECIPE.replace("density", "densty"))
    transcript("merge", "ties.yaml", "out")
    transcript("merge", "ties.yaml", "other", "--set", "models.1.parameters.weight=0.3", "--dry-run")
    transcript("merge", "mistyped.yaml", "out")
    transcript("merge", "absent.yaml", "out")


def test_methods(transcript: Check) -> None:
    transcript("methods")
    transcript("methods", "ties")
    transcript("methods", "tise")
    transcript("methods", "ties", "--schema")


def test_diff(transcript: Check, models: list[str]) -> None:  # noqa: ARG001
    transcript("diff", "reference", "donor")


def test_verify_that_fails(transcript: Check, models: list[str], tmp_path: Path) -> None:
    transcript("transfer", *models, "-o", "out", "--quiet")
    path = tmp_path / "out" / "model.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    (tmp_path / "out" / "config.json").unlink()
    transcript("verify", "out")
    transcript("verify", "out", "--json")


def test_usage_errors(transcript: Check, models: list[str]) -> None:  # noqa: ARG001
    transcript("trasnfer")
    transcript("transfer", "--target", "a", "--donor", "b", "-o", "out")
    transcript("transfer", "--aplha", "1")
    transcript("inspect", "absent")
    transcript("inspect", "absent", "--json")


def test_help(transcript: Check) -> None:
    transcript("--help")
