"""What taskvec does on a GPU, as a dated record: transfer, evaluation by batch size, arms in place, vLLM.

    python benches/gpu/bench_gpu.py OUT [--shape 1.5b|tiny] [--limit N] [--seconds 330] [--miniature FOLDER]

It runs on the CPU where there is no GPU. A part that fails, or for which no time is left, says so in the
record and leaves the others alone: what was not measured is null with a reason, never zero.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPES = {  # hidden, intermediate, layers, heads, key and value heads, vocabulary
    "1.5b": (1536, 8960, 28, 12, 2, 151_936),
    "0.5b": (896, 4864, 24, 14, 2, 151_936),
    "tiny": (64, 128, 2, 4, 2, 98),
}
NEW_TOKENS = {"1.5b": 128, "0.5b": 32, "tiny": 8}


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def write_models(root: Path, shape: str) -> None:
    """Target, reference and donor with random weights and a tokenizer of single characters."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    words = ["<end>", "<pad>", "\n", *map(chr, range(32, 127))]
    inner = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token="<pad>")
    hidden, between, layers, heads, pairs, vocabulary = SHAPES[shape]
    config = Qwen2Config(
        hidden_size=hidden, intermediate_size=between, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=pairs, vocab_size=vocabulary, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=0, pad_token_id=1, max_position_embeddings=4096,
    )  # fmt: skip
    torch.manual_seed(1)
    with torch.device(device()):
        model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    for name in ("target", "reference", "donor"):
        if name != "reference":
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 1e-3)
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)


def write_task(folder: Path, new_tokens: int, count: int) -> None:
    """A generating task of sums, whose answers always have the full length."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"q": f"{number}+{7 * number}=", "a": str(8 * number)} for number in range(count)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "sums.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": ["~~"], "max_gen_toks": new_tokens},
        "metric_list": [{"metric": "exact_match"}],
    }
    (folder / "sums.yaml").write_text(json.dumps(task))


class Clock:
    """The seconds in which requests were answered, and all others, by arm; from the events of a sweep."""

    def __init__(self) -> None:
        self.begun = self._last = time.monotonic()
        self.answering: dict[str, float] = {}
        self.besides: dict[str, float] = {}
        self.merging = 0.0
        self._kind = ""

    def __call__(self, event: Any) -> None:
        now = time.monotonic()
        passed, self._last = now - self._last, now
        if self._kind == "merge":
            self.merging += passed
        elif event.kind == "progress" and event.done:
            self.answering[event.arm] = self.answering.get(event.arm, 0.0) + passed
        elif event.kind in ("progress", "done"):
            self.besides[event.arm] = self.besides.get(event.arm, 0.0) + passed
        self._kind = event.kind


def peak_bytes() -> int:
    """The most memory so far: of the GPU, or of this process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def transfer(root: Path) -> dict[str, Any]:
    """target + vector into a folder."""
    import taskvec as tv

    folders = [root / name for name in ("target", "donor", "reference")]
    report = tv.transfer(*folders, root / "merged", overwrite=True)
    return {"seconds": report.seconds, "bytes_per_second": report.bytes_per_second}


def evaluation(root: Path, out: Path, batch: int | str, limit: int, backend: str = "hf") -> dict[str, Any]:
    """One model on the task at one batch size."""
    import torch

    from taskvec.evaluation import Settings, evaluate_model

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    settings = Settings(
        tasks=("sums",), include_path=root / "tasks", batch_size=batch, limit=limit, backend=backend
    )
    clock = Clock()
    report = evaluate_model(root / "target", settings, out, progress=clock)
    record = report.records[0]
    tokens = sum(sample.tokens or 0 for sample in record.samples["sums"])
    seconds = sum(clock.answering.values())
    return {
        "batch_size": record.batch_size,
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "peak_bytes": peak_bytes(),
        "environment": record.environment,
    }


def sweep(root: Path, out: Path, batch: int, limit: int, arms: str) -> dict[str, Any]:
    """Four arms besides the models: alpha 0 and 1, a random and a permuted vector."""
    from taskvec.evaluation import Experiment, run_sweep

    experiment = Experiment.model_validate(
        {
            "target": str(root / "target"),
            "donor": str(root / "donor"),
            "reference": str(root / "reference"),
            "alphas": [0, 1],
            "tasks": ["sums"],
            "development": 0,
            "arms": arms,
            "controls": {"random": 1, "permuted": 1},
            "evaluation": {"include_path": str(root / "tasks"), "batch_size": batch, "limit": limit},
        }
    )
    clock = Clock()
    report = run_sweep(experiment, out, progress=clock)
    made = {name: seconds for name, seconds in clock.besides.items() if name not in ("donor", "reference")}
    made.pop("baseline")
    each = clock.merging / len(made)
    return {
        "seconds": time.monotonic() - clock.begun,
        "seconds_besides_generation": {name: seconds + each for name, seconds in made.items()},
        "peak_bytes": peak_bytes(),
        "checks": [[check.arm, check.samples, check.different] for check in report.checks],
    }


def miniature(folder: Path, out: Path) -> dict[str, Any]:
    """The sweep of the miniature models again, and its verdicts beside those of the CPU.

    `folder` holds `experiment.yaml` and `report.json` of a sweep on the CPU, and the models and tasks that
    the experiment names, by paths in the folder.
    """
    from taskvec.evaluation import load_experiment, run_sweep

    os.chdir(folder)
    experiment = load_experiment("experiment.yaml")
    evaluation = experiment.evaluation.model_copy(update={"device": None})
    run_sweep(experiment.model_copy(update={"evaluation": evaluation}), out)
    here, there = (json.loads((each / "report.json").read_text()) for each in (out, folder))
    verdicts = [
        {item["task"]: item["transferred"] for item in content["conclusions"]} for content in (here, there)
    ]
    return {"here": verdicts[0], "cpu": verdicts[1], "same": verdicts[0] == verdicts[1]}


def environment() -> dict[str, Any]:
    """The machine and the versions."""
    import torch
    import transformers

    import taskvec

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": datetime.date.today().isoformat(),
        "gpu": gpu,
        "gpu_bytes": torch.cuda.get_device_properties(0).total_memory if gpu else None,
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "taskvec": taskvec.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The record; each part is a dictionary, or null with the reason under ``not_measured``."""
    begun, out, root = time.monotonic(), options.out, options.out / "work"
    limit, batches = options.limit, options.batches
    record: dict[str, Any] = {**environment(), "shape": options.shape, "not_measured": {}}

    def part(name: str, make: Callable[[], Any]) -> None:
        left = options.seconds - (time.monotonic() - begun)
        try:
            if left <= 0:
                raise TimeoutError(f"no time was left after {options.seconds:g} s")
            record[name] = make()
        except Exception as error:
            record[name] = None
            record["not_measured"][name] = f"{type(error).__name__}: {error}"
        record["total_seconds"] = time.monotonic() - begun
        write(out, record)

    write_models(root, options.shape)
    write_task(root / "tasks", NEW_TOKENS[options.shape], max(limit, *filter_numbers(batches)))
    part("transfer", lambda: transfer(root))
    for batch in batches:
        part(f"eval {batch}", lambda batch=batch: evaluation(root, out / f"eval-{batch}", batch, limit))
    largest = max(filter_numbers(batches))
    part("sweep in place", lambda: sweep(root, out / "place", largest, limit, "place"))
    part("sweep merged", lambda: sweep(root, out / "merged", largest, limit, "merged"))
    if options.miniature is not None:
        part("miniature", lambda: miniature(options.miniature.absolute(), (out / "miniature").absolute()))
    else:
        record["miniature"], record["not_measured"]["miniature"] = None, "no --miniature was given"
    if importlib.util.find_spec("vllm") is not None:
        part("vllm", lambda: evaluation(root, out / "vllm", "auto", limit, "vllm"))
    else:
        record["vllm"], record["not_measured"]["vllm"] = None, "vllm is not installed"
    record["total_seconds"] = time.monotonic() - begun
    write(out, record)
    return record


def filter_numbers(batches: list[int | str]) -> list[int]:
    """The batch sizes that are numbers."""
    return [batch for batch in batches if isinstance(batch, int)]


def write(out: Path, record: dict[str, Any]) -> None:
    """The record as data and as text, after every part: what is killed keeps what was measured."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "record.json").write_text(json.dumps(record, indent=1))
    lines = [f"# GPU record, {record['date']}", ""]
    lines += [f"- {key}: {value}" for key, value in record.items() if not isinstance(value, dict)]
    lines += ["", "| part | measured |", "|---|---|"]
    for key, value in record.items():
        if isinstance(value, dict) and key != "not_measured":
            lines.append(f"| {key} | {'; '.join(f'{name} {figure}' for name, figure in value.items())} |")
    lines += [f"| {name} | not measured: {reason} |" for name, reason in record["not_measured"].items()]
    (out / "record.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="1.5b" if device() == "cuda" else "tiny")
    parser.add_argument("--limit", type=int, default=256, help="documents of the task")
    parser.add_argument("--seconds", type=float, default=330, help="no part begins after these")
    parser.add_argument(
        "--batches", type=lambda text: [int(b) if b.isdigit() else b for b in text.split(",")],
        default=[16, 64, 256, "auto"], metavar="N[,N...]",
    )  # fmt: skip
    parser.add_argument("--miniature", type=Path, help="a folder with experiment.yaml, report.json, models")
    options = parser.parse_args()
    options.out = options.out.absolute()
    record = measure(options)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
