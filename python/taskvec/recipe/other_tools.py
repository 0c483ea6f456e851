"""Recipes for mergekit's other tools, told by a key or a method of their own."""

from __future__ import annotations

from typing import NamedTuple

from taskvec.recipe.document import Document


class _Tool(NamedTuple):
    name: str
    makes: str
    keys: frozenset[str]
    methods: frozenset[str] = frozenset()


_TOOLS = (
    _Tool(
        "mergekit-moe",
        "a mixture of experts",
        frozenset({"experts", "shared_experts", "gate_mode", "experts_per_token"}),
        frozenset({"moe", "mixture_of_experts", "mergekit_moe", "mixtral", "qwen_moe", "deepseek_moe"}),
    ),
    _Tool("mergekit-evolve", "a search for a recipe", frozenset({"genome"})),
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
    content = document.root.value
    node = content.get("merge_method")
    method = str(node.value).lower().replace("-", "_") if node is not None else ""
    for tool in _TOOLS:
        key = next((key for key in content if key in tool.keys), None)
        if key is None and method not in tool.methods:
            continue
        raise document.error(
            ("merge_method",) if key is None else (key,),
            f"this is a recipe for `{tool.name}`, which makes {tool.makes}: that is not offered here",
            f"run `{tool.name}` on it; `taskvec methods` lists what can be merged",
            key=True,
        )
