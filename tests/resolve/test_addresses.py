"""Addresses of any kind: a toy store in memory, under a scheme of its own, takes the whole road."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import taskvec as tv
from support.models import Trio, safetensors_bytes, write_trio
from support.oracle import same_files
from support.packed_models import BY_NAME, packed_trio
from taskvec.cli import run
from taskvec.errors import FormatError, HubError, NotFoundError, RecipeError
from taskvec.models.model import Identity, Remote, RemoteFile
from taskvec.progress import Callback, Progress
from taskvec.resolve import open as opening
from taskvec.resolve.headers import FIRST_REQUEST

ROLES = ("target", "donor", "reference")


@dataclass
class Store:
    """Folders of objects by name, the cache that they are fetched into, and what was asked for."""

    cache: Path
    objects: dict[str, dict[str, bytes]] = field(default_factory=dict)
    read: list[tuple[str, int, int]] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)

    def put(self, name: str, folder: Path) -> None:
        files = [path for path in folder.rglob("*") if path.is_file()]
        self.objects[name] = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    def find(self, address: str, revision: str | None) -> Remote:
        """The row of the table of schemes."""
        if revision is not None:
            raise RecipeError("a toy has no revisions", "leave it out")
        name = address.removeprefix("toy://")
        if name not in self.objects:
            raise NotFoundError(f"there is no toy `{name}`", "look into the box")
        return Toy(self, name, {file: tag(data) for file, data in self.objects[name].items()})


def tag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Toy:
    """A folder of the store, in the state in which it was found."""

    store: Store
    name: str
    tags: Mapping[str, str]

    @property
    def identity(self) -> Identity:
        return Identity(f"toy://{self.name}", tag(repr(self.tags).encode())[:16], f"toy://{self.name}")

    @property
    def folder(self) -> Path:
        return self.store.cache / f"{self.name}-{self.identity.revision}"

    def list(self) -> Mapping[str, RemoteFile]:
        return {name: RemoteFile(name, self.size(name), digest) for name, digest in self.tags.items()}

    def size(self, name: str) -> int:
        return len(self.store.objects[self.name][name])

    def read(self, name: str, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        self.store.read += [(name, start, stop) for start, stop in ranges]
        data = self._data(name)
        return [data[start:stop] for start, stop in ranges]

    def fetch(
        self, names: Collection[str], folder: Path | None = None, progress: Callback | None = None
    ) -> Path:
        place, total, done = folder or self.folder, sum(map(self.size, names)), 0
        for name in names:
            if not (place / name).exists():
                self.store.fetched.append(name)
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_bytes(self._data(name))
            done += self.size(name)
            if progress is not None:
                progress(Progress("download", done, total, 0.0))
        return place

    def _data(self, name: str) -> bytes:
        data = self.store.objects[self.name][name]
        if tag(data) != self.tags[name]:
            raise HubError(f"`{name}` of `toy://{self.name}` has changed", "open it again")
        return data


@pytest.fixture
def local(tmp_path: Path) -> Trio:
    """Three checkpoints; half of a shard is more than the first request for its header."""
    return write_trio(tmp_path / "source", shards=(2, 3, 1), hidden=128, intermediate=512, vocabulary=400)


@pytest.fixture
def store(local: Trio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The three checkpoints at `toy://target`, `toy://donor` and `toy://reference`."""
    store = Store(tmp_path / "cache")
    for name, folder in zip(ROLES, local, strict=True):
        store.put(name, folder)
    monkeypatch.setitem(opening.SCHEMES, "toy://", store.find)
    return store


def addresses() -> list[str]:
    return [f"toy://{role}" for role in ROLES]


def test_open_reads_headers_alone(store: Store, local: Trio) -> None:
    model, same = tv.open("toy://target"), tv.open(local.target)
    assert model.path is None
    assert dict(model.tensors) == dict(same.tensors)
    assert (model.fingerprint, model.config, model.file_sizes) == (
        same.fingerprint,
        same.config,
        same.file_sizes,
    )
    assert model.repository == model.address == "toy://target"
    assert set(store.fetched) == {"config.json", "model.safetensors.index.json"}
    assert {name for name, _, _ in store.read} == set(model.file_sizes)
    assert all(stop <= FIRST_REQUEST for _, _, stop in store.read)
    others = sum(len(store.objects["target"][name]) for name in model.other_files if name != "config.json")
    assert model.download_bytes == sum(model.file_sizes.values()) + others
    with pytest.raises(HubError, match="have not been downloaded"):
        model["model.norm.weight"]


def test_other_files_are_read_one_by_one(store: Store, local: Trio) -> None:
    model = tv.open("toy://target")
    assert model.read_file("tokenizer.json") == (local.target / "tokenizer.json").read_bytes()
    assert store.fetched.count("tokenizer.json") == 1
    with pytest.raises(NotFoundError, match="has no file `model"):
        model.read_file("model-00001-of-00002.safetensors")


def test_materialise(store: Store, local: Trio) -> None:
    events: list[Progress] = []
    remote = tv.open("toy://donor")
    fetched = remote.materialise(events.append)
    assert fetched.path == remote.location
    assert (fetched.revision, fetched.address, fetched.download_bytes) == (
        remote.revision,
        remote.address,
        0,
    )
    expected = tv.open(local.donor)
    assert all(fetched[name].tobytes() == expected[name].tobytes() for name in expected)
    assert {event.phase for event in events} == {"download"}
    assert events[-1].done_bytes == events[-1].total_bytes
    store.read.clear()
    assert tv.open("toy://donor").path == fetched.path
    assert store.read == []


def test_inspect(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "toy://target", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["repository"] == "toy://target"
    assert not any(name.endswith(".safetensors") for name in store.fetched)


def test_dry_run_moves_no_weights(store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    models = [word for role in ROLES for word in (f"--{role}", f"toy://{role}")]
    assert run(["transfer", *models, "-o", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "download" in capsys.readouterr().out
    assert not any(name.endswith(".safetensors") for name in store.fetched)
    plan = tv.plan_transfer(*addresses())
    assert all(source.download > 0 for source in plan.sources)
    for address in addresses():
        tv.open(address).materialise()
    assert tv.plan_transfer(*addresses()).json == plan.json


def test_what_is_streamed_has_the_same_bytes(store: Store, local: Trio, tmp_path: Path) -> None:
    """No weight file is fetched as a whole."""
    with tv.storage(scratch=tmp_path / "scratch"):
        tv.transfer(*addresses(), tmp_path / "out", alpha=0.5, stream=True)
    tv.transfer(*local, tmp_path / "local", alpha=0.5)
    for path in (tmp_path / "local").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    assert not any(name.endswith(".safetensors") for name in store.fetched)


@pytest.mark.usefixtures("store")
def test_transfer(local: Trio, tmp_path: Path) -> None:
    tv.transfer(*addresses(), tmp_path / "out", alpha=0.5)
    tv.transfer(*local, tmp_path / "local", alpha=0.5)
    for path in (tmp_path / "local").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    data = json.loads((tmp_path / "out" / "taskvec.json").read_text())
    assert [source["repository"] for source in data["sources"]] == addresses()
    assert data["recipe"]["donor"] == "toy://donor"
    assert tv.verify(tmp_path / "out").ok
    words = shlex.split(data["command"])
    words[words.index("OUT")] = str(tmp_path / "again")
    assert run([*words[1:], "--quiet"]) == 0
    same_files(tmp_path / "out", tmp_path / "again")


def test_a_vector(store: Store, local: Trio, tmp_path: Path) -> None:
    tv.extract(local.donor, local.reference, tmp_path / "vector")
    store.put("vector", tmp_path / "vector")
    tv.apply("toy://target", "toy://vector", out=tmp_path / "out")
    tv.apply(local.target, tmp_path / "vector", out=tmp_path / "local")
    for path in (tmp_path / "local").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    recipe = json.loads((tmp_path / "out" / "taskvec.json").read_text())["recipe"]
    assert recipe["vectors"] == ["toy://vector"]


# --- refusals ---


@pytest.mark.usefixtures("store")
def test_no_such_address() -> None:
    with pytest.raises(NotFoundError, match="there is no toy `nothing`"):
        tv.open("toy://nothing")
    with pytest.raises(RecipeError, match="no revisions"):
        tv.open("toy://target", revision="main")


def test_an_address_is_never_a_local_path(store: Store, monkeypatch: pytest.MonkeyPatch, local: Trio) -> None:
    monkeypatch.chdir(local.target.parent)
    Path("toy:").mkdir()
    Path("toy:/target").symlink_to(local.donor)
    assert tv.open("toy://target").repository == "toy://target"
    assert store.read


@pytest.mark.parametrize("name", ["config.json", "model-00001-of-00002.safetensors"])
def test_a_file_that_changed_since_it_was_listed(store: Store, name: str) -> None:
    remote = tv.open("toy://target").remote
    assert remote is not None
    store.objects["target"][name] += b" "
    with pytest.raises(HubError, match=f"`{name}` of `toy://target` has changed"):
        remote.fetch([name], store.cache / "elsewhere")


@pytest.mark.usefixtures("store")
def test_other_headers_than_before() -> None:
    model = tv.open("toy://reference")
    (name,) = model.file_sizes
    (model.location / name).write_bytes(safetensors_bytes({}))
    with pytest.raises(HubError, match="`toy://reference` have other headers than") as caught:
        model.materialise()
    assert caught.value.hint
    assert "HF_" not in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("config.json", b"{", "toy://target/config.json"),
        ("model.safetensors.index.json", b"{", "toy://target/model.safetensors.index.json"),
        ("model-00001-of-00002.safetensors", b"\xff" * 64, "toy://target/model-00001-of-00002.safetensors"),
        ("model-00001-of-00002.safetensors", b"", "toy://target/model-00001-of-00002.safetensors"),
    ],
)
def test_damaged_files(store: Store, name: str, data: bytes, text: str) -> None:
    store.objects["target"][name] = data
    with pytest.raises(FormatError) as caught:
        tv.open("toy://target")
    assert text in str(caught.value)
    assert "taskvec-headers" not in str(caught.value)


def test_no_model_at_the_address(store: Store) -> None:
    store.objects["pickles"] = {"config.json": b"{}", "pytorch_model.bin": b"x"}
    with pytest.raises(FormatError, match="pickle"):
        tv.open("toy://pickles")
    store.objects["empty"] = {}
    with pytest.raises(NotFoundError, match="safetensors"):
        tv.open("toy://empty")


@pytest.mark.parametrize(
    "name", ["../evil.json", "/evil.json", "a/../../evil.json", "a\\evil.json", "a\0b.json"]
)
def test_names_that_leave_the_folder(store: Store, name: str) -> None:
    store.objects["target"][name] = b"{}"
    with pytest.raises(HubError, match="`toy://target` lists a file named") as caught:
        tv.open("toy://target")
    assert caught.value.hint
    assert store.fetched == []


def test_shards_in_a_folder_of_their_own(store: Store, tmp_path: Path) -> None:
    files = store.objects["target"]
    index = json.loads(files["model.safetensors.index.json"])
    for shard in set(index["weight_map"].values()):
        files[f"shards/{shard}"] = files.pop(shard)
    index["weight_map"] = {name: f"shards/{shard}" for name, shard in index["weight_map"].items()}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    for name, data in files.items():
        (tmp_path / "same" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "same" / name).write_bytes(data)
    try:
        expected: object = tv.open(tmp_path / "same").fingerprint
    except tv.Error as error:
        expected = error.message.replace(str(tmp_path / "same"), "toy://target")
    try:
        found: object = tv.open("toy://target").fingerprint
    except tv.Error as error:
        found = error.message
    assert found == expected


@pytest.mark.parametrize("name", ["block FP8, BF16 scales", "NF4 nested", "CT INT4 channel"])
def test_packed_weights_are_known_before_they_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What headers leave open is read by ranges; the plan is that of the local files."""
    local, _ = packed_trio(tmp_path / "source", BY_NAME[name], shards=2)
    store = Store(tmp_path / "cache")
    for role, folder in zip(ROLES, local, strict=True):
        store.put(role, folder)
    monkeypatch.setitem(opening.SCHEMES, "toy://", store.find)
    models, same = [tv.open(each) for each in addresses()], [tv.open(folder) for folder in local]
    assert all(model.path is None for model in models)
    assert [dict(model.tensors) for model in models] == [dict(model.tensors) for model in same]
    assert [dict(model.packed) for model in models] == [dict(model.packed) for model in same]
    assert not [file for file in store.fetched if file.endswith(".safetensors")]
    tv.transfer(*models, tmp_path / "out", out_dtype="bfloat16")
    tv.transfer(*same, tmp_path / "same", out_dtype="bfloat16")
    for file in (tmp_path / "same").glob("*.safetensors"):
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_a_vector_that_a_format_would_take_is_found_when_the_weights_are_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = BY_NAME["block FP8, BF16 scales"]
    local, _ = packed_trio(tmp_path / "source", way, plain=("donor", "reference"), step=0.0001)
    store = Store(tmp_path / "cache")
    for role, folder in zip(ROLES, local, strict=True):
        store.put(role, folder)
    monkeypatch.setitem(opening.SCHEMES, "toy://", store.find)
    plan = tv.plan_transfer(*addresses(), out_dtype="target")
    assert "quantised-lost" not in [each.id for each in plan.findings]
    with pytest.raises(tv.CompatibilityError, match="would be left"):
        plan.run(tmp_path / "out")
    assert not (tmp_path / "out").exists()
