"""Donor and reference that differ in a share of their elements, and a run that is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np

from support.models import Tensors, write_checkpoint

ROWS, COLUMNS = 1024, 1000


def moved(reference: np.ndarray, share: float, seed: int = 1) -> np.ndarray:
    """Exactly this share of bf16 elements, one to three units in the last place away: an RL step."""
    rng = np.random.default_rng(seed)
    bits = reference.reshape(-1).view(np.uint16).copy()
    chosen = rng.choice(bits.size, round(share * bits.size), replace=False)
    bits[chosen] += rng.integers(1, 4, chosen.size).astype(np.uint16)
    return bits.view(ml_dtypes.bfloat16).reshape(reference.shape)


def pair(root: Path, share: float, tensors: int = 2) -> tuple[Path, Path]:
    """Donor and reference that differ in this share of the elements of each of their tensors."""
    rng = np.random.default_rng(0)
    shape = (ROWS, COLUMNS)
    reference: Tensors = {
        f"model.layers.{layer}.mlp.up_proj.weight": (rng.standard_normal(shape) * 0.02 + 0.5).astype(
            ml_dtypes.bfloat16
        )
        for layer in range(tensors)
    }
    donor = {name: moved(array, share, seed) for seed, (name, array) in enumerate(reference.items())}
    return write_checkpoint(root / "donor", donor), write_checkpoint(root / "reference", reference)


KILLED = """
import os, signal, sys, threading, time
from pathlib import Path
import taskvec as tv

def watch(out):
    while not list(out.rglob({files!r})):
        time.sleep(0)
    os.kill(os.getpid(), signal.SIGKILL)

out = Path(sys.argv[1])
threading.Thread(target=watch, args=[out], daemon=True).start()
{call}
"""


def killed(call: str, out: Path, files: str = "*-0000[3-9]-of-*.safetensors") -> None:
    """Runs a call in a process that is killed once a file of such a name, the third one, is in place."""
    script = KILLED.format(call=call, files=files)
    done = subprocess.run([sys.executable, "-c", script, str(out)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
