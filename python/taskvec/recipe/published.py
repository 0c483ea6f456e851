"""Recipes as people publish them: in the card of a model, in the cell of a notebook, below a card's header.

What is not the recipe becomes empty lines, so that messages name the lines of the file as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from taskvec.errors import RecipeError
from taskvec.recipe.document import Document
from taskvec.recipe.other_tools import is_of_other_tool
from taskvec.regex import regex

_FENCE = regex(r" {0,3}(`{3,}|~{3,})[ \t]*([\w+-]*)")
_CELL = regex(r"\s*\w+\s*=\s*[rRfF]?(\"{3}|'{3})(.*)$")
_MAGIC = regex(r"\s*%%writefile\b")
_MERGE = regex(r"^[ \t]*(merge_method|experts|layer_sources|genome)[ \t]*:", re.MULTILINE)
_LANGUAGES = frozenset({"", "yaml", "yml"})

_FORMS = frozenset({"merge_method", "models", "slices", "modules"})
CARD = frozenset(
    {
        "author", "base_model_relation", "co2_eq_emissions", "datasets", "description", "extra_gated_fields",
        "extra_gated_heading", "extra_gated_prompt", "inference", "language", "library_name", "license",
        "license_link", "license_name", "metrics", "model-index", "model_creator", "model_name",
        "model_type", "new_version", "pipeline_tag", "prompt_template", "quantized_by", "tags", "thumbnail",
        "title", "widget",
    }
)  # fmt: skip
"""Keys of a model card's header."""


class _Block(NamedTuple):
    """Lines of a file that are code, `first` counted from 0."""

    first: int
    lines: Sequence[str]

    @property
    def text(self) -> str:
        """The lines where they stand, with empty ones in front."""
        return "\n" * self.first + "\n".join(self.lines) + "\n"


def recipe_in(text: str, source: str) -> str:
    """The recipe of a file's text: the text itself, or the block of a model card or notebook that is one.

    Raises
    ------
    RecipeError
        A card or notebook with no recipe, or with several.
    """
    lines = text.splitlines()
    fenced = list(_fenced(lines))
    found = [block for block in (*fenced, *_cells(lines)) if _MERGE.search("\n".join(block.lines))]
    if len(found) > 1:
        places = ", ".join(str(block.first + 1) for block in found[:6])
        raise RecipeError(
            f"{source}: {len(found)} recipes, on lines {places}",
            "save the one that is meant as a file of its own; documents that build on each other are "
            "separated by `---`",
        )
    if found:
        return found[0].text
    # Fences may also stand in a text of a recipe, such as its chat template.
    if fenced and not _MERGE.search(text):
        raise RecipeError(
            f"{source}: no recipe in this model card: none of its {len(fenced)} blocks of code has a "
            "`merge_method`",
            "give a file of YAML, or a card with the recipe in a block of code",
        )
    if lines and _MAGIC.match(lines[0]):
        return "\n" + text.partition("\n")[2]
    return text


def _fenced(lines: Sequence[str]) -> Iterator[_Block]:
    """Blocks of code between fences that may be YAML."""
    begin, fence, language = -1, "", ""
    for number, line in enumerate(lines):
        match = _FENCE.match(line)
        if match is None or "`" in line[match.end() :]:
            continue
        if begin < 0:
            begin, fence, language = number + 1, match[1], match[2].lower()
        elif match[1].startswith(fence) and not match[2]:
            if language in _LANGUAGES:
                yield _Block(begin, lines[begin:number])
            begin = -1


def _cells(lines: Sequence[str]) -> Iterator[_Block]:
    """Texts between three quotes that a notebook gives a name."""
    begin, quotes, first = -1, "", ""
    for number, line in enumerate(lines):
        match = _CELL.match(line) if begin < 0 else None
        if match is not None and match[1] not in match[2]:
            begin, quotes = number, match[1]
            first = match[2]
        elif begin >= 0 and quotes in line:
            yield _Block(begin, [first, *lines[begin + 1 : number], line.partition(quotes)[0]])
            begin = -1


def without_header(documents: Sequence[Document]) -> list[Document]:
    """The documents without the header of a model card that stands before the recipe."""
    first = documents[0].root.value
    is_header = len(documents) > 1 and not _FORMS & first.keys() and CARD & first.keys()
    return list(documents[1:] if is_header and not is_of_other_tool(documents[0]) else documents)
