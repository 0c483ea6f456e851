"""Supervised training: the base from nothing, the instruct sibling and the SFT model from the base."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tokenizers import Tokenizer

from taskvec.evaluation.miniature import data, model
from taskvec.evaluation.miniature.grpo import accuracy
from taskvec.evaluation.miniature.model import Tree, Weights
from taskvec.evaluation.miniature.optimiser import Optimiser
from taskvec.evaluation.miniature.tokenizer import END_ID

ROW = 128
"""Tokens in a row of packed training texts."""
ROWS = 14
"""Rows in a batch."""
EVERY = 10
"""Steps between two looks at the accuracy that ends a stage."""

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, the steps done and the steps there will be at most."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One supervised stage.

    Parameters
    ----------
    name : str
        The checkpoint that it makes.
    mixture : dict of str to float
        Shares of the kinds of text that :func:`taskvec.evaluation.miniature.data.documents` draws.
    rate : float
        AdamW's learning rate, reached after ``warmup`` steps.
    steps : int
        Steps at the full rate; with ``until``, at most this many.
    decay : int
        Steps of linear decay to zero that follow.
    muon : float, optional
        Muon's learning rate for the matrices; see :class:`Optimiser`.
    until : float, optional
        Greedy accuracy on selection problems, half of them with an aside, at which the full rate ends.
    prompt_weight : float
        Weight of a prompt's token in the loss, where an answer's has 1.
    """

    name: str
    mixture: dict[str, float]
    rate: float
    steps: int
    decay: int
    warmup: int = 5
    muon: float | None = None
    until: float | None = None
    prompt_weight: float = 0.0


def train(
    weights: Weights, stage: Stage, tokenizer: Tokenizer, seed: int, progress: Progress | None = None
) -> Weights:
    """Weights after a stage; the ones passed in are left alone."""
    weights = {name: value.clone().requires_grad_() for name, value in weights.items()}
    optimiser = Optimiser(weights, stage.rate, stage.muon)
    source = batches(stage, tokenizer, seed)
    selection = data.with_asides(data.distinct("select", seed, 128), seed)
    step, full = 0, stage.steps
    while step < full + stage.decay:
        rising, falling = (step + 1) / (stage.warmup + 1), (full + stage.decay - step) / (stage.decay + 1)
        batch = next(source)
        loss = -(model.log_probabilities(weights, batch) * batch.weights).sum() / batch.weights.sum()
        loss.backward()
        optimiser.step(min(1.0, rising, falling))
        step += 1
        if stage.until is not None and step < full and step % EVERY == 0:
            with_enough = accuracy(weights, tokenizer, selection) >= stage.until
            full = step if with_enough else full
        if progress is not None:
            progress(stage.name, step, full + stage.decay)
    return {name: value.detach() for name, value in weights.items()}


def batches(stage: Stage, tokenizer: Tokenizer, seed: int) -> Iterator[model.Packed]:
    """Endless batches of ``ROWS`` rows, each filled with whole documents up to ``ROW`` tokens."""
    rows: list[list[Tree]] = []
    row: list[Tree] = []
    for document in data.documents(stage.mixture, seed):
        prompt = tokenizer.encode(document.prompt).ids
        answer = [*tokenizer.encode(document.answer).ids, END_ID]
        # The first token has nothing before it; the others count in the loss as the stage wants.
        rest = [stage.prompt_weight] * (len(prompt) - 1) + [1.0] * len(answer)
        tree = Tree(prompt[:1], [prompt[1:] + answer], [rest])
        if sum(map(len, row)) + len(tree) > ROW:
            rows.append(row)
            row = []
            if len(rows) == ROWS:
                yield model.pack(rows)
                rows = []
        row.append(tree)
