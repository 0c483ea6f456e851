"""Continued supervised training of the reference: the rival of GRPO, on its problems, without its reward.

The reference learns on from written solutions, by the donor's own optimiser: as many updates, each on as many
problems, and these are the donor's own in their order. The checkpoint is chosen as the donor's is.
"""

from __future__ import annotations

from itertools import islice

import torch
from tokenizers import Tokenizer

from taskvec.evaluation.miniature import data, grpo, model
from taskvec.evaluation.miniature.model import Tree, Weights
from taskvec.evaluation.miniature.tokenizer import END_ID
from taskvec.evaluation.miniature.training import Progress

NAME = "continued_sft"


def learn_on(
    reference: Weights,
    recipe: grpo.Recipe,
    steps: int,
    tokenizer: Tokenizer,
    seed: int,
    progress: Progress | None = None,
) -> Weights:
    """The reference after supervised steps, at the step of its best greedy accuracy on selection problems.

    Parameters
    ----------
    reference : Weights
        Left alone.
    recipe : grpo.Recipe
        The donor's: its optimiser, problems in a step, updates in a step, and choice of a checkpoint.
    steps : int
        The steps that the donor's run took.
    tokenizer : Tokenizer
    seed : int
        The donor's, which decides the problems.
    progress : callable, optional
    """
    weights = {name: value.clone().requires_grad_() for name, value in reference.items()}
    optimiser = grpo.optimiser_of(weights, recipe)
    source = data.problems("train", seed)
    selection = data.distinct("select", seed, recipe.selection)
    best, best_score = reference, grpo.accuracy(reference, tokenizer, selection)
    for step in range(1, steps + 1):
        grpo.warm_up(optimiser, recipe, step)
        problems = list(islice(source, recipe.prompts))
        for part in range(recipe.minibatches):
            update(weights, problems[part :: recipe.minibatches], tokenizer, optimiser)
        if progress is not None:
            progress(NAME, step, steps)
        if step % recipe.every == 0:
            score = grpo.accuracy(weights, tokenizer, selection)
            if score > best_score:
                best, best_score = grpo.copy(weights), score
    return best


def update(
    weights: Weights, problems: list[data.Problem], tokenizer: Tokenizer, optimiser: torch.optim.Optimizer
) -> None:
    """One step towards the written solutions of these problems: the mean loss of their tokens."""
    rows = [[_tree(problem.document, tokenizer)] for problem in problems]
    batch = model.pack(rows)
    loss = -(model.log_probabilities(weights, batch) * batch.weights).sum() / batch.weights.sum()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def _tree(document: data.Document, tokenizer: Tokenizer) -> Tree:
    answer = [*tokenizer.encode(document.answer).ids, END_ID]
    return Tree(tokenizer.encode(document.prompt).ids, [answer], [[1.0] * len(answer)])
