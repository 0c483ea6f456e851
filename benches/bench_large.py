"""What planning a transfer of very large models takes: files of their real sizes, with holes for the weights.

    python benches/bench_large.py [--record DIR]

Three checkpoints with the names, shapes, types and shards of Llama 3 70B (bfloat16) and of DeepSeek-V3 (block
FP8), whose files are as long as the real ones and take no space. `taskvec transfer --dry-run` reads their
headers, compares them, samples the weights (zeros here, hence the finding `zero-vector`) and makes the plan.
Nothing is computed with the weights, so this says nothing of the speed of a run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from network.record import record
from support.large import deepseek_v3

SHARD = 5_000_000_000
SIZES = {"BF16": 2, "F32": 4, "F8_E4M3": 1}
Tensor = tuple[str, str, tuple[int, ...]]


def llama_70b() -> Iterator[Tensor]:
    """80 layers of 8192, eight heads of keys and values."""
    yield "model.embed_tokens.weight", "BF16", (128256, 8192)
    for layer in range(80):
        p = f"model.layers.{layer}"
        for name, rows, columns in (
            ("self_attn.q_proj", 8192, 8192), ("self_attn.k_proj", 1024, 8192),
            ("self_attn.v_proj", 1024, 8192), ("self_attn.o_proj", 8192, 8192),
            ("mlp.gate_proj", 28672, 8192), ("mlp.up_proj", 28672, 8192), ("mlp.down_proj", 8192, 28672),
        ):  # fmt: skip
            yield f"{p}.{name}.weight", "BF16", (rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{p}.{name}.weight", "BF16", (8192,)
    yield "model.norm.weight", "BF16", (8192,)
    yield "lm_head.weight", "BF16", (128256, 8192)


# Rows and columns of DeepSeek-V3's matrices, the first pattern that is found.
DEEPSEEK = (
    (r"q_a_proj", 1536, 7168), (r"q_b_proj", 24576, 1536), (r"kv_a_proj", 576, 7168),
    (r"kv_b_proj", 32768, 512), (r"o_proj", 7168, 16384),
    (r"experts.*(gate|up)_proj", 2048, 7168), (r"experts.*down_proj", 7168, 2048),
    (r"mlp\.(gate|up)_proj", 18432, 7168), (r"mlp\.down_proj", 7168, 18432),
    (r"eh_proj", 7168, 14336), (r"mlp\.gate\.weight", 256, 7168),
    (r"embed_tokens|head\.weight", 129280, 7168),
)  # fmt: skip
VECTORS = {"q_a_layernorm": 1536, "kv_a_layernorm": 512, "correction_bias": 256}


def deepseek() -> Iterator[Tensor]:
    """671 B parameters and the module that predicts a second token."""
    for name, kind in deepseek_v3():
        known = next((sides for pattern, *sides in DEEPSEEK if re.search(pattern, name)), None)
        if known is None or "correction_bias" in name or "norm" in name:
            size = next((size for part, size in VECTORS.items() if part in name), 7168)
            yield name, "F32" if "bias" in name else "BF16", (size,)
        elif kind == "scales":
            yield name, "F32", (-(-known[0] // 128), -(-known[1] // 128))
        else:
            yield name, "F8_E4M3" if kind == "codes" else "BF16", (known[0], known[1])


MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "Llama 3 70B": (llama_70b, {"model_type": "llama", "num_hidden_layers": 80}),
    "DeepSeek-V3": (
        deepseek,
        {
            "model_type": "deepseek_v3",
            "num_hidden_layers": 61,
            "num_nextn_predict_layers": 1,
            "quantization_config": {
                "quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128],
                "activation_scheme": "dynamic",
            },
        },
    ),
}  # fmt: skip


def write(folder: Path, tensors: list[Tensor], config: dict[str, Any]) -> tuple[int, int]:
    """A checkpoint whose weights are holes; its bytes and files."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    files: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        size = length(tensor)
        if filled and filled + size > SHARD:
            files.append([])
            filled = 0
        files[-1].append(tensor)
        filled += size
    weight_map, total = {}, 0
    for number, members in enumerate(files, 1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        header, end = {}, 0
        for tensor in members:
            key, dtype, shape = tensor
            header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + length(tensor)]}
            end += length(tensor)
            weight_map[key] = name
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)
        total += end
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total, len(files)


def length(tensor: Tensor) -> int:
    """The bytes of a tensor."""
    size = SIZES[tensor[1]]
    for side in tensor[2]:
        size *= side
    return size


def measure(root: Path, tensors: list[Tensor], config: dict[str, Any]) -> dict[str, Any]:
    """Time, processor time and memory of one dry run."""
    for name in ("target", "donor", "reference"):
        total, files = write(root / name, tensors, config)
    models = [word for name in ("target", "donor", "reference") for word in (f"--{name}", str(root / name))]
    command = [sys.executable, "-m", "taskvec", "transfer", *models, "--dry-run", "--json"]
    command += ["-o", str(root / "out")]
    begun = time.perf_counter()
    with (root / "plan.json").open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE)
        assert process.stderr is not None
        said = process.stderr.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(said + (root / "plan.json").read_text()[:2000])
    plan = json.loads((root / "plan.json").read_text())["plan"]
    return {
        "tensors": plan["tensors"], "parameters": plan["parameters"], "bytes": total, "files": files,
        "bytes_in": plan["bytes_in"], "bytes_out": plan["bytes_out"], "memory_of_a_run": plan["memory"],
        "seconds": round(time.perf_counter() - begun, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_bytes": usage.ru_maxrss * 1024,
    }  # fmt: skip


def main() -> None:
    """Measure each model, print, and keep the record where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--record", type=Path, help="keep the result here, with processor and date")
    options = parser.parse_args()
    result = {}
    for name, (tensors, config) in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            result[name] = measure(Path(folder), list(tensors()), config)
        print(name, json.dumps(result[name]))
    if options.record:
        load = round(os.getloadavg()[0], 1)
        record(options.record, "large", {"load_average": load, "models": result})


if __name__ == "__main__":
    main()
