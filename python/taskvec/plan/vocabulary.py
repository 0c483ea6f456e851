"""Merges of models with different vocabularies: the rows of embeddings and heads, token by token.

The rules are mergekit's, found by running it. The output's vocabulary is the base's, another model's, or that
of all. A model's row of a token is its own. Where it lacks the token, the row is the base's; without one,
that of the only other model which has it, or the mean of those which have it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from taskvec.compat.findings import Finding, finding
from taskvec.compat.tied_heads import head_of
from taskvec.compat.tokenizer import vocabulary_difference
from taskvec.compat.vocabulary import (
    Union,
    Vocabulary,
    united,
    vocabulary_lacking,
    vocabulary_needed,
    vocabulary_of,
)
from taskvec.errors import Error
from taskvec.models.model import Model
from taskvec.models.tensor_names import is_vocabulary
from taskvec.recipe.model_ref import ModelRef, TokenRow
from taskvec.text import listed, nearest, plural, shown

if TYPE_CHECKING:
    from taskvec.recipe.schema import Recipe

# What a merge of different vocabularies settles.
SETTLED = frozenset({
    "tokenizer-vocabulary", "tokenizer-merges", "tokenizer-pipeline", "added-tokens", "added-tokens-extra",
    "special-tokens", "tokenizer-settings", "vocabulary-rows", "vocabulary-padded",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tokens:
    """The vocabulary of an output, and where the rows of its tokens come from.

    Attributes
    ----------
    ids : mapping of str to int
    rows : int or None
        How many the output has; ``None``: as many as the chosen model's matrices, whose rows without a token
        are kept.
    models : mapping of ModelRef to Vocabulary
    first : sequence of ModelRef
        Whose rows are taken for tokens that a model lacks, before those of the others.
    chosen : ModelRef or None
        The model whose vocabulary it is; ``None``: the union.
    single : mapping of str to TokenRow
        The tokens of which the recipe says where their rows come from.
    files : mapping of str to bytes
        Tokenizer files of the output that no model has.
    findings : tuple of Finding
    roles : mapping of str to int
        The ids of the tokens that have one: ``eos`` and the like.
    """

    ids: Mapping[str, int]
    rows: int | None
    models: Mapping[ModelRef, Vocabulary]
    first: Sequence[ModelRef]
    chosen: ModelRef | None
    single: Mapping[str, TokenRow]
    files: Mapping[str, bytes]
    findings: tuple[Finding, ...]
    roles: Mapping[str, int] = field(default_factory=dict)

    def height(self, shapes: Mapping[ModelRef, tuple[int, ...]]) -> int:
        """Rows of one matrix of the output, by its shapes in the models."""
        if self.rows is not None:
            return self.rows
        own = shapes.get(self.chosen) if self.chosen is not None else None
        return max(max(self.ids.values(), default=-1) + 1, own[0] if own is not None else 0)

    def places(
        self, model: ModelRef, shapes: Mapping[ModelRef, tuple[int, ...]]
    ) -> Iterator[tuple[tuple[ModelRef, int], ...]]:
        """For every row of one matrix, the rows whose mean a model's row is.

        Parameters
        ----------
        model : ModelRef
        shapes : mapping
            Of the matrix in every model that has it.
        """
        count = self.height(shapes)
        tokens: list[str | None] = [None] * count
        for token, number in self.ids.items():
            if number < count:
                tokens[number] = token
        known = {ref: self.models[ref].ids for ref in shapes}
        kept = self.chosen or next(iter(self.first), None)
        first = [ref for ref in self.first if ref in shapes]

        def own(ref: ModelRef, token: str) -> int | None:
            row = known[ref].get(token)
            return row if row is not None and row < shapes[ref][0] else None

        for number, token in enumerate(tokens):
            if token is None:  # behind the tokens, or between them
                shape = shapes.get(kept) if kept is not None and self.rows is None else None
                yield ((kept, number),) if kept is not None and shape and number < shape[0] else ()
                continue
            rule = self.single.get(token)
            row = own(model, token) if model in shapes else None
            if rule is not None and (rule.force or row is None):
                yield self._ruled(rule, token, known)
            elif row is not None:
                yield ((model, row),)
            elif before := [(ref, found) for ref in first if (found := own(ref, token)) is not None]:
                yield (before[0],)
            else:
                yield tuple((ref, row) for ref in shapes if (row := own(ref, token)) is not None)

    def _ruled(
        self, rule: TokenRow, token: str, known: Mapping[ModelRef, Mapping[str, int]]
    ) -> tuple[tuple[ModelRef, int], ...]:
        if rule.model is None or rule.model.plain not in known:
            return ()
        of = rule.model.plain
        wanted = token if rule.token is None else rule.token
        return ((of, wanted if isinstance(wanted, int) else known[of][wanted]),)


def tokens_of(
    recipe: Recipe, models: Mapping[ModelRef, Model], config_from: ModelRef, base: ModelRef | None
) -> Tokens | None:
    """The vocabulary that a recipe asks for; ``None`` where all models have the same, or none is asked for.

    Raises
    ------
    RecipeError
        A vocabulary cannot be read or made; a single token is not known.
    """
    source, settings = recipe.tokenizer_from, recipe.tokenizer
    if source is None:
        return None
    path = ("tokenizer",) if settings is not None else ("tokenizer_source",)
    single, multiple = (settings.tokens, settings.pad_to_multiple_of) if settings is not None else ({}, None)
    found = {ref: vocabulary_of(model) for ref, model in models.items()}
    lacking = [ref for ref, vocabulary in found.items() if vocabulary is None]
    known = {ref: vocabulary for ref, vocabulary in found.items() if vocabulary is not None}
    if lacking:
        first, others = models[config_from], (model for ref, model in models.items() if ref != config_from)
        is_one = source != "union" or not any(vocabulary_difference(first, model) for model in others)
        if is_one and not single and multiple is None:
            return None  # what is known of them is said by the checks
        raise recipe.error(path, *vocabulary_lacking(models[lacking[0]]), key=True)
    own = known[config_from]
    is_one = all(each.ids == own.ids for each in known.values()) and _padded_alike(list(models.values()))
    if is_one and not single and multiple is None:
        return None
    chosen = None if source == "union" else config_from if source == "base" else _named(source, known)
    made = Union(known[chosen].ids, {}, {}) if chosen is not None else _union(recipe, path, own, known)
    _check_single(recipe, single, made.ids, known)
    count = None
    if chosen is None or multiple is not None:
        count = max(made.ids.values(), default=-1) + 1
        count = -(-count // multiple) * multiple if multiple is not None else count
    first = () if base is None else (base,)
    return _with_findings(Tokens(made.ids, count, known, first, chosen, single, made.files, ()), made)


def _padded_alike(models: Sequence[Model]) -> bool:
    """Whether embeddings and heads of equal names have equal numbers of rows."""
    rows: dict[str, int] = {}
    vocabularies = (
        (name, info.shape)
        for model in models
        for name, info in model.tensors.items()
        if is_vocabulary(name) and info.shape
    )
    return all(rows.setdefault(name, shape[0]) == shape[0] for name, shape in vocabularies)


def tokens_between(models: Mapping[ModelRef, Model], source: str) -> Tokens | None:
    """The vocabulary of a transfer; ``None`` where all models have the same.

    Parameters
    ----------
    models : mapping of ModelRef to Model
        Target, donor and reference.
    source : {"union", "base", "target", "donor"}
        Whose vocabulary the output has; ``base`` is the target. Rows that a model lacks are the target's,
        then the reference's: so the donor's own tokens become rows of the reference plus the vector.

    Raises
    ------
    RecipeError
        A vocabulary cannot be read or made.
    """
    target, donor, reference = models
    known = {ref: vocabulary_needed(model) for ref, model in models.items()}
    if all(each.ids == known[target].ids for each in known.values()):
        return None
    chosen = None if source == "union" else donor if source == "donor" else target
    if chosen is not None:
        made = Union(known[chosen].ids, {}, {})
    else:
        made = united(known[target], [known[donor], known[reference]])
    count = max(made.ids.values(), default=-1) + 1 if chosen is None else None
    return _with_findings(
        Tokens(made.ids, count, known, (target, reference), chosen, {}, made.files, ()), made
    )


def _with_findings(tokens: Tokens, made: Union) -> Tokens:
    return replace(tokens, findings=tuple(_findings(tokens, made)))


def _named(source: ModelRef, known: Mapping[ModelRef, Vocabulary]) -> ModelRef:
    return next(ref for ref in known if ref.spec == source.spec)


def _union(
    recipe: Recipe, path: tuple[str, ...], first: Vocabulary, known: Mapping[ModelRef, Vocabulary]
) -> Union:
    try:
        return united(first, [each for each in known.values() if each is not first])
    except Error as error:
        raise recipe.error(path, str(error), error.hint, key=True) from None


def _check_single(
    recipe: Recipe,
    single: Mapping[str, TokenRow],
    ids: Mapping[str, int],
    known: Mapping[ModelRef, Vocabulary],
) -> None:
    for token, rule in single.items():
        path = ("tokenizer", "tokens", token)
        if token not in ids:
            near = nearest(token, ids)
            raise recipe.error(
                path,
                f"`{shown(token)}` is not a token of the output's vocabulary",
                f"did you mean `{shown(near)}`?" if near else None,
                key=True,
            )
        if rule.model is None:
            continue
        of = next((ref for ref in known if ref.spec == rule.model.spec), None)
        if of is None:
            raise recipe.error(
                path,
                f"`{shown(str(rule.model))}` is not one of the models of this merge",
                f"choose one of them: {', '.join(f'`{shown(str(ref))}`' for ref in known)}",
            )
        wanted = token if rule.token is None else rule.token
        vocabulary = known[of].ids
        if wanted not in (set(vocabulary.values()) if isinstance(wanted, int) else vocabulary):
            raise recipe.error(path, f"`{shown(str(of))}` does not have the token `{shown(str(wanted))}`")


def _without_row(tokens: Tokens) -> list[str]:
    """The tokens of which no model has a row, but for those whose rows the recipe states."""
    having: set[str] = set(tokens.single)
    for vocabulary in tokens.models.values():
        embedding = head_of(vocabulary.model).embedding
        shape = vocabulary.model.tensors[embedding].shape if embedding is not None else ()
        height = shape[0] if shape else math.inf
        having.update(token for token, row in vocabulary.ids.items() if row < height)
    return [token for token in tokens.ids if token not in having]


def _findings(tokens: Tokens, made: Union) -> Iterator[Finding]:
    size = max(tokens.ids.values(), default=-1) + 1
    for ref, vocabulary in tokens.models.items():
        lacking = [token for token in tokens.ids if token not in vocabulary.ids]
        beyond = len(vocabulary.ids) - (len(tokens.ids) - len(lacking))
        if not lacking and not beyond:
            continue
        parts = []
        if lacking:
            parts.append(
                f"{plural(len(lacking), 'row')} of other models, for tokens that it lacks "
                f"(`{shown(lacking[0])}` first)"
            )
        if beyond:
            parts.append(f"{plural(beyond, 'token')} of its own are left out")
        subject = f"`{shown(str(ref))}`, for {size:,} tokens of the output"
        yield finding("vocabulary-joined", subject, "", "; ".join(parts))
    if rowless := _without_row(tokens):
        first = listed([shown(token) for token in rowless], 8)
        yield finding(
            "token-rows-missing",
            f"{size:,} tokens of the output",
            "a row for every token",
            f"{plural(len(rowless), 'token')} of which no model has a row have rows of zeros: {first}",
        )
    for spec, count in made.unreachable.items():
        yield finding(
            "vocabulary-unreachable",
            f"`{shown(spec)}`",
            "texts prepared as by the base's tokenizer",
            f"prepares them in another way: no text is cut into {plural(count, 'token')} of its own",
        )
