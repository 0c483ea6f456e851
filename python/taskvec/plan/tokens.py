"""The plan that moves a model to another model's tokenizer. No weight is read, and nothing is written.

Rows of tokens that both have are the target's, read where they lie. Others are means of the target's rows of
the pieces of the text, or combinations of its rows, whose weights follow from the other model's rows: by
orthogonal matching pursuit, or of the nearest token. Those are computed when the plan is run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import get_args

from taskvec._core import blake3_hex
from taskvec.compat.companions import check_files
from taskvec.compat.findings import enforce, in_order
from taskvec.compat.formats import check_formats, check_vectors
from taskvec.compat.layouts.rewritten import in_plain_layout
from taskvec.compat.tied_heads import head_of
from taskvec.compat.token_pieces import not_given_back
from taskvec.compat.token_text import roles_of
from taskvec.compat.vocabulary import Vocabulary, vocabulary_needed
from taskvec.dtypes import FLOAT_DTYPES
from taskvec.errors import RecipeError
from taskvec.host import collector_paused
from taskvec.models.model import Model, TensorInfo
from taskvec.models.rows import Place, Table, rows_of
from taskvec.models.source import pinned
from taskvec.models.state_dict import COMPUTED, Buffers
from taskvec.models.storage import plain
from taskvec.plan.checks import refuse_conversion
from taskvec.plan.draft import Draft
from taskvec.plan.plan import PlanRecord
from taskvec.plan.token_findings import token_findings
from taskvec.plan.token_rows import Approximation, Origin, Origins, origins
from taskvec.plan.token_ways import Method
from taskvec.plan.token_work import working_bytes
from taskvec.plan.vocabulary import Tokens
from taskvec.plan.vocabulary_files import config_changes, files_of
from taskvec.plan.vocabulary_rows import has_rows
from taskvec.recipe.model_ref import ModelRef
from taskvec.settings import Settings, float_dtype, out_dtype, written
from taskvec.text import kind_of, size

TARGET, MODEL = ModelRef("target"), ModelRef("model")
# How many rows a row is made of, where nothing else is asked for.
DEFAULT_K: Mapping[Method, int] = {"omp": 64, "nearest": 1, "subword": 1}


@collector_paused()
def plan_tokens(
    target: Model,
    model: Model,
    *,
    method: Method = "omp",
    k: int | None = None,
    settings: Settings | None = None,
) -> PlanRecord:
    """The plan of a model with the tokenizer of another one.

    Parameters
    ----------
    target : Model
        Keeps its weights.
    model : Model
        Has the tokenizer, and the rows by which others are approximated.
    method : {"omp", "nearest", "subword"}
    k : int, optional
        Rows that a row is made of: 64 for ``omp``, 1 for ``nearest``.
    settings : Settings, optional

    Raises
    ------
    RecipeError
        A method or ``k`` that there is not, a model without ``tokenizer.json`` or embedding, the same tokens.
    FormatError
        A tokenizer is damaged.
    CompatibilityError
        Weights are stored in a format that is not read, or there is a warning and the settings are strict.
    """
    settings = settings or Settings()
    count = _count(method, k)
    if settings.stream:
        raise RecipeError(
            "the rows for another tokenizer are computed from whole matrices", "leave out `--stream`"
        )
    enforce(check_vectors([("target", target), ("model", model)]))
    own, other = vocabulary_needed(target), vocabulary_needed(model)
    if own.document == other.document:
        raise RecipeError(
            f"`{target.spec}` and `{model.spec}` have the same tokenizer",
            "nothing is to be done: they take each other's vectors as they are",
        )
    spaces = _spaces(target, model)
    found = [*check_files("target", target), *check_formats([("target", target)], list(target.tensors))]
    found += check_formats([("model", model)], list(dict.fromkeys(spaces.values())))
    found = enforce(found, settings.force)
    refuse_conversion(found, settings)
    heights = target.tensors[next(iter(spaces))].shape[0], model.tensors[_embedding(model)].shape[0]
    come = origins(own, other, method, heights)
    height = max(heights[1], max(other.ids.values(), default=-1) + 1)
    approximation = _approximation(method, count, come, other, heights[1], spaces, height)
    approximation = replace(
        approximation,
        working=working_bytes(approximation, target, model),
        changed=tuple(not_given_back(model)),
    )
    _hold_memory(approximation, settings)
    roles = {role: other.ids[token] for role, token in roles_of(model, other.ids).items()}
    tokens = Tokens(other.ids, height, {TARGET: own, MODEL: other}, (), MODEL, {}, {}, (), roles)
    files, left = files_of(tokens, target)
    config = config_changes(tokens, target, height)
    found = in_order([*found, *token_findings(approximation, target, model, files, config)])
    draft = _draft(target, model, approximation, settings)
    recipe = {"verb": "tokens", "target": pinned(target), "model": pinned(model), "method": method}
    record = draft.finish(
        alphas=(1.0,),
        settings=settings,
        findings=enforce(found, settings.force),
        recipe={**recipe, **({"k": count} if method != "subword" else {}), **written(settings)},
        config=config,
        files=files,
        left=left,
    )
    return _told(record, model, approximation)


def _count(method: str, k: int | None) -> int:
    if method not in get_args(Method):
        raise RecipeError(
            f"method `{method}` does not approximate rows", "choose one of `omp`, `nearest` and `subword`"
        )
    if k is not None and method == "subword":
        raise RecipeError(
            "`subword` takes all pieces of a token, and has no k", "leave it out, or use `omp` or `nearest`"
        )
    if k is not None and (not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= 1024):
        raise RecipeError(
            f"k is {kind_of(k)}, expected a whole number from 1 to 1024", "use 64 for `omp`, 1 for `nearest`"
        )
    return DEFAULT_K[method] if k is None else k  # type: ignore[index]


def _hold_memory(made: Approximation, settings: Settings) -> None:
    if settings.max_memory is not None and made.working > settings.max_memory:
        raise RecipeError(
            f"computing the rows takes up to {size(made.working)}, more than {size(settings.max_memory)}",
            "allow more memory, or use `--method subword`",
        )


def _embedding(model: Model) -> str:
    embedding = head_of(model).embedding
    if embedding is None or len(model.tensors[embedding].shape) != 2:
        raise RecipeError(
            f"`{model.spec}` has no embedding of tokens that is found by its name",
            "give a causal language model with its embedding",
        )
    return embedding


def _spaces(target: Model, model: Model) -> dict[str, str]:
    """The target's matrices with a row per token, the embedding first, and the other model's for each."""
    embedding, head = _embedding(target), head_of(target).head
    other = head_of(model)
    # two copies of one matrix stay equal
    is_apart = head_of(target).state == "untied" and other.state == "untied" and other.head is not None
    theirs = str(other.head) if is_apart else _embedding(model)
    _hold_alike(model, theirs)
    of_head = head.rpartition(".")[0] if head is not None else None
    rows = target.tensors[embedding].shape[0]
    found = {embedding: _embedding(model)}
    for name, info in target.tensors.items():
        if not has_rows(info):
            continue
        if name in target.packed:
            raise RecipeError(
                f"`{name}` of `{target.spec}` is stored packed, and its rows cannot be put in another order",
                "convert the model first: `taskvec convert`",
            )
        if info.shape[0] != rows or info.dtype not in FLOAT_DTYPES:
            raise RecipeError(
                f"`{name}` of `{target.spec}` is {info.dtype} {list(info.shape)}, expected floats in "
                f"{rows:,} rows as in its embedding",
                "such a model cannot be moved to another tokenizer",
            )
        found[name] = theirs if name.rpartition(".")[0] == of_head else _embedding(model)
    return found


def _hold_alike(model: Model, head: str) -> None:
    """Return if the head of a model has a row for each of its embedding."""
    shape, rows = model.tensors[head].shape, model.tensors[_embedding(model)].shape[0]
    if len(shape) != 2 or shape[0] != rows:
        raise RecipeError(
            f"`{head}` of `{model.spec}` has the shape {list(shape)}, expected {rows:,} rows as its "
            "embedding has",
            "give a whole model, or use another one with this tokenizer",
        )


def _approximation(
    method: Method,
    k: int,
    come: Origins,
    other: Vocabulary,
    height: int,
    spaces: Mapping[str, str],
    rows: int,
) -> Approximation:
    wanted = tuple(come.of("computed"))
    copied = ((other.ids[token], come.by_token[token].rows[0]) for token in come.of("copied"))
    shared = tuple(pair for pair in copied if pair[0] < height)
    if wanted and not shared:
        raise RecipeError(
            "the two models have no token in common, so that none can stand for others",
            "use `--method subword`",
        )
    ids = tuple(other.ids[token] for token in wanted)
    return Approximation(method, k, come, shared, wanted, ids, MappingProxyType(dict(spaces)), rows, 0, ())


def _draft(target: Model, model: Model, made: Approximation, settings: Settings) -> Draft:
    """The target with the rows of its matrices in the order of the other vocabulary."""
    is_packed = bool(target.packed) and float_dtype(settings) is None
    target = target if is_packed else in_plain_layout(target)
    draft = Draft(target, is_packed=is_packed)
    draft.source(model, "tokenizer")
    number = draft.source(_computed(target, made), "rows") if made.tokens else None
    copy = draft.operation({"kind": "copy"})
    for name, info in target.tensors.items():
        shape = info.shape
        if name in made.spaces:
            shape = made.height, *info.shape[1:]
            tables = [Table(0, name, info.shape)]
            if number is not None:
                tables.append(Table(number, name, (len(made.tokens), *info.shape[1:])))
            draft.permuted(0, name, rows_of(shape, tables, _places(made)))
        if is_packed and name in target.packed:
            draft.packed_tensor(name, (0, name), copy, [(0, name)])
        else:
            draft.tensor(name, out_dtype(info.dtype, settings), shape, copy, [(0, name)])
    return draft


def _places(made: Approximation) -> list[tuple[Place, ...]]:
    """The rows of every row: of the target's, table 0, or of those that are computed, table 1."""
    places: list[tuple[Place, ...]] = [()] * made.height
    numbers = {token: number for number, token in enumerate(made.tokens)}
    for token, number in made.origins.ids.items():
        origin: Origin = made.origins.by_token[token]
        is_computed = origin.way == "computed"
        places[number] = (
            (Place(1, numbers[token]),) if is_computed else tuple(Place(0, row) for row in origin.rows)
        )
    return places


def _computed(target: Model, made: Approximation) -> Model:
    """The rows that are computed, as a source of the plan: told by all that they follow from."""
    tensors: dict[str, TensorInfo] = {}
    for name in made.spaces:
        info = target.tensors[name]
        dtype = "F64" if info.dtype == "F64" else "F32"
        tensors[name] = plain(name, dtype, (len(made.tokens), *info.shape[1:]))
    facts = [made.method, made.k, made.shared, made.wanted, sorted(made.spaces.items())]
    return Model(
        spec="<computed rows>",
        path=None,
        tensors=MappingProxyType(tensors),
        config={},
        other_files=(),
        file_sizes={},
        fingerprint=blake3_hex(json.dumps([facts, [list(info[:3]) for info in tensors.values()]]).encode()),
        weights=Buffers(MappingProxyType({}), COMPUTED),
        kind="memory",
    )


def _told(record: PlanRecord, model: Model, made: Approximation) -> PlanRecord:
    """The plan with what it reads of the other model."""
    read: Sequence[str] = tuple(dict.fromkeys(made.spaces.values())) if made.tokens else ()
    sizes = {"tokenizer": sum(model.tensors[name].nbytes for name in read)}
    if made.tokens:
        sizes["rows"] = sum(info.nbytes for info in record.checkpoints[-1].tensors.values())
    sources = tuple(
        source._replace(bytes_in=sizes.get(source.role, source.bytes_in)) for source in record.sources
    )
    return replace(record, sources=sources, tokens=made)
