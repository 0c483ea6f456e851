"""What linear algebra takes, as whole processes: rows of missing tokens, and adapters of a difference.

    python benches/bench_rows.py ROOM [--rank 16 64 256] [-k 8 64] [--mergekit PYTHON] [--record DIR]

ROOM is an empty folder. Made there are checkpoints of random weights (`--size`), a difference that has a
falling spectrum (singular values as i^-0.7, 256 of them, rounded to bfloat16) and one that is sparse, and two
models with tokenizers of 151,936 and 32,000 tokens, of which the first lacks 4,000. Figures are seconds of
the processor, which other processes hardly change, of the wall, and the largest resident memory. Under pytest
everything is run once, small.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_dtypes import bfloat16
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from taskvec.selftest.synthetic import SHAPES, write_checkpoint

RANK = 256  # of the difference that has a low one


def process(line: list[str], out: Path) -> dict[str, float]:
    """What a process takes that writes a folder, which is removed."""
    begin = time.perf_counter()
    with open(out.with_suffix(".log"), "w") as log:
        child = subprocess.Popen(line, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(line)} failed:\n{out.with_suffix('.log').read_text()[-2000:]}")
    shutil.rmtree(out)
    wall, cpu = time.perf_counter() - begin, used.ru_utime + used.ru_stime
    return {"cpu_seconds": round(cpu, 2), "wall_seconds": round(wall, 2), "peak_bytes": used.ru_maxrss * 1024}


def apart(work: Callable[..., None], *arguments: Any) -> None:
    """Do it in another process: the peak of a child begins with the memory of the one that starts it."""
    child = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    child.start()
    child.join()
    if child.exitcode:
        raise SystemExit(f"{work.__name__} failed")


def ours(out: Path, *words: str) -> dict[str, float]:
    """The same of a command of taskvec."""
    return process([sys.executable, "-m", "taskvec", *words, "-o", str(out), "--quiet"], out)


def theirs(python: str | None, script: str, out: Path, *words: str) -> dict[str, dict[str, float]]:
    """The same of a command of mergekit, where there is one."""
    if python is None:
        return {}
    return {"mergekit": process([str(Path(python).with_name(script)), *words], out)}


def falling(base: Path, out: Path) -> None:
    """A checkpoint that differs from another one by matrices with a falling spectrum."""
    draws = np.random.default_rng(3)
    tensors = load_file(base / "model.safetensors")
    for name, value in tensors.items():
        if value.ndim == 2:
            rank = min(RANK, *value.shape)
            sizes = np.arange(1, rank + 1, dtype=np.float32) ** -0.7
            left = draws.standard_normal((value.shape[0], rank), dtype=np.float32) * sizes
            step = left @ draws.standard_normal((rank, value.shape[1]), dtype=np.float32)
            step *= np.float32(0.002) / np.linalg.norm(sizes)
            tensors[name] = (value.astype(np.float32) + step).astype(bfloat16)
    shutil.copytree(base, out, ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(tensors, out / "model.safetensors", {"format": "pt"})


def adapters(room: Path, size: str, ranks: list[int], mergekit: str | None) -> dict[str, Any]:
    """Adapters of both kinds of difference at every rank."""
    for member in ("base", "sft", "grpo"):
        apart(write_checkpoint, room / member, SHAPES[size], member)
    apart(falling, room / "base", room / "falling")
    rows: dict[str, Any] = {}
    for kind, (donor, reference) in {"falling": ("falling", "base"), "sparse": ("grpo", "sft")}.items():
        for rank in ranks:
            words = (str(room / donor), str(room / reference))
            row: dict[str, Any] = {"taskvec": ours(room / "out", "extract", *words, "--lora", str(rank))}
            more = ["--model", words[0], "--base-model", words[1], "--out-path", str(room / "out")]
            row |= theirs(mergekit, "mergekit-extract-lora", room / "out", *more, "--max-rank", str(rank))
            rows[f"{kind}, rank {rank}"] = row
            print(f"extract --lora {rank}, {kind}: {json.dumps(row)}", flush=True)
    return rows


def grown(pieces: list[str], merges: list[tuple[str, str]], count: int, seed: int, taken: set[str]) -> None:
    """Add pieces until there are so many, each joined of one of the pieces and of a short one."""
    draws = random.Random(seed)
    first = list(pieces)
    while len(pieces) < count:
        pair = draws.choice(first if seed else pieces[:20_000]), draws.choice(pieces[:256])
        piece = "".join(pair)
        if piece not in taken and len(piece) < 15:
            taken.add(piece)
            pieces.append(piece)
            merges.append(pair)


def vocabularies(room: Path, counts: tuple[int, int], columns: int) -> None:
    """Two models with untied embedding and head; the target lacks an eighth of the other one's tokens."""
    draws = np.random.default_rng(0)
    pieces, merges = sorted(pre_tokenizers.ByteLevel.alphabet()), []
    grown(pieces, merges, counts[0], 0, set(pieces))
    shared = counts[1] - counts[1] // 8
    less, fewer = pieces[:shared], merges[: shared - 256]
    grown(less, fewer, counts[1], 7, set(pieces))
    for name, own, joined in (("target", pieces, merges), ("other", less, fewer)):
        folder = room / name
        folder.mkdir()
        tokenizer = Tokenizer(models.BPE({piece: number for number, piece in enumerate(own)}, joined))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
        config = {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": columns,
            "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 2, "vocab_size": len(own), "tie_word_embeddings": False,
            "dtype": "float32",
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
        stem = "model.layers.0."
        shapes = {f"{stem}self_attn.{each}_proj.weight": (columns, columns) for each in "qkvo"}
        shapes |= {f"{stem}mlp.{each}_proj.weight": (64, columns) for each in ("gate", "up")}
        shapes |= {f"{stem}mlp.down_proj.weight": (columns, 64), "model.norm.weight": (columns,)}
        shapes |= {f"{stem}{each}_layernorm.weight": (columns,) for each in ("input", "post_attention")}
        tensors = {key: draws.standard_normal(shape, dtype=np.float32) for key, shape in shapes.items()}
        spectrum = (np.arange(1, columns + 1) ** -0.35).astype(np.float32)
        for key in ("model.embed_tokens.weight", "lm_head.weight"):
            turn = np.linalg.qr(draws.standard_normal((columns, columns)))[0].astype(np.float32)
            rows = (draws.standard_normal((len(own), columns), dtype=np.float32) * spectrum) @ turn
            tensors[key] = rows + 0.1 * draws.standard_normal(columns, dtype=np.float32)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def tokens(
    room: Path, counts: tuple[int, int], columns: int, ks: list[int], mergekit: str | None
) -> dict[str, Any]:
    """The target with the other tokenizer, at every k."""
    apart(vocabularies, room, counts, columns)
    target, other, out = str(room / "target"), str(room / "other"), room / "out"
    rows: dict[str, Any] = {}
    for k in ks:
        row: dict[str, Any] = {"taskvec": ours(out, "tokens", target, "--from", other, "-k", str(k))}
        more = ("-k", str(k), "--approximation-method", "omp")
        row |= theirs(mergekit, "mergekit-tokensurgeon", out, target, other, str(out), *more)
        rows[f"k {k}"] = row
        print(f"tokens -k {k}: {json.dumps(row)}", flush=True)
    return rows


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("room", type=Path, metavar="ROOM")
    parser.add_argument("--size", default="0.5b", choices=SHAPES)
    parser.add_argument("--rank", type=int, nargs="*", default=[16, 64, 256])
    parser.add_argument("-k", type=int, nargs="*", default=[8, 64])
    parser.add_argument("--tokens", type=int, nargs=2, default=(151_936, 32_000))
    parser.add_argument("--columns", type=int, default=896)
    parser.add_argument("--mergekit", metavar="PYTHON", help="an interpreter that has mergekit")
    parser.add_argument("--record", type=Path, metavar="DIR")
    given = parser.parse_args(arguments)
    rows = {
        "adapters": adapters(given.room, given.size, given.rank, given.mergekit) if given.rank else {},
        "tokens": tokens(given.room, tuple(given.tokens), given.columns, given.k, given.mergekit)
        if given.k
        else {},
    }
    if given.record:
        from bench_methods import record

        print(record(given.record, rows, "rows"))
    return rows


def test_rows(tmp_path: Path) -> None:
    words = ["--size", "demo", "--rank", "4", "-k", "2", "--tokens", "1200", "700", "--columns", "32"]
    rows = main([str(tmp_path), *words])
    assert set(rows["adapters"]) == {"falling, rank 4", "sparse, rank 4"}
    for row in (*rows["adapters"].values(), *rows["tokens"].values()):
        assert row["taskvec"]["cpu_seconds"] > 0
        assert row["taskvec"]["peak_bytes"] > 1 << 20


if __name__ == "__main__":
    main()
