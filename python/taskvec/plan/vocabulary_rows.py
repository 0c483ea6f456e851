"""The embeddings and heads of an output whose vocabulary is not that of all its models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from taskvec.errors import RecipeError
from taskvec.models.adapter import Adapter
from taskvec.models.model import Model, TensorInfo
from taskvec.models.rows import Place, Rows, Table, rows_of
from taskvec.models.tensor_names import is_vocabulary
from taskvec.plan.draft import Draft
from taskvec.plan.vocabulary import Tokens
from taskvec.recipe.model_ref import ModelRef

if TYPE_CHECKING:
    from taskvec.models.saved_vector import SavedVector


class StoredRows:
    """Gives the sources of a plan the rows of the output's vocabulary, matrix by matrix, as they are needed.

    Parameters
    ----------
    draft : Draft
    tokens : Tokens
    models : mapping of ModelRef to Model
        With their matrices as they are stored.
    """

    def __init__(self, draft: Draft, tokens: Tokens, models: Mapping[ModelRef, Model]) -> None:
        self._draft = draft
        self._tokens = tokens
        self._models = models
        self._numbers = {ref: draft.number(model) for ref, model in models.items()}
        self._given: set[tuple[ModelRef, str]] = set()

    def height(self, name: str) -> int:
        """Rows of a matrix of the output."""
        return self._tokens.height(shapes_of(name, self._models))

    def give(self, ref: ModelRef, name: str) -> None:
        """Give a matrix of a model its rows, once.

        Raises
        ------
        RecipeError
            It is stored packed.
        """
        if (ref, name) in self._given:
            return
        self._given.add((ref, name))
        if name in self._models[ref].packed:
            raise RecipeError(
                f"`{name}` of `{ref}` is stored packed, and its rows cannot be put in the order of another "
                "vocabulary",
                "convert the model first: `taskvec convert`",
            )
        number = self._numbers[ref]
        assert number is not None
        self._draft.permuted(number, name, self._rows(ref, name))

    def _rows(self, ref: ModelRef, name: str) -> Rows:
        own = self._models[ref].tensors[name].shape
        shapes = {
            each: shape
            for each, shape in shapes_of(name, self._models).items()
            if shape[1:] == own[1:] and self._numbers[each] is not None
        }
        numbers = {each: at for at, each in enumerate(shapes)}
        places = [
            tuple(Place(numbers[each], row) for each, row in given)
            for given in self._tokens.places(ref, shapes)
        ]
        sources = ((self._numbers[each], shape) for each, shape in shapes.items())
        tables = [Table(number, name, shape) for number, shape in sources if number is not None]
        return rows_of((len(places), *own[1:]), tables, places)


class TokenRows:
    """The same for the output tensors of a recipe.

    Parameters
    ----------
    draft : Draft
    tokens : Tokens
    opened : mapping
        Everything that the recipe names.
    adapters : mapping
        The adapters of models that have one.
    refs : sequence of ModelRef
        What the numbers of inputs refer to.
    """

    def __init__(
        self,
        draft: Draft,
        tokens: Tokens,
        opened: Mapping[ModelRef, Model | SavedVector | Adapter],
        adapters: Mapping[ModelRef, tuple[Adapter, Model]],
        refs: Sequence[ModelRef],
    ) -> None:
        self._opened = opened
        self._adapters = adapters
        self._refs = refs
        self._stored = StoredRows(draft, tokens, models_in(opened))
        self.count = 0
        """Rows of the matrices, once there are any."""

    def shape(self, info: TensorInfo, inputs: Sequence[tuple[int, str]]) -> tuple[int, ...]:
        """The shape of an output tensor, of which every input has its rows then.

        Raises
        ------
        RecipeError
            An input whose rows are not a stored tensor's: of a vector, an adapter, or packed.
        """
        if not has_rows(info):
            return info.shape
        for number, name in inputs:
            self._give(self._refs[number], name)
        count = self._stored.height(info.name)
        self.count = self.count or count
        return count, *info.shape[1:]

    def _give(self, ref: ModelRef, name: str) -> None:
        adapted = self._adapters.get(ref)
        if not isinstance(self._opened[ref], Model) or (adapted is not None and name in adapted[0].changed):
            raise RecipeError(
                f"`{ref}` changes `{name}`, and its rows cannot be put in the order of another vocabulary",
                "merge it into its own model first (`taskvec apply`), and name the result",
            )
        self._stored.give(ref.plain, name)


def has_rows(info: TensorInfo) -> bool:
    """Whether a tensor has a row per token."""
    return is_vocabulary(info.name) and bool(info.shape)


def models_in(opened: Mapping[ModelRef, Model | SavedVector | Adapter]) -> dict[ModelRef, Model]:
    """The checkpoints of a recipe, each once, without their adapters."""
    models = ((ref, model) for ref, model in opened.items() if ref.kind != "importance")
    return {ref.plain: model for ref, model in models if isinstance(model, Model)}


def shapes_of(name: str, models: Mapping[ModelRef, Model]) -> dict[ModelRef, tuple[int, ...]]:
    """The shapes of one matrix in the models that have it."""
    found = ((ref, model.tensors.get(name)) for ref, model in models.items())
    return {ref: info.shape for ref, info in found if info is not None and info.shape}


def shaped(model: Model, tokens: Tokens, models: Mapping[ModelRef, Model]) -> Model:
    """A model as the checks see it: its embedding and head with the rows of the output."""
    tensors = dict(model.tensors)
    for name, info in model.tensors.items():
        if has_rows(info):
            shape = (tokens.height(shapes_of(name, models)), *info.shape[1:])
            tensors[name] = info._replace(shape=shape, nbytes=info.nbytes // max(1, info.shape[0]) * shape[0])
    return replace(
        model,
        tensors=tensors,
        permuted=frozenset(name for name in tensors if tensors[name] is not model.tensors[name]),
    )
