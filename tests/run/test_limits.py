"""What the system refuses, and who else is there: open files, threads, a forked process, a second run."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import taskvec as tv
from support.models import read_tensors, write_weights
from taskvec import _core

SHARDS = 40
ALPHAS = (0.25, 0.5, 0.75, 1.0)
# So many descriptors are there next to those that a test leaves.
ROOM = 48


def trio(root: Path, shards: int = SHARDS) -> list[Path]:
    """Target, donor and reference of one small tensor per shard."""
    folders = []
    for seed, role in enumerate(("target", "donor", "reference")):
        rng = np.random.default_rng(seed)
        tensors = {
            f"model.layers.{i}.weight": rng.normal(size=(4, 4)).astype(np.float32) for i in range(shards)
        }
        folder = root / role
        folder.mkdir()
        write_weights(folder, tensors, shards=shards)
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": shards}))
        folders.append(folder)
    return folders


def limited(code: str, **limits: int) -> subprocess.CompletedProcess[str]:
    """The code in a process of its own under limits of the system."""

    def limit() -> None:
        for name, value in limits.items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))

    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, preexec_fn=limit)


def test_finished_shards_leave_no_open_file(tmp_path: Path) -> None:
    target, donor, reference = trio(tmp_path)
    out = tmp_path / "out"
    arguments = ", ".join(repr(str(path)) for path in (target, donor, reference, out))
    code = f"import taskvec as tv; tv.transfer({arguments}, alpha={list(ALPHAS)!r}, threads=2)"
    done = limited(code, NOFILE=ROOM)
    assert done.returncode == 0, done.stderr
    parts = [read_tensors(folder) for folder in (target, donor, reference)]
    folders = sorted(path for path in out.iterdir() if path.is_dir() and not path.name.startswith("."))
    assert len(folders) == len(ALPHAS)
    for folder in folders:
        alpha = json.loads((folder / "taskvec.json").read_text())["recipe"]["alpha"]
        for name, values in read_tensors(folder).items():
            t, d, r = (part[name].astype(np.float64) for part in parts)
            np.testing.assert_allclose(values, t + alpha * (d - r), rtol=1e-6, atol=1e-6)


def test_a_sharded_checkpoint_opens_in_a_forked_process(tmp_path: Path) -> None:
    folder = trio(tmp_path, 3)[0]
    code = (
        "import os, signal, sys\n"
        "from taskvec import _core\n"
        f"_core.Checkpoint({str(folder)!r})\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    signal.alarm(20)\n"
        f"    os._exit(len(list(_core.Checkpoint({str(folder)!r}).tensors())))\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 3


def test_threads_that_are_refused_are_an_error_with_a_way_out(tmp_path: Path) -> None:
    arguments = ", ".join(repr(str(path)) for path in (*trio(tmp_path, 2), tmp_path / "out"))
    code = (
        "import taskvec as tv\n"
        f"try: tv.transfer({arguments}, alpha=1.0, threads=1000)\n"
        "except tv.errors.OutputError as error: print(error, error.hint)\n"
    )
    done = limited(code, AS=3 << 29)
    assert "the system does not start 1000 threads: " in done.stdout, done.stderr
    assert "ulimit -u" in done.stdout


def test_a_small_read_of_a_truncated_file_is_an_error_also_under_faulthandler(tmp_path: Path) -> None:
    tensors = {name: np.ones(1 << 16, np.float32) for name in ("a", "b")}
    write_weights(tmp_path, tensors)
    code = (
        "import faulthandler, os\n"
        "from taskvec import _core, errors\n"
        f"opened = _core.Checkpoint({str(tmp_path)!r})\n"
        "opened.sample('a', 0, 4)\n"
        "faulthandler.enable()\n"
        f"os.truncate({str(tmp_path / 'model.safetensors')!r}, 4096)\n"
        "try: opened.sample('b', 0, 1024)\n"
        "except errors.FormatError: print('an error')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "an error\n"), done.stderr


def test_a_held_folder_refuses_another_process_and_not_this_one(tmp_path: Path) -> None:
    target, donor, reference = trio(tmp_path, 2)
    out = tmp_path / "out"
    arguments = ", ".join(repr(str(path)) for path in (target, donor, reference, out))
    other = f"import taskvec as tv; tv.transfer({arguments}, alpha=0.5, overwrite=True)"
    with _core.FolderLock(out, inputs=[target, donor, reference]):
        refused = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, timeout=60)
        assert refused.returncode == 1
        assert f"another run is writing to `{out}` (process {os.getpid()})" in refused.stderr
        with pytest.raises(tv.errors.OutputError, match="another run"):
            _core.FolderLock(out).__enter__()
        tv.transfer(target, donor, reference, out, alpha=1.0)
    assert (out / "taskvec.json").exists()
    assert not (out / ".taskvec").exists()
    assert subprocess.run([sys.executable, "-c", other], timeout=60).returncode == 0
    with _core.FolderLock(tmp_path / "never") as held:
        assert isinstance(held, _core.FolderLock)
    assert not (tmp_path / "never").exists()


def test_a_lock_inside_an_input_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    target = trio(tmp_path, 1)[0]
    before = sorted(target.iterdir())
    for out in (target, target / "below"):
        with pytest.raises(tv.errors.OutputError, match="input"), _core.FolderLock(out, inputs=[target]):
            pass
    assert sorted(target.iterdir()) == before


@pytest.mark.parametrize("shape", [[1 << 52], [1 << 60], [1 << 62, 4], [1 << 63, 2]])
def test_a_vector_that_claims_a_huge_shape_is_refused_without_memory(
    tmp_path: Path, shape: list[int]
) -> None:
    write_weights(tmp_path, {"a.indices": np.array([3, 5], np.int64), "a.values": np.ones(2, np.float32)})
    opened = _core.Checkpoint(tmp_path)
    source = {
        "kind": "vector",
        "path": str(tmp_path),
        "files": [list(row) for row in opened.files()],
        "fingerprint": opened.fingerprint,
    }
    side = [{"model": 0, "reference": None, "weight": 1.0}]
    plan = {
        "format": 1,
        "sources": [source],
        "tensors": [["a", shape, [[0, "a"]]]],
        "left": side,
        "right": [],
    }
    code = (
        "from taskvec import _core, errors\n"
        f"try: _core.compare({json.dumps(plan).encode()!r}, threads=1)\n"
        "except (errors.FormatError, errors.RecipeError) as error: print(error)\n"
    )
    done = limited(code, AS=8 << 30)
    assert "elements" in done.stdout or "overflows" in done.stdout, done.stderr
