"""README.md of an adapter that was made of a task vector: what it is of, and how much of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from taskvec.report.card import (
    escape,
    fenced,
    findings_section,
    is_on_hub,
    model_table,
    name_of,
    recipe_section,
    table,
    text,
    ways,
)
from taskvec.report.energy_words import energy_words
from taskvec.report.licence import licence_lines
from taskvec.report.places import placeless
from taskvec.text import percent

# Tensors that are named one by one.
_NAMED = 40


def adapter_card(facts: Mapping[str, Any]) -> bytes:
    """The card of an adapter; takes what :func:`taskvec.report.manifest.provenance` says of it."""
    facts = placeless(facts)
    adapter, sources = facts["adapter"], facts["sources"]
    title = " - ".join(escape(name_of(source)) for source in sources)
    return text(
        _front_matter(sources[-1]),
        f"# LoRA of {title}",
        "A task vector as an adapter: of every module the best approximation of a low rank, by singular "
        f"value decomposition, with taskvec {facts['engine']['version']}.",
        model_table(sources),
        "## How much of the vector it keeps",
        ". ".join(words[0].upper() + words[1:] for words in energy_words(adapter)) + ".",
        table({f"at rank {rank}": percent(share) for rank, share in adapter["curve"]}),
        _left(adapter),
        findings_section(facts["findings"]),
        recipe_section(facts["recipe"]),
        *ways(facts["recipe"]),
        "`taskvec.json` has rank and energy of every module.",
    )


def _front_matter(base: Mapping[str, Any]) -> str:
    lines = ["---", "library_name: peft"]
    if is_on_hub(base):
        lines += [f"base_model: {json.dumps(base['repository'])}", "base_model_relation: adapter"]
    lines += licence_lines([base])
    return "\n".join([*lines, "tags:", "- lora", "- task-vector", "- taskvec", "---"])


def _left(adapter: Mapping[str, Any]) -> str:
    """What is held whole and what is left out."""
    sections = []
    if adapter["whole"]:
        sections += ["Held as they are in the donor:", fenced("\n".join(adapter["whole"][:_NAMED]), "text")]
    if adapter["left"]:
        names = list(adapter["left"])
        rows = [f"{name}: {adapter['left'][name]['reason']}" for name in names[:_NAMED]]
        more = [f"and {len(names) - _NAMED:,} more"] if len(names) > _NAMED else []
        sections += ["Left out:", fenced("\n".join([*rows, *more]), "text")]
    return "\n\n".join(["## What has no factors", *sections]) if sections else ""
