"""Tensors of torch written to a file as a whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskvec.errors import EvaluationError
from taskvec.evaluation.record import writing
from taskvec.files import look
from taskvec.files.flush import flush


def save(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str], state: Path) -> None:
    """Write a safetensors file; it has its name when it is whole, and on the disk.

    Parameters
    ----------
    path : path
        The file.
    tensors : mapping of str to Tensor
        On the CPU, contiguous.
    metadata : mapping of str to str
        For its header.
    state : path
        The folder of a run's state on the same file system: the file is written there until it is whole.

    Raises
    ------
    EvaluationError
        It cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # The library writes a file of a random name next to the one it is asked for, which a kill leaves behind:
    # both are in a folder of their own, which goes with the state or before the next file is written.
    folder = state / "saving"
    part = folder / path.name
    with writing(path):
        try:
            if look.exists(folder):
                shutil.rmtree(folder)
            folder.mkdir()
            save_file(dict(tensors), part, metadata=dict(metadata))
        except SafetensorError as error:
            raise EvaluationError(
                f"cannot write `{path}`: {error}", "look at free space and permissions, then run it again"
            ) from error
        with part.open("rb") as file:
            flush(file.fileno())
        os.replace(part, path)
        folder.rmdir()
