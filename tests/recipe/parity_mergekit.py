"""Beside mergekit: the inputs and parameters of every output tensor, and the figures of its fixed methods.

Not part of a normal run: it needs mergekit 0.1.5 in an environment of its own. Run it by name::

    TASKVEC_MERGEKIT_PYTHON=/path/to/python pytest -rP tests/parity_mergekit.py

mergekit runs in a process of its own, on models written here; only numbers come back.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import taskvec as tv
from support.models import qwen2_config, qwen2_shapes, random_tensors, read_tensors, tuned, write_checkpoint
from support.recipes import LAYERS, SAME_AS_MERGEKIT, expanded

PLAN = """
import json, logging, sys, warnings
logging.disable(logging.CRITICAL)
warnings.filterwarnings("ignore")
from mergekit.architecture import get_architecture_info
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.merge import _model_out_config
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner

answers = {}
for name, document in json.load(open(sys.argv[1])).items():
    config, options = MergeConfiguration.model_validate(document), MergeOptions()
    LoaderCache().setup(options=options)
    architecture = get_architecture_info(config, options)
    planner = MergePlanner(config, architecture, options, _model_out_config(config, architecture))
    planner._plan()
    answers[name] = {
        weight.name: {
            "shared": dict(task.parameters.items()),
            "base": str(task.base_model),
            "inputs": [
                [str(m), task.gather_tensors.weight_info[m].name, dict(task.input_parameters[m].items())]
                for m in task.model_order
            ],
        }
        for weight, task in planner._tensors
    }
json.dump(answers, sys.stdout)
"""


def ask(script: str, recipes: str, folder: Path) -> str:
    """What a script prints in mergekit's environment."""
    done = subprocess.run(
        [os.environ["TASKVEC_MERGEKIT_PYTHON"], "-c", script, recipes],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """mergekit's plan of every recipe."""
    folder = tmp_path_factory.mktemp("mergekit")
    for name, layers in LAYERS.items():
        config = qwen2_config(layers=layers, tied=False)
        write_checkpoint(folder / name, random_tensors(qwen2_shapes(config)), config)
    documents = {name: yaml.safe_load(text) for name, text in SAME_AS_MERGEKIT.items()}
    (folder / "recipes.json").write_text(json.dumps(documents))
    return json.loads(ask(PLAN, "recipes.json", folder))


# Names in an operation that stand for a parameter of mergekit's.
SAME = {"row_wise": "nuslerp_row_wise", "flatten": "nuslerp_flatten"}


@pytest.mark.parametrize("name", SAME_AS_MERGEKIT)
def test_like_mergekit(name: str, theirs: dict[str, Any]) -> None:
    merge = expanded(SAME_AS_MERGEKIT[name])
    assert {tensor.name for tensor in merge.tensors} == set(theirs[name])
    for tensor in merge.tensors:
        wanted = theirs[name][tensor.name]
        operation = merge.operations[tensor.operation]
        inputs = {(str(merge.models[model]), stored) for model, stored in tensor.inputs}
        assert inputs == {(model, stored) for model, stored, _ in wanted["inputs"]}
        if operation["kind"] == "copy":
            assert all(values["scale"] in (None, 1.0) for _, _, values in wanted["inputs"])
            continue
        for key, value in operation.items():
            if (other := SAME.get(key, key)) in wanted["shared"]:
                expected = wanted["shared"][other]
                assert value == (("l1" if expected else "none") if key == "rescale" else expected), key
        of_model = {(model, stored): values for model, stored, values in wanted["inputs"]}
        for term in operation["terms"]:
            model, stored = tensor.inputs[term["model"]]
            for key, value in of_model[str(merge.models[model]), stored].items():
                if key == "scale":
                    key = "weight"
                assert term[key] == value, key
        if subtracted := {term["reference"] for term in operation["terms"]} - {None}:
            (position,) = subtracted
            assert str(merge.models[tensor.inputs[position][0]]) == wanted["base"]


# --- figures ----------------------------------------------------------------------------------------------

RUN = """
import json, logging, sys, warnings
logging.disable(logging.CRITICAL)
warnings.filterwarnings("ignore")
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

for number, document in enumerate(json.load(open(sys.argv[1]))):
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    run_merge(MergeConfiguration.model_validate(document), f"theirs-{number}", options=options)
"""

PAIR = "models: [{model: a}, {model: b}]\n"
WEIGHTED = "models:\n  - {model: a, parameters: {weight: 0.7}}\n  - {model: b, parameters: {weight: 0.5}}\n"
OPPOSED = WEIGHTED.replace("0.5", "-0.4")
ON_BASE = "base_model: base\n"
ONE = "models: [{model: a}]\n"
# As many layers as before: mergekit leaves `layer_types` alone, and transformers then refuses another count.
STACK = """merge_method: passthrough
slices:
  - sources:
      - {model: a, layer_range: [0, 2], parameters: {scale: [{filter: o_proj, value: 0.5}, {value: 1}]}}
  - sources: [{model: b, layer_range: [1, 3]}]
"""
SLICED = """merge_method: task_arithmetic
base_model: base
slices:
  - sources:
      - {model: base, layer_range: [0, 2]}
      - {model: a, layer_range: [1, 3], parameters: {weight: [0.2, 1]}}
  - sources:
      - {model: base, layer_range: [2, 4]}
      - {model: b, layer_range: [2, 4], parameters: {weight: 0.5}}
"""
# A divergence is a small sum of large terms: in float32 its error moves elements across the threshold.
WIDE = "dtype: float64\nout_dtype: float32\n"


GRADIENTS = [
    {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
    {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
    {"value": 0.5},
]
GRADED = """models:
  - {model: a, parameters: {density: [1, 0.7, 0.1], weight: 1.0}}
  - {model: b, parameters: {density: 0.5, weight: [0, 0.3, 0.7, 1]}}
  - {model: c, parameters: {density: 0.33, weight: [{filter: mlp, value: 0.5}, {value: 0}]}}
"""


def of(method: str, models: str = WEIGHTED, base: str = ON_BASE, **parameters: Any) -> str:
    """A recipe; ``lambda_`` is the parameter `lambda`."""
    named = {key.rstrip("_"): value for key, value in parameters.items()}
    more = f"parameters: {json.dumps(named)}\n" if named else ""
    return f"merge_method: {method}\n{base}{models}{more}"


FIGURES = {
    "linear": of("linear", base=""),
    "linear, not normalised": of("linear", base="", normalize=False),
    "linear, opposed weights": of("linear", OPPOSED, base=""),
    "task_arithmetic": of("task_arithmetic"),
    "task_arithmetic, normalised, lambda": of("task_arithmetic", normalize=True, lambda_=0.6),
    "task_arithmetic in slices": SLICED,
    "ties": of("ties", density=0.5),
    "ties, density 0.2, not normalised": of("ties", density=0.2, normalize=False),
    "ties, density 1, opposed weights": of("ties", OPPOSED, density=1.0),
    "ties, rescaled": of("ties", density=0.3, rescale=True, lambda_=1.5),
    "breadcrumbs": of("breadcrumbs", density=0.8, gamma=0.1),
    "breadcrumbs, normalised": of("breadcrumbs", density=0.5, gamma=0.05, normalize=True),
    "breadcrumbs, gamma of no element": of("breadcrumbs", density=0.5, gamma=0.0001),
    "breadcrumbs_ties": of("breadcrumbs_ties", density=0.8, gamma=0.1),
    "slerp": of("slerp", ONE, t=0.3),
    "slerp, gradient": of("slerp", ONE, t=[0, 0.5, 1]),
    "nuslerp": of("nuslerp", base=""),
    "nuslerp of differences": of("nuslerp"),
    "nuslerp, rows": of("nuslerp", base="", nuslerp_flatten=False, nuslerp_row_wise=True),
    "nuslerp, columns": of("nuslerp", base="", nuslerp_flatten=False),
    "nuslerp of differences, rows": of("nuslerp", nuslerp_flatten=False, nuslerp_row_wise=True),
    "multislerp": of("multislerp", base=""),
    "multislerp of differences": of("multislerp"),
    "karcher": of("karcher", PAIR, base=""),
    "karcher of three": of("karcher", PAIR.replace("}]", "}, {model: c}]"), base="", max_iter=50),
    "model_stock": of("model_stock", PAIR),
    "model_stock of three": of("model_stock", PAIR.replace("}]", "}, {model: c}]")),
    "model_stock, filter-wise": of("model_stock", PAIR, filter_wise=True),
    "sce": of("sce", PAIR, select_topk=0.5),
    "sce of sparse differences": of("sce", PAIR.replace("model: b", "model: sparse"), select_topk=0.9),
    "sce, everything": of("sce", PAIR),
    "ram": of("ram", PAIR.replace("}]", "}, {model: sparse}]")),
    "ramplus_tl": of("ramplus_tl", PAIR.replace("}]", "}, {model: sparse}]"), r=0.3, alpha=0.6),
    "nearswap": of("nearswap", ONE, t=0.01),
    "arcee_fusion": of("arcee_fusion", ONE) + WIDE,
    "passthrough": of("passthrough", "models: [{model: a, parameters: {scale: 0.5}}]\n", base=""),
    "passthrough in slices": STACK,
    # in the style of published cards; drawn masks of density 1 leave nothing to chance
    "lists of t with filters": of("slerp", ONE, t=GRADIENTS),
    "a base among the models": of(
        "ties", WEIGHTED.replace("models:", "models:\n  - {model: base}"), density=0.53
    ),
    "gradients of density and weight": of("ties", GRADED, normalize=True, int8_mask=True),
    "dare_ties": of("dare_ties", density=1, int8_mask=True, rescale=True),
    "dare_linear, lambda": of("dare_linear", density=1, lambda_=0.8, normalize=True),
    "della": of("della", density=1, epsilon=0, lambda_=1.1, normalize=False),
    "della_linear": of("della_linear", density=1, epsilon=0, lambda_=0.7),
    "a base of each slice": "merge_method: slerp\nbase_model: a\nparameters: {t: 0.2}\nslices:\n"
    "  - {base_model: b, sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]}\n"
    "  - {base_model: a, sources: [{model: a, layer_range: [2, 4]}, {model: b, layer_range: [2, 4]}]}\n",
    "breadcrumbs of each model": of(
        "breadcrumbs",
        "models:\n  - {model: a, parameters: {weight: 0.5, density: 0.9, gamma: 0.01}}\n"
        "  - {model: b, parameters: {weight: 0.3, density: [0.9, 0.5], gamma: 0.02}}\n",
        lambda_=1.2,
    ),
    "nearswap, gradient": of("nearswap", ONE, t=[0.001, 0.02]),
    "multislerp, weights as they are": of("multislerp", normalize_weights=False, eps=1e-8),
}


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with float32 models and, as ``theirs-N``, what mergekit makes of the N-th recipe."""
    folder = tmp_path_factory.mktemp("figures")
    config = qwen2_config(layers=4, hidden=64, intermediate=96, tied=False, dtype="float32")
    base = random_tensors(qwen2_shapes(config), dtype="F32")
    models = {"base": base, "sparse": tuned(base, seed=4, step=0.02, share=0.1)}
    models |= {name: tuned(base, seed=seed, step=0.02) for seed, name in enumerate("abc", 1)}
    models["a"] = tuned(base, seed=1, step=0.02, share=0.6)
    for name, tensors in models.items():
        write_checkpoint(folder / name, tensors, config)
    (folder / "recipes.json").write_text(json.dumps([yaml.safe_load(text) for text in FIGURES.values()]))
    ask(RUN, "recipes.json", folder)
    return folder


@pytest.mark.parametrize("name", FIGURES)
def test_same_figures(name: str, figures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(figures)
    tv.merge(FIGURES[name], tmp_path / "ours")
    ours = read_tensors(tmp_path / "ours")
    theirs = read_tensors(figures / f"theirs-{list(FIGURES).index(name)}")
    assert ours.keys() == theirs.keys()
    worst = (0.0, 0.0)
    for key, array in ours.items():
        assert array.dtype == theirs[key].dtype == np.float32, key
        wanted = theirs[key].astype(np.float64)
        away = array - wanted
        norm = np.linalg.norm(away) / np.linalg.norm(wanted)
        largest = np.abs(away).max() / np.abs(wanted).max()
        assert norm <= 1e-5, (key, norm)
        assert largest <= 1e-5, (key, largest)
        worst = max(worst[0], norm), max(worst[1], largest)
    print(f"\n{name}: relative error {worst[0]:.1e} by norm, {worst[1]:.1e} at most")
