"""Models and tasks for the evaluation tests: random Qwen2 weights, a byte tokenizer, local YAML tasks.

Everything is made on the spot: nothing is downloaded, and a model of this size answers hundreds of requests
in seconds on one core.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import random
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskvec.evaluation.experiment import Experiment, experiment

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")


@dataclass(frozen=True)
class Tiny:
    """A target, a reference tuned from it, a donor tuned from the reference, and local tasks."""

    target: Path
    reference: Path
    donor: Path
    tasks: Path
    documents: int = 24


@functools.cache
def tiny() -> Tiny:
    """The models and tasks that tests share, made once; torch keeps to one thread."""
    import torch

    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    root = Path(tempfile.mkdtemp(prefix="taskvec-tiny-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    target = write_model(root / "target")
    reference = write_neighbour(root / "reference", target, seed=1)
    donor = write_neighbour(root / "donor", reference, seed=2)
    return Tiny(target, reference, donor, write_tasks(root / "tasks"))


def write_tokenizer(folder: Path, *, chat: bool = True) -> None:
    """A tokenizer of the 256 bytes and five special tokens, as transformers loads it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        padding_side="left",
        model_max_length=512,
    )
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def write_model(
    folder: Path, *, seed: int = 0, chat: bool = True, scale: float = 0.3, hidden: int = 32
) -> Path:
    """A random Qwen2 of 2 layers in float32, with its tokenizer.

    A large `scale` makes logits differ enough that answers depend on the prompt.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=264,
        hidden_size=hidden,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=scale,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = Qwen2ForCausalLM(config)
    model.save_pretrained(folder)
    write_tokenizer(folder, chat=chat)
    return folder


def write_neighbour(folder: Path, model: Path, *, seed: int, step: float = 0.02) -> Path:
    """`model` with a random step on every weight: a fine-tune of it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    weights = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        for parameter in weights.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=step)
    weights.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def word_problems(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Problems of two steps whose answers write their arithmetic down."""
    rng = random.Random(seed)
    names = ("Tom", "Ann", "Bob", "Eve", "Ida", "Leo")
    problems = []
    for number in range(count):
        a, b, c = rng.randint(20, 60), rng.randint(2, 19), rng.randint(2, 19)
        name = names[number % len(names)]
        problems.append(
            {
                "question": f"{name} has {a} apples. Mary gives {b} apples. John takes {c} apples. "
                f"How many apples are there?",
                "answer": f"{a}+{b}={a + b}. {a + b}-{c}={a + b - c}. #### {a + b - c}",
            }
        )
    return problems


def write_tasks(folder: Path, *, count: int = 24) -> Path:
    """Local tasks `tiny_gen`, `tiny_choice`, `tiny_last`: generate_until, multiple_choice, loglikelihood."""
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "problems.jsonl", word_problems(count))
    choices = [
        {
            "question": row["question"],
            "choices": ["four", "seventeen", "blue", "nine"],
            "gold": index % 4,
        }
        for index, row in enumerate(word_problems(count, seed=1))
    ]
    write_jsonl(folder / "choices.jsonl", choices)
    write_task(
        folder / "tiny_gen.yaml",
        {
            "task": "tiny_gen",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / "problems.jsonl")}},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": "Question: {{question}}\nAnswer:",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["\n\n"], "do_sample": False, "max_gen_toks": 12},
            "filter_list": [
                {
                    "name": "strict",
                    "filter": [
                        {"function": "regex", "regex_pattern": "#### (\\d+)"},
                        {"function": "take_first"},
                    ],
                },
                {
                    "name": "any",
                    "filter": [{"function": "regex", "regex_pattern": "(\\w)"}, {"function": "take_first"}],
                },
            ],
            "metric_list": [
                {
                    "metric": "exact_match",
                    "aggregation": "mean",
                    "higher_is_better": True,
                    "regexes_to_ignore": ["(?s).*#### "],
                }
            ],
            "metadata": {"version": 1.0},
        },
    )
    write_task(
        folder / "tiny_choice.yaml",
        {
            "task": "tiny_choice",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / "choices.jsonl")}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "Question: {{question}}\nAnswer:",
            "doc_to_target": "gold",
            "doc_to_choice": "choices",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": 1.0},
        },
    )
    write_task(
        folder / "tiny_last.yaml",
        {
            "task": "tiny_last",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / "choices.jsonl")}},
            "test_split": "test",
            "output_type": "loglikelihood",
            "doc_to_text": "{{question}}",
            "doc_to_target": " yes",
            "metric_list": [
                {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
                {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            ],
            "metadata": {"version": 1.0},
        },
    )
    return folder


def write_task(path: Path, config: dict[str, Any]) -> None:
    """A task's YAML; JSON is YAML."""
    path.write_text(json.dumps(config, indent=1))


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def merge_with_torch(experiment: Any, *, made: list[str] | None = None) -> Any:
    """A stand-in for the engine: the arms' weights by plain torch arithmetic; `made` hears of every merge."""
    import torch
    from safetensors.torch import load_file, save_file

    from taskvec.evaluation.record import Merged

    def weights(folder: str) -> dict[str, Any]:
        return load_file(Path(folder) / "model.safetensors")

    def merge(arms: Any, folder: Path) -> dict[str, Merged]:
        merged = {}
        target, donor, reference = (
            weights(m) for m in (experiment.target, experiment.donor, experiment.reference)
        )
        base = weights(experiment.base) if experiment.base else reference
        rivals = {name: weights(model) for name, model in experiment.rival_models.items()}
        for arm in arms:
            out = folder / arm.weights
            shutil.copytree(experiment.target, out)
            draw = torch.Generator().manual_seed(arm.seed or 0)
            values, norms = {}, {}
            for name, value in target.items():
                learned, before = {
                    "sft": (reference, base),
                    "whole": (donor, base),
                    "rival": (rivals.get(arm.origin), reference),
                }.get(arm.kind, (donor, reference))
                step = learned[name] - before[name]
                norms[name] = float(step.norm())
                if arm.kind == "random":
                    noise = torch.randn(step.shape, generator=draw)
                    step = noise * (step.norm() / noise.norm())
                if arm.kind == "permuted":
                    step = step.flatten()[torch.randperm(step.numel(), generator=draw)].reshape(step.shape)
                values[name] = value + arm.factor * step
            save_file(values, out / "model.safetensors", {"format": "pt"})
            if made is not None:
                made.append(arm.weights)
            merged[arm.weights] = Merged(str(out), None, norms, [], f"stand-in {arm.weights}")
        return merged

    return merge


def small(**more: Any) -> Experiment:
    models = tiny()
    content = {
        "target": str(models.target),
        "donor": str(models.donor),
        "reference": str(models.reference),
        "base": str(models.target),
        "alphas": [0, 0.5, 1],
        "tasks": ["tiny_choice"],
        "perturb": ["typo"],
        "controls": {"random": 2, "permuted": 1},
        "evaluation": {"device": "cpu", "batch_size": 32, "include_path": str(models.tasks)},
    }
    return experiment({**content, **more})
