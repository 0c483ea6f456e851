"""Words of published recipes that have no effect here, and those that are written otherwise.

mergekit passes over keys that it does not know. A word that is known to mean nothing for the result becomes a
note with its line; every other key stays for the checks of the format, which know none but their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from taskvec.compat.findings import Finding, finding
from taskvec.recipe.document import Document, Node
from taskvec.recipe.model_ref import exists
from taskvec.recipe.published import CARD
from taskvec.text import Key, shown

Path = tuple[Key, ...]
Remark = Callable[[Path, str, str], None]

_FLAG = "remove it: it is an option of mergekit's command line"
# Options of mergekit that some write into the recipe, and what says the same here.
_OPTIONS = {
    "random_seed": "write `seed: N`",
    "out_shard_size": "give `--max-shard-size` on the command line",
    "num_threads": "give `--threads` on the command line",
    "low_cpu_memory": "give `--max-memory` on the command line",
    "write_model_card": "remove it: a card is always written",
    "lazy_unpickle": "remove it: weights are always read as they are needed",
    "lora_merge_cache": "remove it: adapters are added as they are read",
    **dict.fromkeys(
        (
            "allow_crimes", "async_write", "clone_tensors", "copy_tokenizer", "cuda", "device", "gpu_rich",
            "lora_merge_dtype", "multi_gpu", "quiet", "read_to_gpu", "safe_serialization",
            "transformers_cache", "trust_remote_code", "unsafe_truncate_embeddings", "verbosity",
            "write_threads",
        ),
        _FLAG,
    ),
}  # fmt: skip
_NOTHING = {
    "int8_mask": "remove it: masks take no memory here",
    "embed_slerp": "remove it: it is of mergekit's first versions",
}
_TOP = {**_OPTIONS, **_NOTHING, **dict.fromkeys(CARD, "remove it: it belongs into the model's card")}
_SLICE = {"residual_weight": "remove it: mergekit reads it and does nothing with it"}
# Keys under which a model stands.
_MODELS = frozenset({"base_model", "importance", "model", "relative_to", "source", "tokenizer_source"})
_WHOLE = {"layer_range": "remove it, or write the models as `slices`, whose `sources` have layers"}


def in_our_words(document: Document) -> tuple[Document, tuple[Finding, ...]]:
    """The document without words that have no effect, and a note on each of them.

    Raises
    ------
    RecipeError
        A revision that cannot be told from another.
    """
    found: list[Finding] = []

    def remark(path: Path, what: str, fix: str) -> None:
        found.append(finding("recipe-ignored", document.place(path, key=True), "", what, fix))

    root = _without(document.root, (), _TOP, remark)
    root = _part(_locals(_without_anchors(root), (), remark), (), document, remark)
    modules = root.below("modules")
    if modules is not None and isinstance(modules.value, dict):
        parts = {
            name: _part(part, ("modules", name), document, remark) for name, part in modules.value.items()
        }
        root = _with(root, "modules", replace(modules, value=parts))
    return (document if root is document.root else Document(root, document.source)), tuple(found)


def _part(node: Node, path: Path, document: Document, remark: Remark) -> Node:
    """A recipe or module, its inputs in our words."""

    def whole(each: Node, at: Path) -> Node:
        return _revised(_without(each, at, _WHOLE, remark), at, document, remark)

    def source(each: Node, at: Path) -> Node:
        return _revised(_without(each, at, _SLICE, remark), at, document, remark)

    def piece(each: Node, at: Path) -> Node:
        return _each(_locals(_without(each, at, _SLICE, remark), at, remark), at, "sources", source)

    return _each(_each(node, path, "models", whole), path, "slices", piece)


def _each(node: Node, path: Path, key: str, change: Callable[[Node, Path], Node]) -> Node:
    """A mapping with every entry of the list under a key changed."""
    below = node.below(key) if isinstance(node.value, dict) else None
    if below is None or not isinstance(below.value, list):
        return node
    items = [change(item, (*path, key, number)) for number, item in enumerate(below.value)]
    if all(new is old for new, old in zip(items, below.value, strict=True)):
        return node
    return _with(node, key, replace(below, value=items))


def _with(node: Node, key: str, value: Node) -> Node:
    return replace(node, value={**node.value, key: value})


def _without(node: Node, path: Path, words: Mapping[str, str], remark: Remark) -> Node:
    """A mapping without these words."""
    if not isinstance(node.value, dict):
        return node
    there = [key for key in node.value if key.replace("-", "_") in words or key in words]
    for key in there:
        fix = words.get(key) or words[key.replace("-", "_")]
        where = f" in `{path[0]}`" if path else ""
        remark((*path, key), f"`{shown(key)}` has no effect{where}", fix)
    return replace(node, value={k: v for k, v in node.value.items() if k not in there}) if there else node


def _without_anchors(node: Node) -> Node:
    """A document without the keys that hold nothing but anchors for other places, ``x-…`` by convention."""
    there = [key for key in node.value if key.startswith("x-")]
    return replace(node, value={k: v for k, v in node.value.items() if k not in there}) if there else node


def _locals(node: Node, path: Path, remark: Remark) -> Node:
    """A mapping whose models are named without a revision where they are local."""
    if not isinstance(node.value, dict):
        return node
    changed = {
        key: _local(each, (*path, key), remark) if key in _MODELS else each
        for key, each in node.value.items()
    }
    tokenizer = changed.get("tokenizer")
    if not path and tokenizer is not None and isinstance(tokenizer.value, dict):
        changed["tokenizer"] = _locals(tokenizer, ("tokenizer",), remark)
    same = all(changed[key] is each for key, each in node.value.items())
    return node if same else replace(node, value=changed)


def _local(node: Node, path: Path, remark: Remark) -> Node:
    """A model without its revision where it is local: there is only one of it, as for mergekit."""
    value = node.value
    if isinstance(value, str):
        parts = [value] if exists(value) else value.split("+")
        plain = [_unrevised(part) for part in parts]
        if plain != parts:
            local = next(new for new, old in zip(plain, parts, strict=True) if new != old)
            remark(path, f"the revision has no effect: `{shown(local)}` is local", "remove it")
        return node if plain == parts else replace(node, value="+".join(plain))
    if not isinstance(value, dict):
        return node
    place = value.get("path")
    if place is not None and "revision" in value and isinstance(place.value, str) and exists(place.value):
        if value["revision"].value is not None:
            remark(
                (*path, "revision"), f"`revision` has no effect: `{shown(place.value)}` is local", "remove it"
            )
        return replace(node, value={key: each for key, each in value.items() if key != "revision"})
    inner = {
        key: _local(each, (*path, key), remark) if key in ("model", "lora") else each
        for key, each in value.items()
    }
    return node if all(inner[key] is each for key, each in value.items()) else replace(node, value=inner)


def _unrevised(text: str) -> str:
    name, at, _ = text.partition("@")
    return name if at and name and not exists(text) and exists(name) else text


def _revised(node: Node, path: Path, document: Document, remark: Remark) -> Node:
    """An input with its `revision` as part of the model's name."""
    node = _locals(node, path, remark)
    revision = node.below("revision") if isinstance(node.value, dict) else None
    model = node.below("model")
    if revision is None or model is None or not isinstance(model.value, str):
        return node
    rest = replace(node, value={key: each for key, each in node.value.items() if key != "revision"})
    name, plus, adapter = model.value.partition("+")
    if revision.value is None:
        return rest
    if exists(model.value):
        remark((*path, "revision"), f"`revision` has no effect: `{shown(model.value)}` is local", "remove it")
        return rest
    if not isinstance(revision.value, str) or "@" in name:
        raise document.error(
            (*path, "revision"),
            f"`{shown(model.value)}` has a revision already"
            if "@" in name
            else "a revision is the name of a branch or tag, or the hash of a commit",
            "write `model: org/name@revision`",
        )
    return _with(rest, "model", replace(model, value=f"{name}@{revision.value}{plus}{adapter}"))
