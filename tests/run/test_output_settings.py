"""Settings without a meaning for a kind of output, or for a part of a run, are refused, not passed over."""

from __future__ import annotations

from pathlib import Path

import pytest

import taskvec as tv
from support.models import Trio, write_trio
from support.s3_server import S3
from taskvec.cli import run
from taskvec.run.store_sink import StoreSink

ROLES = ("target", "donor", "reference")


@pytest.fixture
def trio(tmp_path: Path) -> Trio:
    return write_trio(tmp_path / "models", shards=(2, 3, 1))


def words(trio: Trio, out: str) -> list[str]:
    models = [word for role, at in zip(ROLES, trio, strict=True) for word in (f"--{role}", str(at))]
    return ["transfer", *models, "-o", out]


@pytest.mark.parametrize("more", [[], ["--part", "0/2"], ["--dry-run"], ["--ray"]])
@pytest.mark.parametrize(("out", "kind"), [("out", "a folder"), ("s3://results/out", "at s3://")])
def test_public_is_for_the_hub(
    s3: S3, trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    out: str, kind: str, more: list[str],
) -> None:  # fmt: skip
    s3.client.create_bucket(Bucket="results")
    place = out if ":" in out else str(tmp_path / out)
    assert run([*words(trio, place), "--public", *more]) == 2
    error = capsys.readouterr().err
    assert f"the output is {kind}" in error
    assert "leave it out" in error
    assert not (tmp_path / "out").exists()
    assert not s3.client.list_objects_v2(Bucket="results").get("Contents")


def test_an_unknown_kind_of_address_is_refused_by_a_dry_run_too(
    trio: Trio, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*words(trio, "ftp://results/out"), "--dry-run"]) == 2
    assert "cannot be written to" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["out", "s3://results/out"])
def test_a_part_cannot_begin_again(s3: S3, trio: Trio, tmp_path: Path, out: str) -> None:
    s3.client.create_bucket(Bucket="results")
    place = out if ":" in out else str(tmp_path / out)
    assert run([*words(trio, place), "--part", "0/2", "--no-resume"]) == 2
    assert not (tmp_path / "out").exists()
    assert not s3.client.list_objects_v2(Bucket="results").get("Contents")


def test_what_parts_have_begun_is_not_taken_for_a_beginning(trio: Trio, tmp_path: Path) -> None:
    plan = tv.plan_transfer(*trio, max_shard_size=6000)
    plan.part(0, 2).run(tmp_path / "out")
    with pytest.raises(tv.RecipeError, match="--no-resume"):
        plan.run(tmp_path / "out", settings=tv.Settings(resume=False))
    assert not plan.run(tmp_path / "out").already_done


def test_streamed_models_begin_where_nothing_is(s3: S3, trio: Trio, tmp_path: Path) -> None:
    far = [s3.put("models", role, folder) for role, folder in zip(ROLES, trio, strict=True)]
    tv.transfer(*trio, tmp_path / "expected")
    tv.transfer(*far, tmp_path / "out", stream=True, resume=False)
    for path in (tmp_path / "expected").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def merged(trio: Trio) -> tv.Merge:
    """One of tensors in memory, which is made in the scratch folder as a whole."""
    target, donor = tv.open(trio.target), tv.open(trio.donor)
    held = tv.from_state_dict({name: donor[name] for name in donor}, config=donor.config)
    return target + 0.5 * (held - tv.open(trio.reference))


def test_the_scratch_folder_has_to_hold_an_output_that_is_made_there(s3: S3, trio: Trio) -> None:
    s3.client.create_bucket(Bucket="results")
    options = {"force": "tokenizer-missing"}
    with pytest.raises(tv.OutputError, match=r"made in the scratch folder as a whole .* allows 1.00 kB"):
        merged(trio).save("s3://results/out", scratch_size=1000, **options)
    assert not s3.client.list_objects_v2(Bucket="results").get("Contents")
    assert merged(trio).save("s3://results/out", scratch_size="1GB", **options).outputs


def test_rehash_reads_what_was_sent_of_such_an_output(
    s3: S3, trio: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was stopped after its weights had been sent goes on; what is another file is sent again."""
    s3.client.create_bucket(Bucket="results")
    sends: list[str] = []
    send, finish = StoreSink.send, StoreSink.finish

    def noted(self: StoreSink, path: Path, sent: object, told: object) -> None:
        sends.append(sent.name)  # type: ignore[attr-defined]
        send(self, path, sent, told)  # type: ignore[arg-type]

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(StoreSink, "send", noted)
    monkeypatch.setattr(StoreSink, "finish", stopped)
    with pytest.raises(KeyboardInterrupt):
        merged(trio).save("s3://results/out", force="tokenizer-missing")
    monkeypatch.setattr(StoreSink, "finish", finish)
    first = list(sends)
    assert first
    monkeypatch.setattr(StoreSink, "reread", lambda _self, sent, _folder: sent.name != first[0])
    merged(trio).save("s3://results/out", force="tokenizer-missing", rehash=True)
    assert sends == [*first, first[0]]
