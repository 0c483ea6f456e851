"""The table of layouts: stored tensors that hold several weights, or one in another order, by their names.

A row says how the rows of a stored tensor are divided among weights; the common names and the orders are
those of transformers' conversions between checkpoints and modules (``conversion_mapping.py``), where every
family below is found. Which of two orders a fused tensor of experts has is told from the shapes of the pair
(gate and up, down): one order alone is possible.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from taskvec.compat.config_keys import INNER
from taskvec.compat.layouts.names import common_name
from taskvec.compat.layouts.views import Factors, View, whole
from taskvec.regex import regex
from taskvec.text import listed

if TYPE_CHECKING:
    from taskvec.models.model import Model

_GATE_UP = ("gate_proj", "up_proj")
_QKV = ("q_proj", "k_proj", "v_proj")


class Row(NamedTuple):
    """One layout of a stored tensor.

    Attributes
    ----------
    pattern : str
        Regular expression of the whole name, compiled where one is first looked for: ``stem`` is what the
        weights' names begin with, ``kind`` (`weight`, `bias`; without one a weight) what they end in.
    weights : tuple of str
        The weights in it, by what their names have between stem and kind.
    order : str
        How rows are divided: ``joined`` one weight after the other, ``interleaved`` a row of each in turn,
        ``heads`` as queries, keys and values of the config's sizes, ``by head`` the same for each head in
        turn.
    experts : bool
        Whether the first axis counts experts.
    families : frozenset of str
        Model types that it is limited to; all if empty.
    """

    pattern: str
    weights: tuple[str, ...]
    order: str = "joined"
    experts: bool = False
    families: frozenset[str] = frozenset()


def _row(pattern: str, *weights: str, order: str = "joined", experts: bool = False, only: str = "") -> Row:
    return Row(pattern, weights, order, experts, frozenset(only.split()))


_END = r"(?:\.(?P<kind>weight|bias))?"
_BIAS = r"(?P<kind>bias)"
_EXPERTS = r"(?P<stem>.*\.experts)"
_MLP = r"(?P<stem>.*\.(?:mlp|shared_experts?|shared_mlp))"
ROWS = (
    _row(rf"{_EXPERTS}\.gate_up_proj{_END}", *_GATE_UP, order="interleaved", experts=True, only="gpt_oss"),
    _row(rf"{_EXPERTS}\.gate_up_proj_{_BIAS}", *_GATE_UP, order="interleaved", experts=True, only="gpt_oss"),
    _row(rf"{_EXPERTS}\.w13_weight", *_GATE_UP, order="interleaved", experts=True),
    _row(rf"{_EXPERTS}\.gate_up_proj{_END}", *_GATE_UP, experts=True),
    _row(rf"{_EXPERTS}\.gate_up_proj_{_BIAS}", *_GATE_UP, experts=True),
    _row(rf"{_EXPERTS}\.up_proj{_END}", "up_proj", experts=True),
    _row(rf"{_EXPERTS}\.(?:down_proj|w2_weight){_END}", "down_proj", experts=True),
    _row(rf"{_EXPERTS}\.down_proj_{_BIAS}", "down_proj", experts=True),
    _row(r"(?P<stem>.*\.block_sparse_moe)\.input_linear\.(?P<kind>weight)", *_GATE_UP, experts=True),
    _row(r"(?P<stem>.*\.block_sparse_moe)\.output_linear\.(?P<kind>weight)", "down_proj", experts=True),
    _row(r"(?P<stem>.*\.moe)\.gate_proj\.(?P<kind>weight)", "gate_proj", experts=True),
    _row(r"(?P<stem>.*\.moe)\.up_proj\.(?P<kind>weight)", "up_proj", experts=True),
    _row(r"(?P<stem>.*\.moe)\.down_proj\.(?P<kind>weight)", "down_proj", experts=True),
    _row(rf"{_MLP}\.gate_up_proj{_END}", *_GATE_UP),
    _row(rf"(?P<stem>.*\.self_attn)\.qkv_proj{_END}", *_QKV, order="heads"),
    _row(rf"(?P<stem>.*\.self_attn)\.W_pack{_END}", *_QKV),
    _row(rf"(?P<stem>.*\.(?:attn|self_attn|attention))\.Wqkv{_END}", *_QKV, order="heads"),
    _row(
        rf"(?P<stem>.*\.(?:attention|self_attention|self_attn))\.query_key_value{_END}",
        *_QKV, order="by head", only="gpt_neox gpt_neox_japanese bloom",
    ),
)  # fmt: skip
# What every name of a row has: looking for it costs a tenth of matching all rows.
_WORDS = regex(
    r"gate_up|\.experts\.(?:up_proj|down_proj|w13|w2_)|put_linear|\.moe\.|qkv|W_pack|query_key_value"
)
# Beside a fused gate and up lies a fused down, under one of these names.
_DOWN = {"gate_up_proj": "down_proj", "w13_weight": "w2_weight", "input_linear": "output_linear"}
_UP = {down: up for up, down in _DOWN.items()}


_ORDERS = {
    "joined": "one after the other",
    "interleaved": "row by row in turn",
    "heads": "one after the other",
    "by head": "in turn for each head",
}


def words_of(name: str, config: Mapping[str, Any]) -> str:
    """What the table says of a stored tensor that holds several weights; empty where it holds one."""
    if not _WORDS.search(name):
        return ""
    kinds = _facts({}, config).kinds
    for row in ROWS:
        if re.fullmatch(row.pattern, name) and (not row.families or row.families & kinds):
            order = f", {_ORDERS[row.order]}" if len(row.weights) > 1 else ""
            return f"{listed(row.weights)}{order}{' of every expert' if row.experts else ''}"
    return ""


class Facts(NamedTuple):
    """What of a model its layout follows from."""

    shapes: Mapping[str, tuple[int, ...]]
    kinds: frozenset[str]
    config: Mapping[str, Any]


def views(model: Model, like: Model | None = None) -> Iterator[tuple[str, list[View]]]:
    """The weights in each stored tensor of a model, in file order.

    ``like`` is the model whose layout it has been fitted to, where it has.
    """
    shapes = {name: info.shape for name, info in model.tensors.items()}
    return views_of(shapes, (like or model).config)


def views_of(
    shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]
) -> Iterator[tuple[str, list[View]]]:
    """The weights in tensors of these names and shapes, of a model with this config."""
    facts = _facts(shapes, config)
    for name, shape in shapes.items():
        yield name, _views(name, shape, facts)


def _facts(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> Facts:
    inner = next((config[key] for key in INNER if isinstance(config.get(key), dict)), {})
    kinds = {str(each.get("model_type")).removesuffix("_text") for each in (config, inner)}
    return Facts(shapes, frozenset(kinds), {**config, **inner})


def _views(name: str, shape: tuple[int, ...], facts: Facts) -> list[View]:
    if _WORDS.search(name):
        for row in ROWS:
            found = re.fullmatch(row.pattern, name)
            if found is None or (row.families and not row.families & facts.kinds):
                continue
            divided = _divided(row, found, name, shape, facts)
            if divided:
                return divided
    return [whole(common_name(name), shape, name)]


def _divided(
    row: Row, found: re.Match[str], name: str, shape: tuple[int, ...], facts: Facts
) -> list[View] | None:
    """The weights of a stored tensor that a row describes; none where its shape does not fit."""
    kind = found.groupdict().get("kind") or "weight"
    is_bias = kind == "bias"
    if len(shape) != (1 if is_bias else 2) + row.experts:
        return None
    inside = shape[1:] if row.experts else shape
    is_transposed = row.experts and not is_bias and _is_transposed(name, facts)
    if is_transposed is None:
        return None
    rows, columns = (inside[-1], inside[0]) if is_transposed else (inside[0], inside[-1])
    row_step, column_step = (1, rows) if is_transposed else (1 if is_bias else columns, 1)
    parts = _parts(row, rows, row_step, facts)
    if parts is None:
        return None
    each = rows if is_bias else rows * columns
    stem = found["stem"] if not row.experts else _experts(found["stem"])
    made = []
    for number in range(shape[0] if row.experts else 1):
        middle = f".{number}" if row.experts else ""
        for weight, (first, axis) in zip(row.weights, parts, strict=True):
            axes = (axis,) if is_bias else (axis, ((columns, column_step),))
            own = f"{stem}{middle}.{weight}.{kind}"
            made.append(View(common_name(own), number * each + first, axes, own))
    return made


def _experts(stem: str) -> str:
    """Where the experts of a block are: `mlp.experts`."""
    return stem if stem.endswith(".experts") else re.sub(r"\.(?:block_sparse_moe|moe)$", ".mlp.experts", stem)


def _parts(row: Row, rows: int, step: int, facts: Facts) -> list[tuple[int, Factors]] | None:
    """First element and rows of each weight."""
    count = len(row.weights)
    if row.order in ("joined", "interleaved"):
        if rows % count:
            return None
        if row.order == "interleaved":
            return [(number * step, ((rows // count, count * step),)) for number in range(count)]
        return [(number * (rows // count) * step, ((rows // count, step),)) for number in range(count)]
    sizes = _head_sizes(facts.config)
    if sizes is None or (sizes[0] + 2 * sizes[1]) * sizes[2] != rows:
        return None
    heads, groups, size = sizes
    if row.order == "by head":
        if heads != groups:
            return None
        return [(n * size * step, ((heads, count * size * step), (size, step))) for n in range(count)]
    firsts, lengths = (0, heads * size, (heads + groups) * size), (heads * size, groups * size, groups * size)
    return [(first * step, ((length, step),)) for first, length in zip(firsts, lengths, strict=True)]


def _head_sizes(config: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Heads of queries, heads of keys and values, and elements of one."""
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if not isinstance(hidden, int) or not isinstance(heads, int) or not heads:
        return None
    groups, size = config.get("num_key_value_heads"), config.get("head_dim")
    groups = groups if isinstance(groups, int) else heads
    return heads, groups, size if isinstance(size, int) else hidden // heads


def _is_transposed(name: str, facts: Facts) -> bool | None:
    """Whether a fused tensor of experts is stored inputs first; ``None`` where its pair fits no order."""
    for table, is_up in ((_DOWN, True), (_UP, False)):
        for mine, theirs in table.items():
            partner = re.sub(rf"\.{mine}(?=$|\.)", f".{theirs}", name)
            if partner == name or partner not in facts.shapes:
                continue
            up, down = facts.shapes[name], facts.shapes[partner]
            up, down = (up, down) if is_up else (down, up)
            if len(up) != 3 or len(down) != 3:
                return None
            (_, a, b), (_, c, d) = up, down
            if a == 2 * d and b == c:
                return False
            return True if a == d and b == 2 * c else None
    return False  # gate, up and down by themselves: [experts, outputs, inputs]
