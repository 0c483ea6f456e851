"""Two short fine-tunes of a small language model on a CPU: SFT, then GRPO with a verifiable reward.

    python tune.py MODEL OUT [--sft-steps N] [--grpo-steps N] [--seed N] [--threads N]

The model learns to compute ``a + b``. OUT receives ``reference`` (after SFT), ``donor`` (after GRPO from
the reference), ``more-sft`` (the rival: from the reference by SFT, with as many updates and the same
problems as the donor), ``task`` (problems that none has seen, as a task of lm-eval) and ``log.jsonl``.
Which problems belong to training and which to the test is decided by their numbers alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from taskvec.evaluation.miniature.data import split_of
from taskvec.evaluation.miniature.grpo import advantages, policy_loss
from taskvec.evaluation.miniature.model import Tree, pack

TASK = "sums"
LIMIT = 6  # tokens of an answer
EXAMPLES = 16  # of a batch of SFT
PROMPTS, SAMPLES = 24, 8  # of a batch of GRPO, and answers drawn to each
SFT_RATE, GRPO_RATE = 3e-5, 2e-5
SELECTION = 96

Chain = tuple[int, int]


# --- problems
def chains(split: str, seed: int) -> Iterator[Chain]:
    """Distinct problems of one split: two numbers of two digits that are added."""
    source, seen = random.Random(f"{split} {seed}"), set()
    while True:
        chain = source.randint(10, 99), source.randint(10, 99)
        if chain not in seen and split_of(chain) == split:
            seen.add(chain)
            yield chain


def question(chain: Chain) -> str:
    """The prompt; of as many tokens for every problem."""
    return f"Compute {chain[0]} + {chain[1]}.\nAnswer:"


def write_task(folder: Path, seed: int, problems: int) -> None:
    """The test problems as JSON lines, and the task of lm-eval that reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = folder / f"{TASK}.jsonl"
    rows = ({"question": question(c), "final": str(sum(c))} for c in islice(chains("test", seed), problems))
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    regex = {"function": "regex", "regex_pattern": r"^\s*(-?\d+)"}
    task = {
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(lines.resolve())}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{final}}",
        "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": LIMIT},
        "filter_list": [{"name": "strict", "filter": [regex, {"function": "take_first"}]}],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
    }
    (folder / f"{TASK}.yaml").write_text(json.dumps(task, indent=1) + "\n")


# --- the model
class Policy:
    """A causal model of transformers whose layers are trained; embeddings and head stay as they are."""

    def __init__(self, path: str, seed: int) -> None:
        torch.manual_seed(seed)
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        # float32: on a CPU without matrix units for bfloat16, autocast takes twice as long.
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self.model.get_input_embeddings().requires_grad_(False)
        self.end = self.tokenizer.eos_token_id
        self.generator = torch.Generator().manual_seed(seed)

    def ids(self, text: str) -> list[int]:
        """Tokens of a text, without any that a tokenizer adds."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def answer(self, chain: Chain) -> list[int]:
        """The right answer as tokens, with the end."""
        return [*self.ids(f" {sum(chain)}"), self.end]

    def log_probabilities(self, trees: Sequence[Tree]) -> tuple[Tensor, Tensor]:
        """Log-probability and loss weight of every scored token of some trees, one in a row."""
        batch = pack([[tree] for tree in trees])
        mask = torch.zeros(batch.mask.shape).masked_fill(~batch.mask, -1e9)
        states = self.model.model(
            input_ids=batch.tokens, position_ids=batch.positions, attention_mask=mask
        ).last_hidden_state
        # The head is asked for the scored tokens alone: its 49 152 rows weigh as much as five layers.
        row, column = torch.nonzero(batch.scored, as_tuple=True)
        scores = self.model.lm_head(states[row, batch.before[row, column]])
        loss = torch.nn.functional.cross_entropy(scores, batch.tokens[row, column], reduction="none")
        return -loss, batch.weights

    @torch.no_grad()
    def draw(self, prompts: Sequence[Sequence[int]], copies: int, greedy: bool) -> list[list[int]]:
        """Answers to prompts of one length, copies of one prompt next to each other."""
        found = self.model(input_ids=torch.tensor(prompts), use_cache=True, logits_to_keep=1)
        cache, scores = found.past_key_values, found.logits[:, -1].repeat_interleave(copies, 0)
        cache.batch_repeat_interleave(copies)
        drawn, ended = [], torch.zeros(len(scores), 1, dtype=torch.bool)
        for step in range(LIMIT):
            if greedy:
                token = scores.argmax(-1, keepdim=True)
            else:
                token = torch.multinomial(scores.softmax(-1), 1, generator=self.generator)
            drawn.append(token)
            ended |= token == self.end
            if ended.all() or step == LIMIT - 1:
                break
            scores = self.model(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1]
        rows = torch.cat(drawn, 1).tolist()
        return [row[: row.index(self.end) + 1] if self.end in row else row for row in rows]

    def reward(self, answer: Sequence[int], chain: Chain) -> float:
        """1 for the right number and the end after it, else 0."""
        return float(self.tokenizer.decode(answer).strip() == f"{sum(chain)}{self.tokenizer.eos_token}")

    def accuracy(self, problems: Sequence[Chain]) -> float:
        """Share answered right, greedily."""
        answers = self.draw([self.ids(question(c)) for c in problems], 1, greedy=True)
        return sum(self.reward(a, c) for a, c in zip(answers, problems, strict=True)) / len(problems)

    def save(self, folder: Path) -> None:
        """Write the model as bfloat16."""
        copy.deepcopy(self.model).bfloat16().save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


# --- training
class Training:
    """AdamW with a warm-up on a policy, and a log of its steps."""

    def __init__(self, policy: Policy, rate: float, log: Path) -> None:
        self.policy, self.rate, self.log, self.step = policy, rate, log, 0
        trained = [p for p in policy.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)

    def update(self, loss: Tensor) -> None:
        self.step += 1
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * min(1.0, self.step / 5)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.model.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def note(self, **facts: Any) -> None:
        with self.log.open("a") as file:
            file.write(json.dumps({"cpu_seconds": round(time.process_time(), 1), **facts}) + "\n")


def tune_supervised(
    policy: Policy, steps: int, seed: int, log: Path, stage: str = "sft", examples: int = EXAMPLES
) -> None:
    """SFT on right answers."""
    training, source = Training(policy, SFT_RATE, log), chains("train", seed)
    for step in range(1, steps + 1):
        trees = []
        for chain in islice(source, examples):
            answer = policy.answer(chain)
            trees.append(Tree(policy.ids(question(chain)), [answer], [[1.0] * len(answer)]))
        chances, weights = policy.log_probabilities(trees)
        loss = -(chances * weights).sum() / weights.sum()
        training.update(loss)
        training.note(stage=stage, step=step, loss=loss.item())


def tune_by_reward(policy: Policy, steps: int, seed: int, log: Path, selection: Sequence[Chain]) -> None:
    """GRPO: each batch of drawn answers is used for one update."""
    training, source = Training(policy, GRPO_RATE, log), chains("train", seed + 1)
    for step in range(1, steps + 1):
        problems = list(islice(source, PROMPTS))
        prompts = [policy.ids(question(chain)) for chain in problems]
        answers = policy.draw(prompts, SAMPLES, greedy=False)
        rewards = torch.tensor([policy.reward(a, problems[i // SAMPLES]) for i, a in enumerate(answers)])
        kept = [i for i, row in enumerate(advantages(rewards.view(PROMPTS, SAMPLES))) if row.any()]
        if kept:
            own = [answers[i * SAMPLES : (i + 1) * SAMPLES] for i in kept]
            trees = [
                Tree(prompts[i], rows, [[1.0] * len(row) for row in rows])
                for i, rows in zip(kept, own, strict=True)
            ]
            new, _ = policy.log_probabilities(trees)
            lengths = torch.tensor([len(row) for rows in own for row in rows])
            better = advantages(rewards.view(PROMPTS, SAMPLES))[kept].flatten().repeat_interleave(lengths)
            share = (1.0 / (lengths * len(lengths))).repeat_interleave(lengths)
            training.update(policy_loss(new, new.detach(), better, share, clip=0.2))
        greedy = policy.accuracy(selection) if step % 10 == 0 or step == steps else None
        training.note(stage="grpo", step=step, reward=rewards.mean().item(), groups=len(kept), greedy=greedy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--sft-steps", type=int, default=20)
    parser.add_argument("--grpo-steps", type=int, default=32)
    parser.add_argument("--problems", type=int, default=500, help="in the task of lm-eval")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="another number, other last digits")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    write_task(asked.out / "task", asked.seed, asked.problems)
    log = asked.out / "log.jsonl"
    policy = Policy(asked.model, asked.seed)
    selection = list(islice(chains("select", asked.seed), SELECTION))
    training = Training(policy, 0.0, log)
    training.note(stage="target", greedy=policy.accuracy(selection))
    tune_supervised(policy, asked.sft_steps, asked.seed, log)
    policy.save(asked.out / "reference")
    training.note(stage="reference", greedy=policy.accuracy(selection))
    reference = copy.deepcopy(policy.model.state_dict())
    tune_by_reward(policy, asked.grpo_steps, asked.seed, log, selection)
    policy.save(asked.out / "donor")
    policy.model.load_state_dict(reference)
    tune_supervised(policy, asked.grpo_steps, asked.seed + 1, log, "more-sft", PROMPTS)
    policy.save(asked.out / "more-sft")
    training.note(stage="rival", greedy=policy.accuracy(selection))


if __name__ == "__main__":
    main()
