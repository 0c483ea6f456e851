"""The test problems of the paper in miniature, as a task of lm-eval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from taskvec.evaluation.miniature import data, grpo, model, tokenizer
from taskvec.evaluation.record import write_whole

TASK = "miniature"
PROBLEMS = 1500
DEVELOPMENT = 1 / 3
"""The share of the problems on which alpha is chosen and the donor is held against its reference."""
FORMAT = 1


def write_task(folder: Path, seed: int, problems: int = PROBLEMS) -> None:
    """The test problems as JSON lines, and the lm-eval task that reads them."""
    lines = folder / f"{TASK}.jsonl"
    rows = (
        {"question": problem.question, "answer": problem.solution, "final": str(problem.final)}
        for problem in data.distinct("test", seed, problems)
    )
    write_whole(lines, "".join(json.dumps(row) + "\n" for row in rows))
    task: dict[str, Any] = {
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(lines.resolve())}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": data.prompt("{{question}}"),
        "doc_to_target": "{{final}}",
        "generation_kwargs": {"until": [tokenizer.END], "do_sample": False, "max_gen_toks": model.LIMIT},
        "filter_list": [
            {
                "name": "strict",
                "filter": [
                    {"function": "regex", "regex_pattern": grpo.ANSWER.pattern},
                    {"function": "take_first"},
                ],
            }
        ],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": FORMAT},
    }
    write_whole(folder / f"{TASK}.yaml", json.dumps(task, indent=1))
