"""Tensors of torch written to a file as a whole."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskvec.errors import EvaluationError
from taskvec.evaluation.record import writing
from taskvec.files.flush import flush


def save(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file; it has its name when it is whole, and on the disk.

    Raises
    ------
    EvaluationError
        It cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    part = path.with_name(f".{path.name}.part")
    with writing(path):
        try:
            save_file(dict(tensors), part, metadata=dict(metadata))
        except SafetensorError as error:
            raise EvaluationError(
                f"cannot write `{path}`: {error}", "look at free space and permissions, then run it again"
            ) from error
        with part.open("rb") as file:
            flush(file.fileno())
        os.replace(part, path)
