"""Saved vectors that are damaged, or do not fit: an error with a name and a way out, nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import taskvec as tv
from support.command_line import invoke
from support.models import (
    Tensors,
    edit_json,
    header_bytes,
    qwen2_config,
    qwen2_shapes,
    random_tensors,
    read_safetensors,
    safetensors_bytes,
    tokenizer_json,
    tuned,
    write_checkpoint,
    write_tokenizer,
)
from taskvec import _core
from taskvec.resolve import local

FILE = "vector.safetensors"
# of the donor, one for each encoding: next to these, everything is the reference's
MASK, INDEX, DENSE = "model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight", "model.norm.weight"
ZERO, EXACT = "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"

Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A target, and a vector with a tensor of each encoding."""
    root = tmp_path_factory.mktemp("made")
    config = qwen2_config()
    reference = random_tensors(qwen2_shapes(config), dtype="F32")
    donor = {name: array.copy() for name, array in reference.items()}
    for name, share in ((MASK, 0.2), (INDEX, 0.005), (DENSE, 1.0)):
        donor[name] = tuned({name: reference[name]}, seed=1, share=share)[name]
    donor[EXACT][:2] = -0.0
    write_checkpoint(root / "target", tuned(reference, seed=2), config)
    write_checkpoint(root / "donor", donor, config)
    write_checkpoint(root / "reference", reference, config)
    tv.extract(root / "donor", root / "reference", root / "vec")
    rows = facts(root / "vec")["vector"]["tensors"]
    assert [rows[name]["encoding"] for name in (MASK, INDEX, DENSE, ZERO)] == [
        "mask",
        "index",
        "dense",
        "zero",
    ]
    assert rows[EXACT]["exact"] == donor[EXACT][:2].size
    assert [rows[name].get("rounded", False) for name in (MASK, INDEX, EXACT)] == [True, False, True]
    shutil.rmtree(root / "donor")
    yield root
    shutil.rmtree(root)


@pytest.fixture
def vector(made: Path, tmp_path: Path) -> Path:
    """A copy of the vector."""
    return Path(shutil.copytree(made / "vec", tmp_path / "vec"))


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "taskvec.json").read_text())


def write_facts(folder: Path, data: dict[str, Any]) -> None:
    (folder / "taskvec.json").write_text(json.dumps(data))


def relist(folder: Path) -> None:
    """The manifest with sizes and digests of the files as they are: only what is inside them is wrong."""
    data = facts(folder)
    for file in data["files"]:
        file["bytes"], file["blake3"] = _core.digest_file(folder / file["name"])
    write_facts(folder, data)


def metadata(folder: Path) -> dict[str, str]:
    data = (folder / FILE).read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]


def stored(change: Callable[[Tensors], None]) -> Damage:
    """The stored tensors changed, in a manifest that lists the file as it is then."""

    def damage(folder: Path) -> None:
        tensors = {name: array.copy() for name, array in read_safetensors(folder / FILE).items()}
        change(tensors)
        (folder / FILE).write_bytes(safetensors_bytes(tensors, metadata(folder)))
        relist(folder)

    return damage


def replaced(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Damage:
    return stored(lambda tensors: tensors.update({name: make(tensors[name])}))


def member(change: Callable[[dict[str, Any]], object]) -> Damage:
    """The `vector` member of the manifest changed."""

    def damage(folder: Path) -> None:
        data = facts(folder)
        change(data["vector"])
        write_facts(folder, data)

    return damage


def of_row(name: str, key: str, value: Any) -> Damage:
    return member(lambda vector: vector["tensors"][name].update({key: value}))


def bytes_of_file(change: Callable[[bytes], bytes], name: str = FILE, *, listed: bool = True) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        if listed:
            relist(folder)

    return damage


def gone(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def said_no_more(key: str) -> Damage:
    """The header says other things than the manifest."""

    def damage(folder: Path) -> None:
        data = (folder / FILE).read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        header["__metadata__"].pop(key)
        (folder / FILE).write_bytes(header_bytes(header) + data[8 + length :])
        relist(folder)

    return damage


def cases() -> Iterator[tuple[str, Damage, str, bool]]:
    """Name, damage, what the message says, and whether `verify` finds it: not what is listed as it is."""
    row_values: dict[str, list[Any]] = {
        "encoding": [None, 3, "sparse", "dense", "index", "zero", []],
        "shape": [None, "x", [1], [-1], [64.0, 32], [32, 64, 2]],
        "dtype": [None, "I32", "x", "F16", "BF16", 2],
        "origin": [None, "BF16", "F16", "x", 2],
        "file": [None, 5, "other.safetensors"],
        "elements": [None, 5, -1, "x", True],
        "changed": [None, -1, 5, 1 << 40, "x"],
        "bytes": [None, -1, 5, "x"],
        "norm": [-1, "x", []],
        "largest": [-1, "x", []],
        "exact": [1, -1, "x", None],
    }
    for key, values in row_values.items():
        for value in values:
            yield f"{key} is {value!r}", of_row(MASK, key, value), MASK, False
        if key != "exact":
            lacks = member(lambda vector, key=key: vector["tensors"][MASK].pop(key))
            yield f"{key} is missing", lacks, rf"`{key}` is missing", False
    for value in (0, 1, 3000, "x"):
        yield f"exact elements are {value!r}", of_row(EXACT, "exact", value), EXACT, False
    for value in (False, None, 1, "x"):
        yield f"rounded is {value!r}", of_row(MASK, "rounded", value), MASK, False
    for name in (INDEX, DENSE, ZERO):
        yield f"{name} is rounded", of_row(name, "rounded", True), name, False
    yield "rounded is missing", member(lambda v: v["tensors"][MASK].pop("rounded")), "rounded values", False
    yield "zero with changes", of_row(ZERO, "changed", 3), ZERO, False
    yield "zero in a file", of_row(ZERO, "file", FILE), ZERO, False
    yield "row is a list", member(lambda v: v["tensors"].update({MASK: [1]})), "is not an object", False
    yield "row is gone", member(lambda v: v["tensors"].pop(DENSE)), "does not list", False
    yield "zero row is gone", member(lambda v: v["tensors"].pop(ZERO)), "vector.elements", False
    more = member(lambda v: v["tensors"].update({"new": v["tensors"][DENSE]}))
    yield "row too many", more, "lacks `new`", False
    whole: dict[str, list[Any]] = {
        "format": [None, 1, 3, "2"],
        "dtype": ["BF16", "x", 4],
        "fits": [None, {}, {"architecture": "0" * 64, "tokenizer": None}, "x"],
        "elements": [None, 5, "x"],
        "changed": [None, 5, "x"],
        "bytes": [None, 5, "x"],
        "norm": ["x", -1],
        "largest": ["x", -1],
        "tensors": [None, [], "x", {}],
    }
    for key, values in whole.items():
        for value in values:
            damage = member(lambda vector, key=key, value=value: vector.update({key: value}))
            yield f"vector.{key} is {value!r}", damage, "vec`|manifest", False
        if key not in ("norm", "largest"):
            lacks = member(lambda vector, key=key: vector.pop(key))
            yield f"vector.{key} is missing", lacks, "vec`|manifest", False
    yield "no vector", lambda f: edit_json(f / "taskvec.json", vector=None), "no description", False
    yield "no checkpoint", lambda f: edit_json(f / "taskvec.json", kind="checkpoint"), "expected a", False
    yield "no list of files", lambda f: edit_json(f / "taskvec.json", files=None), "lists no files", True
    yield "another schema", lambda f: edit_json(f / "taskvec.json", schema=9), "schema 9", True
    cut = bytes_of_file(lambda data: data[: len(data) // 2], "taskvec.json", listed=False)
    yield "manifest cut", cut, "taskvec.json", True
    yield "manifest gone", gone("taskvec.json"), "has no `taskvec.json`", True

    for name in (f"{MASK}.mask", f"{MASK}.values", f"{INDEX}.indices", f"{INDEX}.values", DENSE):
        yield f"{name} is missing", stored(lambda t, name=name: t.pop(name)), f"lacks `{name}`", False
        for array in (np.zeros(3, np.float32), np.zeros((2, 2), np.int32), np.zeros(1, bool)):
            damage = replaced(name, lambda _, array=array: array)
            yield f"{name} is {array.dtype} {array.shape}", damage, name, False
    for part in ("indices", "donor", "reference"):
        name = f"{EXACT}.exact.{part}"
        yield f"{name} is missing", stored(lambda t, name=name: t.pop(name)), f"lacks `{name}`", False
        yield f"{name} is short", replaced(name, lambda array: array[:-1]), name, False
        yield f"{name} is of bytes", replaced(name, lambda array: array.astype(np.uint8)), name, False
    surplus = stored(lambda t: t.update({"new": np.zeros(2, np.float32)}))
    yield "tensor too many", surplus, "holds `new`", False

    flipped = replaced(f"{MASK}.mask", lambda mask: mask ^ np.uint8(1))
    yield "mask of another population", flipped, "bits in the mask, but", False
    for what, change, text in (
        ("unsorted", lambda a: a[::-1], "does not come after"),
        ("twice", lambda a: np.concatenate([a[:1], a[:1], a[2:]]), "does not come after"),
        ("negative", lambda a: np.concatenate([[-1], a[1:]]), "index -1"),
        ("out of range", lambda a: np.concatenate([a[:-1], [96 * 32]]), "index 3072 of 3072"),
    ):
        for name in (INDEX, f"{EXACT}.exact"):
            if name == INDEX or what != "out of range":
                damage = replaced(f"{name}.indices", lambda a, change=change: change(a).astype(np.int32))
                yield f"{name} indices {what}", damage, text, False
    yield "not finite", replaced(DENSE, lambda a: np.full_like(a, np.nan)), "not finite", False

    yield "file cut", bytes_of_file(lambda data: data[:-9], listed=False), FILE, True
    yield "file cut and listed so", bytes_of_file(lambda data: data[:-9]), FILE, False
    yield "file longer", bytes_of_file(lambda data: data + b"1", listed=False), FILE, True
    yield "file empty", bytes_of_file(lambda _: b""), FILE, False
    yield "file gone", gone(FILE), "safetensors", True
    yield "header cut", bytes_of_file(lambda data: data[:100]), FILE, False
    yield "another origin", said_no_more(f"taskvec.origin.{MASK}"), "of models of BF16", False
    yield "not rounded", said_no_more(f"taskvec.rounded.{MASK}"), "with every value exact", False
    yield "configuration gone", gone("reference/config.json"), "reference/config.json", True
    for name in ("config.json", "tokenizer.json"):
        damage = bytes_of_file(lambda data: data + b" ", f"reference/{name}", listed=False)
        yield f"{name} is another", damage, f"reference/{name}", True


CASES = list(cases())


@pytest.mark.parametrize(
    ("damage", "text", "is_seen"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_a_damaged_vector_is_refused(
    made: Path,
    vector: Path,
    damage: Damage,
    text: str,
    is_seen: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sealed = (vector / "taskvec.json").read_bytes()
    damage(vector)
    with pytest.raises(tv.Error, match=text) as caught:
        tv.apply(made / "target", vector, out=tmp_path / "out")
    assert caught.value.hint
    done = invoke(capsys, "apply", made / "target", vector, "-o", tmp_path / "out")
    assert done.code == (1 if isinstance(caught.value, tv.NonFiniteError) else 2)
    assert "hint:" in done.err
    assert "Traceback" not in done.err + done.out
    assert done.out == ""
    with pytest.raises(tv.Error):
        tv.load_vector(vector).apply_(tv.open(made / "target"))
    if isinstance(caught.value, tv.NonFiniteError):
        return  # found in the values, once the run has begun
    assert not (tmp_path / "out").exists()
    done = invoke(capsys, "verify", vector)
    is_broken = not is_seen and (vector / "taskvec.json").read_bytes() != sealed
    assert (done.code != 0) == (is_seen or is_broken)
    assert "Traceback" not in done.err + done.out


def test_a_changed_value_is_found_by_verify(vector: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray((vector / FILE).read_bytes())
    data[-1] ^= 1
    (vector / FILE).write_bytes(data)
    assert [file.name for file in tv.verify(vector).problems] == [FILE]
    done = invoke(capsys, "verify", vector)
    assert done.code == 1
    assert FILE in done.out + done.err


def another_tokenizer(folder: Path) -> None:
    write_tokenizer(folder, tokenizer_json(merges=["B A", "BA C"]))


def another_shape(folder: Path) -> None:
    config = qwen2_config(hidden=64)
    write_checkpoint(folder, random_tensors(qwen2_shapes(config), dtype="F32"), config)


def another_depth(folder: Path) -> None:
    config = qwen2_config(layers=3)
    write_checkpoint(folder, random_tensors(qwen2_shapes(config), dtype="F32"), config)


def another_architecture(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="llama", architectures=["LlamaForCausalLM"])


def another_function(folder: Path) -> None:
    edit_json(folder / "config.json", rope_theta=1e4)


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (another_tokenizer, "tokenizer-merges"),
        (another_shape, "shape"),
        (another_depth, "tensor-missing"),
        (another_architecture, "architecture"),
        (another_function, "config-function"),
    ],
)
def test_a_vector_that_does_not_fit_is_refused(
    made: Path,
    change: Damage,
    finding: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = Path(shutil.copytree(made / "target", tmp_path / "target"))
    change(target)
    with pytest.raises(tv.CompatibilityError) as caught:
        tv.apply(target, made / "vec", out=tmp_path / "out")
    assert caught.value.hint
    assert any(finding in each.id for each in caught.value.findings if each.level == "error"), [
        each.id for each in caught.value.findings
    ]
    done = invoke(capsys, "apply", target, made / "vec", "-o", tmp_path / "out")
    assert done.code == 1
    assert f"[{finding}" in done.err
    assert "Traceback" not in done.err + done.out
    assert not (tmp_path / "out").exists()


def test_the_headers_are_not_asked_for_their_metadata_for_every_tensor(
    vector: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Reader:
        """The reader of the engine, which copies all metadata each time."""

        def __init__(self, path: str) -> None:
            self.opened = _core.Checkpoint(path)

        def __getattr__(self, name: str) -> Any:
            asked.append(name)
            return getattr(self.opened, name)

    monkeypatch.setattr(local, "Reader", Reader)
    assert len(tv.load_vector(vector)) > 3
    # once for formats that it declares, once for the vector's own description
    assert asked.count("metadata") <= 2
