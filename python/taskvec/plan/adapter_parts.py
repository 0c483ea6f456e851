"""Adapters across layouts: factors of a weight that its model stores under another kind of name, or in one
tensor with others.

The change of a module is a matrix B·A that nobody holds. It has the views of a stored tensor of its name, in
the table of layouts, and meets those of the model's tensors: every box of elements that both have in common
becomes a part, with the steps in A and B for each of its dimensions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from taskvec.compat.layouts.names import common_name
from taskvec.compat.layouts.table import views, views_of
from taskvec.compat.layouts.views import View, meet_axes
from taskvec.errors import FormatError
from taskvec.models.adapter import Adapter, PartFactors
from taskvec.models.adapter_config import MERGE_FIRST
from taskvec.models.adapter_names import core, not_found
from taskvec.models.adapter_parameters import ParameterFactors
from taskvec.models.model import Model
from taskvec.text import listed

# Models whose experts have inputs before outputs in memory: what PEFT calls inputs are inputs in any version.
_TRANSPOSED = frozenset({"gpt_oss", "llama4", "llama4_text"})


class Weights:
    """The weights of a model, in whichever tensor each is stored.

    Parameters
    ----------
    model : Model
    like : Model, optional
        The model whose layout it has been fitted to, where it has.
    """

    def __init__(self, model: Model, like: Model | None = None) -> None:
        self.model = model
        self.config = (like or model).config
        self._like = like
        self._found: dict[str, list[tuple[str, View]]] | None = None

    def find(self, name: str) -> list[tuple[str, View]]:
        """Where a weight is stored, by its common name; several places where the names do not tell."""
        if self._found is None:
            self._found = {}
            for stored, parts in views(self.model, self._like):
                for view in parts:
                    self._found.setdefault(core(view.name), []).append((stored, view))
        return self._found.get(core(name), [])

    def stored_whole(self, name: str) -> list[str]:
        """The stored tensor that is the weight of this name and nothing else, under another kind of name."""
        found = self.find(common_name(name))
        return [stored for stored, view in found if view.own == stored]


class Matrix(NamedTuple):
    """The change of a tensor as factors give it: a matrix, or one for each expert.

    Attributes
    ----------
    name : str
        The name that the module has in memory.
    shape : tuple of int
        [outputs, inputs], or [experts, outputs, inputs].
    a, b : str
        Stored names of the factors.
    scale : float
    rank : int
    experts, ranks, outputs, inputs : (int, int)
        The steps from one to the next in A and B.
    """

    name: str
    shape: tuple[int, ...]
    a: str
    b: str
    scale: float
    rank: int
    experts: tuple[int, int]
    ranks: tuple[int, int]
    outputs: tuple[int, int]
    inputs: tuple[int, int]

    def views(self, config: Mapping[str, Any]) -> list[View]:
        """The weights that it changes, of a model with this config."""
        # by itself: next to others, experts would be told to have inputs first
        ((_, parts),) = views_of({self.name: self.shape}, config)
        return parts

    def part(self, view: View, target: View) -> PartFactors | None:
        """A weight of this change in the tensor of a model; ``None`` where they are of different sizes."""
        axes = meet_axes(target, view)
        if axes is None or len(axes) != 2:
            return None
        columns = self.shape[-1]
        expert, element = divmod(view.first, self.shape[-2] * columns)
        row, column = divmod(element, columns)
        start = [
            expert * self.experts[factor] + row * self.outputs[factor] + column * self.inputs[factor]
            for factor in (0, 1)
        ]
        sides = ((axes[0], columns, self.outputs), (axes[1], 1, self.inputs))
        dims = tuple(
            (length, to, (stride // unit * steps[0], stride // unit * steps[1]))
            for rows, unit, steps in sides
            for length, to, stride in rows
        )
        return PartFactors(
            self.a, self.b, self.scale, self.rank, (start[0], start[1]), self.ranks, target.first, dims
        )


def fitted_parts(
    adapter: Adapter, names: Sequence[str], weights: Weights
) -> dict[str, tuple[PartFactors, ...]]:
    """The factors of parts of the model's tensors, by the stored names of these.

    Parameters
    ----------
    adapter : Adapter
    names : sequence of str
        Those of its weights that the model does not store under a name that differs in wrappers alone.
    weights : Weights
        Of its model.

    Raises
    ------
    FormatError
        A weight is in none of the model's tensors, in several, of another shape, or changed twice.
    """
    matrices = [_matrix(adapter, name) for name in names]
    matrices += _of_parameters(adapter, weights)
    if not matrices:
        return {}
    found: dict[str, dict[int, PartFactors]] = {}
    lacking: list[str] = []
    for matrix in matrices:
        for view in matrix.views(weights.config):
            stored = weights.find(view.name)
            if not stored:
                lacking.append(matrix.name)
                break
            _add(adapter, matrix, view, stored, weights.model, found)
    if lacking:
        model = weights.model
        raise not_found(adapter.spec, lacking, model.spec, model.tensors.keys())
    return {name: tuple(parts.values()) for name, parts in found.items()}


def _add(
    adapter: Adapter,
    matrix: Matrix,
    view: View,
    stored: list[tuple[str, View]],
    model: Model,
    found: dict[str, dict[int, PartFactors]],
) -> None:
    if len(stored) > 1:
        raise FormatError(
            f"the names differ: the adapter `{adapter.spec}` changes `{matrix.name}`, and "
            f"`{model.spec}` stores `{view.name}` in {listed([name for name, _ in stored])}",
            "rename the adapter's tensors to the names that the model stores",
        )
    ((name, target),) = stored
    part = matrix.part(view, target)
    if part is None:
        rows, columns = matrix.shape[-2:]
        raise FormatError(
            f"the adapter `{adapter.spec}` changes `{matrix.name}`, of {columns} inputs and {rows} outputs; "
            f"`{target.own}` in `{name}` of `{model.spec}` is {list(target.shape)}",
            "give the model with these sizes: another size is another model",
        )
    if found.setdefault(name, {}).setdefault(target.first, part) is not part:
        raise FormatError(
            f"the adapter `{adapter.spec}` changes `{target.own}` twice, the second time as `{matrix.name}`",
            "it has the factors of several saves: save it again",
        )


def _matrix(adapter: Adapter, name: str) -> Matrix:
    """The change of a module's weight."""
    a, b, scale, _ = adapter.factors[name]
    (rank, inputs), (outputs, _) = adapter.stored[a].shape, adapter.stored[b].shape
    return Matrix(name, (outputs, inputs), a, b, scale, rank, (0, 0), (inputs, 1), (0, rank), (1, 0))


def _of_parameters(adapter: Adapter, weights: Weights) -> list[Matrix]:
    """The changes of parameters, each given the one of its module that it fits.

    Releases of PEFT differ in what they call inputs where outputs are stored first; sizes tell, and all
    factors of an adapter are of one release.
    """
    if not adapter.parameters:
        return []
    modules: dict[str, list[ParameterFactors]] = {}
    for each in adapter.parameters:
        modules.setdefault(each.module, []).append(each)
    found = [
        each for each in (_assigned(modules, weights, is_turned=turned) for turned in (False, True)) if each
    ]
    if len(found) == 2 and _kinds(weights.config) & _TRANSPOSED:
        found.pop()
    if len(found) != 1 or any(len(ways) != 1 for ways in found[0]):
        names = [f"{each.module}.{name}" for each in adapter.parameters for name in each.names]
        how = "more than one way" if found else "no way"
        raise FormatError(
            f"the adapter `{adapter.spec}` changes {listed(list(dict.fromkeys(names)))}, and its factors fit "
            f"the parameters of `{weights.model.spec}` in {how}",
            MERGE_FIRST if found else "give the model that the adapter was trained for",
        )
    return [matrix for ways in found[0] for matrix in ways[0]]


def _kinds(config: Mapping[str, object]) -> set[str]:
    inner = [value for value in config.values() if isinstance(value, dict)]
    return {str(each.get("model_type")) for each in (config, *inner)}


def _assigned(
    modules: Mapping[str, list[ParameterFactors]], weights: Weights, *, is_turned: bool
) -> list[list[list[Matrix]]]:
    """For each module the ways in which its factors fit its parameters; nothing where one fits in none."""
    found = []
    for factors in modules.values():
        ways = [way for way in _ways(factors, is_turned=is_turned) if _fits(way, weights)]
        if not ways:
            return []
        found.append(ways)
    return found


def _ways(factors: Sequence[ParameterFactors], *, is_turned: bool) -> Iterator[list[Matrix]]:
    for names in itertools.permutations(factors[0].names, len(factors)):
        if all(name in each.settings for each, name in zip(factors, names, strict=True)):
            yield [
                _experts(each, name, is_turned=is_turned) for each, name in zip(factors, names, strict=True)
            ]


def _fits(matrices: Sequence[Matrix], weights: Weights) -> bool:
    """Whether all weights of some changes are in the model, in these sizes."""
    return all(
        any(view.shape == target.shape for _, target in weights.find(view.name))
        for matrix in matrices
        for view in matrix.views(weights.config)
    )


def _experts(factors: ParameterFactors, name: str, *, is_turned: bool) -> Matrix:
    """The change of a parameter of experts; turned round, A is of the outputs and B of the inputs."""
    rank, scale = factors.settings[name]
    (columns, width), height = factors.a.shape, factors.b.shape[0]
    experts = columns // rank
    shape = (experts, width, height) if is_turned else (experts, height, width)
    along_a, along_b = (1, 0), (0, columns)
    return Matrix(
        f"{factors.module}.{name}",
        shape,
        factors.a.name,
        factors.b.name,
        scale,
        rank,
        (rank * width, 1),
        (width, experts),
        along_a if is_turned else along_b,
        along_b if is_turned else along_a,
    )
