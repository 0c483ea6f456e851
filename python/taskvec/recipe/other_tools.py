"""Recipes for mergekit's other tools, told by a key or a method of their own."""

from __future__ import annotations

from typing import NamedTuple

from taskvec.recipe.document import Document


class _Tool(NamedTuple):
    name: str
    makes: str
    keys: frozenset[str]
    methods: frozenset[str] = frozenset()
    here: str | None = None
    """What does the same here."""


_TOOLS = (
    _Tool(
        "mergekit-moe",
        "a mixture of experts",
        frozenset({"experts", "shared_experts", "gate_mode", "experts_per_token"}),
        frozenset({"moe", "mixture_of_experts", "mergekit_moe", "mixtral", "qwen_moe", "deepseek_moe"}),
        here="run it with `taskvec moe`",
    ),
    _Tool(
        "mergekit-evolve",
        "a search for a recipe",
        frozenset({"genome"}),
        here="write it as a recipe with free values and run `taskvec search`, whose help has an example",
    ),
    _Tool(
        "bakllama",
        "a stack of layers",
        frozenset({"layer_sources", "embedding_source", "lm_head_source"}),
    ),
)


def refuse_other_tools(document: Document) -> None:
    """Name the tool that a recipe is written for, where that is not a merge.

    Raises
    ------
    RecipeError
        It is for another tool.
    """
    tool, key = _tool_of(document)
    if tool is not None:
        offered = "that is not offered here" if tool.here is None else "no merge can be made of it"
        raise document.error(
            ("merge_method",) if key is None else (key,),
            f"this is a recipe for `{tool.name}`, which makes {tool.makes}: {offered}",
            tool.here or f"run `{tool.name}` on it; `taskvec methods` lists what can be merged",
            key=True,
        )


def is_of_other_tool(document: Document) -> bool:
    """Whether a recipe is written for another tool."""
    return _tool_of(document)[0] is not None


def _tool_of(document: Document) -> tuple[_Tool | None, str | None]:
    """The tool that a recipe is written for, and the key that tells it, where no method does."""
    content = document.root.value
    node = content.get("merge_method")
    method = str(node.value).lower().replace("-", "_") if node is not None else ""
    for tool in _TOOLS:
        key = next((key for key in content if key in tool.keys), None)
        if key is not None or method in tool.methods:
            return tool, key
    return None, None
