"""What mergekit-yaml has options for, and what nothing has to be said about here."""

from __future__ import annotations

# Option, with its reason.
NEEDLESS: dict[str, str] = {
    "allow_crimes": "tensors go by their names; `--force ID` goes on in spite of a finding",
    "trust_remote_code": "no code of a model is run",
    "lora_merge_cache": "an adapter is added as it is read, and takes no room on the disk",
    "lora_merge_dtype": "an adapter is added before the one rounding at the end",
    "cuda": "the merge runs on processors, at the speed of memory",
    "device": "the merge runs on processors, at the speed of memory",
    "low_cpu_memory": "memory is bounded whatever the size of the model",
    "lazy_unpickle": "safetensors are read where they lie",
    "read_to_gpu": "the merge runs on processors, at the speed of memory",
    "multi_gpu": "the merge runs on processors, at the speed of memory",
    "gpu_rich": "the merge runs on processors, at the speed of memory",
    "async_write": "reading, arithmetic and writing overlap in any case",
    "write_threads": "reading, arithmetic and writing overlap in any case",
    "clone_tensors": "each tensor is written by itself",
}
