"""A plan in the making."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskvec.models.adapter import Adapter
from taskvec.models.model import Model
from taskvec.models.source import assembled_of, source_document, source_path
from taskvec.models.storage import stored_bytes
from taskvec.plan.config_changes import config_changes
from taskvec.plan.layout import Sized, layout
from taskvec.plan.plan import ARITHMETIC, FORMAT, PlanRecord
from taskvec.plan.rows import Operations, Rows
from taskvec.settings import Settings, format_alpha

if TYPE_CHECKING:
    from taskvec.compat.findings import Finding
    from taskvec.models.saved_vector import SavedVector


class Draft:
    """A plan in the making: sources, operations and tensors are added, and refer to each other by number.

    Parameters
    ----------
    base : Model
        The first source: the output has its tensor order, its weight files, and its other files.
    role : str
        What the base is called.
    """

    def __init__(self, base: Model, role: str = "target") -> None:
        self.checkpoints: list[Model | SavedVector | Adapter] = []
        self.roles: list[str] = []
        self._sources: dict[tuple[str, str], int] = {}
        self._operations = Operations()
        self._rows = Rows()
        self.base = base
        self.source(base, role)

    def source(self, checkpoint: Model | SavedVector, role: str) -> int:
        """The number of a source; one that plays two roles is one source."""
        key = source_path(checkpoint), checkpoint.fingerprint
        if assembled := assembled_of(checkpoint):  # the same files in another layout
            key = key[0], f"{key[1]} {id(assembled)}"
        number = self._sources.setdefault(key, len(self._sources))
        if number == len(self.checkpoints):
            self.checkpoints.append(checkpoint)
            self.roles.append(role)
        elif role not in self.roles[number].split(" and "):
            self.roles[number] += f" and {role}"
        return number

    def adapter(self, adapter: Adapter, role: str, *, base: int | None) -> int:
        """The number of an adapter that is fitted to its model, on top of source `base` or alone."""
        from taskvec.plan.adapters import on_top  # adapters alone need it

        key = str(adapter.path), f"{adapter.fingerprint} on {base}: {' '.join(adapter.factors)}"
        number = self._sources.setdefault(key, len(self._sources))
        if number == len(self.checkpoints):
            model = None if base is None else self.checkpoints[base]
            self.checkpoints.append(
                on_top(adapter, model, base) if isinstance(model, Model) and base is not None else adapter
            )
            self.roles.append(role)
        return number

    def operation(self, operation: Mapping[str, Any]) -> int:
        """The number of an operation; equal ones are one."""
        return self._operations.number(operation)

    def tensor(
        self, name: str, form: str, shape: Sequence[int], operation: int, inputs: list[tuple[int, str]]
    ) -> None:
        """Add an output tensor in a form of storage: its inputs are pairs of source and stored name."""
        self._rows.append(name, form, shape, operation, inputs)

    def finish(
        self,
        *,
        alphas: Sequence[float],
        settings: Settings,
        findings: Sequence[Finding],
        recipe: Mapping[str, Any],
        config: Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
        is_random: bool = False,
    ) -> PlanRecord:
        """Lay the tensors out over weight files and make the plan.

        ``config`` are changes besides those of types, as :class:`Plan` has them; ``is_random`` says that an
        operation draws random numbers.
        """
        sized = [Sized(name, stored_bytes(form, tuple(shape))) for name, form, shape, *_ in self._rows]
        shards, self._rows.shards = layout(sized, self.base.tensors, max_shard_size=settings.max_shard_size)
        del sized
        is_single = len(alphas) == 1
        document = {
            "format": FORMAT,
            "arithmetic": ARITHMETIC,
            "sources": [source_document(checkpoint) for checkpoint in self.checkpoints],
            "outputs": [
                {"folder": "" if is_single else f"alpha={format_alpha(alpha)}", "alpha": alpha}
                for alpha in alphas
            ],
            "shards": shards,
            "operations": self._operations.all,
            "tensors": self._rows,
            "rounding": settings.rounding,
            # without random draws the seed changes nothing, and is no reason to begin again
            "seed": settings.seed if is_random or settings.rounding == "stochastic" else 0,
        }
        changes = config_changes(document, self.base) if settings.out_dtype else {}
        return PlanRecord.make(
            document,
            self.checkpoints,
            self.roles,
            findings=findings,
            recipe=recipe,
            config={**changes, **(config or {})},
            files=files,
        )
