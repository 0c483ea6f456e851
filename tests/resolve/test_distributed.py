"""Distributed checkpoints: written by torch, in one process and sharded over two, and read as models."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import types
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

import taskvec as tv
from support.hub_server import Hub, Repo
from taskvec.errors import FormatError, RecipeError
from taskvec.resolve.distributed.metadata import Chunk, Contents, Entry, _hold_whole
from taskvec.resolve.distributed.names import names_of

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TASKVEC_SCRATCH", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


def state(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "model.embed_tokens.weight": normal(16, 8).to(torch.bfloat16),
        "model.layers.0.mlp.up_proj.weight": normal(12, 8),
        "model.norm.weight": normal(8).to(torch.float16),
        "lm_head.weight": normal(16, 8).to(torch.float64),
        "scale": normal(1)[0],
    }


def save(folder: Path, contents: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    dcp.save(contents, checkpoint_id=str(folder), no_dist=True)
    return folder


def trained(seed: int) -> dict[str, Any]:
    weights = state(seed)
    moments = {"state": {name: {"exp_avg": torch.zeros_like(w)} for name, w in weights.items()}}
    return {"model": weights, "optimizer": moments, "lr_scheduler": {"last": torch.ones(2)}, "step": 7}


def config(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "torch_dtype": "float32"}))


def test_an_average_of_distributed_checkpoints(tmp_path: Path, scratch: Path) -> None:
    for step in (100, 200, 300):
        config(save(tmp_path / f"run/step-{step}", trained(step)))
    report = tv.average(tmp_path / "run", tmp_path / "out")
    made = load_file(tmp_path / "out/model.safetensors")
    states = [state(step) for step in (100, 200, 300)]
    assert made.keys() == states[0].keys()
    for name, array in made.items():
        mean = sum(each[name].double() for each in states) / 3
        assert array.dtype == states[0][name].dtype
        # one rounding of the mean, which itself is summed in float32 unless a type is wider
        close = mean.abs() * torch.finfo(array.dtype).eps + 2e-7
        assert ((array.double() - mean).abs() <= close).all(), name
    assert json.loads((tmp_path / "out/config.json").read_text())["model_type"] == "llama"
    left = [each.found for each in report.findings if each.id == "states-left"]
    assert len(left) == 3
    assert all("5 tensors of the optimizer and 1 tensors of the trainer" in each for each in left)
    # what was laid out is used again, and the run is known as done
    before = {path: path.stat().st_mtime_ns for path in scratch.rglob("*")}
    assert tv.average(tmp_path / "run", tmp_path / "out").already_done
    assert {path: path.stat().st_mtime_ns for path in scratch.rglob("*")} == before


def test_every_verb_reads_them(tmp_path: Path) -> None:
    three = [save(tmp_path / name, trained(seed)) for seed, name in enumerate("tdr")]
    t, d, r = (state(seed) for seed in range(3))
    tv.transfer(*three, tmp_path / "out", alpha=0.5)
    made = load_file(tmp_path / "out/model.safetensors")
    for name, array in made.items():
        expected = t[name].double() + 0.5 * (d[name].double() - r[name].double())
        close = expected.abs() * torch.finfo(array.dtype).eps + 1e-6
        assert ((array.double() - expected).abs() <= close).all(), name
    tv.extract(three[1], three[2], tmp_path / "vector")
    tv.apply(three[0], tmp_path / "vector", out=tmp_path / "applied", alpha=0.5)
    again = load_file(tmp_path / "applied/model.safetensors")
    assert all(torch.equal(made[name], again[name]) for name in made)
    plain = tmp_path / "plain"
    tv.convert(three[0], plain, out_dtype="float32")
    assert all(torch.equal(v, t[k].float()) for k, v in load_file(plain / "model.safetensors").items())
    assert tv.inspect(three[0]).parameters == sum(w.numel() for w in t.values())
    plan = tv.plan_transfer(*three)
    with tv.storage(scratch=tmp_path / "elsewhere"):
        assert tv.plan_transfer(*three).digest == plan.digest
    reports = [plan.part(number, 2).run(tmp_path / "parts") for number in range(2)]
    assert reports[-1].report is not None


@pytest.mark.parametrize("with_states", [True, False])
def test_convert_writes_a_plain_one_as_safetensors(tmp_path: Path, with_states: bool) -> None:
    weights = state(1)
    folder = save(tmp_path / "t", trained(1) if with_states else {"model": weights})
    config(folder)
    plan = tv.plan_convert(folder)
    for number in range(2):
        plan.part(number, 2).run(tmp_path / "parts")
    tv.convert(folder, tmp_path / "out")
    for out in (tmp_path / "out", tmp_path / "parts"):
        made = load_file(out / "model.safetensors")
        assert made.keys() == weights.keys()
        for name, tensor in weights.items():
            assert made[name].dtype == tensor.dtype
            assert torch.equal(made[name], tensor), name
        assert json.loads((out / "config.json").read_text())["model_type"] == "llama"
        assert tv.verify(out).ok
    assert tv.convert(folder, tmp_path / "out").already_done
    with pytest.raises(RecipeError, match="plain already"):
        tv.plan_convert(tmp_path / "out")


WRITER = """
import os, sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
import torch.multiprocessing as mp

def work(rank, folder, weights, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    tensors = torch.load(weights, weights_only=True)
    ways = {"by_rows": [Shard(0)], "by_columns": [Shard(1)], "whole": [Replicate()], "odd": [Shard(0)]}
    made = {k: distribute_tensor(v, mesh, ways[k]) for k, v in tensors.items()}
    dcp.save({"model": made}, checkpoint_id=folder)
    dist.destroy_process_group()

if __name__ == "__main__":
    import socket
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, (sys.argv[1], sys.argv[2], port), nprocs=2)
"""


def test_tensors_sharded_over_two_processes(tmp_path: Path) -> None:
    weights = {
        "by_rows": torch.randn(6, 5),
        "by_columns": torch.randn(4, 7).to(torch.bfloat16),
        "whole": torch.randn(3, 3),
        "odd": torch.randn(1, 2),  # one of the processes has nothing of it
    }
    torch.save(weights, tmp_path / "weights.pt")
    (tmp_path / "writer.py").write_text(WRITER)
    command = [sys.executable, "writer.py", "sharded", "weights.pt"]
    subprocess.run(
        command, cwd=tmp_path, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert len(list((tmp_path / "sharded").glob("*.distcp"))) == 2
    opened = tv.open(tmp_path / "sharded")
    assert set(opened.keys()) == set(weights)
    for name, tensor in weights.items():
        assert bytes(opened.reader.read(name)) == tensor.reshape(-1).view(torch.uint8).numpy().tobytes(), name


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch owned",)


@pytest.mark.parametrize("where", ["whole", "inside"])
def test_a_pickle_that_would_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = save(tmp_path / "t", trained(0))
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    metadata.planner_data = {"x": Evil()}
    (folder / ".metadata").write_bytes(pickle.dumps(Evil() if where == "whole" else metadata))
    with pytest.raises(FormatError, match=r"names `posix.system`") as caught:
        tv.open(folder)
    assert "can run code" in str(caught.value.hint)
    assert not (tmp_path / "owned").exists()


def test_code_in_a_data_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = save(tmp_path / "t", {"model": {"w": torch.ones(3)}})
    torch.save(Evil(), tmp_path / "evil.pt")
    data = (tmp_path / "evil.pt").read_bytes()
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    for info in metadata.storage_data.values():
        info.offset, info.length = 0, len(data)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    (folder / "__0_0.distcp").write_bytes(data)
    with pytest.raises(FormatError, match="piece of `w`"):
        tv.open(folder)
    assert not (tmp_path / "owned").exists()


def test_the_metadata_of_megatron(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own class, as its documentation has it: torch's with one member more."""
    place = "megatron.core.dist_checkpointing.strategies.torch"
    folder = save(
        tmp_path / "iter_0000100",
        {"decoder.w": torch.arange(6.0), "chained_0.optimizer.state.x": torch.ones(2)},
    )
    plain = pickle.loads((folder / ".metadata").read_bytes())
    theirs = type("MCoreMetadata", (type(plain),), {"__module__": place})
    made = theirs(**vars(plain))
    made.mcore_data = {"decoder.w": {"nd_reformulated_orig_global_shape": None}}
    module = types.ModuleType(place)
    module.MCoreMetadata = theirs  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        parts = place.split(".")
        for count in range(1, len(parts)):
            patch.setitem(sys.modules, ".".join(parts[:count]), types.ModuleType(parts[count - 1]))
        patch.setitem(sys.modules, place, module)
        (folder / ".metadata").write_bytes(pickle.dumps(made))
    opened = tv.open(folder)
    assert opened["decoder.w"].tolist() == list(range(6))
    assert set(opened.keys()) == {"decoder.w"}
    assert opened.left_states == {"optimizer": 1}


def edited(folder: Path, change: Any) -> None:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def test_what_is_damaged_is_named(tmp_path: Path, scratch: Path) -> None:
    def outside(metadata: Any) -> None:
        for info in metadata.storage_data.values():
            info.relative_path = "../other.distcp"

    def lost(metadata: Any) -> None:
        metadata.storage_data = {}

    def short(metadata: Any) -> None:
        metadata.state_dict_metadata["model.w"].chunks = []

    def extended(metadata: Any) -> None:
        for info in metadata.storage_data.values():
            info.transform_descriptors = ["zstd"]

    changes = {
        "not the name": outside,
        "is in no file": lost,
        "have 0 elements": short,
        "extension": extended,
    }
    for number, (message, change) in enumerate(changes.items()):
        folder = save(tmp_path / str(number), {"model": {"w": torch.ones(3)}})
        edited(folder, change)
        with pytest.raises(FormatError, match=message):
            tv.open(folder)
    cut = save(tmp_path / "cut", {"model": {"w": torch.ones(3)}})
    data = cut / "__0_0.distcp"
    data.write_bytes(data.read_bytes()[:-200])
    with pytest.raises(FormatError, match="piece of `w`"):
        tv.open(cut)
    cut.joinpath("__0_0.distcp").unlink()
    with pytest.raises(FormatError, match=r"without its `.*distcp`"):
        tv.open(cut)
    (cut / "__1_0.distcp").touch()
    with pytest.raises(FormatError, match=r"piece of `w` lies in `.*__0_0.distcp`, which cannot be read"):
        tv.open(cut)
    only = save(tmp_path / "only", {"optimizer": {"state": {"w": torch.ones(3)}}})
    with pytest.raises(FormatError, match="no weights in it"):
        tv.open(only)
    assert not list(scratch.rglob("*.safetensors"))


def test_one_that_was_not_saved_to_its_end_is_named(tmp_path: Path) -> None:
    for step in (1, 2):
        config(save(tmp_path / f"run/step-{step}", trained(step)))
    (tmp_path / "run/step-2/.metadata").unlink()
    with pytest.raises(FormatError, match=r"`.*step-2` is a distributed checkpoint of torch without its"):
        tv.average(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def chunks(*boxes: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[Chunk, ...]:
    return tuple(Chunk(offsets, sizes, "a.distcp", 0, 1) for offsets, sizes in boxes)


@pytest.mark.parametrize("seed", range(20))
def test_pieces_fill_their_tensor(seed: int) -> None:
    """Boxes of as many elements as the tensor; the oracle counts how often each element is written."""
    random = np.random.default_rng(seed)
    rows, columns = (np.sort(random.choice(np.arange(1, 8), 2, replace=False)) for _ in range(2))
    edges = [[0, *rows, 8], [0, *columns, 8]]
    boxes = [
        ((int(top), int(left)), (int(bottom - top), int(right - left)))
        for top, bottom in pairwise(edges[0])
        for left, right in pairwise(edges[1])
    ]
    random.shuffle(boxes)
    _hold_whole("w", (8, 8), chunks(*boxes))
    (offsets, sizes), axis = boxes[0], int(random.integers(2))
    moved = list(offsets)
    moved[axis] += 1 if offsets[axis] + sizes[axis] < 8 else -1
    boxes[0] = (tuple(moved), sizes)
    count = np.zeros((8, 8), int)
    for (top, left), (height, width) in boxes:
        count[top : top + height, left : left + width] += 1
    assert count.max() > 1
    assert count.sum() == 64
    with pytest.raises(FormatError, match="pieces of `w` overlap"):
        _hold_whole("w", (8, 8), chunks(*boxes))


def test_the_card_claims_no_path_as_a_model_of_the_hub(tmp_path: Path) -> None:
    for name in ("base", "tuned"):
        config(save(tmp_path / name, {"model": state(len(name))}))
    tv.transfer(
        tmp_path / "base", tmp_path / "tuned", tmp_path / "base", tmp_path / "out", force=["zero-vector"]
    )
    card = (tmp_path / "out/README.md").read_text()
    assert "base_model" not in card
    assert "huggingface.co" not in card
    assert "# base with a task vector" in card


def flat(*names: str) -> Contents:
    entries = {name: Entry(tuple(name.split(".")), False, None, (), ()) for name in names}
    return Contents(entries, [])


def nested(*paths: tuple[str, ...]) -> Contents:
    return Contents({".".join(path): Entry(path, True, None, (), ()) for path in paths}, [])


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        (
            nested(("model", "model.norm.weight"), ("model", "lm_head.weight")),
            ["model.norm.weight", "lm_head.weight"],
        ),
        # the names of a model that was saved alone, whose own begin with `model.`
        (nested(("model.norm.weight",), ("lm_head.weight",)), ["model.norm.weight", "lm_head.weight"]),
        (nested(("app", "model", "a.weight"), ("app", "optim", "state.a.exp_avg")), ["a.weight"]),
        (nested(("state_dict", "model", "a"), ("model", "b")), ["a", "b"]),
        (nested(("model", "_orig_mod.a"), ("model", "b._fsdp_wrapped_module.c")), ["a", "b.c"]),
        (nested(("model", "module.a"), ("model", "module.b")), ["a", "b"]),
        (nested(("tok_embeddings.weight",), ("optimizer.state.x",)), ["tok_embeddings.weight"]),
        (nested(("ema", "a"), ("model", "a")), ["a"]),
        (nested(("model", "a"), ("adamw", "state", "a", "exp_avg"), ("adamw", "state", "a", "step")), ["a"]),
        (nested(("a",), ("adamw", "state", "a", "exp_avg"), ("adamw", "state", "a", "step")), ["a"]),
        (nested(("model",), ("model", "a")), ["a"]),
        (
            flat("model.norm.weight", "model.embed_tokens.weight"),
            ["model.norm.weight", "model.embed_tokens.weight"],
        ),
        (flat("model.model.norm.weight", "model.lm_head.weight"), ["model.norm.weight", "lm_head.weight"]),
        (flat("app.model.a.b", "app.optim.state.a.b.exp_avg"), ["a.b"]),
    ],
)
def test_the_names_of_a_model_in_what_trainers_save(contents: Contents, expected: list[str]) -> None:
    assert list(names_of(contents)[0]) == expected


def test_several_models_in_one_are_refused_by_name(tmp_path: Path) -> None:
    both = save(tmp_path / "both", {"model": {"w": torch.ones(4)}, "actor": {"w": torch.zeros(4)}})
    with pytest.raises(FormatError, match="several models in it: `actor` and `model`"):
        tv.open(both)


@pytest.mark.parametrize("seed", range(3))
def test_numbers_that_cannot_be_are_named(tmp_path: Path, seed: int) -> None:
    def piece(metadata: Any, key: str, value: Any) -> None:
        for info in metadata.storage_data.values():
            setattr(info, key, value)

    def tensor(metadata: Any, size: Any = (2, 4), dtype: Any = torch.float32) -> None:
        stored = metadata.state_dict_metadata["model.w"]
        stored.size, stored.properties.dtype = torch.Size(size), dtype
        stored.chunks = []

    numbers = [-(1 << 70), -1, 1 << 40, 1 << 62, 1 << 63, 1 << 70]
    changes: list[Any] = [
        partial(piece, key=key, value=value) for key in ("offset", "length") for value in numbers
    ]
    changes += [partial(tensor, size=size) for size in ((-1, 0), (0, 1 << 62, 1 << 62), (1 << 61,), (-1, -8))]
    changes += [partial(tensor, dtype=dtype) for dtype in ("torch.float32", None, 3)]
    for number, change in enumerate(changes[seed::3]):
        folder = save(tmp_path / str(number), {"model": {"w": torch.ones(2, 4)}})
        edited(folder, change)
        with pytest.raises(FormatError, match=r"`(model.)?w`"):
            tv.open(folder)


def test_the_layout_of_accelerate(tmp_path: Path) -> None:
    save(tmp_path / "run/pytorch_model_fsdp_0", {"model": state(0)})
    save(tmp_path / "run/optimizer_0", {"optimizer": {"w": torch.ones(1)}})
    config(tmp_path / "run")
    opened = tv.open(tmp_path / "run")
    assert set(opened.keys()) == set(state(0))
    assert opened.config["model_type"] == "llama"


def test_one_at_an_address_is_refused_by_name(tmp_path: Path, hub: Hub) -> None:
    hub.repos["org/t"] = Repo.from_folder(save(tmp_path / "t", {"model": {"w": torch.ones(3)}}))
    with pytest.raises(FormatError, match="is read from a local folder"):
        tv.open("org/t")


def test_what_a_killed_process_has_left_is_removed_by_the_next(tmp_path: Path, scratch: Path) -> None:
    save(tmp_path / "checkpoint", trained(1))
    script = (
        "import os, signal, sys\n"
        "import taskvec as tv\n"
        "from taskvec.resolve.distributed import staged\n"
        "staged._assembled = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "tv.open(sys.argv[1]).tensors\n"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "checkpoint"], check=False)
    assert done.returncode == -9
    left = sorted(path.name for path in (scratch / "distributed").iterdir())
    assert len(left) == 2
    assert all(name.startswith(".") for name in left)
    assert tv.open(tmp_path / "checkpoint").tensors
    (kept,) = (scratch / "distributed").iterdir()
    assert not kept.name.startswith(".")


def test_what_another_process_is_writing_stays(tmp_path: Path, scratch: Path) -> None:
    import fcntl

    save(tmp_path / "checkpoint", trained(1))
    other = scratch / "distributed/.other.1234"
    other.mkdir(parents=True)
    with open(f"{other}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert tv.open(tmp_path / "checkpoint").tensors
        assert other.exists()
