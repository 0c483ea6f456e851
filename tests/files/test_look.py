"""Looking for files: a missing one is an answer, a file system that fails is an error with its cause."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import taskvec as tv
from support.models import Trio
from taskvec.errors import OutputError
from taskvec.files import look
from taskvec.files.folder import list_folder
from taskvec.resolve.open import open as open_model
from taskvec.resolve.saved_vector import is_vector

FAILURES = [errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Call to let every look at files of a name fail with an error number."""

    def fail(name: str, number: int) -> None:
        for call in ("stat", "lstat", "listdir", "scandir"):
            genuine = getattr(os, call)

            def faulty(path=".", *args, genuine=genuine, **kwargs):
                if isinstance(path, str | Path) and name in os.fspath(path).split("/"):
                    raise OSError(number, os.strerror(number), os.fspath(path))
                return genuine(path, *args, **kwargs)

            monkeypatch.setattr(os, call, faulty)

    return fail


def test_absence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "nothing", tmp_path / "file" / "below", f"{tmp_path}/zero\0byte"):
        assert not look.exists(path)
        assert not look.exists(path, follow_links=False)
        assert not look.is_file(path)
        assert not look.is_folder(path)
    assert look.listing(tmp_path / "nothing") == look.listing(tmp_path / "file") == []


def test_presence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    assert look.listing(tmp_path) == ["file", "folder", "link", "pipe"]
    assert all(look.exists(tmp_path / name) for name in look.listing(tmp_path))
    assert [name for name in look.listing(tmp_path) if look.is_file(tmp_path / name)] == ["file", "link"]
    assert [name for name in look.listing(tmp_path) if look.is_folder(tmp_path / name)] == ["folder"]


@pytest.mark.parametrize("target", ["nothing", "link"])
def test_links_that_lead_nowhere(tmp_path: Path, target: str) -> None:
    link = tmp_path / "link"
    link.symlink_to(target)
    assert look.exists(link, follow_links=False)
    assert not look.exists(link)
    assert list_folder(tmp_path, ()).left == ("link",)


@pytest.mark.parametrize("number", FAILURES)
@pytest.mark.parametrize("ask", [look.exists, look.is_file, look.is_folder, look.listing])
def test_failures(ask: Callable[[Path], object], number: int, failing, tmp_path: Path) -> None:
    failing("model", number)
    with pytest.raises(OutputError, match=f"`{tmp_path}/model` cannot be looked at: ") as caught:
        ask(tmp_path / "model")
    assert os.strerror(number) in str(caught.value)
    assert caught.value.hint
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("number", FAILURES)
@pytest.mark.parametrize("name", ["target", "config.json", "tokenizer.json", "sub"])
def test_a_model_whose_file_system_fails(trio: Trio, name: str, number: int, failing) -> None:
    (trio.target / "sub").mkdir()
    failing(name, number)
    with pytest.raises(OutputError, match=os.strerror(number)) as caught:
        open_model(str(trio.target))
    assert name in str(caught.value)


@pytest.mark.parametrize("number", FAILURES)
def test_a_vector_whose_file_system_fails(trio: Trio, tmp_path: Path, number: int, failing) -> None:
    tv.extract(trio.donor, trio.reference, tmp_path / "vector")
    assert is_vector(tmp_path / "vector")
    assert not is_vector(trio.target)
    failing("taskvec.json", number)
    with pytest.raises(OutputError, match=os.strerror(number)):
        is_vector(tmp_path / "vector")


def test_a_suggestion_never_fails(tmp_path: Path, failing) -> None:
    (tmp_path / "runs").mkdir()
    failing("runs", errno.EIO)
    with pytest.raises(tv.NotFoundError):
        open_model(tmp_path / "rums")
