"""A plan in the making."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskvec.compat.findings import enforce_strictly
from taskvec.models.adapter import Adapter
from taskvec.models.model import Model
from taskvec.models.quantised.declared import SIDE_FILES
from taskvec.models.source import assembled_of, source_documents, source_path
from taskvec.models.storage import stored_bytes
from taskvec.plan.config_changes import configs_of_folders, output_changes, undeclared
from taskvec.plan.encodings import encoding
from taskvec.plan.layout import Sized, folder_order, layout, layout_in_folders
from taskvec.plan.plan import ARITHMETIC, FORMAT, PlanRecord
from taskvec.plan.rows import Operations, Rows
from taskvec.plan.touched import declarations, gone
from taskvec.settings import Settings, float_dtype, format_alpha

if TYPE_CHECKING:
    from taskvec.compat.findings import Finding
    from taskvec.models.model import TensorInfo
    from taskvec.models.part_names import StoredPart
    from taskvec.models.quantised.format import Format
    from taskvec.models.rows import Rows as TableRows
    from taskvec.models.saved_vector import SavedVector
    from taskvec.plan.new_formats import NewFormat


class Draft:
    """A plan in the making: sources, operations and tensors are added, and refer to each other by number.

    Parameters
    ----------
    base : Model
        The first source: the output has its tensor order, its weight files, and its other files.
    role : str
        What the base is called.
    is_packed : bool
        Packed weights are written in their own format; plain otherwise.
    plain : frozenset of str
        Packed weights of the base that are plain even so.
    """

    def __init__(
        self,
        base: Model,
        role: str = "target",
        *,
        is_packed: bool = False,
        plain: frozenset[str] = frozenset(),
    ) -> None:
        self.checkpoints: list[Model | SavedVector | Adapter] = []
        self.roles: list[str] = []
        self._sources: dict[tuple[str, str], int] = {}
        self._operations = Operations()
        self._rows = Rows()
        self.base = base
        self.is_packed = is_packed
        self._plain = plain
        self._encodings: list[dict[str, Any]] = []
        self._permuted: dict[int, dict[str, TableRows]] = {}
        # by the record of a format, the number of its model, and whether that has the first input
        self._numbers: dict[tuple[int, int, bool], int] = {}
        self._places: dict[str, TensorInfo] = {}
        self._taken: dict[str, tuple[int, list[tuple[int, Any]]]] = {}
        self.source(base, role)

    def source(self, checkpoint: Model | SavedVector, role: str) -> int:
        """The number of a source; one that plays two roles is one source."""
        key = _key(checkpoint)
        number = self._sources.setdefault(key, len(self._sources))
        if number == len(self.checkpoints):
            self.checkpoints.append(checkpoint)
            self.roles.append(role)
        elif role not in self.roles[number].split(" and "):
            self.roles[number] += f" and {role}"
        return number

    def number(self, checkpoint: Model | SavedVector) -> int | None:
        """The number of a source that has been added."""
        return self._sources.get(_key(checkpoint))

    def adapter(self, adapter: Adapter, role: str, *, base: int | None) -> int:
        """The number of an adapter that is fitted to its model, on top of source `base` or alone."""
        from taskvec.plan.adapters import on_top  # adapters alone need it

        key = str(adapter.path), f"{adapter.fingerprint} on {base}: {' '.join(adapter.changed)}"
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

    def keeps_packed(self, name: str, model: Model | None = None) -> bool:
        """Whether an output tensor that is stored packed in a model, by default the base, stays so."""
        return self.is_packed and name in (model or self.base).packed and name not in self._plain

    def place(self, name: str, info: TensorInfo) -> None:
        """Put an output tensor into the weight file in which a tensor of the base lies."""
        self._places[name] = info

    def permuted(self, source: int, name: str, rows: TableRows) -> None:
        """Give a matrix of a source, under the name that the plan has for it, rows of another order."""
        self._permuted.setdefault(source, {})[name] = rows

    def packed_tensor(
        self, name: str, template: tuple[int, str], operation: int, inputs: list[tuple[int, str]]
    ) -> None:
        """Add an output tensor in the packed format of a model's tensor: a row for each of its stored parts.

        Parameters
        ----------
        name : str
            The logical tensor.
        template : (int, str)
            The source that is a model, and its packed tensor.
        operation : int
        inputs : list of (int, str)
            As of :meth:`tensor`.
        """
        number, stored = template
        model = self.checkpoints[number]
        assert isinstance(model, Model)
        packed, shape = model.packed[stored], model.tensors[stored].shape
        strip = packed.format.strip
        stem, new = stored.removesuffix(strip), name.removesuffix(strip)
        # an adapter on the model is another source, and changes what is copied
        is_copy = self._operations.all[operation]["kind"] == "copy" and inputs == [template]
        encoding = -1 if is_copy else self._encoding(packed.format, number, inputs[0] == template)
        parts = [(place, part) for (part, _), place in zip(packed.format.parts, packed.parts, strict=True)]
        for place, part in [*parts, *((place, "") for place in packed.beside)]:
            own = place if new == stem else new + place[len(stem) :]
            # the groups of columns stay what they are
            if is_copy or part in ("", "order"):
                self._stored(own, number, model, place)
            else:
                info = model.stored[place]
                row = encoding, part, name, shape
                self._rows.append(own, info.dtype, info.shape, operation, inputs, row)

    def new_tensor(self, info: TensorInfo, form: NewFormat, operation: int) -> None:
        """Add a matrix of the base, packed in a format that the base does not have."""
        made = {**form.format(info.dtype).document(), "rule": form.rule, "own": False}
        if made not in self._encodings:
            self._encodings.append(made)
        encoding = self._encodings.index(made)
        stem = info.name.removesuffix(".weight")
        for number, (part, end, dtype, shape) in enumerate(form.parts):
            row = encoding, part, info.name, info.shape
            self._rows.append(stem + end, dtype, shape(*info.shape), operation, [(0, info.name)], row)
            # the first part has the place of the matrix in the base's files, the others follow it
            self._places[stem + end] = info._replace(nbytes=0 if number else info.nbytes)

    def take(self, name: str, parts: Sequence[StoredPart], kept: int = 0) -> None:
        """Say of an output tensor that only these parts are computed, and the rest is that of one input.

        Parameters
        ----------
        name : str
            The logical tensor.
        parts : sequence of StoredPart
        kept : int
            The place of that input among the tensor's inputs.
        """
        self._taken[name] = kept, [(part.first, part.axes) for part in parts]

    def _stored(self, name: str, number: int, model: Model, place: str) -> None:
        """Add a stored tensor of a model as it is."""
        info = model.stored[place]
        copy = self.operation({"kind": "copy", "stored": True})
        self._rows.append(name, info.dtype, info.shape, copy, [(number, place)])

    def _encoding(self, form: Format, source: int, is_own: bool) -> int:
        """The number of an encoding; equal ones are one."""
        key = id(form), source, is_own
        if key not in self._numbers:
            model = self.checkpoints[source]
            assert isinstance(model, Model)
            made = encoding(form, model, is_own=is_own)
            if made not in self._encodings:
                self._encodings.append(made)
            self._numbers[key] = self._encodings.index(made)
        return self._numbers[key]

    def _complete(self) -> None:
        """Add what goes with packed weights and is not one; put all into the order of the base's files."""
        written = {name for name, *_ in self._rows.stored()}
        if not self.base.stored.keys() & written:
            return
        left = gone(self.base, self._plain)
        for name in self.base.stored:
            if name not in written and name not in self.base.tensors and name not in left:
                self._stored(name, 0, self.base, name)
        places = {name: place for place, name in enumerate(self.base.stored)}
        for name in self._plain:  # the first part has the place of the weight
            places[name] = places[self.base.packed[name].parts[0]]
            self._places[name] = self.base.tensors[name]
        self._rows.sort(places)

    def finish(
        self,
        *,
        alphas: Sequence[float],
        settings: Settings,
        findings: Sequence[Finding],
        recipe: Mapping[str, Any],
        config: Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
        left: Sequence[str] = (),
        is_random: bool = False,
    ) -> PlanRecord:
        """Lay the tensors out over weight files and make the plan.

        ``config`` are changes besides those of types, and ``left`` files besides those that speak of packed
        weights, as :class:`PlanRecord` has them; ``is_random`` says that an operation draws random numbers.

        Raises
        ------
        CompatibilityError
            There is a warning, and the settings are strict.
        """
        if settings.strict:
            enforce_strictly(findings, settings.force)
        if self.is_packed:
            self._complete()
        if self.base.sub_models:
            folders = list(self.base.sub_models)
            self._rows.sort_by(lambda name: folder_order(folders, name))
        sized = [Sized(name, stored_bytes(form, tuple(shape))) for name, form, shape in self._rows.stored()]
        own = self.base.stored if self.is_packed else self.base.tensors
        own = {**own, **self._places} if self._places else own
        limit = settings.max_shard_size
        if self.base.sub_models:
            laid = layout_in_folders(sized, own, self.base.sub_models, max_shard_size=limit)
        else:
            laid = layout(sized, own, max_shard_size=limit)
        shards, self._rows.shards = laid
        del sized
        is_single = len(alphas) == 1
        document = {
            "format": FORMAT,
            "arithmetic": ARITHMETIC,
            "sources": source_documents(self.checkpoints),
            "outputs": [
                {"folder": "" if is_single else f"alpha={format_alpha(alpha)}", "alpha": alpha}
                for alpha in alphas
            ],
            "shards": shards,
            "operations": self._operations.all,
            "tensors": self._rows,
            "rounding": settings.rounding,
            # without random draws the seed changes nothing, and is not a reason to begin again
            "seed": settings.seed if is_random or settings.rounding == "stochastic" else 0,
        }
        for source, rows in self._permuted.items():
            document["sources"][source]["rows"] = rows
        if self._encodings:
            document["encodings"] = self._encodings
        if self._taken:
            document["taken"] = self._taken
        is_other = float_dtype(settings) is not None or (self.base.packed and not self.is_packed)
        changes, declaring = output_changes(document, self.base) if is_other else ({}, ())
        if self._plain:
            changes, declared = declarations(self.base, self._plain)
            files = {**declared, **(files or {})}
        if "quantization_config" in (config or {}):  # packed otherwise: what declares the old way goes
            changes, declaring = {**changes, **undeclared(self.base.config)}, SIDE_FILES
        return PlanRecord.make(
            document,
            self.checkpoints,
            self.roles,
            findings=findings,
            recipe=recipe,
            config={**changes, **(config or {})},
            files={**configs_of_folders(document, self.base), **(files or {})} if is_other else files,
            left=(*declaring, *left),
        )


def _key(checkpoint: Model | SavedVector) -> tuple[str, str]:
    """By what a source is told from others: the same files in another layout are another one."""
    path, fingerprint = source_path(checkpoint), checkpoint.fingerprint
    assembled = assembled_of(checkpoint)
    return path, f"{fingerprint} {id(assembled)}" if assembled else fingerprint
