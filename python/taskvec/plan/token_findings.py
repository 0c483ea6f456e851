"""What is to be told of a model that is moved to another tokenizer, before it is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from taskvec.compat.findings import Finding, finding
from taskvec.compat.token_text import ROLES, roles_of
from taskvec.compat.tokenizer import template_of
from taskvec.files.json import parse_object
from taskvec.models.model import Model
from taskvec.plan.token_ways import WAYS
from taskvec.plan.token_work import operations
from taskvec.plan.vocabulary_files import GENERATION
from taskvec.regex import regex
from taskvec.text import listed, plural, shown

if TYPE_CHECKING:
    from taskvec.plan.token_rows import Approximation

_MARK = regex(r"<\|[A-Za-z0-9_]+\|>")


def token_findings(
    made: Approximation, target: Model, model: Model, files: Mapping[str, bytes], config: Mapping[str, Any]
) -> Iterator[Finding]:
    """The findings: what is approximated, tokens without a row, what does not agree, texts that change."""
    yield _summary(made, model)
    zero = made.origins.of("zero")
    if zero:
        yield finding(
            "token-rows-missing", f"`{shown(target.spec)}`", "a row for every token",
            f"{plural(len(zero), 'token')} have rows of zeros, as nothing stands for them: {_named(zero)}",
        )  # fmt: skip
    yield from _disagreements(made, target, model, files, config)
    if changed := made.changed:
        yield finding(
            "tokenizer-round-trip",
            f"tokenizer of `{shown(model.spec)}`",
            "texts that are cut and joined are what they were",
            f"{plural(len(changed), 'sample')} come back as another text, {shown(changed[0])} first",
        )


def _summary(made: Approximation, model: Model) -> Finding:
    counts = made.origins.counts
    words = [f"{counts['copied']:,} rows copied"]
    words += [f"{counts['role']:,} copied by role"] if counts["role"] else []
    if counts["computed"]:
        work = operations(made, model)
        words.append(
            f"{counts['computed']:,} by {WAYS[made.method]} over {len(made.shared):,} shared tokens, about "
            f"{work:.1e} operations"
        )
    words += [f"{counts['subword']:,} by {WAYS['subword']}"] if counts["subword"] else []
    subject = f"{len(made.origins.ids):,} tokens of `{shown(model.spec)}`"
    return finding("tokens-approximated", subject, "", "; ".join(words))


def _named(tokens: list[str]) -> str:
    return listed([shown(token) for token in tokens], 8)


def _disagreements(
    made: Approximation, target: Model, model: Model, files: Mapping[str, bytes], config: Mapping[str, Any]
) -> Iterator[Finding]:
    """Ids of special tokens that are not the tokenizer's, and marks of the template that are not tokens."""
    ids, roles = made.origins.ids, roles_of(model, made.origins.ids)
    stated = {**target.config, **config}
    for role in ROLES:
        if role not in roles:
            continue
        wanted = ids[roles[role]]
        for name, settings in (("config.json", stated), (GENERATION, _settings(files))):
            given = settings.get(f"{role}_token_id")
            allowed = given if isinstance(given, list) else [given]
            if given is not None and wanted not in allowed:
                yield finding(
                    "token-ids",
                    f"`{role}_token_id` of {name}",
                    f"{wanted}, `{shown(roles[role])}` of the tokenizer",
                    f"{shown(str(given))}, as `{shown(model.spec)}` has it",
                )
    marks = dict.fromkeys(_MARK.findall(template_of(model) or ""))
    unknown = [mark for mark in marks if mark not in ids]
    if unknown:
        yield finding(
            "token-ids", "chat template", "marks that are tokens", f"{_named(unknown)} are cut into pieces"
        )


def _settings(files: Mapping[str, bytes]) -> dict[str, Any]:
    return parse_object(files[GENERATION], GENERATION) if GENERATION in files else {}
