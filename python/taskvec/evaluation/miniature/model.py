"""A very small Qwen2 in plain torch: the forward pass, packed batches, and sampling with a cache.

The weights are a mapping under the names of transformers' ``Qwen2ForCausalLM``, which loads what is saved
here and gives the same logits. Training and sampling stay on this forward pass because it lets texts share a
row and the answers of a group share their prompt, and because a model this small has no time for more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from taskvec.evaluation.miniature.tokenizer import END_ID, PAD_ID, VOCABULARY

HIDDEN, LAYERS, HEADS, KEY_HEADS, INNER = 128, 3, 4, 2, 384
HEAD = HIDDEN // HEADS
POSITIONS = 256
THETA = 10_000.0
EPSILON = 1e-6

LIMIT = 48
"""Tokens that an answer may have; a right one has 20."""
CONFIGURATION = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_HEADS,
    "max_position_embeddings": POSITIONS,
    "rms_norm_eps": EPSILON,
    "rope_theta": THETA,
    "tie_word_embeddings": True,
    "use_cache": True,
    "bos_token_id": None,
    "eos_token_id": END_ID,
    "pad_token_id": PAD_ID,
}
"""Arguments of transformers' ``Qwen2Config``."""

Weights = dict[str, Tensor]


def initialise(seed: int) -> Weights:
    """Fresh weights: Gaussian, output layers scaled down by depth, embeddings tied.

    The deviation is about the inverse root of ``HIDDEN``, so that a layer keeps the size of what it is given.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 0.08) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    weights = {"model.embed_tokens.weight": normal(VOCABULARY, HIDDEN, scale=0.02)}
    deep = 0.08 / (2 * LAYERS) ** 0.5
    for layer in range(LAYERS):
        attention, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
        for name, size in (("q", HIDDEN), ("k", KEY_HEADS * HEAD), ("v", KEY_HEADS * HEAD)):
            weights[f"{attention}{name}_proj.weight"] = normal(size, HIDDEN)
            weights[f"{attention}{name}_proj.bias"] = torch.zeros(size)
        weights[f"{attention}o_proj.weight"] = normal(HIDDEN, HIDDEN, scale=deep)
        weights[f"{mlp}gate_proj.weight"] = normal(INNER, HIDDEN)
        weights[f"{mlp}up_proj.weight"] = normal(INNER, HIDDEN)
        weights[f"{mlp}down_proj.weight"] = normal(HIDDEN, INNER, scale=deep)
        weights[f"model.layers.{layer}.input_layernorm.weight"] = torch.ones(HIDDEN)
        weights[f"model.layers.{layer}.post_attention_layernorm.weight"] = torch.ones(HIDDEN)
    weights["model.norm.weight"] = torch.ones(HIDDEN)
    return weights


class Cache:
    """Keys and values of every layer for a fixed number of rows and positions."""

    def __init__(self, rows: int, length: int) -> None:
        self.keys = [torch.zeros(rows, KEY_HEADS, length, HEAD) for _ in range(LAYERS)]
        self.values = [torch.zeros(rows, KEY_HEADS, length, HEAD) for _ in range(LAYERS)]
        self.used = 0

    def repeat(self, times: int) -> None:
        """Each row ``times`` times, next to itself."""
        self.keys = [key.repeat_interleave(times, 0) for key in self.keys]
        self.values = [value.repeat_interleave(times, 0) for value in self.values]

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        stop = self.used + key.shape[2]
        self.keys[layer][:, :, self.used : stop] = key
        self.values[layer][:, :, self.used : stop] = value
        if layer == LAYERS - 1:
            self.used = stop
        return self.keys[layer][:, :, :stop], self.values[layer][:, :, :stop]


def forward(
    weights: Mapping[str, Tensor], tokens: Tensor, positions: Tensor, mask: Tensor, cache: Cache | None = None
) -> Tensor:
    """Last hidden states, normalised.

    Parameters
    ----------
    weights : mapping of str to Tensor
    tokens, positions : Tensor of int64, (rows, length)
    mask : Tensor of bool, (rows, 1, length, keys)
        Which key a query may look at; ``keys`` counts what the cache holds, too.
    cache : Cache, optional
        Receives this call's keys and values.

    Returns
    -------
    Tensor of float32, (rows, length, HIDDEN)
    """
    rows, length = tokens.shape
    cosine, sine = (table[positions].unsqueeze(1) for table in _rotations())
    hidden = functional.embedding(tokens, weights["model.embed_tokens.weight"])
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        x = _norm(hidden, weights[prefix + "input_layernorm.weight"])
        query, key, value = (
            functional.linear(
                x, weights[f"{prefix}self_attn.{n}_proj.weight"], weights[f"{prefix}self_attn.{n}_proj.bias"]
            )
            .view(rows, length, -1, HEAD)
            .transpose(1, 2)
            for n in "qkv"
        )
        query, key = _rotate(query, cosine, sine), _rotate(key, cosine, sine)
        if cache is not None:
            key, value = cache.append(layer, key, value)
        mixed = _attend(query, key, value, mask)
        hidden = hidden + functional.linear(mixed, weights[prefix + "self_attn.o_proj.weight"])
        x = _norm(hidden, weights[prefix + "post_attention_layernorm.weight"])
        gate = functional.silu(functional.linear(x, weights[prefix + "mlp.gate_proj.weight"]))
        inner = gate * functional.linear(x, weights[prefix + "mlp.up_proj.weight"])
        hidden = hidden + functional.linear(inner, weights[prefix + "mlp.down_proj.weight"])
    return _norm(hidden, weights["model.norm.weight"])


def logits(weights: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
    """Scores of every next token; the output layer is the embedding, tied."""
    return functional.linear(hidden, weights["model.embed_tokens.weight"])


@dataclass(frozen=True, slots=True)
class Packed:
    """Rows in which several texts lie side by side without seeing each other.

    ``before`` is the position whose hidden state predicts a token, ``scored`` the weight of that token in the
    loss (0 for prompts and padding); all are (rows, length) but ``mask``, which is (rows, 1, length, length).
    """

    tokens: Tensor
    positions: Tensor
    before: Tensor
    scored: Tensor
    mask: Tensor

    @property
    def weights(self) -> Tensor:
        """The loss weights of the scored tokens, in the order of :func:`log_probabilities`."""
        return self.scored[self.scored > 0]


@dataclass(frozen=True, slots=True)
class Tree:
    """A prompt and the texts that continue it; each continuation sees the prompt and itself."""

    prompt: Sequence[int]
    continuations: Sequence[Sequence[int]]
    weights: Sequence[Sequence[float]]
    """Loss weight of each token of each continuation."""

    def __len__(self) -> int:
        return len(self.prompt) + sum(map(len, self.continuations))


def pack(rows: Sequence[Sequence[Tree]]) -> Packed:
    """Lay out rows of trees; shorter rows are padded at their end."""
    length = max(sum(map(len, row)) for row in rows)
    tokens = torch.full((len(rows), length), PAD_ID)
    positions, before = torch.zeros_like(tokens), torch.zeros_like(tokens)
    scored = torch.zeros(len(rows), length)
    # A token sees an earlier one of its tree if that one is in the prompt (branch 0) or in the same branch.
    tree_of, branch_of = torch.full_like(tokens, -1), torch.zeros_like(tokens)
    for r, row in enumerate(rows):
        at = 0
        for t, tree in enumerate(row):
            root = len(tree.prompt)
            last = at + root - 1
            parts = [(0, tree.prompt, None)]
            parts += [
                (1 + b, c, w) for b, (c, w) in enumerate(zip(tree.continuations, tree.weights, strict=True))
            ]
            for branch, part, weight in parts:
                stop = at + len(part)
                tokens[r, at:stop] = torch.tensor(part, dtype=torch.int64)
                start = root if branch else 0
                positions[r, at:stop] = torch.arange(start, start + len(part))
                before[r, at:stop] = torch.arange(at - 1, stop - 1)
                tree_of[r, at:stop], branch_of[r, at:stop] = t, branch
                if weight is not None:
                    before[r, at] = last
                    scored[r, at:stop] = torch.tensor(weight)
                at = stop
    before.clamp_(min=0)
    same = tree_of[:, :, None] == tree_of[:, None, :]
    visible = (branch_of[:, None, :] == 0) | (branch_of[:, :, None] == branch_of[:, None, :])
    mask = (same & visible).tril_().unsqueeze(1)
    return Packed(tokens, positions, before, scored, mask)


def log_probabilities(weights: Mapping[str, Tensor], batch: Packed, temperature: float = 1.0) -> Tensor:
    """Log-probability of every scored token, in row order: float32, (number of scored tokens,)."""
    hidden = forward(weights, batch.tokens, batch.positions, batch.mask)
    row, column = torch.nonzero(batch.scored, as_tuple=True)
    scores = logits(weights, hidden[row, batch.before[row, column]]) / temperature
    return -functional.cross_entropy(scores, batch.tokens[row, column], reduction="none")


@torch.no_grad()
def sample(
    weights: Mapping[str, Tensor],
    prompts: Sequence[Sequence[int]],
    *,
    copies: int = 1,
    limit: int = LIMIT,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> tuple[list[list[int]], list[list[float]]]:
    """Continue each prompt ``copies`` times: greedily, or by drawing, with a generator.

    Returns
    -------
    tokens : list of list of int
        The continuations, copies of one prompt next to each other, up to and including the end token.
    log_probabilities : list of list of float
        Of each of these tokens, under the policy that drew them.
    """
    longest = max(map(len, prompts))
    padding = torch.tensor([longest - len(p) for p in prompts])
    tokens = torch.tensor([[PAD_ID] * (longest - len(p)) + list(p) for p in prompts])
    columns = torch.arange(longest + limit)
    cache = Cache(len(prompts), longest + limit)
    seen = (columns >= padding[:, None])[:, None, None, :]
    causal = (columns[:longest, None] >= columns[:longest])[None, None]
    positions = (columns[:longest] - padding[:, None]).clamp_(min=0)
    # A padding query may look at itself, or its softmax would be empty.
    mask = seen[..., :longest] & causal | torch.eye(longest, dtype=torch.bool)
    hidden = forward(weights, tokens, positions, mask, cache)[:, -1:]
    cache.repeat(copies)
    hidden, seen = hidden.repeat_interleave(copies, 0), seen.repeat_interleave(copies, 0)
    position = (longest - padding).repeat_interleave(copies)[:, None]
    drawn, chances, done = [], [], torch.zeros(len(position), dtype=torch.bool)
    for step in range(limit):
        chance = functional.log_softmax(logits(weights, hidden[:, 0]) / temperature, -1)
        if generator is None:
            token = chance.argmax(-1, keepdim=True)
        else:
            token = torch.multinomial(chance.exp(), 1, generator=generator)
        drawn.append(token)
        chances.append(chance.gather(1, token))
        done |= token[:, 0] == END_ID
        if done.all() or step == limit - 1:
            break
        hidden = forward(weights, token, position + step, seen[..., : longest + step + 1], cache)
    return _until_end(torch.cat(drawn, 1), torch.cat(chances, 1))


def _until_end(tokens: Tensor, chances: Tensor) -> tuple[list[list[int]], list[list[float]]]:
    texts, scores = [], []
    for row, chance in zip(tokens.tolist(), chances.tolist(), strict=True):
        stop = row.index(END_ID) + 1 if END_ID in row else len(row)
        texts.append(row[:stop])
        scores.append(chance[:stop])
    return texts, scores


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    rows, heads, length, _ = query.shape
    group = heads // KEY_HEADS
    if length == 1:
        # One new token: the query heads that share a key head stand in as queries, and nothing is repeated.
        query = query.view(rows, KEY_HEADS, group, HEAD)
        mask = mask.expand(rows, 1, group, key.shape[2])
        return functional.scaled_dot_product_attention(query, key, value, mask).reshape(rows, 1, HIDDEN)
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    mixed = functional.scaled_dot_product_attention(query, key, value, mask)
    return mixed.transpose(1, 2).reshape(rows, length, HIDDEN)


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return functional.rms_norm(x, (HIDDEN,), weight, EPSILON)


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat((-second, first), -1) * sine


_tables: tuple[Tensor, Tensor] | None = None


def _rotations() -> tuple[Tensor, Tensor]:
    global _tables
    if _tables is None:
        frequency = THETA ** (-torch.arange(0, HEAD, 2) / HEAD)
        angle = (torch.arange(POSITIONS)[:, None] * frequency).repeat(1, 2)
        _tables = angle.cos(), angle.sin()
    return _tables
