"""Findings: the results of a compatibility check, how serious each is, and what forcing it means."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

from taskvec.errors import CompatibilityError, RecipeError
from taskvec.text import alike, plural

Level = Literal["error", "warning", "note"]

_RANK: dict[Level, int] = {"error": 0, "warning": 1, "note": 2}


class Kind(NamedTuple):
    """A sort of finding: its level, what it means, and what ``--force`` does (``None``: it cannot be
    forced)."""

    level: Level
    meaning: str
    forced: str | None = None


_COPIED = "the target's bytes, in a recipe the base's, are kept for these tensors"
_TARGETS = "the target's is kept"

FINDINGS: dict[str, Kind] = {
    # The models as a whole
    "quantised": Kind("error", "selected tensors are stored quantised and are not plain numbers"),
    "quantised-copied": Kind("note", "quantised tensors lie outside the selection and are copied"),
    "quantised-mixed": Kind(
        "error",
        "donor and reference are stored in different formats, so that their rounding does not cancel",
        "the difference is taken all the same",
    ),
    "quantised-basis": Kind(
        "error",
        "weights of AWQ are in a basis of their own, and are combined with others",
        "they are combined as the files have them",
    ),
    "quantised-noise": Kind("warning", "the vector is the difference of two quantised models"),
    "quantised-rules": Kind(
        "warning", "most scales of donor and reference differ, as those of different quantisers do"
    ),
    "quantised-ranking": Kind("warning", "a method ranks differences of 4-bit weights by their size"),
    "quantised-switch": Kind("warning", "alpha is rounded away in the target's quantised format"),
    "quantised-lost": Kind(
        "error",
        "most of the vector would be rounded away in the target's quantised format",
        "it is rounded to the target's format all the same",
    ),
    "quantised-output": Kind("note", "the form in which the target's quantised weights are written"),
    "convert-plain": Kind("warning", "weights stay plain that the format cannot have"),
    "saved-vector": Kind("error", "a saved task vector was given where a checkpoint is expected"),
    "lora-adapter": Kind("error", "a LoRA adapter was given where a whole model is expected"),
    "adapter-partial": Kind("warning", "an adapter has no factors of modules that its settings name"),
    "adapter-beyond": Kind("warning", "an adapter has factors of modules that its settings do not name"),
    "architecture": Kind(
        "error", "the models are of different families", "tensors of equal names are combined all the same"
    ),
    "architecture-class": Kind("warning", "the same family with another class or head"),
    "config-missing": Kind("warning", "a model has no config.json, so its function cannot be compared"),
    "config-function": Kind("error", "a config key that changes the function differs", _TARGETS),
    "config-context": Kind("warning", "the context length or the attention window differs"),
    "config-other": Kind("warning", "config keys differ that are not known to change the function"),
    # Tensors
    "tensor-missing": Kind("error", "selected tensors of the target are not in another model", _COPIED),
    "tensor-unused": Kind("warning", "tensors of another model have no counterpart in the target"),
    "shape": Kind("error", "tensors of equal names have different shapes", _COPIED),
    "vocabulary-rows": Kind("error", "embeddings or heads have different numbers of rows", _COPIED),
    "vocabulary-padded": Kind(
        "warning", "embeddings or heads have more rows in the target, whose own are kept"
    ),
    "vocabulary-joined": Kind("note", "embedding and head have rows for the tokens of another vocabulary"),
    "tokens-approximated": Kind("note", "where the rows of another tokenizer's tokens come from"),
    "token-rows-missing": Kind("warning", "tokens have rows of zeros, as no model has a row for them"),
    "token-ids": Kind("warning", "special tokens of a tokenizer and of other files are not the same"),
    "tokenizer-round-trip": Kind("warning", "texts that a tokenizer has cut come back as others"),
    "vocabulary-unreachable": Kind(
        "warning", "tokens of another model are in the vocabulary, and no text is cut into them"
    ),
    "layout": Kind("note", "another model stores the same weights in another layout"),
    "predictor-kept": Kind("note", "layers for multi-token prediction that another model lacks are copied"),
    "buffers-kept": Kind("note", "buffers that follow from the config and another model lacks are copied"),
    "factors-apart": Kind("warning", "factors of weights are stored and combined each by itself"),
    "dtype": Kind("note", "the models are stored in different float types"),
    "dtype-kind": Kind("error", "a tensor is float in one model and not in another", _COPIED),
    "non-float": Kind("note", "integer and boolean tensors are the target's bytes, in a recipe the base's"),
    "non-float-differs": Kind("warning", "an integer or boolean tensor differs between the models"),
    "tied-head": Kind("warning", "some models tie the output head to the embedding and others do not"),
    "nothing-selected": Kind("error", "no tensor would be changed"),
    "selection-whole": Kind("warning", "a method looks at all of a tensor of which a part is selected"),
    "selection-groups": Kind("warning", "a selection leaves weights that share a scale with selected ones"),
    "selection-unused": Kind("warning", "a part of the selection matches no tensor"),
    "states-left": Kind("note", "tensors of a distributed checkpoint that are not the model's"),
    "gguf": Kind("note", "the weights are decoded from a GGUF file"),
    "variant": Kind("note", "one of several variants of the weights is taken"),
    "lfs-pointer": Kind(
        "error", "a git-lfs pointer lies in the place of a file", "the pointer is copied as it is"
    ),
    "file-damaged": Kind("warning", "a file of the target is empty or not of its kind"),
    "files-kept": Kind("warning", "weights of the target's modules come along unchanged"),
    "files-left": Kind("note", "files of the target do not come along to the output"),
    # Tokenizer
    "tokenizer-missing": Kind(
        "warning", "a model has no tokenizer.json, so its vocabulary cannot be compared"
    ),
    "tokenizer-vocabulary": Kind("error", "a token has another id", "rows are combined by their number"),
    "tokenizer-merges": Kind(
        "error", "the same text is cut into other tokens", "the target's tokenizer is kept"
    ),
    "tokenizer-pipeline": Kind("warning", "normaliser, pre-tokenizer or the like differ"),
    "added-tokens": Kind(
        "error", "an id stands for different added tokens", "rows are combined by their number"
    ),
    "added-tokens-extra": Kind("warning", "a model has added tokens that another does not have"),
    "special-tokens": Kind("warning", "begin or end tokens differ"),
    "tokenizer-settings": Kind("note", "other settings of the tokenizer differ"),
    "chat-template": Kind("note", "the chat templates differ; the target's is kept"),
    # Lineage, from a sample of the weights
    "lineage": Kind("note", "how far the models are from each other"),
    "zero-vector": Kind("warning", "donor and reference are the same: the vector is zero"),
    "swapped-roles": Kind("warning", "two of the models look swapped"),
    "unrelated-reference": Kind("warning", "the reference is as far from the donor as an unrelated model"),
    "unrelated-target": Kind("warning", "the target shares no ancestor with donor and reference"),
    # The recipe
    "recipe-ignored": Kind("warning", "a value of the recipe has no effect"),
    "recipe-filter": Kind("warning", "a filter of the recipe matches no tensor that is merged"),
    "recipe-layers": Kind("warning", "config.json cannot describe the new order of layers"),
    "recipe-modules": Kind("note", "tensors are in no module of the recipe and are copied"),
    "recipe-unused": Kind("warning", "a document of the recipe is used by no other"),
    "checkpoints-left": Kind("note", "checkpoints of a run that are not saved to their end are left out"),
    "moe-code": Kind("note", "transformers reads the layout of the experts with code of its authors alone"),
    # From the engine, while it runs
    "non-finite": Kind(
        "error", "NaN or infinity in an input or in the output", "they are written and counted"
    ),
    "rounded-away": Kind("warning", "more than 5% of the elements that were to change did not"),
    "importance-zero": Kind("note", "elements that matter to no model have the mean by the weights alone"),
    "not-low-rank": Kind("warning", "an adapter keeps less than 90% of the vector that it was made of"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of a compatibility check.

    Attributes
    ----------
    level : {"error", "warning", "note"}
        An error stops a run, unless it is forced.
    id : str
        Which sort; a key of ``FINDINGS``, and what ``--force`` takes.
    subject : str
        What it is about: roles of models, a config key, tensors.
    expected, found : str
        What the target (or base) has, and what the others have.
    fix : str
        The way out.
    """

    level: Level
    id: str
    subject: str
    expected: str
    found: str
    fix: str = ""

    @property
    def message(self) -> str:
        """Subject, found and expected as one sentence."""
        expected = f", expected {self.expected}" if self.expected else ""
        return f"{self.subject}: {self.found}{expected}"

    def to_dict(self) -> dict[str, Any]:
        """The fields and the message, as plain data."""
        return {**asdict(self), "message": self.message}

    def __str__(self) -> str:
        return f"{self.level}[{self.id}]: {self.message}"


def finding(
    id: str,  # noqa: A002
    subject: str,
    expected: str,
    found: str,
    fix: str = "",
    level: Level | None = None,
) -> Finding:
    """Make a finding of a known sort, at its level unless another one is given."""
    return Finding(level or FINDINGS[id].level, id, subject, expected, found, fix)


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, then warnings, then notes; otherwise as they came."""
    return sorted(findings, key=lambda each: _RANK[each.level])


def findings_summary(findings: Iterable[Finding]) -> str:
    """The number of findings of each level."""
    counts: dict[str, int] = {"error": 0, "warning": 0, "note": 0}
    for each in findings:
        counts[each.level] += 1
    present = [plural(count, level) for level, count in counts.items() if count]
    return ", ".join(present) if present else "no findings"


def check_names(force: Iterable[str]) -> frozenset[str]:
    """The identifiers to force, as a set.

    Raises
    ------
    RecipeError
        One of them is unknown, or cannot be forced.
    """
    names = frozenset(force)
    for name in sorted(names):
        kind = FINDINGS.get(name)
        if kind is None:
            near = alike(name, FINDINGS, n=1)
            known = ", ".join(known for known, kind in FINDINGS.items() if kind.forced)
            hint = f"did you mean `{near[0]}`?" if near else f"what can be forced: {known}"
            raise RecipeError(f"there is no finding `{name}` to force", hint)
        if kind.level == "error" and kind.forced is None:
            raise RecipeError(
                f"finding `{name}` cannot be forced: {kind.meaning}", "follow the hint of the finding"
            )
    return names


def forced(findings: Iterable[Finding], force: Iterable[str]) -> list[Finding]:
    """The findings, those named in `force` downgraded to warnings that say what is done about them."""
    names = check_names(force)
    result = []
    for each in findings:
        if each.level == "error" and each.id in names:
            each = replace(each, level="warning", fix=f"forced: {FINDINGS[each.id].forced}")
        result.append(each)
    return in_order(result)


def enforce(findings: Iterable[Finding], force: Iterable[str] = ()) -> list[Finding]:
    """Downgrade the findings named in `force`, and stop if an error remains.

    Returns
    -------
    list of Finding
        All of them, errors that were forced now as warnings.

    Raises
    ------
    CompatibilityError
        An error remains; ``findings`` has all of them.
    RecipeError
        `force` names a finding that does not exist or cannot be forced.
    """
    result = forced(findings, force)
    errors = [each for each in result if each.level == "error"]
    if errors:
        raise _refusal(errors, result)
    return result


def enforce_strictly(findings: Iterable[Finding], force: Iterable[str] = ()) -> None:
    """Stop at warnings as at errors, but for those that `force` names.

    Raises
    ------
    CompatibilityError
        A warning remains; ``findings`` has all of them, warnings as errors.
    """
    names = frozenset(force)
    raised = [
        replace(each, level="error") if each.level == "warning" and each.id not in names else each
        for each in findings
    ]
    errors = [each for each in raised if each.level == "error"]
    if errors:
        lead = f"{len(errors)} findings stop a run that is strict:"
        raise _refusal(errors, raised, lead, among={each.id for each in errors})


def _refusal(
    errors: Sequence[Finding],
    result: Sequence[Finding],
    lead: str | None = None,
    among: Collection[str] | None = None,
) -> CompatibilityError:
    """The error that findings are; `among` are those that can be forced, by default as their kinds say."""
    names = list(dict.fromkeys(each.id for each in errors))
    possible = [name for name in names if (FINDINGS[name].forced if among is None else name in among)]
    if len(errors) == 1:
        message, hint = errors[0].message, errors[0].fix
    else:
        lead = lead or f"the models are incompatible in {len(errors)} ways:"
        message, hint = _together(lead, errors), _ways_out(errors)
    if possible:
        options = " ".join(f"--force {name}" for name in possible)
        if len(errors) > 1:
            hint = "\n".join(filter(None, (hint, f"or go on with `{options}`")))
        else:
            hint = f"{hint}; or go on with `{options}`" if hint else f"go on with `{options}`"
    error = CompatibilityError(message, hint)
    error.findings = tuple(result)
    return error


# Findings that an error of several tells in full: all of them are in its `findings`.
_TOLD = 5


def _together(lead: str, errors: Sequence[Finding]) -> str:
    """What several findings say, a line each."""
    lines = [f"  [{each.id}] {each.message}" for each in errors[:_TOLD]]
    if len(errors) > _TOLD:
        lines.append(f"  and {len(errors) - _TOLD} more")
    return "\n".join([lead, *lines])


def _ways_out(errors: Sequence[Finding]) -> str:
    """The way out of each of several findings, a line each."""
    fixes = dict.fromkeys(f"[{each.id}] {each.fix}" for each in errors[:_TOLD] if each.fix)
    return "\n".join(fixes)
