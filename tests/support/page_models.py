"""The further models and files that single pages name: runs, pipelines, experts, maps, tasks, a bucket."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from support.families import config_of, shapes_of, write_model
from support.hub_fixtures import TOKEN
from support.hub_server import Hub
from support.models import edit_json, random_tensors, tuned, write_checkpoint
from support.pages import DOCS, blocks
from support.pipelines import pipeline
from support.s3_server import running_s3
from support.vocabularies import ENGLISH, FRENCH, byte_tokenizer
from support.vocabularies import write_model as write_with_tokenizer

Variables = dict[str, str]


def training_run(home: Path, _models: Path) -> Variables:
    """`run/checkpoint-*` with a trainer's state, and scores.csv."""
    start = random_tensors(shapes_of("llama", 2), seed=7, dtype="BF16")
    steps = range(7000, 10001, 500)
    log = [{"step": step, "eval_loss": abs(step - 9000) / 1000} for step in steps]
    for step in steps:
        folder = home / "run" / f"checkpoint-{step}"
        write_checkpoint(folder, tuned(start, seed=step), config_of("llama", 2))
        state = {"global_step": step, "log_history": [row for row in log if row["step"] <= step]}
        (folder / "trainer_state.json").write_text(json.dumps(state))
    rows = [f"{step},{0.5 + step / 1e5}" for step in steps]
    (home / "scores.csv").write_text("\n".join(["step,accuracy", *rows]) + "\n")
    return {}


def folders(home: Path, _models: Path) -> Variables:
    """Three pipelines with a variant, distributed checkpoints of torch, and `model.gguf`."""
    import torch
    import torch.distributed.checkpoint as dcp

    from support import gguf_models

    for number, name in enumerate(("sdxl", "sdxl-tuned", "sdxl-base")):
        root = pipeline(home / name, number)
        plain = root / "text_encoder" / "model.safetensors"
        half = {key: value.astype(np.float16) for key, value in load_file(plain).items()}
        save_file(half, root / "text_encoder" / "model.fp16.safetensors", metadata={"format": "pt"})
    for step in (100, 200):
        weights = {
            "model.embed_tokens.weight": torch.full((16, 8), float(step)),
            "lm_head.weight": torch.ones(16, 8),
        }
        folder = home / "run" / f"step-{step}"
        folder.mkdir(parents=True)
        dcp.save({"model": weights}, checkpoint_id=str(folder), no_dist=True)
        (folder / "config.json").write_text('{"model_type": "llama"}')
    made = gguf_models.model("llama")
    gguf_models.write(home / "model.gguf", "llama", gguf_models.tensors_of(made, "llama"), "Q8_0")
    return {}


def experts(home: Path, _models: Path) -> Variables:
    """Dense models of one family with a tokenizer: `org/base`, `org/maths`, `org/code`."""
    for number, name in enumerate(("base", "maths", "code")):
        folder = home / "org" / name
        write_model(folder, "llama", 2, seed=number)
        edit_json(folder / "config.json", bos_token_id=0, eos_token_id=1, pad_token_id=None)
    return {}


def vocabularies(home: Path, _models: Path) -> Variables:
    """Two models with tokenizers of their own: `llama-1b` and `qwen-0.5b`."""
    made = {
        "llama-1b": byte_tokenizer(ENGLISH, 300, ["<|end|>"]),
        "qwen-0.5b": byte_tokenizer(FRENCH, 310, ["<|im_end|>"]),
    }
    for seed, (name, tokenizer) in enumerate(made.items()):
        write_with_tokenizer(home / name, tokenizer, seed)
    return {}


def importance_maps(home: Path, models: Path) -> Variables:
    """Maps for `org/math-model` and `org/code-model`, the latter without the norms."""
    import taskvec as tv

    rng = np.random.default_rng(3)
    opened = tv.open(models / "grpo")
    for name in ("math", "code"):
        folder = home / "importance" / name
        folder.mkdir(parents=True)
        tensors: dict[str, Any] = {
            key: np.abs(rng.normal(size=opened[key].shape)).astype(np.float32)
            for key in opened
            if name == "math" or "norm" not in key
        }
        save_file(tensors, folder / "model.safetensors")
    return {}


def tasks(home: Path, _models: Path) -> Variables:
    """The task `sums` of the page on evaluation, as that page makes it."""
    source, task = blocks(DOCS / "evaluate.md", "python", "yaml")[:2]
    subprocess.run([sys.executable, "-c", source.text], cwd=home, check=True)
    (home / task.value).write_text(task.text, encoding="utf-8")
    return {}


@contextlib.contextmanager
def buckets(_home: Path, models: Path) -> Iterator[Variables]:
    """`s3://bucket/models/...` on a server of our own."""
    with running_s3() as server:
        for name in ("instruct", "grpo", "sft"):
            server.put("bucket", f"models/{name}", models / name)
        yield server.variables


@contextlib.contextmanager
def stores(home: Path, models: Path) -> Iterator[Variables]:
    """The bucket, another one for results, and a hub that takes what is sent to it."""
    with running_s3() as server, Hub() as hub:
        for name in ("instruct", "grpo", "sft"):
            server.put("bucket", f"models/{name}", models / name)
        server.client.create_bucket(Bucket="results")
        hub.write_token = TOKEN
        yield {
            **server.variables,
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(home / "hub"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }


WORLDS: dict[str, Callable[[Path, Path], Any]] = {
    "averages.md": training_run,
    "many-machines.md": stores,
    "models.md": folders,
    "moe.md": experts,
    "recipes.md": importance_maps,
    "object-stores.md": buckets,
    "search.md": tasks,
    "tokens.md": vocabularies,
}
