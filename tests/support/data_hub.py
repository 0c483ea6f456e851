"""The paper's data sets as the hub has them: parquet files, the README that says which is which, a metric."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval
import pyarrow as pa
import pyarrow.parquet as pq

from support import paper_tasks
from support.hub_server import Repo

METRIC = """
import datasets
import evaluate


class CodeEval(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("string")),
                 "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references, k=(1,), **_):
        passed = []
        for codes, test in zip(predictions, references):
            found = False
            for code in codes:
                try:
                    exec(code + "\\n" + test, {})
                    found = True
                except Exception:
                    pass
            passed.append(found)
        return {f"pass@{k[0]}": sum(passed) / len(passed)}, {}
"""
GSM8K, HUMANEVAL = "datasets/openai/gsm8k", "datasets/openai/openai_humaneval"
SCIQ, BBH, CODE_EVAL = "datasets/allenai/sciq", "datasets/SaylorTwift/bbh", "spaces/evaluate-metric/code_eval"


def parts_of_bbh() -> list[str]:
    folder = Path(lm_eval.__file__).parent / "tasks/bbh/cot_fewshot"
    return sorted(path.stem for path in folder.glob("*.yaml") if not path.stem.startswith("_"))


def repositories(rows: int = 4) -> dict[str, Repo]:
    """The five repositories, by their kind and name."""
    bbh = {
        name: {"test": [{key: row[key] for key in ("input", "target")} for row in paper_tasks.bbh(name)]}
        for name in parts_of_bbh()
    }
    gsm8k = {"train": paper_tasks.gsm8k(8, seed=1), "test": paper_tasks.gsm8k(rows, seed=2)}
    sciq = {"train": paper_tasks.sciq(3), "validation": paper_tasks.sciq(3), "test": paper_tasks.sciq(rows)}
    return {
        GSM8K: _data({"main": gsm8k, "socratic": gsm8k}),
        HUMANEVAL: _data({"openai_humaneval": {"test": paper_tasks.humaneval()}}),
        SCIQ: _data({"default": sciq}, folders={"default": "data"}),
        BBH: _data(bbh),
        CODE_EVAL: Repo({"README.md": b"---\nsdk: gradio\n---\n", "code_eval.py": METRIC.encode(),
                         "app.py": b"raise SystemExit\n", "requirements.txt": b"evaluate\n"}),
    }  # fmt: skip


def _data(
    configs: Mapping[str, Mapping[str, Sequence[dict[str, Any]]]], folders: Mapping[str, str] | None = None
) -> Repo:
    files: dict[str, bytes] = {".gitattributes": b"*.parquet filter=lfs\n"}
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        folder = (folders or {}).get(config, config)
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, rows in splits.items():
            buffer = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(list(rows)), buffer)
            files[f"{folder}/{split}-00000-of-00001.parquet"] = buffer.getvalue()
            lines += [f"  - split: {split}", f"    path: {folder}/{split}-*"]
    files["README.md"] = "\n".join([*lines, "---", "# rows made for tests", ""]).encode()
    return Repo(files)
