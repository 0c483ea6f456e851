"""File systems that lack a call (network and user-space ones), by what they answer to it."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

import taskvec as tv
from support.models import Trio, read_tensors
from taskvec.errors import OutputError
from taskvec.files.flush import flush
from taskvec.files.lock import lock
from taskvec.host import free_space

NOT_OFFERED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


def answer(monkeypatch: pytest.MonkeyPatch, module: object, name: str, number: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, name, refuse)


@pytest.mark.parametrize("number", NOT_OFFERED)
def test_nothing_has_to_be_flushed_where_nothing_can_be(
    trio: Trio, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tv.transfer(*trio, tmp_path / "plain")
    answer(monkeypatch, os, "fsync", number)
    tv.transfer(*trio, tmp_path / "out")
    tv.transfer(*trio, tmp_path / "out", alpha=0.5, overwrite=True)
    tv.transfer(*trio, tmp_path / "out", overwrite=True)
    assert tv.verify(tmp_path / "out").ok
    one, two = read_tensors(tmp_path / "plain"), read_tensors(tmp_path / "out")
    assert all((one[name] == two[name]).all() for name in one)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fails_is_an_error(
    trio: Trio, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, os, "fsync", number)
    with pytest.raises(OSError, match=os.strerror(number)):
        flush(0)
    with pytest.raises(OutputError, match=os.strerror(number)):
        tv.transfer(*trio, tmp_path / "out")


@pytest.mark.parametrize("number", [*NOT_OFFERED, errno.ENOLCK])
def test_where_there_are_no_locks_none_is_held(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from taskvec.evaluation.sweep.scratch import locked as alone

    answer(monkeypatch, fcntl, "flock", number)
    assert lock(0, wait=True) is False
    with alone(tmp_path / "out"):
        assert (tmp_path / "out").is_dir()


def test_a_lock_that_fails_is_not_called_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from taskvec.errors import EvaluationError
    from taskvec.evaluation.sweep.scratch import locked as alone

    answer(monkeypatch, fcntl, "flock", errno.EIO)
    with pytest.raises(EvaluationError, match="Input/output error"), alone(tmp_path / "out"):
        pass
    answer(monkeypatch, fcntl, "flock", errno.EWOULDBLOCK)
    with pytest.raises(EvaluationError, match="another evaluation"), alone(tmp_path / "out"):
        pass


@pytest.mark.parametrize("number", NOT_OFFERED)
def test_free_space_that_is_not_told_is_not_none_at_all(
    trio: Trio, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, os, "statvfs", number)
    assert free_space(tmp_path) is None
    tv.extract_lora(trio.donor, trio.reference, tmp_path / "out", rank=1)


def test_a_file_system_of_size_zero_does_not_tell(
    trio: Trio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = os.statvfs

    def zeros(path: str) -> os.statvfs_result:
        return os.statvfs_result((*genuine(path)[:2], 0, 0, 0, 0, 0, 0, 0, 255))

    monkeypatch.setattr(os, "statvfs", zeros)
    assert free_space(tmp_path) is None
    tv.extract_lora(trio.donor, trio.reference, tmp_path / "out", rank=1)


def test_other_answers_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, os, "statvfs", errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        free_space(tmp_path)
