"""A GGUF file laid out in the folder for fetched files: safetensors, config and tokenizer.

What is there is used again while the file has the same path, size and times.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from taskvec._core import blake3_hex, digest_file
from taskvec.dtypes import TYPES
from taskvec.errors import NotFoundError
from taskvec.files import look
from taskvec.files.names import CONFIG
from taskvec.resolve import storage
from taskvec.resolve.gguf.config import config, generation_config
from taskvec.resolve.gguf.contents import Contents, Stored, decoded, read
from taskvec.resolve.gguf.names import in_order, named
from taskvec.resolve.gguf.tokenizer import write_tokenizer
from taskvec.resolve.laid_out import Row, laid_out, write

# The layout that is written: another one is laid out again.
_FORMAT = 1


def staged(path: Path) -> tuple[Path, str, dict[str, int]]:
    """Lay out a GGUF file.

    Returns
    -------
    folder : Path
        Where it lies.
    identity : str
        Of the file's bytes, in hexadecimal.
    kinds : dict
        How many tensors the file has in each type.

    Raises
    ------
    FormatError
        It is damaged, or holds what is not known; or a package that reads it is not installed.
    OutputError
        The folder for fetched files cannot be written, or has no room.
    """
    stamp = look.stamp(path)
    if stamp is None:
        raise NotFoundError(f"`{path}` is not found", "check the path")
    key = blake3_hex(json.dumps([_FORMAT, str(path.resolve()), list(stamp)]).encode())
    folder = storage.current().folder / "gguf" / key[:32]
    note = laid_out(path, folder, partial(_lay_out, path))
    return folder, note["identity"], {str(kind): int(count) for kind, count in note["kinds"].items()}


def _lay_out(path: Path, part: Path) -> dict[str, Any]:
    found = read(path)
    made = config(found)
    tensors = named(found, made["num_hidden_layers"])
    for name, (_, stored) in tensors.items():
        _hold_shape(found, made, name, stored)
    write_tokenizer(found, part)
    rows = {name: _row(found, made, own, stored) for name, (own, stored) in tensors.items()}
    write(path, part, rows)
    for name, content in ((CONFIG, made), ("generation_config.json", generation_config(found))):
        (part / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    kinds = Counter(stored.kind for _, stored in tensors.values())
    return {"path": str(path), "identity": digest_file(path)[1], "kinds": dict(kinds)}


def _row(found: Contents, made: dict[str, Any], name: str, stored: Stored) -> Row:
    nbytes = math.prod(stored.shape) * TYPES[stored.dtype].bytes
    return Row(stored.dtype, stored.shape, nbytes, _bytes(found, made, name, stored))


def _bytes(found: Contents, made: dict[str, Any], name: str, stored: Stored) -> Callable[[], Any]:
    def data() -> bytes:
        heads, key_heads = made["num_attention_heads"], made["num_key_value_heads"]
        return in_order(found, name, decoded(stored), heads, key_heads).tobytes()

    return data


def _hold_shape(found: Contents, made: dict[str, Any], name: str, stored: Stored) -> None:
    """Return if a tensor has the shape that the config says."""
    hidden, inner, width = made["hidden_size"], made["intermediate_size"], made["head_dim"]
    queries, keys = made["num_attention_heads"] * width, made["num_key_value_heads"] * width
    sides = {
        "embed_tokens": (made["vocab_size"], hidden), "lm_head": (made["vocab_size"], hidden),
        "q_proj": (queries, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden),
        "o_proj": (hidden, queries), "gate_proj": (inner, hidden), "up_proj": (inner, hidden),
        "down_proj": (hidden, inner), "q_norm": (width,), "k_norm": (width,),
    }  # fmt: skip
    _, module, kind = name.rsplit(".", 2) if name.count(".") > 1 else ("", *name.rsplit(".", 1))
    expected = sides.get(module, (hidden,))
    expected = expected[:1] if kind == "bias" else expected
    if stored.shape != expected:
        raise found.refuse(
            f"has `{name}` of {stored.shape}, and its metadata say {expected}", "it is damaged: copy it again"
        )
