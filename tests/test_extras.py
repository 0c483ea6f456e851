"""What a hint says about installing an extra, for each way in which taskvec may have been installed."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import taskvec

PACKAGE = Path(taskvec.__file__).parent
ROOT = Path(__file__).parents[1]


def said(path: Path) -> str:
    """What `install` says in a process that finds taskvec in `path` first."""
    found = f"import sys; sys.path.insert(0, {str(path)!r}); from taskvec.extras import install"
    code = f"{found}; print(install('eval', 'ray'))"
    return subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder of installed packages with taskvec in it, without a record of where it is from."""
    folder = tmp_path / "site packages"
    (folder / "taskvec").mkdir(parents=True)
    (folder / "taskvec" / "__init__.py").touch()
    shutil.copy(PACKAGE / "extras.py", folder / "taskvec")
    info = folder / "taskvec-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: taskvec\nVersion: 1.0\n")
    (info / "INSTALLER").write_text("pip\n")
    return folder


def recorded(folder: Path, **origin: object) -> Path:
    (folder / "taskvec-1.0.dist-info" / "direct_url.json").write_text(json.dumps(origin))
    return folder


def test_from_an_index(installed: Path) -> None:
    assert said(installed) == "pip install 'taskvec[eval,ray]'"
    (installed / "taskvec-1.0.dist-info" / "INSTALLER").write_text("uv")
    assert said(installed) == "uv pip install 'taskvec[eval,ray]'"


def test_from_a_file_or_a_checkout_names_it(installed: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "my wheels" / "taskvec-1.0-cp311-abi3-any.whl"
    wheel.parent.mkdir()
    wheel.touch()
    found = said(recorded(installed, url=wheel.as_uri(), archive_info={}))
    assert shlex.split(found) == ["pip", "install", f"{wheel}[eval,ray]"]
    found = said(recorded(installed, url=wheel.parent.as_uri(), dir_info={}))
    assert shlex.split(found) == ["pip", "install", f"{wheel.parent}[eval,ray]"]
    wheel.unlink()
    found = said(recorded(installed, url=wheel.as_uri(), archive_info={}))
    assert found == "pip install '.[eval,ray]' in a checkout of taskvec"


def test_from_an_editable_checkout(installed: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    shutil.move(installed / "taskvec", checkout / "python" / "taskvec")
    recorded(installed, url=checkout.as_uri(), dir_info={"editable": True})
    (installed / "taskvec").symlink_to(checkout / "python" / "taskvec")
    assert shlex.split(said(installed)) == ["pip", "install", "--editable", f"{checkout}[eval,ray]"]


def test_from_an_address(installed: Path) -> None:
    found = said(recorded(installed, url="https://a.example/taskvec-1.0.tar.gz", archive_info={}))
    assert found == "pip install 'taskvec[eval,ray] @ https://a.example/taskvec-1.0.tar.gz'"
    vcs = {"vcs": "git", "commit_id": "0123abc"}
    found = said(recorded(installed, url="https://a.example/taskvec", vcs_info=vcs))
    assert found == "pip install 'taskvec[eval,ray] @ git+https://a.example/taskvec@0123abc'"


@pytest.mark.parametrize("record", ["{", "[]", '{"url": 3}', '{"vcs_info": {}}', "\0"])
def test_a_damaged_record_does_not_matter(installed: Path, record: str) -> None:
    (installed / "taskvec-1.0.dist-info" / "direct_url.json").write_text(record)
    assert said(installed) == "pip install '.[eval,ray]' in a checkout of taskvec"


def test_a_checkout_on_the_path_is_not_the_installed_one(installed: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "python" / "taskvec").mkdir(parents=True)
    for name in ("__init__.py", "extras.py"):
        shutil.copy(installed / "taskvec" / name, checkout / "python" / "taskvec")
    (checkout / "pyproject.toml").touch()
    shutil.rmtree(installed / "taskvec")
    code = f"""
import sys
sys.path[:0] = [{str(checkout / "python")!r}, {str(installed)!r}]
from taskvec.extras import install
print(install("eval"))
"""
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, timeout=60)
    assert shlex.split(done.stdout) == ["pip", "install", f"{checkout}[eval]"], done.stderr


def test_every_hint_asks_here_and_for_an_extra_that_there_is() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = set()
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if file.name != "extras.py":
            assert not re.search(r"pip install \W*taskvec|pip install \W*\.\[", text), file
        if "extras import install" in text:
            asked.update(re.findall(r"""\binstall\(["'](\w+)["']\)""", text))
    assert {"eval", "ray", "plot", "cloud", "gguf", "tokens"} <= asked <= set(extras)
