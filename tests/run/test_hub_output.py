"""Outputs on the hub: sent file by file, one commit, gone on with, refused, and nothing secret shown."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

import taskvec as tv
from support.command_line import invoke
from support.hub_fixtures import TOKEN, hub
from support.hub_server import Hub, Repo
from support.hub_uploads import SIGNATURE
from support.models import Trio
from support.oracle import card_without_digests
from support.pipelines import pipeline
from taskvec._core import digest_file
from taskvec.run.hub_sink import HubSink, hub_sink
from taskvec.run.sink import Head, Sent

__all__ = ["hub"]

ADDRESS = "hf://org/out"
HEAD = Head("identity", 1, b"plan", ("",))


class Output:
    """Two weight files and what belongs to them, as a run leaves them in its scratch folder."""

    def __init__(self, folder: Path, *, run: str = "1", seed: int = 0) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.weights = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        for number, name in enumerate(self.weights):
            (folder / name).write_bytes(bytes([number, seed]) * 50_000)
        (folder / "config.json").write_text("{}")
        (folder / "README.md").write_text("---\ntags: [taskvec]\n---\nA model.\n")
        names = [*self.weights, "config.json", "README.md"]
        listed = [
            {"name": name, "bytes": digest_file(folder / name)[0], "blake3": digest_file(folder / name)[1]}
            for name in names
        ]
        self.manifest = json.dumps({"schema": 1, "files": listed, "run": {"id": run}}).encode()

    def sent(self, name: str) -> Sent:
        size, digest = digest_file(self.folder / name)
        line = json.dumps({"shard": name, "size": size, "digest": digest, "extra": None})
        return Sent(name, size, digest, HEAD.identity, "inputs", line)

    def send(self, sink: HubSink, name: str, told: Any = lambda _: None) -> None:
        sink.send(self.folder / name, self.sent(name), told)

    def finish(self, sink: HubSink) -> None:
        files = [(name, self.folder / name) for name in ("README.md", "config.json")]
        sink.finish(files, {"taskvec.json": self.manifest})

    def run(self, address: str = ADDRESS, *, public: bool = False, **options: bool) -> HubSink:
        sink = hub_sink(address, public=public)
        there = sink.begin(HEAD, **options)
        for name in self.weights:
            if name not in there:
                self.send(sink, name)
        self.finish(sink)
        return sink

    def files(self) -> dict[str, bytes]:
        names = [*self.weights, "config.json", "README.md"]
        return {name: (self.folder / name).read_bytes() for name in names} | {"taskvec.json": self.manifest}


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(tmp_path / "made")


def files_at(repo: Repo, branch: str = "main") -> dict[str, bytes]:
    own = (".gitattributes", ".taskvec/written.json")
    return {name: data for name, data in repo.at(branch)[1].items() if not name.endswith(own)}


@pytest.mark.parametrize("public", [False, True])
def test_one_commit_has_all_files(hub: Hub, output: Output, public: bool) -> None:
    sink = output.run(public=public)
    repo = hub.repos["org/out"]
    assert files_at(repo) == output.files()
    assert len(repo.history) == 1
    assert repo.private is not public
    assert len(hub.puts) == 2
    assert json.loads(sink.finished(["taskvec.json"])["taskvec.json"])["run"]["id"] == "1"
    assert sink.sizes() == {name: len(data) for name, data in output.files().items()}
    assert not list((output.folder.parent / "home" / "taskvec").glob("*"))
    from huggingface_hub import hf_hub_download

    got = {name: Path(hf_hub_download("org/out", name)).read_bytes() for name in output.files()}
    assert got == output.files()


def test_nothing_is_seen_before_the_commit(hub: Hub, output: Output) -> None:
    sink = hub_sink(ADDRESS)
    assert sink.finished(["taskvec.json"]) == {}
    assert sink.begin(HEAD) == {}
    for name in output.weights:
        output.send(sink, name)
        assert files_at(hub.repos["org/out"]) == {}
    assert set(sink.sent()) == set(output.weights)
    output.finish(sink)
    assert files_at(hub.repos["org/out"]) == output.files()


def test_a_branch_is_made_and_main_is_left_alone(hub: Hub, output: Output, tmp_path: Path) -> None:
    output.run()
    main = files_at(hub.repos["org/out"])
    other = Output(tmp_path / "other", seed=7, run="2")
    other.run(f"{ADDRESS}@experiment")
    assert files_at(hub.repos["org/out"]) == main
    assert files_at(hub.repos["org/out"], "experiment") == other.files()


def test_what_was_sent_is_not_sent_again(hub: Hub, output: Output) -> None:
    sink = hub_sink(f"{ADDRESS}@experiment")
    sink.begin(HEAD)
    output.send(sink, output.weights[0])
    sink.close(failed=True)
    again = hub_sink(f"{ADDRESS}@experiment")
    there = again.begin(HEAD)
    assert there == {output.weights[0]: output.sent(output.weights[0])}
    (output.folder / output.weights[0]).rename(output.folder / "gone")
    output.send(again, output.weights[1])
    output.finish(again)
    (output.folder / "gone").rename(output.folder / output.weights[0])
    assert files_at(hub.repos["org/out"], "experiment") == output.files()
    assert len(hub.puts) == 2


def test_what_the_hub_has_no_more_is_said_and_sent_again(
    hub: Hub, output: Output, caplog: pytest.LogCaptureFixture
) -> None:
    sink = hub_sink(ADDRESS)
    sink.begin(HEAD)
    output.send(sink, output.weights[0])
    hub.objects.clear()
    with caplog.at_level(logging.WARNING, "taskvec.hub"):
        assert hub_sink(ADDRESS).begin(HEAD) == {}
    assert "computed again" in caplog.text
    output.run()
    assert files_at(hub.repos["org/out"]) == output.files()


@pytest.mark.usefixtures("hub")
def test_records_that_are_damaged_or_of_another_plan_do_not_count(output: Output) -> None:
    sink = hub_sink(ADDRESS)
    sink.begin(HEAD)
    for name in output.weights:
        output.send(sink, name)
    record = next((output.folder.parent / "home" / "taskvec").glob("*/done/*00001*.json"))
    record.write_bytes(record.read_bytes()[:-9])
    assert set(hub_sink(ADDRESS).begin(HEAD)) == {output.weights[1]}
    assert hub_sink(ADDRESS).begin(HEAD, resume=False) == {}
    output.send(sink, output.weights[0])
    with pytest.raises(tv.OutputError, match="different plan"):
        hub_sink(ADDRESS).begin(HEAD._replace(identity="another"))
    assert hub_sink(ADDRESS).begin(HEAD._replace(identity="another"), overwrite=True) == {}


def test_weights_that_the_hub_keeps_in_its_history(hub: Hub, output: Output) -> None:
    hub.faults.regular = tuple(output.weights)
    sink = hub_sink(ADDRESS)
    sink.begin(HEAD)
    output.send(sink, output.weights[0])
    there = hub_sink(ADDRESS).begin(HEAD)
    assert set(there) == {output.weights[0]}
    output.run()
    assert files_at(hub.repos["org/out"]) == output.files()
    assert hub.puts == []


def test_what_is_there_is_left_or_replaced_in_one_commit(hub: Hub, output: Output, tmp_path: Path) -> None:
    output.run()
    repo = hub.repos["org/out"]
    repo.files["notes.txt"] = b"mine"
    repo.files["model-00003-of-00003.safetensors"] = b"old"
    other = Output(tmp_path / "other", seed=7, run="2")
    before = dict(repo.files)
    with pytest.raises(tv.OutputError, match="holds a finished output"):
        other.run()
    assert repo.files == before
    other.run(overwrite=True)
    assert files_at(repo) == {**other.files(), "notes.txt": b"mine"}
    assert [len(removed) for _, _, removed in repo.history] == [0, 1]
    hub.repos["org/out"] = Repo({".gitattributes": b"", "notes.txt": b"mine"})
    with pytest.raises(tv.OutputError, match=r"holds files such as `notes.txt`"):
        output.run()


def test_of_two_runs_one_wins(hub: Hub, output: Output, tmp_path: Path) -> None:
    sink = hub_sink(ADDRESS)
    sink.begin(HEAD)
    for name in output.weights:
        output.send(sink, name)
    other = Output(tmp_path / "other", seed=7, run="2")
    other_sink = hub_sink(ADDRESS)
    other_sink.begin(HEAD)
    for name in other.weights:
        other.send(other_sink, name)
    other.finish(other_sink)
    with pytest.raises(tv.OutputError, match=r"not sent|ended"):
        output.finish(sink)
    sink._note(HEAD)
    for name in output.weights:
        output.send(sink, name)
    with pytest.raises(tv.OutputError, match="another run has ended"):
        output.finish(sink)
    assert files_at(hub.repos["org/out"]) == other.files()


def test_a_commit_of_others_in_between(hub: Hub, output: Output) -> None:
    def note() -> None:
        hub.repos["org/out"].files["notes.txt"] = b"theirs"
        hub.repos["org/out"].commit = "f" * 40

    hub.faults.before["commit"] = note
    output.run()
    assert files_at(hub.repos["org/out"]) == {**output.files(), "notes.txt": b"theirs"}

    def weights() -> None:
        hub.repos["org/two"].files["model.safetensors"] = b"theirs"
        hub.repos["org/two"].commit = "e" * 40

    hub.faults.before["commit"] = weights
    with pytest.raises(tv.OutputError, match="others have put weights"):
        output.run("hf://org/two")
    assert "taskvec.json" not in hub.repos["org/two"].files


def test_an_answer_that_is_lost_is_no_failure(hub: Hub, output: Output) -> None:
    hub.faults.lose = {"commit": 1}
    output.run()
    assert len(hub.repos["org/out"].history) == 1
    assert files_at(hub.repos["org/out"]) == output.files()


@pytest.mark.parametrize("step", ["create", "branch", "preupload", "batch", "put", "verify", "commit"])
@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "needs a valid token"),
        (403, "may not write"),
        (404, "is not found"),
        (409, "changed by another commit"),
        (429, "no more requests"),
        (500, "answered 500"),
        (507, "no room"),
    ],
)
def test_every_refusal_is_named(hub: Hub, output: Output, step: str, status: int, words: str) -> None:
    if (step, status) in (("create", 409), ("branch", 409)):
        status, words = 400, "answered 400"  # 409 says that it is there already
    address = f"{ADDRESS}@experiment"
    hub.faults.refuse = {step: (status, 100)}
    with pytest.raises(tv.HubError) as caught:
        output.run(address)
    assert words in str(caught.value)
    assert caught.value.hint
    hidden(str(caught.value), caught.value.hint, repr(caught.value.__cause__))
    assert "taskvec.json" not in files_at(hub.repos.get("org/out", Repo({})), "experiment")
    hub.faults.refuse = {}
    output.run(address)
    assert files_at(hub.repos["org/out"], "experiment") == output.files()
    assert len(hub.puts) == 2


@pytest.mark.parametrize("step", ["preupload", "batch", "put", "commit"])
def test_what_passes_is_tried_again(hub: Hub, output: Output, step: str) -> None:
    hub.faults.refuse = {step: (503, 1)}
    output.run()
    assert files_at(hub.repos["org/out"]) == output.files()


@pytest.mark.usefixtures("hub")
def test_a_run_without_a_token_and_without_a_network(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(tv.HubError, match="needs a valid token") as caught:
        output.run()
    assert "hf auth login" in str(caught.value.hint)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(tv.HubError, match="cannot be reached") as caught:
        output.run()
    assert "connection" in str(caught.value.hint)


@pytest.mark.parametrize("how", [KeyboardInterrupt, RuntimeError])
def test_an_upload_is_stopped_by_what_is_told(hub: Hub, output: Output, how: type[BaseException]) -> None:
    seen: list[int] = []

    def told(count: int) -> None:
        seen.append(count)
        if count > 10:
            raise how("stop")

    sink = hub_sink(ADDRESS)
    sink.begin(HEAD)
    with pytest.raises(how, match="stop"):
        output.send(sink, output.weights[0], told)
    assert hub.puts == []
    assert sink.sent() == {}
    output.send(sink, output.weights[0], seen.append)
    assert seen[-1] == 100_000


def hidden(*texts: object) -> None:
    for text in texts:
        assert TOKEN not in str(text)
        assert SIGNATURE not in str(text)


def test_no_secret_is_left_anywhere(
    hub: Hub,
    output: Output,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    caplog.set_level(logging.INFO)
    hub.faults.refuse = {"put": (403, 1)}
    with pytest.raises(tv.HubError):
        output.run()
    output.run()
    hidden(*(record.getMessage() for record in caplog.records if record.name.startswith("taskvec")))
    hidden(*capfd.readouterr())
    for path in tmp_path.rglob("*"):
        if path.is_file():
            hidden(path.read_bytes())
    for data in hub.repos["org/out"].files.values():
        hidden(data)


@pytest.mark.parametrize("address", ["hf://", "hf://a/b/c", "hf://org/", "hf://org/na me", "hf://org/name@"])
def test_what_is_no_repository_is_refused(hub: Hub, address: str) -> None:  # noqa: ARG001
    with pytest.raises(tv.RecipeError):
        hub_sink(address)


# --- whole runs
def written(repo: Repo, branch: str = "main") -> dict[str, bytes]:
    """The files of an output without what tells one run from another."""
    return _compared(files_at(repo, branch))


def local(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return _compared({path.relative_to(folder).as_posix(): path.read_bytes() for path in files})


def _compared(files: dict[str, bytes]) -> dict[str, bytes]:
    """Without manifests, and cards without digests of inputs: streamed runs and parts make none."""
    return {
        name: card_without_digests(data.decode()).encode() if Path(name).name == "README.md" else data
        for name, data in files.items()
        if not name.endswith("taskvec.json")
    }


def test_every_verb_writes_to_the_hub_what_it_writes_here(
    hub: Hub, trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "linear.yaml"
    recipe.write_text(
        f"merge_method: task_arithmetic\nbase_model: {trio.reference}\ndtype: bfloat16\n"
        f"models:\n- {{model: {trio.donor}, parameters: {{weight: 0.5}}}}\n"
    )
    models = ["--target", trio.target, "--donor", trio.donor, "--reference", trio.reference]
    assert invoke(capsys, "extract", trio.donor, trio.reference, "-o", tmp_path / "vector").code == 0
    for name, words in {
        "transfer": ["transfer", *models],
        "two": ["transfer", *models, "--alpha", "0.5,1"],
        "extract": ["extract", trio.donor, trio.reference],
        "apply": ["apply", trio.target, tmp_path / "vector"],
        "merge": ["merge", recipe],
        "convert": ["convert", trio.target, "--out-dtype", "float32"],
    }.items():
        flag = [] if name == "merge" else ["-o"]
        address, size = f"hf://org/{name}", ["--max-shard-size", "6000"]
        assert invoke(capsys, *words, *flag, tmp_path / name, *size).code == 0
        outcome = invoke(capsys, *words, *flag, address, *size, "--public")
        folders = [address] if name != "two" else [f"{address}/alpha=0.5", f"{address}/alpha=1"]
        assert (outcome.code, outcome.out.splitlines()) == (0, folders), outcome.err
        assert "LFS" not in outcome.err
        repo = hub.repos[f"org/{name}"]
        assert written(repo) == local(tmp_path / name)
        assert len(repo.history) == 1
        assert not repo.private
        again = invoke(capsys, *words, *flag, address, *size)
        assert again.code == 0
        assert len(repo.history) == 1
        assert invoke(capsys, "verify", address).code == 0
        for option in ([], ["--rehash"]):
            file = next(name for name in repo.files if name.endswith(".safetensors"))
            whole = repo.files[file]
            repo.files[file] = whole[:-1] + bytes([whole[-1] ^ 1])
            broken = invoke(capsys, "verify", address, *option)
            assert (broken.code, file in broken.out) == (1, True)
            repo.files[file] = whole
    assert "taskvec" in hub.repos["org/transfer"].files["README.md"].decode()


def test_a_run_that_is_interrupted_goes_on_with_what_was_sent(hub: Hub, trio: Trio, tmp_path: Path) -> None:
    plan = tv.plan_transfer(*trio, max_shard_size=6000)
    plan.run(tmp_path / "one")

    def stop(_: tv.Progress) -> None:
        if len(hub.puts) > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plan.run(ADDRESS, progress=stop)
    assert "taskvec.json" not in hub.repos["org/out"].files
    before = len(hub.puts)
    assert 3 < before < len(plan.shards)
    report = plan.run(ADDRESS)
    assert report.resumed_shards >= before - 2
    assert len(hub.puts) == len(set(hub.puts))
    assert written(hub.repos["org/out"]) == local(tmp_path / "one")
    assert not list((tmp_path / "home" / "taskvec").glob("*"))


def test_parts_that_share_the_cache_write_one_output(hub: Hub, trio: Trio, tmp_path: Path) -> None:
    plan = tv.plan_transfer(*trio, max_shard_size=6000)
    plan.run(tmp_path / "one")
    reports = [plan.part(number, 3).run(ADDRESS) for number in (2, 0, 1)]
    assert [report.report is None for report in reports] == [True, True, False]
    assert written(hub.repos["org/out"]) == local(tmp_path / "one")
    assert len(hub.repos["org/out"].history) == 1


def test_what_went_by_xet_is_known_by_the_commit_alone(
    hub: Hub, output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for Xet: the file is there, and the LFS side of the hub knows nothing of it."""
    from taskvec.resolve import hub_write

    sink = hub_sink(ADDRESS)
    sink.begin(HEAD)
    real = sink.place.send
    monkeypatch.setattr(
        hub_write.HubPlace,
        "send",
        lambda _, *given: real(*given)._replace(xet=True),  # type: ignore[union-attr]
    )
    output.send(sink, output.weights[0])
    kept = dict(hub.objects)
    hub.objects.clear()
    again = hub_sink(ADDRESS)
    assert set(again.begin(HEAD)) == {output.weights[0]}
    output.send(again, output.weights[1])
    with pytest.raises(tv.HubError, match="answered 400"):
        output.finish(again)
    assert hub_sink(ADDRESS).begin(HEAD) == {}
    output.send(again, output.weights[0])
    output.send(again, output.weights[1])
    assert set(kept) <= set(hub.objects)
    output.finish(again)
    assert files_at(hub.repos["org/out"]) == output.files()


def test_an_output_of_several_folders(hub: Hub, tmp_path: Path) -> None:
    three = [pipeline(tmp_path / name, seed) for seed, name in enumerate("tdr")]
    tv.transfer(*three, tmp_path / "one" / "out", alpha=0.5)
    tv.transfer(*three, ADDRESS, alpha=0.5)
    made = {
        path.relative_to(tmp_path / "one" / "out").as_posix(): path.read_bytes()
        for path in (tmp_path / "one" / "out").rglob("*")
        if path.is_file()
    }
    sent = files_at(hub.repos["org/out"])
    assert sent.keys() - {".gitattributes"} == made.keys()
    assert all(sent[name] == data for name, data in made.items() if name.endswith((".safetensors", ".json"))
               and name != "taskvec.json")  # fmt: skip
    assert tv.transfer(*three, ADDRESS, alpha=0.5).already_done


def test_parts_of_a_vector_that_share_the_cache(hub: Hub, trio: Trio, tmp_path: Path) -> None:
    """Its pieces lie there, out of the repository; one that is damaged is made again."""
    plan = tv.plan_extract(trio.donor, trio.reference, max_shard_size=6000)
    expected = plan.run(tmp_path / "one")
    first = plan.part(2, 3).run(ADDRESS)
    place = next((tmp_path / "home" / "taskvec").glob("*/pieces"))
    assert {path.name for path in place.iterdir()} == {shard.name for shard in first.shards}
    broken = place / first.shards[0].name
    broken.write_bytes(broken.read_bytes()[:-1])
    again = plan.part(2, 3).run(ADDRESS)
    assert [shard.name for shard in again.shards] == [broken.name]
    data = bytearray(broken.read_bytes())
    data[-1] ^= 1
    broken.write_bytes(data)
    plan.part(0, 3).run(ADDRESS)
    with pytest.raises(tv.OutputError, match="does not have the bytes that were sent"):
        plan.part(1, 3).run(ADDRESS)
    assert not hub.puts
    last = plan.part(2, 3).run(ADDRESS, settings=tv.Settings(rehash=True))
    assert last.report is not None
    assert last.report.vector == expected.vector
    assert written(hub.repos["org/out"]) == local(tmp_path / "one")
    assert len(hub.repos["org/out"].history) == 1
    assert not list((tmp_path / "home" / "taskvec").glob("*"))
