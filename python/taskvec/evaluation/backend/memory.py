"""Memory that does not suffice, and giving it back."""

from __future__ import annotations

import gc


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the device's memory, or the machine's, did not suffice."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text or "cublas_status_alloc_failed" in text
    )


def free_memory() -> None:
    """Give back the memory of a deleted model or a failed batch."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
