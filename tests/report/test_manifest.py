"""taskvec.json: what it says, that it says the same every time, and that ``verify`` believes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

import taskvec as tv
from support.models import Trio
from taskvec import _core
from taskvec.files import manifest_schema


@pytest.fixture
def out(sharded_trio: Trio, tmp_path: Path) -> Path:
    """An output with two weight files."""
    tv.transfer(*sharded_trio, tmp_path / "out", alpha=0.8)
    return tmp_path / "out"


def read(folder: Path) -> dict:
    return json.loads((folder / "taskvec.json").read_text())


def test_follows_its_schema(out: Path, sharded_trio: Trio, tmp_path: Path) -> None:
    schema = manifest_schema.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(read(out), schema, cls=jsonschema.Draft202012Validator)
    tv.transfer(
        *sharded_trio, tmp_path / "more", alpha=[0, 0.5], include=["mlp", "attn"], layers="0-1",
        rounding="stochastic", seed=3, out_dtype="float32", layer_scale=[0, 1], force="non-finite",
    )  # fmt: skip
    for name in ("alpha=0", "alpha=0.5"):
        jsonschema.validate(read(tmp_path / "more" / name), schema, cls=jsonschema.Draft202012Validator)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**read(out), "extra": 1}, schema, cls=jsonschema.Draft202012Validator)


def test_says_what_made_the_folder(out: Path, sharded_trio: Trio) -> None:
    data = read(out)
    assert data["recipe"] == {
        "verb": "transfer",
        "target": str(sharded_trio.target),
        "donor": str(sharded_trio.donor),
        "reference": str(sharded_trio.reference),
        "alpha": 0.8,
    }
    assert data["command"].startswith("taskvec transfer --target ")
    assert data["command"].endswith("-o OUT --alpha=0.8")
    assert [source["role"] for source in data["sources"]] == ["target", "donor", "reference"]
    target = tv.open(sharded_trio.target)
    assert data["sources"][0]["fingerprint"] == target.fingerprint
    assert data["sources"][0]["files"] == [
        {"name": name, "bytes": size, "blake3": _core.digest_file(sharded_trio.target / name)[1]}
        for name, size in target.file_sizes.items()
    ]
    assert data["engine"]["version"] == tv.__version__
    assert data["survival"]["fields"] == list(tv.Survival._fields)
    assert set(data["survival"]["tensors"]) == set(target)
    assert data["run"]["plan"] == tv.plan_transfer(*sharded_trio, alpha=0.8).digest


def test_lists_every_file_with_its_digest(out: Path) -> None:
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    names.remove("taskvec.json")
    listed = read(out)["files"]
    assert [entry["name"] for entry in listed] == names
    for entry in listed:
        data = (out / entry["name"]).read_bytes()
        assert (entry["bytes"], entry["blake3"]) == (len(data), _core.blake3_hex(data))


def test_is_the_same_but_for_the_run(out: Path, sharded_trio: Trio, tmp_path: Path) -> None:
    tv.transfer(*sharded_trio, tmp_path / "elsewhere" / "deep", alpha=0.8, threads=1, max_memory="64MB")
    texts = []
    for folder in (out, tmp_path / "elsewhere" / "deep"):
        text = (folder / "taskvec.json").read_text()
        head, run = text.split('\n  "run": ')
        assert "seconds" in run
        texts.append(head)
    assert texts[0] == texts[1]


@pytest.mark.parametrize("options", [
    {"alpha": -0.5, "include": ["a b", "c'd"], "exclude": "x", "preset": "no-embed", "layers": "0-1"},
    {"alpha": 1e-7, "out_dtype": "float16", "rounding": "stochastic", "seed": 5, "max_shard_size": 20_000},
    {"alpha": 2, "layer_scale": [0, 0.5, 1], "force": ["non-finite"]},
])  # fmt: skip
def test_the_command_and_the_python_call_repeat_it(trio: Trio, tmp_path: Path, options: dict) -> None:
    import shlex

    from taskvec.cli import run as command_line
    from taskvec.report.reproduce import python

    if "a b" in options.get("include", ()):
        options = {**options, "include": ["mlp|a b", "attn"], "exclude": "x'y"}
    tv.transfer(*trio, tmp_path / "first", **options)
    data = read(tmp_path / "first")
    words = shlex.split(data["command"])
    words[words.index("OUT")] = str(tmp_path / "second")
    assert command_line([*words[1:], "--quiet"]) == 0
    assert read(tmp_path / "second")["run"]["plan"] == data["run"]["plan"]
    assert read(tmp_path / "second")["recipe"] == data["recipe"]
    call = python(data["recipe"])
    assert call is not None
    exec(call.replace("'OUT'", repr(str(tmp_path / "third"))), {})
    assert read(tmp_path / "third")["recipe"] == data["recipe"]


def test_verify_finds_nothing_wrong(out: Path) -> None:
    (out / "note.txt").write_text("mine")
    events: list[tv.Progress] = []
    result = tv.verify(out, progress=events.append)
    assert result.ok
    assert bool(result)
    assert result.extra == ("note.txt",)
    assert {file.status for file in result.files} == {"ok", "extra"}
    assert events[-1].done_bytes == events[-1].total_bytes > 0
    assert json.loads(json.dumps(result.to_dict()))["ok"] is True


@pytest.mark.parametrize(
    ("name", "damage", "status"),
    [
        ("model-00001-of-00002.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1]), "differs"),
        ("model-00002-of-00002.safetensors", lambda data: data[: len(data) // 2], "truncated"),
        ("tokenizer.json", lambda data: data + b" ", "differs"),
        ("README.md", None, "missing"),
    ],
)
def test_verify_names_what_is_wrong(out: Path, name: str, damage, status: str) -> None:
    if damage is None:
        (out / name).unlink()
    else:
        (out / name).write_bytes(damage((out / name).read_bytes()))
    result = tv.verify(out)
    assert not result.ok
    assert [(file.name, file.status) for file in result.problems] == [(name, status)]
    assert name in str(result)


def test_verify_looks_at_every_alpha(sharded_trio: Trio, tmp_path: Path) -> None:
    tv.transfer(*sharded_trio, tmp_path / "out", alpha=[0, 1])
    assert tv.verify(tmp_path / "out").ok
    (tmp_path / "out" / "alpha=1" / "config.json").write_text("{}")
    result = tv.verify(tmp_path / "out")
    assert [file.name for file in result.problems] == ["alpha=1/config.json"]


def test_verify_needs_a_manifest(tmp_path: Path, trio: Trio) -> None:
    with pytest.raises(tv.NotFoundError, match="not a folder"):
        tv.verify(tmp_path / "nowhere")
    with pytest.raises(tv.NotFoundError, match=r"taskvec\.json"):
        tv.verify(trio.target)


def test_verify_knows_an_unfinished_run(out: Path) -> None:
    (out / "taskvec.json").unlink()
    (out / ".taskvec").mkdir()
    with pytest.raises(tv.VerificationError, match="unfinished") as caught:
        tv.verify(out)
    assert "again" in (caught.value.hint or "")


ENTRY = {"name": "x", "bytes": 1, "blake3": "0" * 64}


@pytest.mark.parametrize("text", [
    "", "[]", "{", '{"schema": 1}', '{"schema": 2, "files": []}', '{"schema": 1, "files": {}}',
    '{"schema": 1, "schema": 1}',
    *[
        json.dumps({"schema": 1, "files": [{**ENTRY, **change}]})
        for change in (
            {"name": "../x"}, {"name": "/etc/passwd"}, {"name": "a/../../x"}, {"name": ""}, {"name": 5},
            {"name": "taskvec.json"}, {"name": "a\0b"}, {"name": "a//b"}, {"bytes": -1}, {"bytes": "1"},
            {"blake3": "x"}, {"blake3": None},
        )
    ],
    json.dumps({"schema": 1, "files": [ENTRY, ENTRY]}),
    json.dumps({"schema": 1, "files": [None]}),
])  # fmt: skip
def test_a_damaged_manifest_is_refused(out: Path, text: str) -> None:
    (out / "taskvec.json").write_text(text)
    with pytest.raises(tv.FormatError):
        tv.verify(out)


def test_a_listed_fifo_does_not_block(out: Path) -> None:
    import os

    (out / "tokenizer.json").unlink()
    os.mkfifo(out / "tokenizer.json")
    assert [file.name for file in tv.verify(out).problems] == ["tokenizer.json"]


def test_inspect_reads_it(out: Path, sharded_trio: Trio) -> None:
    found = tv.inspect(out)
    assert found.kind == "checkpoint"
    assert found.parameters == tv.open(sharded_trio.target).total_parameters
    assert found.manifest is not None
    data = json.loads(json.dumps(found.to_dict()))
    assert data["made"]["recipe"]["verb"] == "transfer"
    assert data["tensors"][0]["shape"] == [96, 32]
    assert tv.inspect(sharded_trio.target).to_dict()["made"] is None
    assert "parameters" in str(found)
