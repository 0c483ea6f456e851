"""The format of recipes: mergekit 0.1.5's format, and the additions of this package.

The classes below are the format, key by key. What needs the method as well (which parameters, how many
inputs) is checked in :mod:`taskvec.recipe.validate`. Every error names the file and the line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from taskvec.errors import RecipeError
from taskvec.models.selection import Preset, Selection
from taskvec.recipe.document import Document
from taskvec.recipe.errors import first_error
from taskvec.recipe.fields import (
    CHAT_TEMPLATES,
    Alphas,
    ChatTemplate,
    DocumentName,
    DtypeName,
    LayerRange,
    ModelName,
    OutDtypeName,
    Padding,
    Parameters,
    Patterns,
    Seed,
    TokenizerSource,
    Tokens,
    VectorName,
)
from taskvec.recipe.model_ref import ModelRef
from taskvec.recipe.other_tools import refuse_other_tools
from taskvec.settings import Rounding
from taskvec.text import Key, shown


class Form(BaseModel):
    """A mapping of the keys below, and of no others."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, defer_build=True)


class Written(Form):
    """A whole document, whose errors name its lines; it is made with the document as context."""

    _document: Document = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        """Keep the document that the values were read from."""
        self._document = context

    @property
    def document(self) -> Document:
        """Where it was written."""
        return self._document

    def error(
        self, path: Sequence[Key], message: str, hint: str | None = None, *, key: bool = False
    ) -> RecipeError:
        """An error about the value at `path`, with its line."""
        return self.document.error(path, message, hint, key=key)


class Input(Form):
    """A model to merge, or a saved vector."""

    model: ModelName | None = Field(None, description="folder or hub id (org/name@revision), with +adapter")
    vector: VectorName | None = Field(None, description="a saved task vector, instead of a model")
    relative_to: ModelName | None = Field(
        None, description="take the difference of `model` from this model instead of the base: a transfer"
    )
    importance: ModelName | None = Field(
        None, description="what each of its elements matters: a folder of safetensors with its tensors' names"
    )
    parameters: Parameters | None = Field(None, description="parameters of this model")

    @property
    def map(self) -> ModelRef | None:
        """The importance map, as a source of its own kind."""
        return None if self.importance is None else replace(self.importance, kind="importance")

    @property
    def ref(self) -> ModelRef:
        """The model or vector."""
        ref = self.model or self.vector
        assert ref is not None
        return ref


class SliceInput(Input):
    """A run of layers of one model."""

    layer_range: LayerRange = Field(description="first layer, and the one after the last")


class OutputSlice(Form):
    """Layers of the output, made from equally many layers of each source."""

    sources: Annotated[tuple[SliceInput, ...], Field(strict=False, min_length=1)]
    base_model: ModelName | None = Field(None, description="base of this slice alone")
    parameters: Parameters | None = Field(None, description="parameters of this slice")


_Models = Annotated[tuple[Input, ...], Field(strict=False, min_length=1)]
_Slices = Annotated[tuple[OutputSlice, ...], Field(strict=False, min_length=1)]


class Module(Form):
    """A part of a model with layers of its own: text decoder, vision tower, encoder …"""

    models: _Models | None = None
    slices: _Slices | None = None
    parameters: Parameters | None = Field(None, description="parameters of this module")


class Tokenizer(Form):
    """Whose tokenizer the output has."""

    source: TokenizerSource = Field(
        None, description="`base`, one of the models, or `union`: the tokens of all"
    )
    tokens: Tokens = Field({}, description="where the rows of single tokens come from")
    pad_to_multiple_of: Padding = Field(None, description="rows of zeros make up the next multiple of this")


class Recipe(Written):
    """One document of a recipe."""

    merge_method: str = Field(description="see `taskvec methods`")
    name: DocumentName = Field(None, description="what later documents call the result of this one")
    base_model: ModelName | None = Field(None, description="what differences are taken from and added to")
    models: _Models | None = Field(None, description="whole models to merge")
    slices: _Slices | None = Field(None, description="the output's layers, run by run")
    modules: Annotated[dict[str, Module], Field(min_length=1)] | None = Field(
        None, description="one merge per part of the model"
    )
    parameters: Parameters | None = Field(None, description="parameters of the merge, or of every model")
    dtype: DtypeName = Field(None, description="type of the output, unless out_dtype says otherwise")
    out_dtype: OutDtypeName = Field(
        None, description="type of the output; target: packed weights in the base's own format"
    )
    tokenizer_source: TokenizerSource = Field(None, description="whose tokenizer the output has")
    tokenizer: Tokenizer | None = None
    chat_template: ChatTemplate = Field(
        None, description=f"auto, {', '.join(CHAT_TEMPLATES)}, or a Jinja template"
    )
    include: Patterns = Field((), description="merge only tensors in whose name one of these is found")
    exclude: Patterns = Field((), description="leave tensors alone in whose name one of these is found")
    preset: Preset = Field("full", description="leave out embeddings and head, or the norms as well")
    layers: str | None = Field(None, description="merge only these layers: `8-20`, `0,3,5-7`")
    rounding: Rounding | None = Field(None, description="how the result is rounded to its type")
    seed: Seed | None = Field(None, description="seed of random methods and of stochastic rounding")
    alpha: Alphas = Field(None, description="factor of the merged step; a list makes one output per value")

    @property
    def selection(self) -> Selection:
        """The tensors to merge; the others are the base's."""
        return Selection(self.include, self.exclude, self.preset, self.layers)

    @property
    def tokenizer_from(self) -> TokenizerSource:
        """Whose tokenizer is asked for; `tokenizer` without a source means ``union``, as in mergekit."""
        return (self.tokenizer.source or "union") if self.tokenizer is not None else self.tokenizer_source

    def groups(self) -> Iterator[Group]:
        """Every set of models that is merged together, with the base added where the format implies it."""
        top = Scope(self.parameters or {}, ("parameters",))
        if self.modules is None:
            yield from _groups(None, self.models, self.slices, self.base_model, (top,), ())
            return
        for name, module in self.modules.items():
            scopes = (Scope(module.parameters or {}, ("modules", name, "parameters")), top)
            yield from _groups(name, module.models, module.slices, self.base_model, scopes, ("modules", name))

    def models_named(self) -> Iterator[tuple[ModelRef, tuple[Key, ...]]]:
        """Every model that the recipe names, and where."""
        if self.base_model is not None:
            yield self.base_model, ("base_model",)
        for group in self.groups():
            for source in group.sources:
                if source.path:
                    kind = "model" if source.ref.kind == "checkpoint" else "vector"
                    yield source.ref, (*source.path, kind)
                    if source.relative_to is not None:
                        yield source.relative_to, (*source.path, "relative_to")
                    if source.importance is not None:
                        yield source.importance, (*source.path, "importance")
            if group.own_base and group.base is not None:
                yield group.base, (*group.path, "base_model")
        chosen = self.tokenizer_from
        if isinstance(chosen, ModelRef):
            where = ("tokenizer", "source") if self.tokenizer is not None else ("tokenizer_source",)
            yield chosen, where


@dataclass(frozen=True, slots=True)
class Scope:
    """Parameters that hold for all sources of a group, and where they are written."""

    settings: Parameters
    path: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """One input of a group."""

    ref: ModelRef
    relative_to: ModelRef | None
    layers: tuple[int, int] | None
    """Of a slice; ``None``: all layers."""
    parameters: Parameters
    path: tuple[Key, ...]
    """Where it is written; empty for a base that the format adds."""
    importance: ModelRef | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Sources that are merged with each other: all models, or those of one slice."""

    module: str | None
    sources: tuple[Source, ...]
    base: ModelRef | None
    own_base: bool
    scopes: tuple[Scope, ...]
    """The narrowest first."""
    path: tuple[Key, ...]
    is_slice: bool

    def is_base(self, source: Source) -> bool:
        """Whether a source is the base of this group."""
        return source.ref == self.base and source.relative_to is None


def _groups(
    module: str | None,
    models: Sequence[Input] | None,
    slices: Sequence[OutputSlice] | None,
    base: ModelRef | None,
    scopes: tuple[Scope, ...],
    path: tuple[Key, ...],
) -> Iterator[Group]:
    if models is not None:
        sources = [_source(entry, None, (*path, "models", index)) for index, entry in enumerate(models)]
        # A base that is not among the models is one more input, the last: so mergekit reads it.
        if base is not None and not any(s.ref == base and s.relative_to is None for s in sources):
            sources.append(Source(base, None, None, {}, ()))
        yield Group(module, tuple(sources), base, False, scopes, (*path, "models"), False)
    for number, part in enumerate(slices or ()):
        here = (*path, "slices", number)
        sources = [
            _source(entry, entry.layer_range, (*here, "sources", i)) for i, entry in enumerate(part.sources)
        ]
        yield Group(
            module,
            tuple(sources),
            part.base_model or base,
            part.base_model is not None,
            (Scope(part.parameters or {}, (*here, "parameters")), *scopes),
            here,
            True,
        )


def _source(entry: Input, layers: tuple[int, int] | None, path: tuple[Key, ...]) -> Source:
    return Source(entry.ref, entry.relative_to, layers, entry.parameters or {}, path, entry.map)


def from_document(document: Document) -> Recipe:
    """The recipe that a document holds; only its form is checked.

    Raises
    ------
    RecipeError
        An unknown key, a value of the wrong kind, or a key that is missing, with the line.
    """
    refuse_other_tools(document)
    try:
        recipe = Recipe.model_validate(document.plain(), context=document)
    except ValidationError as error:
        raise first_error(document, Recipe, error) from None
    _check_form(recipe)
    return recipe


def _check_form(recipe: Recipe) -> None:
    given = [key for key in ("models", "slices", "modules") if getattr(recipe, key) is not None]
    if len(given) != 1:
        raise recipe.error(
            given[-1:],
            f"{' and '.join(f'`{key}`' for key in given)} together" if given else "nothing to merge",
            "a recipe has exactly one of `models`, `slices` and `modules`",
            key=True,
        )
    for name, module in (recipe.modules or {}).items():
        if (module.models is None) == (module.slices is None):
            raise recipe.error(
                ("modules", name),
                f"module `{shown(name)}` has to have either `models` or `slices`",
                "a module without layers is merged by `models`",
                key=True,
            )
    if recipe.tokenizer is not None and recipe.tokenizer_source is not None:
        raise recipe.error(
            ("tokenizer",), "`tokenizer` and `tokenizer_source` together", "keep one", key=True
        )
    for path, entry in _entries(recipe):
        if (entry.model is None) == (entry.vector is None):
            raise recipe.error(path, "an input is a `model` or a `vector`, exactly one of them")
        if entry.vector is not None and entry.relative_to is not None:
            raise recipe.error(
                (*path, "relative_to"),
                "a `vector` is a difference already",
                "remove `relative_to`",
                key=True,
            )
        if entry.importance is not None and entry.importance.adapter is not None:
            raise recipe.error(
                (*path, "importance"),
                "an importance map with an adapter",
                "a map is a folder of its own, with a value for each element",
                key=True,
            )
    try:
        _ = recipe.selection
    except RecipeError as error:
        option = next((k for k in ("layers", "include", "exclude") if str(error).startswith(k)), "include")
        raise recipe.error((option,), str(error)[:300], error.hint) from None


def _entries(recipe: Recipe) -> Iterator[tuple[tuple[Key, ...], Input]]:
    parts: list[tuple[tuple[Key, ...], Recipe | Module]] = [((), recipe)]
    parts += [(("modules", name), module) for name, module in (recipe.modules or {}).items()]
    for path, part in parts:
        for index, entry in enumerate(part.models or ()):
            yield (*path, "models", index), entry
        for number, piece in enumerate(part.slices or ()):
            for index, entry in enumerate(piece.sources):
                yield (*path, "slices", number, "sources", index), entry
