"""Group relative policy optimisation with a verifiable reward, in the form of Shao et al. (arXiv 2402.03300).

Several answers are drawn to each problem; an answer is worth 1 if its final number is right and 0 otherwise.
Its advantage is how far that lies above the group's mean, in standard deviations of the group. No value
model, and no penalty for leaving the reference: the clipped ratio and the few steps keep the policy near.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from tokenizers import Tokenizer
from torch import Tensor

from taskvec.evaluation.miniature import data, model
from taskvec.evaluation.miniature.model import Tree, Weights

ANSWER = re.compile(r"#### (-?\d+)$")
"""The answer as the verifier reads it; the lm-eval task uses the same pattern."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings of a run.

    Parameters
    ----------
    prompts, samples : int
        Problems in a batch, and answers drawn to each.
    temperature : float
        Of drawing, and so of the policy that is improved. At 1 a model this young writes mostly wrong sums,
        its samples say little about its greedy answers, and these got worse on one seed of two.
    rate : float
        Learning rate of AdamW, reached after ``warmup`` steps.
    steps : int
        At most this many batches.
    minibatches : int
        Updates from one batch; from the second on, the policy is no longer the one that drew the answers.
    clip : float
        Bounds the ratio of new to old probability to 1 ± clip.
    every, patience : int
        Greedy accuracy on selection problems is measured after so many steps, and training stops when that
        many measurements have brought nothing better. The best checkpoint is the donor.
    selection : int
        Selection problems.
    """

    prompts: int = 40
    samples: int = 8
    temperature: float = 0.5
    rate: float = 1e-4
    steps: int = 60
    warmup: int = 5
    minibatches: int = 2
    clip: float = 0.2
    every: int = 10
    patience: int = 3
    selection: int = 400


@dataclass(frozen=True, slots=True)
class Group:
    """The answers drawn to one problem: their tokens, old log-probabilities and advantages."""

    prompt: Sequence[int]
    answers: Sequence[Sequence[int]]
    old: Sequence[Sequence[float]]
    advantages: Tensor


def reward(answer: str, expected: int) -> float:
    """1 if the text ends with ``#### N`` and N is the expected number, else 0."""
    found = ANSWER.search(answer)
    return float(found is not None and int(found[1]) == expected)


def advantages(rewards: Tensor) -> Tensor:
    """Rewards of each group (a row) in standard deviations from the group's mean; 0 where all agree."""
    centred = rewards - rewards.mean(-1, keepdim=True)
    deviation = centred.square().mean(-1, keepdim=True).sqrt()
    return torch.where(deviation > 0, centred / deviation.clamp(min=1e-6), 0.0)


def policy_loss(new: Tensor, old: Tensor, advantage: Tensor, share: Tensor, clip: float) -> Tensor:
    """The clipped surrogate, negated: all arguments are one value for each drawn token.

    ``share`` is a token's part in the mean: 1 / (answers * length of its answer).
    """
    ratio = (new - old).exp()
    bounded = ratio.clamp(1 - clip, 1 + clip)
    return -(torch.minimum(ratio * advantage, bounded * advantage) * share).sum()


def improve(
    reference: Weights,
    recipe: Recipe,
    tokenizer: Tokenizer,
    seed: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[Weights, int]:
    """The donor: the reference after GRPO, at the step of its best greedy accuracy on selection problems.

    Returns
    -------
    tuple of Weights and int
        The donor, and the steps that the run took.
    """
    weights = {name: value.clone().requires_grad_() for name, value in reference.items()}
    optimiser = optimiser_of(weights, recipe)
    generator = torch.Generator().manual_seed(seed)
    source = data.problems("train", seed)
    selection = data.distinct("select", seed, recipe.selection)
    best, best_score, stale, step = reference, accuracy(reference, tokenizer, selection), 0, 0
    for step in range(1, recipe.steps + 1):
        warm_up(optimiser, recipe, step)
        groups = draw(weights, list(islice(source, recipe.prompts)), recipe, tokenizer, generator)
        for part in range(recipe.minibatches):
            update(weights, groups[part :: recipe.minibatches], recipe, optimiser)
        if progress is not None:
            progress("donor", step, recipe.steps)
        if step % recipe.every == 0:
            score = accuracy(weights, tokenizer, selection)
            stale += 1
            if score > best_score:
                best, best_score, stale = copy(weights), score, 0
            if stale == recipe.patience:
                break
    return best, step


def optimiser_of(weights: Weights, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimiser of a run."""
    return torch.optim.AdamW(list(weights.values()), lr=recipe.rate, betas=(0.9, 0.95), weight_decay=0.0)


def warm_up(optimiser: torch.optim.Optimizer, recipe: Recipe, step: int) -> None:
    """Set the learning rate of a step, counted from 1."""
    for group in optimiser.param_groups:
        group["lr"] = recipe.rate * min(1.0, step / recipe.warmup)


def draw(
    weights: Weights,
    problems: Sequence[data.Problem],
    recipe: Recipe,
    tokenizer: Tokenizer,
    generator: torch.Generator,
) -> list[Group]:
    """Groups of drawn answers; a group whose answers all earn the same teaches nothing and is left out."""
    samples = recipe.samples
    prompts = [ids(tokenizer, problem) for problem in problems]
    answers, old = model.sample(
        weights, prompts, copies=recipe.samples, temperature=recipe.temperature, generator=generator
    )
    texts = tokenizer.decode_batch(answers)
    rewards = torch.tensor([reward(text, problems[i // samples].final) for i, text in enumerate(texts)])
    rewards = rewards.view(len(problems), samples)
    groups = []
    for i, row in enumerate(advantages(rewards)):
        if row.any():
            own = slice(i * samples, (i + 1) * samples)
            groups.append(Group(prompts[i], answers[own], old[own], row))
    return groups


def update(
    weights: Weights, groups: Sequence[Group], recipe: Recipe, optimiser: torch.optim.Optimizer
) -> None:
    """One step of the policy on these groups."""
    if not groups:
        return
    # The sharing of a prompt between its answers is what makes this affordable: one row a group.
    ones = [[[1.0] * len(answer) for answer in group.answers] for group in groups]
    trees = [Tree(group.prompt, group.answers, one) for group, one in zip(groups, ones, strict=True)]
    new = model.log_probabilities(weights, model.pack([[tree] for tree in trees]), recipe.temperature)
    lengths = torch.tensor([len(answer) for group in groups for answer in group.answers])
    advantage = torch.cat([group.advantages for group in groups]).repeat_interleave(lengths)
    share = (1.0 / (lengths * len(lengths))).repeat_interleave(lengths)
    old = torch.tensor([chance for group in groups for answer in group.old for chance in answer])
    policy_loss(new, old, advantage, share, recipe.clip).backward()
    torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def accuracy(weights: Weights, tokenizer: Tokenizer, problems: Sequence[data.Problem]) -> float:
    """Share of problems answered right by greedy decoding."""
    answers, _ = model.sample(weights, [ids(tokenizer, problem) for problem in problems])
    texts = tokenizer.decode_batch(answers)
    return sum(reward(text, p.final) for text, p in zip(texts, problems, strict=True)) / len(problems)


def ids(tokenizer: Tokenizer, problem: data.Problem) -> list[int]:
    """The problem's prompt as tokens."""
    return tokenizer.encode(problem.document.prompt).ids


def copy(weights: Weights) -> Weights:
    """Weights as they are now."""
    return {name: value.detach().clone() for name, value in weights.items()}
