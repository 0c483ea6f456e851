"""Models in an object store: opened by headers, fetched for a run, with the bytes of local ones."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

import pytest

import taskvec as tv
from support.models import Trio, write_trio
from support.oracle import same_files
from support.s3_server import KEY, S3, SECRET, TOKEN
from taskvec.cli import run
from taskvec.errors import HubError, NotFoundError, RecipeError
from taskvec.extras import install
from taskvec.resolve.store import fetch

ROLES = ("target", "donor", "reference")


@pytest.fixture
def local(tmp_path: Path) -> Trio:
    """Three checkpoints; half of a shard is more than the first request for its header."""
    return write_trio(tmp_path / "source", shards=(2, 3, 1), hidden=128, intermediate=512, vocabulary=400)


@pytest.fixture
def addresses(s3: S3, local: Trio) -> list[str]:
    return [s3.put("models", f"some/{role}", folder) for role, folder in zip(ROLES, local, strict=True)]


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.safetensors")}


def test_open_reads_headers_alone(addresses: list[str], local: Trio, tmp_path: Path) -> None:
    model, same = tv.open(addresses[0]), tv.open(local.target)
    assert model.path is None
    assert dict(model.tensors) == dict(same.tensors)
    assert (model.fingerprint, model.config, model.file_sizes) == (
        same.fingerprint,
        same.config,
        same.file_sizes,
    )
    assert model.address == model.repository == addresses[0]
    assert not weights(tmp_path / "scratch")


def test_check_and_dry_run_move_no_weights(
    addresses: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check", *addresses]) == 0
    models = [word for role, at in zip(ROLES, addresses, strict=True) for word in (f"--{role}", at)]
    assert run(["transfer", *models, "-o", str(tmp_path / "out"), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out.partition("\n{")[2].join(["{", ""]))["plan"]
    assert plan["download"] > plan["bytes_in"] > 1_000_000
    assert not weights(tmp_path / "scratch")
    assert not (tmp_path / "out").exists()


def test_transfer(addresses: list[str], local: Trio, tmp_path: Path) -> None:
    tv.transfer(*addresses, tmp_path / "out", alpha=0.5)
    tv.transfer(*local, tmp_path / "local", alpha=0.5)
    assert weights(tmp_path / "out") == weights(tmp_path / "local")
    data = json.loads((tmp_path / "out" / "taskvec.json").read_text())
    assert [source["repository"] for source in data["sources"]] == addresses
    assert [source["revision"] for source in data["sources"]] == [tv.open(at).revision for at in addresses]
    assert tv.verify(tmp_path / "out").ok
    assert tv.transfer(*addresses, tmp_path / "out", alpha=0.5).already_done
    words = shlex.split(data["command"])
    words[words.index("OUT")] = str(tmp_path / "again")
    assert run([*words[1:], "--quiet"]) == 0
    same_files(tmp_path / "out", tmp_path / "again")


def test_the_scratch_folder_is_that_of_the_option(
    addresses: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["diff", *addresses[:2], "--scratch", str(tmp_path / "mine")]) == 0
    assert "26 tensors" in capsys.readouterr().out
    assert len(weights(tmp_path / "mine")) == 5
    assert not (tmp_path / "scratch").exists()


def test_every_verb_takes_addresses(addresses: list[str], local: Trio, s3: S3, tmp_path: Path) -> None:
    target, donor, reference = addresses
    tv.extract(donor, reference, tmp_path / "vector")
    tv.extract(local.donor, local.reference, tmp_path / "same-vector")
    assert weights(tmp_path / "vector") == weights(tmp_path / "same-vector")
    vector = s3.put("models", "vector", tmp_path / "vector")
    plan = tv.plan_apply(target, vector)
    assert sum(source.download for source in plan.sources) > sum(
        map(len, weights(tmp_path / "vector").values())
    )
    scratch = tmp_path / "scratch"
    assert not [
        path for path in scratch.rglob("*.safetensors") if path.parent.parent.name.startswith("vector")
    ]
    plan.run(tmp_path / "applied")
    tv.transfer(*local, tmp_path / "local")
    assert weights(tmp_path / "applied") == weights(tmp_path / "local")
    assert tv.apply(target, vector, out=tmp_path / "applied").already_done
    assert tv.diff(vector, tmp_path / "vector").kind == "vectors"
    assert tv.inspect(vector).kind == "vector"
    tv.convert(target, tmp_path / "wide", out_dtype="float32")
    tv.convert(local.target, tmp_path / "same-wide", out_dtype="float32")
    assert weights(tmp_path / "wide") == weights(tmp_path / "same-wide")
    recipe = (
        f"merge_method: linear\nmodels:\n- model: {target}\n- model: {donor}\nparameters: {{weight: 0.5}}\n"
    )
    (tmp_path / "recipe.yaml").write_text(recipe)
    tv.merge(tmp_path / "recipe.yaml", tmp_path / "merged")
    (tmp_path / "same.yaml").write_text(
        recipe.replace(target, str(local.target)).replace(donor, str(local.donor))
    )
    tv.merge(tmp_path / "same.yaml", tmp_path / "same-merged")
    assert weights(tmp_path / "merged") == weights(tmp_path / "same-merged")


def test_a_plan_in_a_file_and_its_parts(
    addresses: list[str], local: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [word for role, at in zip(ROLES, addresses, strict=True) for word in (f"--{role}", at)]
    plan, out = str(tmp_path / "plan.json"), str(tmp_path / "out")
    words = ["--storage-option", f"token={TOKEN}"]
    assert run(["plan", "transfer", *models, *words, "-o", plan, "--to", out]) == 0
    assert not weights(tmp_path / "scratch")
    text = (tmp_path / "plan.json").read_text()
    assert addresses[0] in text
    assert not [secret for secret in (KEY, SECRET, TOKEN) if secret in text]
    for part in ("1/2", "0/2"):
        assert run(["run", plan, "--part", part, *words]) == 0, capsys.readouterr().err
    tv.transfer(*local, tmp_path / "local")
    assert weights(tmp_path / "out") == weights(tmp_path / "local")
    assert tv.verify(tmp_path / "out").ok


def test_a_vector_is_measured_without_a_run(
    addresses: list[str], local: Trio, s3: S3, tmp_path: Path
) -> None:
    tv.extract(local.donor, local.reference, tmp_path / "vector")
    vector = tv.load_vector(s3.put("models", "vector", tmp_path / "vector"))
    same = tv.load_vector(tmp_path / "vector")
    assert vector.norm() == same.norm() == (tv.open(addresses[1]) - tv.open(addresses[2])).norm()
    name = next(iter(same))
    assert (vector[name] == same[name]).all()


def test_a_single_file(addresses: list[str], local: Trio) -> None:
    (name,) = weights(local.reference)
    model = tv.open(f"{addresses[2]}/{name}")
    assert list(model.file_sizes) == [name]
    assert model.config == {}
    fetched = model.materialise()
    assert all(fetched[each].tobytes() == array.tobytes() for each, array in tv.open(local.reference).items())


def test_a_file_in_several_pieces(addresses: list[str], local: Trio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "PIECE", 10_007)
    events: list[tv.Progress] = []
    model = tv.open(addresses[1]).materialise(events.append)
    assert weights(model.location) == weights(local.donor)
    assert events[-1].done_bytes == events[-1].total_bytes > 0
    assert [each.done_bytes for each in events] == sorted(each.done_bytes for each in events)


def test_what_was_fetched_is_not_fetched_again(addresses: list[str], s3: S3) -> None:
    model = tv.open(addresses[1]).materialise()
    again = tv.open(addresses[1])
    assert again.path == model.path
    assert again.download_bytes == 0
    for name in model.file_sizes:  # the state of the address is another one then, and so is the folder
        s3.client.put_object(Bucket="models", Key=f"some/donor/{name}", Body=b"other")
    with pytest.raises(tv.Error):
        tv.open(addresses[1])


@pytest.mark.parametrize("name", ["config.json", "model-00001-of-00002.safetensors"])
def test_a_file_that_changed_since_it_was_listed(
    addresses: list[str], s3: S3, local: Trio, name: str
) -> None:
    remote = tv.open(addresses[0]).remote
    assert remote is not None
    data = (local.target / name).read_bytes()
    s3.client.put_object(Bucket="models", Key=f"some/target/{name}", Body=bytes([data[0] ^ 1, *data[1:]]))
    with pytest.raises(HubError, match=f"`{name}` of `{addresses[0]}` has changed") as caught:
        remote.fetch([name], Path(os.environ["TASKVEC_SCRATCH"]) / "elsewhere")
    assert caught.value.hint
    if name != "config.json":  # which is here already
        with pytest.raises(HubError, match="has changed"):
            remote.read(name, [(0, 8)])


def test_a_file_that_has_gone(addresses: list[str], s3: S3) -> None:
    model = tv.open(addresses[0])
    s3.client.delete_object(Bucket="models", Key="some/target/model-00002-of-00002.safetensors")
    with pytest.raises(
        NotFoundError, match=r"`model-00002-of-00002\.safetensors` of `s3://models/some/target`"
    ):
        model.materialise()
    assert not [*Path(os.environ["TASKVEC_SCRATCH"]).rglob("parts-*")]


def test_options(addresses: list[str], monkeypatch: pytest.MonkeyPatch, s3: S3) -> None:
    for name in s3.variables:
        monkeypatch.delenv(name)
    options = {
        "endpoint": s3.endpoint,
        "region": "us-east-1",
        "allow_http": "true",
        "aws_access_key_id": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "google_service_account": "/none",
    }
    with tv.storage(options):
        assert tv.open(addresses[0]).address == addresses[0]
    words = [word for key, value in options.items() for word in ("--storage-option", f"{key}={value}")]
    assert run(["inspect", addresses[0], *words]) == 0


@pytest.mark.parametrize("profile", ["", "work"])
def test_a_profile(
    addresses: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, profile: str
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    text = f"[{profile or 'default'}]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
    (tmp_path / "credentials").write_text(text)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    if profile:
        monkeypatch.setenv("AWS_PROFILE", profile)
    assert tv.open(addresses[0]).address == addresses[0]
    monkeypatch.setenv("AWS_PROFILE", "other")
    with pytest.raises(HubError, match="the profile `other` of AWS gives no credentials") as caught:
        tv.open(addresses[0])
    assert "AWS_PROFILE" in str(caught.value.hint)
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(HubError, match="needs the package boto3"):
        tv.open(addresses[0])


# --- no secret anywhere ---


def test_no_secret_is_written_or_said(
    addresses: list[str], tmp_path: Path, s3: S3, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--storage-option", f"aws_secret_access_key={SECRET}", "--storage-option", f"token={TOKEN}"]
    models = [word for role, at in zip(ROLES, addresses, strict=True) for word in (f"--{role}", at)]
    out = str(tmp_path / "out")
    for more in (["--dry-run", "--json"], ["--json", "--verbose"], []):
        assert run(["transfer", *models, "-o", out, *words, *more]) == 0
    for bad in ("s3://other-bucket/x", "s3://models/nothing", f"{addresses[0]}/none.safetensors"):
        assert run(["inspect", bad, *words, "--verbose", "--json"]) == 2
    s3.client.delete_object(Bucket="models", Key="some/donor/model-00001-of-00003.safetensors")
    assert run(["transfer", *models, "-o", out, *words, "--verbose", "--overwrite"]) == 2
    said = "".join(capsys.readouterr())
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert "some/donor" in said
    assert b"some/donor" in written
    for secret in (KEY, SECRET, TOKEN):
        assert secret not in said
        assert secret.encode() not in written


@pytest.mark.parametrize(
    "spec",
    ["s3://planted:secret@models/x", "https://planted:secret@host/x", "https://host/x?sig=secret",
     "s3://models/x#secret", "http://host/secret?x", "ftp://planted:secret@host/x"],
)  # fmt: skip
@pytest.mark.usefixtures("quick")
def test_an_address_with_a_secret_is_refused_and_not_repeated(
    spec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", spec, "--verbose", "--json"]) == 2
    said = "".join(capsys.readouterr())
    assert "secret" not in said.replace("at `/secret", "")
    assert "hint" in said


def test_a_bad_option_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("planted", "=planted", "aws secret=planted", f"pla/nted={SECRET}"):
        assert run(["inspect", "s3://models/x", "--storage-option", word, "--json"]) == 2
        said = "".join(capsys.readouterr())
        assert "planted" not in said
        assert SECRET not in said
        assert "KEY=VALUE" in said


# --- refusals ---


def test_addresses_that_are_not_there(addresses: list[str]) -> None:
    for spec, text in {
        "s3://no-such-bucket/x": "there is no bucket `no-such-bucket`",
        "s3://models/nothing": "there is nothing at `s3://models/nothing`",
        f"{addresses[0]}/none.safetensors": "is not found",
        "s3://models/some": "safetensors",
    }.items():
        with pytest.raises(NotFoundError, match=text) as caught:
            tv.open(spec)
        assert caught.value.hint


@pytest.mark.usefixtures("quick")
def test_an_address_that_is_none() -> None:
    with pytest.raises(RecipeError, match="no revisions"):
        tv.open("s3://models/x", revision="main")
    for spec in ("s3://", "https:///x", "s3://models/../x", "s3://models/a\nb"):
        with pytest.raises(RecipeError) as caught:
            tv.open(spec)
        assert caught.value.hint
    with pytest.raises(NotFoundError, match="addresses of ftp:// cannot be opened") as missing:
        tv.open("ftp://host/x")
    assert "s3://" in str(missing.value.hint)


@pytest.mark.usefixtures("quick")
def test_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    # where a machine in a cloud would get them
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    for spec, variable in {"az://box/x": "AZURE_STORAGE_ACCOUNT_NAME"}.items():
        with pytest.raises(HubError, match="there is no") as caught:
            tv.open(spec)
        assert variable in str(caught.value.hint)


@pytest.mark.usefixtures("quick")
def test_an_option_that_no_store_has() -> None:
    with tv.storage({"endpiont": SECRET}), pytest.raises(RecipeError, match="`endpiont`") as caught:
        tv.open("s3://models/x")
    assert SECRET not in str(caught.value) + str(caught.value.hint)
    with tv.storage({"google_skip_signature": "true", "azure_x": "y"}), pytest.raises(tv.Error) as other:
        tv.open("s3://models/x")
    assert "storage option" not in str(other.value)


def test_http_is_not_used_by_accident(addresses: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(HubError, match="without encryption") as caught:
        tv.open(addresses[0])
    assert "allow_http=true" in str(caught.value.hint)


def test_without_obstore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(HubError, match="need the package obstore") as caught:
        tv.open("s3://models/x")
    assert install("cloud") in str(caught.value.hint)


@pytest.mark.usefixtures("addresses")
def test_a_whole_bucket_is_not_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from taskvec.resolve.store import listing

    monkeypatch.setattr(listing, "MOST_FILES", 3)
    with pytest.raises(HubError, match="has more than 3 objects"):
        tv.open("s3://models")


def test_a_disk_that_is_too_small(addresses: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tv.open(addresses[0])
    monkeypatch.setattr(fetch, "free_space", lambda _: 1_000_000)
    with pytest.raises(tv.OutputError, match=r"has 1\.00 MB free, and 1\.\d+ MB are to be fetched") as caught:
        model.materialise()
    assert "--scratch" in str(caught.value.hint)
    assert not weights(model.location)


def test_a_full_or_forbidden_scratch_folder(addresses: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with tv.storage(scratch=tmp_path / "file"), pytest.raises(tv.OutputError, match="cannot be") as caught:
        tv.open(addresses[0]).materialise()
    assert caught.value.hint
