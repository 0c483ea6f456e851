"""A transfer between models whose vocabularies differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taskvec.compat.findings import Finding, in_order
from taskvec.compat.layouts.fit import fitted
from taskvec.errors import RecipeError
from taskvec.models.model import Model
from taskvec.plan.delta import Step
from taskvec.plan.draft import Draft
from taskvec.plan.vocabulary import SETTLED, Tokens, tokens_between
from taskvec.plan.vocabulary_files import config_changes, files_of
from taskvec.plan.vocabulary_rows import StoredRows, has_rows, shaped
from taskvec.recipe.model_ref import ModelRef

TARGET, DONOR, REFERENCE = ModelRef("target"), ModelRef("donor"), ModelRef("reference")


@dataclass(frozen=True, slots=True)
class Joined:
    """Target, donor and reference with their matrices in the rows of the output.

    Attributes
    ----------
    target : Model
    steps : tuple of Step
        The only one.
    stored : mapping of ModelRef to Model
        The three as they are stored.
    tokens : Tokens
    """

    target: Model
    steps: tuple[Step, ...]
    stored: Mapping[ModelRef, Model]
    tokens: Tokens

    def settled(self, found: Iterable[Finding]) -> list[Finding]:
        """The findings without what the joined vocabulary settles, and those about it."""
        return in_order([*(each for each in found if each.id not in SETTLED), *self.tokens.findings])

    def finish(
        self, draft: Draft, names: Mapping[str, tuple[str, ...]]
    ) -> tuple[dict[str, Any], dict[str, bytes], tuple[str, ...]]:
        """Give the sources their rows; the changes of config.json, the files that change, those that go."""
        rows, count = StoredRows(draft, self.tokens, self.stored), 0
        for name, info in self.target.tensors.items():
            if has_rows(info):
                count = count or info.shape[0]
                rows.give(TARGET, name)
                for ref, own in zip((DONOR, REFERENCE), names.get(name, ()), strict=False):
                    rows.give(ref, own)
        target = self.stored[TARGET]
        return config_changes(self.tokens, target, count), *files_of(self.tokens, target)


def join(target: Model, steps: Sequence[Step], source: str) -> Joined | None:
    """The models of a transfer in one vocabulary; ``None`` where they have the same.

    Raises
    ------
    RecipeError
        There is a saved vector among them, or more than one; a vocabulary cannot be read or made.
    """
    (step, *more) = steps
    if more or step.reference is None or not isinstance(step.donor, Model):
        raise RecipeError(
            "only a transfer between three models can join their vocabularies", "leave out the tokenizer"
        )
    stored = {
        TARGET: target,
        DONOR: fitted(step.donor, target),
        REFERENCE: fitted(step.reference, target),
    }
    tokens = tokens_between(stored, source)
    if tokens is None:
        return None
    seen = {ref: shaped(model, tokens, stored) for ref, model in stored.items()}
    step = step._replace(donor=seen[DONOR], reference=seen[REFERENCE])
    return Joined(seen[TARGET], (step,), stored, tokens)
