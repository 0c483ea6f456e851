"""How an output comes about: interrupted, killed, resumed, replaced; and that transformers loads it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import taskvec as tv
from support.models import Trio, read_tensors, write_trio
from support.oracle import narrow, same_files
from taskvec import _core
from taskvec.run import execute as execution


def transfer_in_a_process(trio: Trio, out: Path, *, alpha: str, kill_at: int) -> int:
    """Run a transfer that kills itself at the given report of progress; the exit code."""
    code = f"""
        import os, signal
        import taskvec as tv

        seen = 0
        def progress(event):
            global seen
            seen += 1
            if seen == {kill_at}:
                os.kill(os.getpid(), signal.SIGKILL)

        tv.transfer(*{[str(folder) for folder in trio]!r}, {str(out)!r}, alpha={alpha!r}, progress=progress)
    """
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False).returncode


@pytest.mark.parametrize("kill_at", range(1, 12, 2))
def test_a_killed_run_goes_on(sharded_trio: Trio, tmp_path: Path, kill_at: int) -> None:
    code = transfer_in_a_process(sharded_trio, tmp_path / "out", alpha="0.8", kill_at=kill_at)
    if code == -signal.SIGKILL:
        if (tmp_path / "out" / ".taskvec" / "plan.json").exists():
            with pytest.raises(tv.OutputError, match="unfinished"):
                tv.transfer(*sharded_trio, tmp_path / "out", alpha=0.5)
        else:
            assert kill_at == 1  # on a busy machine the first report comes before the first file
        tv.transfer(*sharded_trio, tmp_path / "out", alpha=0.8)
    tv.transfer(*sharded_trio, tmp_path / "undisturbed", alpha=0.8)
    same_files(tmp_path / "out", tmp_path / "undisturbed")
    assert not (tmp_path / "out" / ".taskvec").exists()


@pytest.mark.parametrize("kill_at", [1, 6, 12, 15])
def test_a_killed_run_over_several_alphas_goes_on(sharded_trio: Trio, tmp_path: Path, kill_at: int) -> None:
    assert transfer_in_a_process(sharded_trio, tmp_path / "out", alpha="-1,0.5", kill_at=kill_at) < 0
    tv.transfer(*sharded_trio, tmp_path / "out", alpha="-1,0.5")
    tv.transfer(*sharded_trio, tmp_path / "undisturbed", alpha="-1,0.5")
    same_files(tmp_path / "out", tmp_path / "undisturbed")


def test_killed_between_the_ends_of_two_outputs(
    sharded_trio: Trio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[Path] = []

    def finish_one(folder: Path) -> None:
        if ended:
            raise KeyboardInterrupt
        ended.append(folder)
        _core.finish_folder(folder)

    with monkeypatch.context() as patch:
        patch.setattr(execution, "finish_folder", finish_one)
        with pytest.raises(KeyboardInterrupt):
            tv.transfer(*sharded_trio, tmp_path / "out", alpha="-1,0.5")
    report = tv.transfer(*sharded_trio, tmp_path / "out", alpha="-1,0.5")
    undisturbed = tv.transfer(*sharded_trio, tmp_path / "undisturbed", alpha="-1,0.5")
    same_files(tmp_path / "out", tmp_path / "undisturbed")
    assert [output.survival for output in report.outputs] == [o.survival for o in undisturbed.outputs]
    assert [output.shards for output in report.outputs] == [o.shards for o in undisturbed.outputs]


@pytest.mark.parametrize("phase", ["merge", "publish"])
def test_an_interrupted_run_goes_on(sharded_trio: Trio, tmp_path: Path, phase: str) -> None:
    def progress(event: tv.Progress) -> None:
        if event.phase == phase:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tv.transfer(*sharded_trio, tmp_path / "out", alpha=0.8, progress=progress)
    with pytest.raises(tv.VerificationError, match="unfinished"):
        tv.verify(tmp_path / "out")
    tv.transfer(*sharded_trio, tmp_path / "out", alpha=0.8)
    tv.transfer(*sharded_trio, tmp_path / "undisturbed", alpha=0.8)
    same_files(tmp_path / "out", tmp_path / "undisturbed")


def test_a_finished_output_is_replaced_only_when_asked(sharded_trio: Trio, tmp_path: Path) -> None:
    (sharded_trio.target / "only-now.txt").write_text("x")
    tv.transfer(*sharded_trio, tmp_path / "out", alpha=0.8)
    before = (tmp_path / "out" / "taskvec.json").read_bytes()
    with pytest.raises(tv.OutputError, match="finished output") as caught:
        tv.transfer(*sharded_trio, tmp_path / "out", alpha=0.5)
    assert "--overwrite" in (caught.value.hint or "")
    assert (tmp_path / "out" / "taskvec.json").read_bytes() == before
    (sharded_trio.target / "only-now.txt").unlink()
    tv.transfer(*sharded_trio, tmp_path / "out", alpha=0.5, overwrite=True, max_shard_size="1GB")
    tv.transfer(*sharded_trio, tmp_path / "fresh", alpha=0.5, max_shard_size="1GB")
    same_files(tmp_path / "out", tmp_path / "fresh")


@pytest.mark.parametrize("place", ["target", "target/inside", "."])
def test_an_output_never_touches_an_input(trio: Trio, tmp_path: Path, place: str) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(tv.OutputError):
        tv.transfer(*trio, tmp_path / place, overwrite=True)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_threads_and_memory_change_no_byte(tmp_path: Path) -> None:
    trio = write_trio(tmp_path, hidden=256, intermediate=1024, shards=(2, 3, 1))
    for threads in (1, 2, 7):
        tv.transfer(*trio, tmp_path / f"out-{threads}", alpha=0.7, threads=threads, max_memory="200MiB")
        same_files(tmp_path / "out-1", tmp_path / f"out-{threads}")


def test_two_runs_at_once(sharded_trio: Trio, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        runs = [
            pool.submit(tv.transfer, *sharded_trio, tmp_path / f"out-{number}", alpha=0.8)
            for number in range(4)
        ]
        assert {run.result().survival for run in runs} == {runs[0].result().survival}
    for number in range(1, 4):
        same_files(tmp_path / "out-0", tmp_path / f"out-{number}")


def test_outputs_of_one_run_share_their_files(sharded_trio: Trio, tmp_path: Path) -> None:
    tv.transfer(*sharded_trio, tmp_path / "out", alpha=[0, 1])
    files = [tmp_path / "out" / folder / "tokenizer.json" for folder in ("alpha=0", "alpha=1")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not os.path.samefile(files[0], sharded_trio.target / "tokenizer.json")


def test_progress_tells_phases_in_order(sharded_trio: Trio, tmp_path: Path) -> None:
    events: list[tv.Progress] = []
    tv.transfer(*sharded_trio, tmp_path / "out", progress=events.append)
    assert list(dict.fromkeys(event.phase for event in events)) == ["merge", "publish"]
    assert all(0 <= event.done_bytes <= event.total_bytes for event in events)
    assert events[-1].done_bytes == events[-1].total_bytes


def test_the_report_is_plain_data(sharded_trio: Trio, tmp_path: Path) -> None:
    report = tv.transfer(*sharded_trio, tmp_path / "out", alpha=0.8)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["schema"] == 1
    assert data["outputs"][0]["survival"]["changed"] == report.survival.changed
    assert str(tmp_path / "out") in str(report)


FAMILIES = ("Qwen2", "Llama")


def small_model(family: str, *, tied: bool, seed: int):
    """A tiny random model of transformers in bf16."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=96,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )
    return getattr(transformers, f"{family}ForCausalLM")(config).to(torch.bfloat16).eval()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shard", ["30KB", "1GB"], ids=["sharded", "single"])
def test_transformers_loads_the_output(tmp_path: Path, family: str, tied: bool, shard: str) -> None:
    import torch
    import transformers

    models = {
        role: small_model(family, tied=tied, seed=seed)
        for seed, role in enumerate(("target", "donor", "reference"))
    }
    for role, model in models.items():
        model.save_pretrained(tmp_path / role, max_shard_size=shard)
    folders = [tmp_path / role for role in models]
    tv.transfer(*folders, tmp_path / "out", alpha=0.7)
    assert (tmp_path / "out" / "model.safetensors.index.json").exists() == (shard == "30KB")
    loaded, expected = (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name).eval()
        for name in ("out", "target")
    )
    assert loaded.dtype == torch.bfloat16

    donor, reference = models["donor"].state_dict(), models["reference"].state_dict()
    with torch.no_grad():
        for name, weight in expected.named_parameters():
            step = donor[name].double() - reference[name].double()
            exact = (weight.double() + 0.7 * step).numpy()
            rounded = narrow(exact, np.dtype(ml_dtypes.bfloat16)).view(np.int16)
            weight.copy_(torch.from_numpy(rounded).view(torch.bfloat16))
        tokens = torch.arange(24).reshape(2, 12)
        assert torch.equal(loaded(tokens).logits, expected(tokens).logits)


def test_out_dtype_is_what_transformers_loads(tmp_path: Path) -> None:
    import torch
    import transformers

    for seed, role in enumerate(("target", "donor", "reference")):
        small_model("Qwen2", tied=True, seed=seed).save_pretrained(tmp_path / role)
    folders = [tmp_path / role for role in ("target", "donor", "reference")]
    tv.transfer(*folders, tmp_path / "out", out_dtype="float32")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == torch.float32
    name = "model.norm.weight"
    assert np.array_equal(loaded.state_dict()[name].numpy(), read_tensors(tmp_path / "out")[name])
