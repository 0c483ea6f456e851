"""Small pipelines in the layout of diffusers: weights in several folders, in shards and whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

COMPONENTS = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "text_encoder": ["transformers", "CLIPTextModel"],
}
STEM = "diffusion_pytorch_model"


def pipeline(root: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    tensors = {name: rng.normal(size=(64, 32)).astype(np.float32) for name in ("a.weight", "b.weight")}
    for folder in COMPONENTS:
        (root / folder).mkdir(parents=True)
        (root / folder / "config.json").write_text("{}")
    (root / "model_index.json").write_text(json.dumps(COMPONENTS))
    files = [f"{STEM}-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for (name, array), file in zip(tensors.items(), files, strict=True):
        save_file({name: array}, root / "unet" / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict(zip(tensors, files, strict=True))}
    (root / "unet" / f"{STEM}.safetensors.index.json").write_text(json.dumps(index))
    save_file(
        {"a.weight": tensors["a.weight"]}, root / "text_encoder/model.safetensors", metadata={"format": "pt"}
    )
    return root
