"""What the workflows and the packaging files promise, as far as it can be read without running them."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CARGO = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))["workspace"]["package"]


def workflow(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit_and_nothing_is_cached(path: Path) -> None:
    used = re.findall(r"^\s*-?\s*uses:\s*(.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert used
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w./-]+@[0-9a-f]{40} # v\d+(\.\d+)+", action), action
        assert "cache" not in action
    assert not re.search(r"\bcache(-\w+)*:|sccache|RUSTC_WRAPPER", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_job_may_do_what_it_needs_and_no_more(path: Path) -> None:
    flow = workflow(path)
    assert flow["permissions"] == {}
    for name, job in flow["jobs"].items():
        assert "timeout-minutes" in job, name
        granted = job["permissions"]
        if name == "publish":
            assert granted == {"id-token": "write", "attestations": "write"}
            assert not any("checkout" in step.get("uses", "") for step in job["steps"])
        else:
            assert granted in ({}, {"contents": "read"}), name
        for step in job["steps"]:
            if "checkout" in step.get("uses", ""):
                assert step["with"]["persist-credentials"] is False


def test_what_is_published_was_tested_on_each_platform() -> None:
    jobs = workflow(ROOT / ".github" / "workflows" / "release.yml")["jobs"]
    assert set(jobs["publish"]["needs"]) == {"linux", "macos", "sdist", "test", "test-musl"}
    machine = {"x86_64": "ubuntu-24.04", "aarch64": "ubuntu-24.04-arm"}
    built = {machine[target.split("-")[0]] for target in jobs["linux"]["strategy"]["matrix"]["target"]}
    built |= set(jobs["macos"]["strategy"]["matrix"]["runner"])
    tested = jobs["test"]["strategy"]["matrix"]
    assert set(tested["runner"]) == built
    versions = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", each)]
    assert [each for each in tested["python"] if not each.endswith("t")] == versions
    assert f">={versions[0]}" == PROJECT["requires-python"]


@pytest.fixture
def version() -> ModuleType:
    spec = importlib.util.spec_from_file_location("version", ROOT / ".ci" / "version.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(version: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that tell the version, to be changed; ready for a release."""
    for name in ("Cargo.toml", "Cargo.lock", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## {CARGO['version']} (2030-01-02)\n")
    text = (tmp_path / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(
        re.sub(r"(?m)^Paper = .*$", 'Source = "https://a.example/taskvec"', text)
    )
    monkeypatch.setattr(version, "ROOT", tmp_path)
    return tmp_path


def test_a_release_has_one_version_everywhere(version: ModuleType, checkout: Path) -> None:
    released = ["--released", f"v{CARGO['version']}"]
    assert version.main(released) == []
    assert version.main([]) == []
    (wrong,) = version.main(["--released", "v9.9.9"])
    assert "the tag is `v9.9.9`" in wrong
    (checkout / "CHANGELOG.md").write_text("## Unreleased\n")
    (wrong,) = version.main(released)
    assert "CHANGELOG.md begins with `Unreleased`" in wrong
    assert version.main([]) == []
    (checkout / "CHANGELOG.md").write_text("## 9.9.9 (2030-01-02)\n")
    assert len(version.main([])) == 1


def test_a_release_names_its_source_and_a_lock_file_of_its_version(
    version: ModuleType, checkout: Path
) -> None:
    released = ["--released", f"v{CARGO['version']}"]
    lock = (checkout / "Cargo.lock").read_text()
    ours = 'name = "taskvec-core"\nversion = "{}"'
    other = lock.replace(ours.format(CARGO["version"]), ours.format("0.0.9"))
    (checkout / "Cargo.lock").write_text(other)
    (wrong,) = version.main(released)
    assert "taskvec-core 0.0.9" in wrong
    (checkout / "Cargo.lock").write_text(lock)
    (checkout / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    found = version.main(released)
    assert (found == []) == ("Source" in PROJECT["urls"])


def test_the_interpreter_declares_that_it_needs_no_lock() -> None:
    # Nothing in it is tied to one thread, or guarded by the lock that a free-threaded Python lacks.
    text = (ROOT / "rust" / "bindings" / "lib.rs").read_text(encoding="utf-8")
    assert "#[pymodule(gil_used = false)]" in text
    assert not re.search(
        r"\bunsendable\b|GILOnceCell",
        "".join(path.read_text(encoding="utf-8") for path in (ROOT / "rust" / "bindings").rglob("*.rs")),
    )


def test_the_container_copies_what_the_build_reads() -> None:
    text = (ROOT / "docs" / "install" / "Containerfile").read_text(encoding="utf-8")
    copied = {word for line in re.findall(r"(?m)^COPY (?!--from)(.+) \S+$", text) for word in line.split()}
    for name in copied:
        assert (ROOT / name).exists(), name
    read = {"Cargo.toml", "Cargo.lock", "pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]}
    read |= {"rust", "python", "benches"}
    assert read <= copied
    newest = re.findall(r"^FROM rust:(\d+)\.(\d+)", text, re.MULTILINE)[0]
    assert tuple(map(int, newest)) >= tuple(map(int, CARGO["rust-version"].split(".")))
