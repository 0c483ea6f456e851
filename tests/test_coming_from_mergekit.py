"""The page on mergekit's commands: every command of ours on it runs, and every flag of theirs is on it."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from support.command_line import invoke
from support.families import write_adapter, write_model
from support.models import edit_json, read_tensors
from support.vocabularies import write_words
from taskvec import cli

PAGE = (Path(__file__).parents[1] / "docs" / "coming-from-mergekit.md").read_text(encoding="utf-8")
CODE = re.compile(r"`([^`]+)`")

SHARED = {
    "--allow-crimes", "--unsafe-truncate-embeddings", "--trust-remote-code", "--transformers-cache",
    "--lora-merge-cache", "--lora-merge-dtype", "--random-seed", "-v", "--quiet", "--cuda", "--device",
    "--low-cpu-memory", "--lazy-unpickle", "--read-to-gpu", "--multi-gpu", "-j", "--num-threads",
    "--gpu-rich", "--async-write", "--write-threads", "--out-shard-size", "--copy-tokenizer",
    "--clone-tensors", "--write-model-card", "--safe-serialization",
}  # fmt: skip
# What `--help` of mergekit 0.1.5 names; what all commands have in common is told with mergekit-yaml.
FLAGS = {
    "mergekit-yaml": SHARED,
    "mergekit-multi": {"--out-path", "-I", "--intermediate-dir", "--lazy"},
    "mergekit-pytorch": {"-i", "--tensor-intersection", "-u", "--tensor-union"},
    "mergekit-extract-lora": {
        "--model", "--base-model", "--out-path", "--max-rank", "--distribute-scale", "--embed-lora",
        "--save-module", "-e", "--exclude-regex", "-i", "--include-regex", "--sv-epsilon",
        "--skip-undecomposable",
    },
    "mergekit-moe": {
        "--load-in-4bit", "--load-in-8bit", "--i-understand-this-is-not-useful-without-training",
    },
    "mergekit-tokensurgeon": {
        "-k", "-c", "--cosine-similarity", "-a", "--approximation-method", "-w", "--weight-scheme", "-s",
        "--subword-method", "--batch-size", "-pm", "--prefix-match", "-bm", "--byte-match", "--magikarp",
        "-nvn", "--new-vocab-noise", "-nvs", "--new-vocab-scale",
    },
    "mergekit-evolve": {
        "--max-fevals", "--sigma0", "--force-population-size", "--strategy", "--in-memory", "--vllm",
        "--num-gpus", "--merge-cuda", "--batch-size", "--task-search-path", "--storage-path",
        "--save-final-model", "--reshard", "--timeout", "--wandb", "--wandb-project", "--wandb-entity",
        "--load-in-4bit", "--load-in-8bit", "--i-understand-the-depths-of-the-evils-i-am-unleashing",
    },
    "mergekit-layershuffle": {
        "-m", "--model", "-w", "--weight", "--print-yaml", "--write-yaml", "--dry-run", "--fp16",
        "--full-random",
    },
    "bakllama": {"--clone-tensors", "--fp16"},
    "mergekit-legacy": {
        "--merge", "--density", "--weight", "--method", "--base-model", "--normalize", "--int8-mask",
        "--bf16", "--naive-count", "--print-yaml",
    },
}  # fmt: skip

LACKING = "model.layers.1.mlp.up_proj.weight"
TIES = (
    "merge_method: ties\nbase_model: base\nmodels:\n"
    "  - {model: a, parameters: {weight: 0.5, density: 0.5}}\n"
    "  - {model: b, parameters: {weight: 0.5, density: 0.5}}\n"
)
EXPERTS = (
    "base_model: base\ngate_mode: cheap_embed\nexperts_per_token: 2\nexperts:\n"
    "  - {source_model: a, positive_prompts: [CHAT]}\n  - {source_model: b, positive_prompts: [CODE]}\n"
)
RECIPES = {
    "recipe.yaml": TIES + "tokenizer_source: base\n",
    "card.md": f"---\nlicense: mit\n---\n# A card\n\n```yaml\n{TIES}```\n",
    "adapters.yaml": "merge_method: linear\nparameters: {weight: 0.5}\n"
    "models: [{model: base+lora}, {model: a}]\n",
    "steps.yaml": f"name: first\n{TIES}---\nmerge_method: linear\nparameters: {{weight: 0.5}}\n"
    "models: [{model: first}, {model: a}]\n",
    "files.yaml": "merge_method: linear\nparameters: {weight: 0.5}\n"
    "models: [{model: a/model.safetensors}, {model: b/model.safetensors}]\n",
    "slices.yaml": "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 2]}]\n"
    "- sources: [{model: b, layer_range: [1, 3]}]\n",
    "space.yaml": "recipe:\n  merge_method: ties\n  base_model: base\n  models:\n"
    "  - {model: a, parameters: {weight: 0.5, density: {search: {low: 0.2, high: 0.9}}}}\n"
    "  - {model: b, parameters: {weight: 0.5, density: 0.5}}\ntasks: [sums]\n",
    "experts.yaml": EXPERTS,
    "shared.yaml": EXPERTS + "architecture: deepseek\n"
    "shared_experts: [{source_model: base, residual_scale: 0.1}]\n",
    "noise.yaml": EXPERTS.replace("[CODE]", "[CODE], noise_scale: 0.01"),
    # what has to be forced: another family, other rows of the vocabulary, a model that lacks a tensor
    **{
        f"{name}.yaml": "merge_method: linear\nbase_model: base\nparameters: {weight: 0.5}\n"
        f"models: [{{model: base}}, {{model: {name}}}]\n"
        for name in ("families", "rows", "partial")
    },
    "foreign.yaml": TIES + "parameters: {t: 0.5}\n",
}  # fmt: skip


def sections() -> dict[str, list[tuple[str, str]]]:
    """The rows of the page's tables, by their headings."""
    found: dict[str, list[tuple[str, str]]] = {}
    for heading, text in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL):
        rows = re.findall(r"^\| (.+?) \| (.+) \|$", text, re.MULTILINE)
        found[heading] = [row for row in rows if row != ("mergekit", "here")]
    return found


ROWS = [(heading, *row) for heading, rows in sections().items() for row in rows]


def commands(text: str) -> list[str]:
    """The commands of ours in a cell that are written out whole."""
    codes = CODE.findall(text)
    return [code for code in codes if re.match(r"(\w+=\S+ )?taskvec \w+ \S", code)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the page speaks of."""
    root = tmp_path_factory.mktemp("world")
    for number, name in enumerate(("base", "a", "b")):
        write_model(root / name, "llama", 3, seed=number)
    write_adapter(root / "lora", "llama", 3)
    write_model(root / "families", "mistral", 3, seed=4)
    for name in ("rows", "partial"):
        write_model(root / name, "llama", 3, seed=3)
        tensors = read_tensors(root / name)
        for key in [key for key in tensors if name == "rows" and re.search("embed_tokens|lm_head", key)]:
            tensors[key] = np.concatenate([tensors[key], tensors[key][:8]])
        if name == "partial":
            del tensors[LACKING]
        (weights,) = (root / name).glob("*.safetensors")
        save_file(tensors, weights, metadata={"format": "pt"})
        if name == "rows":
            edit_json(root / name / "config.json", vocab_size=len(tensors["model.embed_tokens.weight"]))
    for number, name in enumerate(("model", "words")):
        write_model(root / name, "llama", 3, seed=number)
        write_words(root / name, range(20 * number, 60 + 20 * number))
    for name, text in RECIPES.items():
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("heading", "theirs", "ours"), ROWS, ids=[f"{row[0]}: {row[1][:40]}" for row in ROWS]
)
def test_every_row_is_tried(
    heading: str, theirs: str, ours: str, world: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(world)
    found = commands(ours)
    if re.match(r"not (needed|offered|yet)\b", ours):
        return
    assert found, f"{heading}: `{theirs}` has neither a command nor a reason"
    for name in ("out", "difference.vec"):
        shutil.rmtree(name, ignore_errors=True)
    for command in found:
        words = shlex.split(command)
        while "=" in words[0]:
            monkeypatch.setenv(*words.pop(0).split("=", 1))
        assert words.pop(0) == "taskvec"
        if "--force" in words:
            refused = invoke(capsys, *words[: words.index("--force")])
            assert refused.code == 1, f"{command}: nothing is to be forced"
            assert " ".join(words[words.index("--force") :]) in refused.err
        done = invoke(capsys, *words)
        assert done.code == 0, f"{command}\n{done.err}"
        if "is the base's" in ours:
            assert np.array_equal(read_tensors(world / "out")[LACKING], read_tensors(world / "base")[LACKING])
        if "embedding and head are kept" in ours:
            made, base = (read_tensors(world / name) for name in ("out", "base"))
            kept = {key for key in made if np.array_equal(made[key], base[key])}
            assert kept == {"model.embed_tokens.weight", "lm_head.weight"}


@pytest.mark.parametrize("command", FLAGS)
def test_every_flag_of_theirs_is_on_the_page(command: str) -> None:
    named = {
        word for theirs, _ in sections()[command] for code in CODE.findall(theirs) for word in code.split()
    }
    assert named >= FLAGS[command]
    known = FLAGS[command] | {command, "CONFIG_FILE", "CONFIG_PATH", "OUT_PATH"}
    assert {word for word in named if word.startswith("-")} <= known


@pytest.mark.parametrize("verb", ["merge", "extract", "moe", "tokens", "search"])
def test_what_is_there_is_not_still_to_come(verb: str) -> None:
    assert verb in cli.VERBS
    assert f"`taskvec {verb} " in PAGE
    assert not any(ours.startswith("not yet") for rows in sections().values() for _, ours in rows)


def test_the_page_can_be_found() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert "docs/coming-from-mergekit.md" in readme
