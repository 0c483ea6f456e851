"""``--set PATH=VALUE``: values of a recipe replaced from the command line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from taskvec.arguments import texts
from taskvec.errors import RecipeError
from taskvec.recipe.document import Document, Node
from taskvec.recipe.parse import parse_nodes
from taskvec.text import kind_of, nearest, shown


def apply_overrides(documents: Sequence[Document], overrides: Iterable[str]) -> list[Document]:
    """The documents with values replaced, as ``--set models.1.parameters.weight=0.3`` asks for.

    In a recipe of several documents the path may start with a document's name; without one it means the
    document that has no name.

    Raises
    ------
    RecipeError
        A path that does not exist, or a value that is not YAML.
    """
    result = list(documents)
    for override in texts(overrides, "overrides"):
        path, sign, text = override.partition("=")
        origin = f"--set {shown(path)}"
        steps = [step for step in path.strip().split(".") if step]
        if not sign or not steps:
            raise RecipeError(
                f"--set `{shown(override)}` is not of the form PATH=VALUE",
                "write `--set models.1.parameters.weight=0.3`",
            )
        value = _parse_value(text, origin)
        index, steps = _target(result, steps, origin)
        document = result[index]
        root = _replaced(document.root, steps, value, origin)
        result[index] = Document(root, document.source)
    return result


def _parse_value(text: str, origin: str) -> Node:
    try:
        roots = list(parse_nodes(text, origin)) if text.strip() else []
    except RecipeError as error:
        raise RecipeError(f"{origin}: `{shown(text)}` is not a YAML value", error.hint) from None
    if len(roots) != 1:
        raise RecipeError(f"{origin}: no value", "write the value after `=`; `null` for nothing")
    return _marked(roots[0], origin)


def _marked(node: Node, origin: str) -> Node:
    if isinstance(node.value, dict):
        return Node({key: _marked(item, origin) for key, item in node.value.items()}, origin)
    if isinstance(node.value, list):
        return Node([_marked(item, origin) for item in node.value], origin)
    return Node(node.value, origin)


def _target(documents: Sequence[Document], steps: list[str], origin: str) -> tuple[int, list[str]]:
    names = [document.root.value.get("name") for document in documents]
    named = {
        node.value: i for i, node in enumerate(names) if node is not None and isinstance(node.value, str)
    }
    if len(documents) == 1 and steps[0] in documents[0].root.value:
        return 0, steps
    if steps[0] in named and len(steps) > 1:
        return named[steps[0]], steps[1:]
    unnamed = [i for i, node in enumerate(names) if node is None]
    if len(documents) == 1 or unnamed:
        return (unnamed or [0])[0], steps
    raise RecipeError(
        f"{origin}: which document is meant?",
        "start the path with one of " + ", ".join(f"`{n}`" for n in named),
    )


def _replaced(node: Node, steps: Sequence[str], value: Node, origin: str) -> Node:
    if not steps:
        return value
    if isinstance(node.value, dict):
        # A key may itself contain dots (a module, a model): the longest that matches is taken.
        for length in range(len(steps), 0, -1):
            key = ".".join(steps[:length])
            if key in node.value:
                changed = _replaced(node.value[key], steps[length:], value, origin)
                return replace(node, value={**node.value, key: changed})
        found = list(node.value)
        near = nearest(steps[0], found)
        raise RecipeError(
            f"{origin}: there is no `{shown(steps[0])}`",
            f"did you mean `{near}`?"
            if near
            else f"there is {', '.join(f'`{shown(k)}`' for k in found[:12]) or 'nothing'}",
        )
    if isinstance(node.value, list):
        index = int(steps[0]) if steps[0].isascii() and steps[0].isdigit() and len(steps[0]) < 9 else -1
        if not 0 <= index < len(node.value):
            raise RecipeError(
                f"{origin}: there is no entry `{shown(steps[0])}`",
                f"entries are numbered 0 to {len(node.value) - 1}" if node.value else "the list is empty",
            )
        items = list(node.value)
        items[index] = _replaced(items[index], steps[1:], value, origin)
        return replace(node, value=items)
    raise RecipeError(
        f"{origin}: `{shown(steps[0])}` is below {kind_of(node.value)}, which has nothing in it",
        "name the value itself",
    )
