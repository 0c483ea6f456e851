"""Where an output comes from: digests of inputs, seal, recipe, licences, and cards without paths."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from pathlib import Path

import blake3
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

import taskvec as tv
from support.command_line import invoke
from support.models import Trio
from taskvec.files.seal import sealed, state_of

ROLES = ("target", "donor", "reference")


def manifest(folder: Path) -> dict:
    return json.loads((folder / "taskvec.json").read_text())


def digest(path: Path) -> str:
    return blake3.blake3(path.read_bytes()).hexdigest()


def contents(folder: Path) -> list[str]:
    return [source["content"] for source in manifest(folder)["sources"]]


def weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def expected(folder: Path) -> str:
    """What the page on formats says: the digest of the only file, or of the lines that b3sum prints."""
    files = weights(folder)
    if len(files) == 1:
        return f"blake3:{digest(files[0])}"
    lines = "".join(f"{digest(file)}  {file.name}\n" for file in files)
    return f"blake3:{blake3.blake3(lines.encode()).hexdigest()}"


def age(*folders: Path, seconds: int = 60) -> None:
    """Let files look as if they had not changed for a while."""
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        os.utime(path, (time.time() - seconds,) * 2)


# --- digests ----------------------------------------------------------------------------------------------
def test_each_input_has_the_digest_that_b3sum_prints(trio: Trio, tmp_path: Path) -> None:
    tv.transfer(*trio, tmp_path / "out", alpha=0.5)
    assert contents(tmp_path / "out") == [expected(Path(folder)) for folder in trio]
    assert len(set(contents(tmp_path / "out"))) == 3
    for source, folder in zip(manifest(tmp_path / "out")["sources"], trio, strict=True):
        files = {file["name"]: file["blake3"] for file in source["files"]}
        assert files == {file.name: digest(file) for file in weights(Path(folder))}
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(f"`{content}`" in card for content in contents(tmp_path / "out"))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_files_of_several_shards_and_any_number_of_threads(
    sharded_trio: Trio, tmp_path: Path, threads: int
) -> None:
    tv.transfer(*sharded_trio, tmp_path / "out", alpha=[0.5, 1.0], threads=threads)
    for alpha in ("alpha=0.5", "alpha=1"):
        assert contents(tmp_path / "out" / alpha) == [expected(Path(folder)) for folder in sharded_trio]


def test_large_files_are_digested_in_any_order_of_their_blocks(tmp_path: Path) -> None:
    # many blocks of a MiB, of tensors in another order, and a header that shifts them
    draws = np.random.default_rng(1)
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(7)]
    for number, role in enumerate(ROLES):
        folder = tmp_path / role
        folder.mkdir()
        own = names if number % 2 else names[::-1]
        tensors = {name: draws.standard_normal((700, 600 + 0 * number)).astype(np.float32) for name in own}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt", "more": "x" * number})
        (folder / "config.json").write_text('{"model_type": "qwen2", "num_hidden_layers": 7}')
    out = tmp_path / "out"
    tv.transfer(*(tmp_path / role for role in ROLES), out, alpha=0.5, force="non-finite")
    assert contents(out) == [expected(tmp_path / role) for role in ROLES]


def test_one_flipped_bit_is_another_content(trio: Trio, tmp_path: Path) -> None:
    tv.transfer(*trio, tmp_path / "one", alpha=0.5)
    file = weights(Path(trio.donor))[0]
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)
    tv.transfer(*trio, tmp_path / "two", alpha=0.5)
    one, two = manifest(tmp_path / "one")["sources"], manifest(tmp_path / "two")["sources"]
    assert [a["fingerprint"] == b["fingerprint"] for a, b in zip(one, two, strict=True)] == [True] * 3
    assert [a["content"] == b["content"] for a, b in zip(one, two, strict=True)] == [True, False, True]


def test_a_file_that_is_read_in_part_has_no_digest_of_a_part(trio: Trio, tmp_path: Path) -> None:
    tv.transfer(*trio, tmp_path / "out", alpha=0.5, include=["layers.0.mlp.down_proj"])
    assert contents(tmp_path / "out") == [expected(Path(trio.target)), "not-read-whole", "not-read-whole"]
    assert "not read whole" in (tmp_path / "out" / "README.md").read_text()


def test_known_digests_do_not_change_what_is_said(trio: Trio, tmp_path: Path) -> None:
    age(*map(Path, trio))
    tv.transfer(*trio, tmp_path / "whole", alpha=0.5)
    tv.transfer(*trio, tmp_path / "part", alpha=0.5, include=["layers.0.mlp.down_proj"])
    assert contents(tmp_path / "part")[1:] == ["not-read-whole", "not-read-whole"]


def test_a_digest_is_kept_for_a_file_that_stays_as_it_is(
    trio: Trio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept = tmp_path / "cache" / "taskvec" / "digests"
    tv.transfer(*trio, tmp_path / "fresh", alpha=0.5)
    assert not kept.exists()  # a file that has just changed may change again under the same time
    age(*map(Path, trio))
    monkeypatch.setattr("taskvec.run.contents._STEADY", -1)  # the time of the change of the entry is now
    tv.transfer(*trio, tmp_path / "kept", alpha=0.5)
    assert sorted(file.read_text().strip() for file in kept.iterdir()) == sorted(
        digest(file) for folder in trio for file in weights(Path(folder))
    )
    wrong = "0" * 64
    for file in kept.iterdir():
        file.write_text(wrong)
    tv.transfer(*trio, tmp_path / "again", alpha=0.5)
    assert contents(tmp_path / "again") == [f"blake3:{wrong}"] * 3  # it was not computed again
    tv.transfer(*trio, tmp_path / "rehashed", alpha=0.5, rehash=True)
    assert contents(tmp_path / "rehashed") == [expected(Path(folder)) for folder in trio]


@pytest.mark.parametrize(
    "fault", ["another user", "open to all", "links", "fifos", "huge", "a file", "no home"]
)
def test_digests_that_others_may_have_written_are_made_again(
    trio: Trio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept = tmp_path / "cache" / "taskvec" / "digests"
    age(*map(Path, trio))
    monkeypatch.setattr("taskvec.run.contents._STEADY", -1)
    tv.transfer(*trio, tmp_path / "first", alpha=0.5)
    for file in sorted(kept.iterdir()):
        wrong = "0" * 64 + ("\n" * 2**20 if fault == "huge" else "")
        file.write_text(wrong)
        if fault == "links":
            file.rename(tmp_path / file.name)
            file.symlink_to(tmp_path / file.name)
        elif fault == "fifos":
            file.unlink()
            os.mkfifo(file)
        elif fault == "open to all":
            file.chmod(0o666)
    if fault == "another user":
        mine = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    elif fault == "a file":
        shutil.rmtree(kept)
        kept.write_text("not a folder")
    elif fault == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
        monkeypatch.chdir(tmp_path)
    tv.transfer(*trio, tmp_path / "again", alpha=0.5)
    assert contents(tmp_path / "again") == [expected(Path(folder)) for folder in trio]
    assert not (tmp_path / "~").exists()


def test_digests_can_be_left_out(trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for role, folder in zip(ROLES, trio, strict=True) for word in (f"--{role}", folder)]
    done = invoke(capsys, "transfer", *words, "-o", tmp_path / "out", "--no-input-digests")
    assert done.code == 0
    assert contents(tmp_path / "out") == ["not-computed"] * 3
    assert all(
        "blake3" not in file for source in manifest(tmp_path / "out")["sources"] for file in source["files"]
    )


def test_a_run_in_parts_says_that_it_has_none(sharded_trio: Trio, tmp_path: Path) -> None:
    plan = tv.plan_transfer(*sharded_trio, alpha=0.5)
    for number in range(2):
        plan.part(number, 2).run(tmp_path / "out")
    assert contents(tmp_path / "out") == ["not-computed"] * 3


def test_vectors_merges_and_what_is_made_of_them(trio: Trio, tmp_path: Path) -> None:
    donor, reference = expected(Path(trio.donor)), expected(Path(trio.reference))
    tv.extract(trio.donor, trio.reference, tmp_path / "vec")
    assert contents(tmp_path / "vec") == [donor, reference]
    tv.apply(trio.target, tmp_path / "vec", out=tmp_path / "applied")
    vector = weights(tmp_path / "vec")[0]
    assert contents(tmp_path / "applied") == [expected(Path(trio.target)), f"blake3:{digest(vector)}"]
    models = [{"model": str(folder), "parameters": {"weight": 0.5}} for folder in trio]
    tv.merge({"merge_method": "linear", "models": models}, tmp_path / "merged")
    assert sorted(contents(tmp_path / "merged")) == sorted(expected(Path(folder)) for folder in trio)
    tv.convert(trio.target, tmp_path / "converted", out_dtype="float32")
    assert contents(tmp_path / "converted") == [expected(Path(trio.target))]
    tv.extract_lora(trio.donor, trio.reference, tmp_path / "lora", rank=2)
    assert contents(tmp_path / "lora") == [donor, reference]


# --- the seal ---------------------------------------------------------------------------------------------
def test_every_flipped_bit_of_a_manifest_is_seen(trio: Trio, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tv.transfer(*trio, out, alpha=0.5)
    assert tv.verify(out).seal == "sealed"
    assert tv.verify(out)
    data = (out / "taskvec.json").read_bytes()
    places = {*range(0, len(data), max(1, len(data) // 60)), *range(len(data) - 80, len(data))}
    for place in sorted(places):
        changed = bytearray(data)
        changed[place] ^= 1 << (place % 8)
        (out / "taskvec.json").write_bytes(changed)
        with contextlib.suppress(tv.Error):  # it is no longer a manifest, which is said too
            assert not tv.verify(out), (place, bytes(changed[place - 20 : place + 20]))
    (out / "taskvec.json").write_bytes(data)
    assert tv.verify(out)


def test_a_manifest_without_a_seal_is_called_that(
    trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    tv.transfer(*trio, out, alpha=0.5)
    data = (out / "taskvec.json").read_bytes()
    old = re.sub(rb',\n  "seal": "[0-9a-f]+"', b"", data)
    assert (state_of(data), state_of(old)) == ("sealed", "not-sealed")
    assert sealed(old) == sealed(data) == data
    (out / "taskvec.json").write_bytes(old)
    done = invoke(capsys, "verify", out)
    assert done.code == 0
    assert "not sealed" in done.out
    (out / "taskvec.json").write_bytes(data.replace(b'"alpha": 0.5', b'"alpha": 0.6', 1))
    done = invoke(capsys, "verify", out)
    assert done.code == 1
    assert "taskvec.json" in done.out


# --- the recipe -------------------------------------------------------------------------------------------
def same_weights(one: Path, two: Path) -> bool:
    return [file.read_bytes() for file in weights(one)] == [file.read_bytes() for file in weights(two)]


def made(trio: Trio, folder: Path) -> dict[str, Path]:
    """Outputs of the verbs that can be made again."""
    names = ("transfer", "control", "vector", "apply", "two", "sum", "convert", "average", "weighed", "dare")
    found = {name: folder / name for name in (*names, "lora", "lora by energy")}
    tv.transfer(*trio, found["transfer"], alpha=0.7, include=["mlp"], layer_scale=[0, 1], out_dtype="float32")
    tv.extract(trio.donor, trio.reference, found["vector"], layers="0")
    tv.apply(trio.target, found["vector"], out=found["apply"], alpha=0.3, rounding="stochastic", seed=5)
    tv.transfer(*trio, found["control"], control="random", seed=9, preset="no-embed", max_shard_size=9000)
    tv.apply(
        trio.target, found["vector"], found["vector"], out=found["two"], alpha=[0.2, 0.7], exclude="norm"
    )
    vector = tv.open(trio.donor) - tv.open(trio.reference)
    total = tv.open(trio.target) + 0.25 * vector.select(layers="0") + 0.5 * tv.load_vector(found["vector"])
    total.save(found["sum"], out_dtype="float32")
    tv.convert(trio.target, found["convert"], out_dtype="float16")
    tv.average([trio.donor, trio.reference], found["average"])
    tv.average([trio.donor, trio.reference], found["weighed"], weights=[-0.5, 1.5], out_dtype="float32")
    tv.extract_lora(trio.donor, trio.reference, found["lora"], rank=2)
    energy = {"rank": "auto", "energy": 0.5, "max_rank": 3, "dtype": "float16", "embeddings": "leave"}
    tv.extract_lora(trio.donor, trio.reference, found["lora by energy"], **energy)
    models = [{"model": str(trio.donor), "parameters": {"density": 0.5, "weight": 1.0}}]
    dare = {"merge_method": "dare_linear", "base_model": str(trio.reference), "models": models}
    tv.merge(dare, found["dare"], seed=3, out_dtype="float32")
    return found


@pytest.mark.parametrize("file", ["taskvec.json", "taskvec_recipe.yaml", ""])
def test_merge_makes_any_output_again(
    trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    for name, folder in made(trio, tmp_path).items():
        if not file and name == "vector":
            continue  # the folder of a vector is a model's name in other places; its files are clearer
        done = invoke(capsys, "merge", folder / file, "-o", tmp_path / "again" / name)
        assert done.code == 0, (name, done.err)
        assert same_weights(folder, tmp_path / "again" / name), name
        one, two = manifest(folder), manifest(tmp_path / "again" / name)
        if name != "dare":  # what was said besides a merge's recipe becomes part of it
            assert one["recipe"] == two["recipe"], name
        assert one["sources"] == two["sources"], name


def test_repeat_is_the_same_in_python(trio: Trio, tmp_path: Path) -> None:
    for name, folder in made(trio, tmp_path).items():
        tv.repeat(folder / "taskvec.json", tmp_path / "again" / name)
        assert same_weights(folder, tmp_path / "again" / name), name


def test_one_of_several_alphas_is_repeated_alone(trio: Trio, tmp_path: Path) -> None:
    tv.transfer(*trio, tmp_path / "out", alpha=[0.25, 0.75])
    tv.repeat(tmp_path / "out" / "alpha=0.75" / "taskvec.json", tmp_path / "again")
    assert same_weights(tmp_path / "out" / "alpha=0.75", tmp_path / "again")


def test_a_recipe_of_several_documents_is_one_again(trio: Trio, tmp_path: Path) -> None:
    first = {"name": "mean", "merge_method": "linear", "models": [
        {"model": str(trio.donor), "parameters": {"weight": 0.5}},
        {"model": str(trio.reference), "parameters": {"weight": 0.5}},
    ]}  # fmt: skip
    last = {
        "merge_method": "slerp",
        "base_model": str(trio.target),
        "models": [{"model": "mean"}],
        "parameters": {"t": 0.3},
    }
    tv.merge([first, last], tmp_path / "out")
    assert len(list(yaml.safe_load_all((tmp_path / "out" / "taskvec_recipe.yaml").read_text()))) == 2
    tv.merge(tmp_path / "out" / "taskvec_recipe.yaml", tmp_path / "again")
    assert same_weights(tmp_path / "out", tmp_path / "again")


def test_options_given_go_before_those_recorded(
    trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tv.transfer(*trio, tmp_path / "out", alpha=0.5, out_dtype="float32")
    done = invoke(
        capsys, "merge", tmp_path / "out" / "taskvec.json", "-o", tmp_path / "again", "--out-dtype", "float16"
    )
    assert done.code == 0
    assert {array.dtype for array in load_file(weights(tmp_path / "again")[0]).values()} == {
        np.dtype("float16")
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("taskvec: 3\n", "does not say what was made"),
        ("taskvec: {verb: fly}\n", "records `fly`"),
        ("taskvec: {verb: transfer}\n", "has no `donor`"),
        ("taskvec: {verb: transfer, target: <state dict>, donor: a, reference: b, alpha: 1}\n", "in memory"),
        ("taskvec: [\n", "not valid YAML"),
    ],
)
def test_what_cannot_be_made_again_is_an_error_with_a_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    (tmp_path / "r.yaml").write_text(text)
    done = invoke(capsys, "merge", tmp_path / "r.yaml", "-o", tmp_path / "out")
    assert done.code == 2
    assert words in done.err
    assert "hint:" in done.err
    assert not (tmp_path / "out").exists()


def test_the_output_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ((), ("out", "-o", "out")):
        done = invoke(capsys, "merge", "r.yaml", *words)
        assert done.code == 2
        assert "hint:" in done.err


# --- the card ---------------------------------------------------------------------------------------------
def test_no_card_has_a_path(trio: Trio, tmp_path: Path) -> None:
    for name, folder in made(trio, tmp_path).items():
        card = (folder / "README.md").read_text()
        assert str(tmp_path) not in card, name
        assert not re.search(r"(?<![\w.:/])/(?:tmp|home|root|work|dev)/", card), name
        blocks = re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)
        assert len(blocks) == 1, name
        assert list(yaml.safe_load_all(blocks[0])), name


def test_models_of_one_name_stay_apart(trio: Trio, tmp_path: Path) -> None:
    places = []
    for role, folder in zip(ROLES, trio, strict=True):
        shutil.copytree(folder, tmp_path / role / "model")
        places.append(tmp_path / role / "model")
    tv.transfer(*places, tmp_path / "out", alpha=0.5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "--target target/model --donor donor/model --reference reference/model" in card


@pytest.mark.parametrize(
    ("licences", "expected_lines"),
    [
        (("apache-2.0", "apache-2.0", "apache-2.0"), {"license": "apache-2.0"}),
        (("apache-2.0", "mit", "apache-2.0"), {"license": "other", "license_name": "apache-2.0 and mit"}),
        (("apache-2.0", None, "apache-2.0"), {}),
        ((None, None, None), {}),
    ],
)
def test_licences_are_carried_over(
    trio: Trio, tmp_path: Path, licences: tuple[str | None, ...], expected_lines: dict[str, str]
) -> None:
    for folder, licence in zip(trio, licences, strict=True):
        (Path(folder) / "README.md").unlink()
        if licence is not None:
            (Path(folder) / "README.md").write_text(f"---\nlicense: {licence}\ntags: [x]\n---\n# A model\n")
    tv.transfer(*trio, tmp_path / "out", alpha=0.5)
    head = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---")[1])
    assert {key: value for key, value in head.items() if key.startswith("license")} == expected_lines
    found = [source.get("license", {}).get("license") for source in manifest(tmp_path / "out")["sources"]]
    assert found == list(licences)


@pytest.mark.parametrize(
    "text", ["---\nlicense: [\n---\n", "---\nlicense: mit\n", "license: mit", "---\n- a\n---\n", ""]
)
def test_a_card_that_cannot_be_read_states_no_licence(trio: Trio, tmp_path: Path, text: str) -> None:
    for folder in trio:
        (Path(folder) / "README.md").write_text(text)
    tv.transfer(*trio, tmp_path / "out", alpha=0.5)
    assert "license" not in yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---")[1])


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (
            ("alpha:", "alhpa:"),
            "`alhpa`, which a recipe of `transfer` does not have",
            "did you mean `alpha`?",
        ),
        (("donor:", "model:"), "`model`, which a recipe of `transfer` does not have", None),
        (("  donor:", "  # donor:"), "has no `donor`, which a recipe of `transfer` needs", None),
        (('verb: "transfer"', 'verb: "apply"'), "`donor`, which a recipe of `apply` does not have", None),
        (('verb: "transfer"', 'verb: "transfre"'), "records `transfre`", "did you mean `transfer`?"),
        (("alpha: 0.5", "alpha: {x: 1}"), "a value in its recipe that its member cannot have", None),
        (("target: ", "target: 3 #"), "has a `target` that is not a name", None),
        (
            ("alpha:", "overwrite: true\n  alpha:"),
            "`overwrite`, which a recipe of `transfer` does not have",
            None,
        ),
        (("alpha:", "public: true\n  alpha:"), "`public`, which a recipe of `transfer` does not have", None),
        (("alpha:", "strict: false\n  alpha:"), "`strict`, which a recipe of `transfer` does not have", None),
        (("alpha:", "tokenizer: {}\n  alpha:"), "has a `tokenizer` that is not a name", None),
        (("alpha:", "x: &x [1]\n  force: [*x, *x]\n  alpha:"), "`x`, which a recipe", None),
        (("alpha:", "force: &x [*x]\n  alpha:"), "stands inside of what it refers to", None),
        (("alpha:", f"force: [{'x,' * 31000}]\n  alpha:"), "more than 30000 keys and values", None),
        (("alpha:", f"force: {'[' * 5000}{']' * 5000}\n  alpha:"), "not valid YAML", None),
        (("taskvec:", "taskvec: !!python/name:os.system\n  x:"), "has no meaning in a recipe", None),
    ],
)
def test_a_recipe_that_is_not_as_it_was_written_is_refused(
    trio: Trio, tmp_path: Path, change: tuple[str, str], message: str, hint: str | None
) -> None:
    tv.transfer(*trio, tmp_path / "one", alpha=0.5)
    file = tmp_path / "one" / "taskvec_recipe.yaml"
    assert change[0] in file.read_text()
    file.write_text(file.read_text().replace(*change))
    with pytest.raises(tv.RecipeError, match=re.escape(message)) as caught:
        tv.repeat(file, tmp_path / "two")
    assert caught.value.hint
    assert hint is None or caught.value.hint == hint
    assert not (tmp_path / "two").exists()


def test_weights_of_another_number_than_what_they_weigh_are_refused(trio: Trio, tmp_path: Path) -> None:
    tv.extract(trio.donor, trio.reference, tmp_path / "v")
    tv.apply(trio.target, tmp_path / "v", tmp_path / "v", out=tmp_path / "two", alpha=[0.5, 1])
    tv.average([trio.donor, trio.reference], tmp_path / "mean", weights=[0.5, 1])
    for name in ("two", "mean"):
        file = tmp_path / name / "taskvec_recipe.yaml"
        file.write_text(file.read_text().replace("weights: [0.5, 1.0]", "weights: [0.5]"))
        with pytest.raises(tv.RecipeError, match="has 1 `weights` for 2"):
            tv.repeat(file, tmp_path / "again")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"verb": "combine", "terms": []}, "an empty `terms`"),
        (
            {"verb": "combine", "terms": [{"weight": 1, "donor": "d", "reference": "r", "vector": "v"}]},
            "term 1 of",
        ),
        ({"verb": "extract", "vector": "v", "donor": "d", "reference": "r", "rank": 4}, "the member `donor`"),
        ({"verb": "extract", "vector": "v"}, "has no `rank`"),
        ({"verb": "convert", "model": "m", "alpha": [5]}, "the member `alpha`"),
        ({"verb": "moe", "recipe": [{"experts": []}, {"x": 1}]}, "a second recipe"),
        ({"verb": "average", "weights": [0.5, 0.5], "best": 3}, "not the metric of its checkpoints"),
        ({"verb": "average", "weights": [0.5, 0.5], "alpha": 7}, "another `alpha` than 1"),
        ({"verb": "average", "weights": [0.9, 0.1], "schedule": "uniform"}, "other `weights` than those of"),
    ],
)
def test_nothing_that_a_recipe_says_is_passed_over(
    trio: Trio, tmp_path: Path, recipe: dict[str, object], message: str
) -> None:
    models = {
        "combine": {"target": str(trio.target)},
        "average": {"checkpoints": [str(trio.reference), str(trio.donor)]},
    }
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump({"taskvec": {**models.get(str(recipe["verb"]), {}), **recipe}}))
    with pytest.raises(tv.RecipeError, match=message) as caught:
        tv.repeat(file, tmp_path / "out")
    assert caught.value.hint
    assert not (tmp_path / "out").exists()
