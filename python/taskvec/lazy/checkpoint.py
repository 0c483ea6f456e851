"""Checkpoints as the user has them: the record of a model, read like a mapping, with operators."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, overload

from taskvec.errors import RecipeError
from taskvec.lazy.mapping import Tensors
from taskvec.lazy.vector import TaskVector
from taskvec.models.model import Model
from taskvec.models.state_dict import state_dict
from taskvec.report.tables import facts_html
from taskvec.resolve import open as opening
from taskvec.resolve.remote import materialised
from taskvec.shown import shown
from taskvec.text import amount, kind_of, printable, size

if TYPE_CHECKING:
    import numpy as np

    from taskvec.lazy.merge import Merge
    from taskvec.progress import Callback


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Checkpoint(Tensors, Model):
    """A checkpoint's headers, config and file list; made by :func:`open`, never changed.

    ``checkpoint[name]`` reads one tensor, ``checkpoint.items()`` streams them all, ``donor - reference`` is a
    :class:`taskvec.TaskVector` and ``target + vector`` a :class:`taskvec.Merge`, both lazy. Its attributes
    are those of :class:`taskvec.models.model.Model`.
    """

    @classmethod
    def of(cls, model: Model) -> Checkpoint:
        """The same model with the operators; itself if it has them."""
        if isinstance(model, Checkpoint):
            return model
        return cls(**{field.name: getattr(model, field.name) for field in fields(Model)})

    def __len__(self) -> int:
        return len(self.tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def items(self) -> Iterator[tuple[str, np.ndarray]]:
        """Reads the tensors one after the other."""
        return ((name, self[name]) for name in self.tensors)

    def __getitem__(self, name: str) -> np.ndarray:
        """Reads one tensor; one of a state dict shares its memory.

        Returns
        -------
        ndarray
            Of the stored dtype and shape, read-only; BF16 and F8 through ml_dtypes. Of a packed weight, its
            exact values as float32.

        Raises
        ------
        TensorNotFoundError
            There is no tensor of this name; a ``KeyError`` too.
        HubError
            The weights have not been downloaded.
        """
        info = self.info(name)
        import numpy as np  # a run of whole checkpoints never needs it, and importing it takes 100 ms

        from taskvec.dtypes import array_of

        if name in self.packed:
            from taskvec.run.evaluate import decoded

            return decoded(self, name)
        data = self.reader.read(name)
        array = data.view() if isinstance(data, np.ndarray) else np.frombuffer(data, dtype=np.uint8)
        array.flags.writeable = False
        return array_of(array, info.dtype, info.shape)

    def materialise(self, progress: Callback | bool | None = None) -> Checkpoint:
        """Downloads what a run needs and is not here yet: weights in use, config, tokenizer and the like.

        Returns
        -------
        Checkpoint
            With a ``path``; this one itself where everything is local already.

        Raises
        ------
        HubError
            The download failed, or its headers are not those seen before.
        """
        with shown(progress) as tell:
            return Checkpoint.of(materialised(self, tell))

    def __add__(self, other: TaskVector) -> Merge:
        if isinstance(other, Model):
            raise TypeError(
                "checkpoints cannot be added; put a difference in parentheses: target + (donor - reference)"
            )
        return other.added_to(self) if isinstance(other, TaskVector) else NotImplemented

    @overload
    def __sub__(self, other: Model) -> TaskVector: ...
    @overload
    def __sub__(self, other: TaskVector) -> Merge: ...
    def __sub__(self, other: Model | TaskVector) -> TaskVector | Merge:
        if isinstance(other, TaskVector):
            return (-other).added_to(self)
        return TaskVector.difference(self, other) if isinstance(other, Model) else NotImplemented

    def _facts(self) -> dict[str, str]:
        from taskvec.resolve.saved_vector import is_stored_vector  # which commands do without

        facts = {
            "tensors": f"{len(self.tensors):,}",
            "parameters": amount(self.total_parameters),
            "dtype": ", ".join(self.types) or "none",
            "size": size(self.total_bytes),
            "files": str(len(self.file_sizes)),
        }
        if self.config.get("architectures"):
            facts = {"architecture": ", ".join(map(str, self.config["architectures"])), **facts}
        if is_stored_vector(self):
            facts["holds"] = "a saved vector as it is stored: taskvec.load_vector opens it as a vector"
        if self.revision:
            facts["revision"] = self.revision
        if self.download_bytes:
            facts["to download"] = size(self.download_bytes)
        return facts

    def __repr__(self) -> str:
        facts = self._facts()
        facts.pop("revision", None)
        words = ", ".join(f"{key}: {value}" for key, value in facts.items())
        return f"Checkpoint({printable(repr(self.spec))}, {words})"

    def _repr_html_(self) -> str:
        return facts_html("Checkpoint", self.spec, self._facts())


def open(spec: str | os.PathLike[str] | Model, *, revision: str | None = None) -> Checkpoint:  # noqa: A001
    """Open a checkpoint by its headers; no weights are read or downloaded.

    Parameters
    ----------
    spec : str or path or Checkpoint
        A folder or a single ``.safetensors`` file; ``org/name`` or ``org/name@revision`` on the hub, unless a
        folder of that name exists; ``hf://org/name@revision``, which always means the hub; or a folder at
        ``s3://``, ``gs://``, ``az://`` or ``https://`` (see :func:`taskvec.storage`).
    revision : str, optional
        A branch, tag or commit of a repository.

    Raises
    ------
    NotFoundError
        Nothing of that name, locally or on the hub.
    FormatError
        The files are damaged, or not safetensors.
    HubError
        The hub cannot be reached, or refuses.
    """
    return Checkpoint.of(opening.open(spec, revision=revision))


def from_state_dict(
    tensors: Mapping[str, Any], *, config: Mapping[str, Any] | None = None, name: str = "state dict"
) -> Checkpoint:
    """Use tensors that are in memory as a checkpoint; nothing is copied.

    Parameters
    ----------
    tensors : mapping of str to ndarray or Tensor
        NumPy arrays (bfloat16 and float8 through ml_dtypes) or torch tensors on the CPU, contiguous. They
        must not change while something is computed from them.
    config : mapping, optional
        What config.json would say; without it, only names and shapes are compared with other models.
    name : str
        What messages call it.

    Returns
    -------
    Checkpoint
        For ``donor - reference`` and ``target + vector``, together with checkpoints on disk.

    Raises
    ------
    FormatError
        A tensor is not on the CPU, not contiguous, or of a type that safetensors lacks.
    RecipeError
        It is not a mapping.
    """
    if not isinstance(tensors, Mapping):
        raise RecipeError(
            f"`tensors` is a mapping of names to arrays, found {kind_of(tensors)}",
            "give a state dict: of a torch module, `module.state_dict()`",
        )
    return Checkpoint.of(state_dict(tensors, config, name))
