"""The catalogue of merge methods: one row each.

Parameters are named, defaulted and scoped as in mergekit 0.1.5. In the formulas θ0 is the base, θ_i a model,
δ_i = θ_i − θ0 (or θ_i − relative_to_i), w_i its weight, λ the final factor, and α the factor of the output
(`alpha`). What a method does to a tensor is written in the core; how a row becomes an operation of the plan,
in :mod:`taskvec.methods.operation`. Everything else in Python that names a method takes it from here:
``tv.NAME`` and its type, ``taskvec methods``, the schema of recipes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from taskvec.errors import RecipeError
from taskvec.methods.method import Method, Parameter
from taskvec.text import nearest, shown

# --- parameters -------------------------------------------------------------------------------------------
_WEIGHT = Parameter(
    "weight",
    "float",
    "model",
    None,
    "factor of this model, or of its difference from the base",
    required=True,
)
_WEIGHT_ONE = replace(_WEIGHT, default=1.0, required=False)
_NORMALIZE = Parameter("normalize", "bool", "merge", False, "divide by the sum of the weights")
_LAMBDA = Parameter(
    "lambda", "float", "merge", 1.0, "factor of the merged step before it is added to the base"
)
_DENSITY = Parameter(
    "density", "float", "model", 1.0, "share of the elements of δ that is kept", low=0.0, high=1.0
)
_RESCALE = Parameter("rescale", "bool", "merge", False, "scale what is kept of δ up again, see rescale_norm")
_RESCALE_L1 = replace(_RESCALE, text="scale what is kept of δ back to the L1 norm that δ had")
_RESCALE_NORM = Parameter(
    "rescale_norm",
    "choice",
    "merge",
    "l1",
    "l1 matches the L1 norm of δ, as mergekit does; expectation divides by the probability of being kept, "
    "as the paper does",
    choices=("l1", "expectation"),
    settled=True,
)
_INT8_MASK = Parameter(
    "int8_mask",
    "bool",
    "merge",
    False,
    "accepted for mergekit's recipes; masks take no memory here, so nothing changes",
    settled=True,
)
_GAMMA = Parameter(
    "gamma", "float", "model", 0.01, "share of the largest elements of δ that is dropped", low=0.0, high=1.0
)
_DELLA_EPSILON = Parameter(
    "epsilon",
    "float",
    "model",
    0.15,
    "half the width of the range of keep probabilities; density ± epsilon has to stay within 0 and 1",
    low=0.0,
    high=1.0,
)
_RAM_EPSILON = Parameter(
    "epsilon",
    "float",
    "merge",
    1e-5,
    "an element of δ at or below this magnitude counts as unchanged",
    low=0.0,
)
_SLERP_T = Parameter(
    "t",
    "float",
    "merge",
    None,
    "0 is the base, 1 the other model; outside of that range it extrapolates",
    required=True,
)

_FACTOR = replace(_WEIGHT_ONE, low=0.0)
_DEFAULT_IMPORTANCE = Parameter(
    "default_importance",
    "float",
    "model",
    None,
    "what each element of a tensor matters that the model's importance map does not have; without it that is "
    "an error",
    low=0.0,
)
_SAR_EPSILON = replace(_RAM_EPSILON, default=0.0)
_SAR_DENSITY = replace(
    _DENSITY,
    default=0.5,
    text="share of the elements that the model changed, and was given, that is kept, by magnitude",
)
_SAR_NORM = replace(
    _RESCALE_NORM,
    text="l1 matches the L1 norm that δ had before it was trimmed; expectation divides by density",
)


def _on(parameter: Parameter) -> Parameter:
    return replace(parameter, default=True)


def _ignored(parameter: Parameter) -> Parameter:
    return replace(parameter, ignored=True)


# --- examples ---------------------------------------------------------------------------------------------
_MODELS = ("org/math-model", "org/code-model", "org/chat-model", "org/law-model")


def _example(
    method: str,
    models: int,
    per_model: str = "",
    *,
    base: str | None = "org/base-model",
    more: Mapping[str, str] | None = None,
    maps: bool = False,
) -> str:
    """A recipe in mergekit's format; `per_model` and `more` are parameters written as YAML."""
    lines = [f"merge_method: {method}"]
    if base is not None:
        lines.append(f"base_model: {base}")
    lines.append("models:")
    for name in _MODELS[:models]:
        lines.append(f"  - model: {name}")
        if maps:
            lines.append(f"    importance: importance/{name.rpartition('/')[2]}")
        if per_model:
            lines.append(f"    parameters: {{{per_model}}}")
    if more:
        lines.append("parameters:")
        lines.extend(f"  {name}: {value}" for name, value in more.items())
    lines.append("dtype: bfloat16")
    return "\n".join(lines) + "\n"


# --- the rows ---------------------------------------------------------------------------------------------
_TIES_NOTES = (
    "Exactly ⌊density · n⌋ elements are kept, equal magnitudes by the lower index; mergekit keeps at least "
    "one of a tensor and leaves the order of equal magnitudes open.",
    "Weights that sum to zero under normalize are an error; mergekit divides by one instead.",
)
_RANDOM_NOTES = (
    "Draws come from Philox, keyed by seed, model and tensor name: the same under any thread count, shard "
    "layout or resume, and other ones than PyTorch's.",
)
_DARE = (_WEIGHT, _DENSITY, _NORMALIZE, _on(_RESCALE), _RESCALE_NORM, _LAMBDA, _INT8_MASK)
_DELLA = (*_DARE[:2], _DELLA_EPSILON, *_DARE[2:])
_CRUMBS = (_WEIGHT, _DENSITY, _GAMMA, _NORMALIZE, _RESCALE_L1, _LAMBDA, _INT8_MASK)
_CRUMBS_NOTES = (
    "⌊gamma · n⌋ of the largest are dropped, fewer where density asks for them; a tensor so small that this "
    "is none keeps its largest elements.",
    "Equal magnitudes are dropped by the lower index first; mergekit leaves their order open.",
)

_ROWS = (
    Method(
        "linear", "Linear", "Σ w_i·θ_i, divided by Σ w_i if normalize",
        "A weighted average of whole models (a model soup).",
        "Wortsman et al., Model soups, ICML 2022", "https://arxiv.org/abs/2203.05482",
        "input", 1, None, (_WEIGHT, _on(_NORMALIZE)), _example("linear", 2, "weight: 0.5", base=None),
        ("Weights that sum to zero under normalize are an error; mergekit writes infinities.",), step=False,
    ),
    Method(
        "task_arithmetic", "Task arithmetic", "θ0 + αλ·Σ w_i·δ_i, divided by Σ w_i if normalize",
        "Adds what each model learned, as a difference from the base. With relative_to it is a transfer.",
        "Ilharco et al., Editing models with task arithmetic, ICLR 2023", "https://arxiv.org/abs/2212.04089",
        "required", 1, None,
        (_WEIGHT, _NORMALIZE, _LAMBDA, _ignored(_DENSITY), _ignored(_RESCALE), _INT8_MASK),
        _example("task_arithmetic", 2, "weight: 0.5"),
        ("mergekit accepts density and rescale here and ignores them; here each gets a note.",),
        divides_weights=True,
    ),
    Method(
        "ties", "TIES",
        "trim each δ to density by magnitude; s = sign of Σ w_i·δ_i (0 counts as +); θ0 + αλ·(Σ over δ_i of "
        "sign s of w_i·δ_i), divided by the Σ of their w_i if normalize",
        "Trims each difference to its largest elements, elects a sign per element, and averages the models "
        "that agree with it.",
        "Yadav et al., TIES-Merging, NeurIPS 2023", "https://arxiv.org/abs/2306.01708",
        "required", 1, None, (_WEIGHT, _DENSITY, _on(_NORMALIZE), _LAMBDA, _RESCALE_L1, _INT8_MASK),
        _example("ties", 2, "weight: 0.5, density: 0.5", more={"normalize": "true"}), _TIES_NOTES,
    ),
    Method(
        "dare_linear", "DARE, linear",
        "drop each element of δ_i with probability 1 − density, rescale; θ0 + αλ·Σ w_i·δ_i",
        "Drops elements of each difference at random and scales the rest up.",
        "Yu et al., Language models are super Mario, ICML 2024", "https://arxiv.org/abs/2311.03099",
        "required", 1, None, _DARE, _example("dare_linear", 2, "weight: 0.5, density: 0.5"), _RANDOM_NOTES,
        random=True, divides_weights=True,
    ),
    Method(
        "dare_ties", "DARE, TIES",
        "drop each element of δ_i with probability 1 − density, rescale; then sign election and sum as in "
        "ties",
        "Random drops as in dare_linear, then the sign election of ties.",
        "Yu et al., Language models are super Mario, ICML 2024", "https://arxiv.org/abs/2311.03099",
        "required", 1, None, _DARE, _example("dare_ties", 2, "weight: 0.5, density: 0.5"), _RANDOM_NOTES,
        random=True,
    ),
    Method(
        "della", "DELLA",
        "keep each element of δ_i with a probability that grows with its rank in the row, from density − "
        "epsilon to density + epsilon; rescale; then sign election and mean as in ties",
        "Random drops that spare large elements, then the sign election of ties.",
        "Deep et al., DELLA-Merging, 2024", "https://arxiv.org/abs/2406.11617",
        "required", 1, None,
        (*_DELLA[:3], _on(_NORMALIZE), *_DELLA[4:]),
        _example("della", 2, "weight: 0.5, density: 0.5, epsilon: 0.1"), _RANDOM_NOTES, random=True,
    ),
    Method(
        "della_linear", "DELLA, linear",
        "keep each element of δ_i with a probability that grows with its rank in the row, from density − "
        "epsilon to density + epsilon; rescale; θ0 + αλ·Σ w_i·δ_i",
        "Random drops that spare large elements, without a sign election.",
        "Deep et al., DELLA-Merging, 2024", "https://arxiv.org/abs/2406.11617",
        "required", 1, None, _DELLA,
        _example("della_linear", 2, "weight: 0.5, density: 0.5, epsilon: 0.1"), _RANDOM_NOTES, random=True,
        divides_weights=True,
    ),
    Method(
        "breadcrumbs", "Model Breadcrumbs",
        "drop the gamma largest and the smallest elements of δ_i so that density is kept; θ0 + αλ·Σ w_i·δ_i",
        "Keeps the middle of each difference: outliers and small noise go.",
        "Davari and Belilovsky, Model Breadcrumbs, ECCV 2024", "https://arxiv.org/abs/2312.06795",
        "required", 1, None, _CRUMBS, _example("breadcrumbs", 2, "weight: 0.5, density: 0.9, gamma: 0.01"),
        _CRUMBS_NOTES, divides_weights=True,
    ),
    Method(
        "breadcrumbs_ties", "Model Breadcrumbs, TIES",
        "drop the gamma largest and the smallest elements of δ_i so that density is kept; then sign "
        "election and sum as in ties",
        "Keeps the middle of each difference, then the sign election of ties.",
        "Davari and Belilovsky, Model Breadcrumbs, ECCV 2024", "https://arxiv.org/abs/2312.06795",
        "required", 1, None, _CRUMBS,
        _example("breadcrumbs_ties", 2, "weight: 0.5, density: 0.9, gamma: 0.01"), _CRUMBS_NOTES,
    ),
    Method(
        "slerp", "SLERP",
        "(sin((1−t)φ)·θ0 + sin(tφ)·θ_1) / sin φ, φ the angle between the tensors; (1−t)·θ0 + t·θ_1 where "
        "|cos φ| > 0.9995",
        "Walks from the base to one other model along the arc between them.",
        "Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985",
        "https://en.wikipedia.org/wiki/Slerp",
        "required", 1, 1, (_SLERP_T,), _example("slerp", 1, more={"t": "0.5"}), step=False,
        hint="`multislerp` and `karcher` take more than two models",
    ),
    Method(
        "nuslerp", "NuSLERP",
        "slerp of θ_1 and θ_2 with t = w_2 / (w_1 + w_2); with a base, θ0 + slerp of δ_1 and δ_2",
        "SLERP of two models by weights; with a base, of their differences from it.",
        "Goddard et al., Arcee's MergeKit, EMNLP 2024", "https://aclanthology.org/2024.emnlp-industry.36",
        "optional", 2, 2,
        (
            _WEIGHT,
            Parameter(
                "nuslerp_flatten", "bool", "merge", True, "take a whole tensor as one vector",
                engine="flatten",
            ),
            Parameter(
                "nuslerp_row_wise", "bool", "merge", False,
                "without flatten: interpolate along the first dimension instead of the last",
                engine="row_wise",
            ),
        ),
        _example("nuslerp", 2, "weight: 0.5", base=None),
        ("Weights that sum to zero are an error; mergekit takes t = 0.5 for them.",), step=False,
        weighs_by_ratio=True,
    ),
    Method(
        "multislerp", "Multi-SLERP",
        "unit tensors are projected to the tangent space at their weighted mean, averaged there and mapped "
        "back, times the weighted mean norm; with a base, of δ_i",
        "A weighted mean direction of several models on the sphere.",
        "Goddard, Multi-SLERP, 2025", "https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
        "optional", 1, None,
        (
            _WEIGHT,
            Parameter(
                "normalize_weights", "bool", "merge", True, "divide the weights by their sum", settled=True
            ),
            Parameter("eps", "float", "merge", 1e-8, "keeps divisions by a norm finite", low=0.0, above=True),
        ),
        _example("multislerp", 3, "weight: 0.33", base=None),
        ("Weights that sum to zero under normalize_weights are an error.",), step=False,
        divides_weights=True,
    ),
    Method(
        "karcher", "Karcher mean",
        "the point of least squared geodesic distance to the unit tensors, times the mean norm",
        "The Riemannian centre of mass of the models, tensor by tensor, found by iteration.",
        "Functionality-oriented LLM merging on the Fisher–Rao manifold, 2026",
        "https://arxiv.org/abs/2603.04972",
        "input", 1, None,
        (
            Parameter("max_iter", "int", "merge", 10, "most iterations per tensor", low=1, high=10_000),
            Parameter("tol", "float", "merge", 1e-5, "stop at a tangent step of this length", low=0.0),
        ),
        _example("karcher", 2, base=None), step=False,
    ),
    Method(
        "model_stock", "Model Stock",
        "t·mean(θ_i) + (1−t)·θ0, t = N·cos φ / (1 + (N−1)·cos φ), cos φ the mean cosine between the δ_i",
        "Weighs the mean of several fine-tunes against their base by the angle between them.",
        "Jang et al., Model Stock, ECCV 2024", "https://arxiv.org/abs/2403.19522",
        "required", 2, None,
        (Parameter("filter_wise", "bool", "merge", False, "one t per row instead of one per tensor"),),
        _example("model_stock", 2),
    ),
    Method(
        "sce", "SCE",
        "keep the select_topk positions of largest variance across the δ_i; weigh each δ_i by its mean "
        "square; erase minority signs as in ties; weighted mean",
        "Select by variance, calculate weights, erase minority signs.",
        "Wan et al., FuseChat, 2024", "https://arxiv.org/abs/2408.07990",
        "required", 1, None,
        (
            Parameter(
                "select_topk", "float", "merge", 1.0, "share of the positions that is kept", low=0.0, high=1.0
            ),
            _INT8_MASK,
        ),
        _example("sce", 2, more={"select_topk": "0.5"}),
        ("Equal variances are kept by the lower index; mergekit leaves their order open.",),
    ),
    Method(
        "ram", "Reinforced agent merging",
        "θ0 + α·Δ; where one δ_i is above epsilon Δ is that δ_i, where several are Δ is their mean",
        "Keeps what one model alone changed and averages the rest. Made for sparse differences, as RL "
        "leaves them.",
        "Reinforced agent merging, 2026", "https://arxiv.org/abs/2601.13572",
        "required", 1, None, (_RAM_EPSILON,), _example("ram", 2, more={"epsilon": "0.00001"}),
    ),
    Method(
        "ramplus_tl", "Reinforced agent merging plus, tensor-local",
        "as ram, a change of model i alone times 1 + r·min(ρ_i, alpha), ρ_i the ratio of its shared to its "
        "own elements",
        "ram, with what one model alone changed scaled up where models overlap.",
        "Reinforced agent merging, 2026", "https://arxiv.org/abs/2601.13572",
        "required", 1, None,
        (
            Parameter("r", "float", "merge", 0.1, "strength of the scaling", low=0.0),
            Parameter(
                "alpha", "float", "merge", 0.2, "cap of the overlap ratio, not the output's factor", low=0.0
            ),
            _RAM_EPSILON,
        ),
        _example("ramplus_tl", 2, more={"r": "0.1", "alpha": "0.2"}),
    ),
    Method(
        "fisher", "Fisher averaging",
        "Σ w_i·F_i·θ_i / Σ w_i·F_i, element by element, F_i the importance map of model i; Σ w_i·θ_i / Σ w_i "
        "where the sum below is zero",
        "Averages whole models, each element by what it matters to each model. Each model has an importance "
        "map.",
        "Matena and Raffel, Merging models with Fisher-weighted averaging, NeurIPS 2022",
        "https://arxiv.org/abs/2111.09832",
        "input", 1, None, (_FACTOR, _DEFAULT_IMPORTANCE),
        _example("fisher", 2, "weight: 0.5", base=None, maps=True),
        (
            "An importance map is a folder of safetensors with the tensors of its model: `taskvec "
            "importance` makes one, and any other of numbers of at least zero will do.",
            "Elements that matter to no model are counted in the report; the paper keeps the sum below "
            "away from zero by a small number instead.",
            "Maps are taken as they are: weights make up for maps of different scale.",
        ),
        step=False, mergekit=False, weighs_by_ratio=True, importance=True,
    ),
    Method(
        "sar", "Sensitivity-aware resolving (SAR)",
        "an element that several δ_i change (above epsilon) is left to the one of largest importance F_i; "
        "trim each to density of what it then changes, by magnitude; rescale; θ0 + αλ·Σ w_i·δ_i",
        "Lets importance decide where sparse differences overlap, then trims and rescales. Made for "
        "differences as RL leaves them. Each model has an importance map.",
        "Wu et al., Sparsity curse: understanding RLVR model parameter space from model merging, 2026",
        "https://arxiv.org/abs/2606.18521",
        "required", 1, None,
        (
            _WEIGHT_ONE, _SAR_DENSITY, _DEFAULT_IMPORTANCE, _SAR_EPSILON, _on(_RESCALE), _SAR_NORM, _LAMBDA,
        ),
        _example("sar", 2, "density: 0.5", maps=True),
        (
            "The steps and their order are those of the paper's abstract. What that leaves open is our "
            "choice: of equal importance the larger change is taken, then the earlier model; trimming keeps "
            "exactly ⌊density · changed⌋ elements of each tensor, equal magnitudes by the lower index; "
            "rescaling restores the L1 norm; and the defaults.",
        ),
        mergekit=False, importance=True,
    ),
    Method(
        "nearswap", "NearSwap", "θ0 + α·min(t / |δ|, 1)·δ",
        "Moves to the other model where the two are close already, and hardly where they differ.",
        "alchemonaut, QuartetAnemoi-70B, 2024",
        "https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
        "required", 1, 1,
        (
            Parameter(
                "t", "float", "merge", None, "distance up to which the other model is taken",
                required=True, low=0.0,
            ),
        ),
        _example("nearswap", 1, more={"t": "0.0001"}),
    ),
    Method(
        "arcee_fusion", "Arcee Fusion",
        "θ0 + α·δ where |δ|·KL(softmax θ_1, softmax θ0) ≥ median + 1.5·(q3 − q1), θ0 elsewhere",
        "Takes over only the most important changes of one model.",
        "Arcee AI, MergeKit v0.1, 2025",
        "https://www.arcee.ai/blog/meet-mergekit-v0-1-arcee-fusion-expanded-model-support-multi-gpu-acceleration",
        "required", 1, 1, (), _example("arcee_fusion", 1),
        ("The quantiles are exact; mergekit draws a million elements of larger tensors to estimate them.",),
    ),
    Method(
        "passthrough", "Passthrough", "scale·θ_1",
        "Takes tensors as they are: for stacking layers of several models (slices), or scaling some of one.",
        "", "", "input", 1, 1,
        (Parameter("scale", "float", "model", None, "factor; none leaves the bytes alone", settled=True),),
        _example("passthrough", 1, "scale: [{filter: down_proj, value: 0.5}, {value: 1.0}]", base=None),
        step=False,
    ),
    Method(
        "consensus", "Consensus (TALL masks)",
        "m_i = |δ_i| ≥ tall_lambda·|Σ w_j·δ_j − δ_i|; θ0 + αλ·Σ w_j·δ_j where at least k of the m_i hold, "
        "θ0 elsewhere",
        "Task arithmetic that drops what matters to no model, or to fewer than k of them.",
        "Wang et al., Localizing task information for improved model merging and compression, ICML 2024",
        "https://arxiv.org/abs/2405.07813",
        "required", 1, None,
        (
            _WEIGHT_ONE,
            Parameter(
                "tall_lambda", "float", "merge", 0.6, "how much of the rest δ_i has to outweigh", low=0.0
            ),
            Parameter("k", "int", "merge", 2, "models to which an element has to matter", low=1, high=1000),
            _LAMBDA,
        ),
        _example("consensus", 3, more={"tall_lambda": "0.6", "k": "2"}), mergekit=False,
    ),
    Method(
        "emr", "EMR, unified vector",
        "s = sign of Σ δ_i; θ0 + αλ·s·max |δ_i| over the δ_i of sign s",
        "Elects one vector: the majority's sign and the largest magnitude that has it.",
        "Huang et al., EMR-Merging, NeurIPS 2024", "https://arxiv.org/abs/2405.17461",
        "required", 1, None, (_LAMBDA,), _example("emr", 3),
        (
            "The masks and rescalers that the paper switches on per task need a router at run time; one "
            "merged checkpoint holds the unified vector.",
        ),
        mergekit=False,
    ),
    Method(
        "localize", "Localize-and-stitch, dataless",
        "keep the share s of each δ_i that is largest in magnitude; θ0 + αλ·mean of the δ_i kept at an "
        "element",
        "Keeps a small part of each difference and averages where the parts overlap.",
        "He et al., Localize-and-stitch, 2024", "https://arxiv.org/abs/2408.13656",
        "required", 1, None,
        (
            Parameter("s", "float", "model", 0.1, "share of the elements of δ kept", low=0.0, high=1.0),
            _LAMBDA,
        ),
        _example("localize", 3, "s: 0.1"),
        ("The share is kept in every tensor; the paper takes it over the whole model.",), mergekit=False,
    ),
    Method(
        "control_random", "Control: random vector",
        "θ0 + αλ·w·g·‖δ‖ / ‖g‖, g drawn from a normal distribution",
        "A random vector of the same norm per tensor: what δ carries, this must not.",
        "", "", "required", 1, 1, (_WEIGHT_ONE, _LAMBDA), _example("control_random", 1),
        random=True, mergekit=False, is_control=True,
    ),
    Method(
        "control_permute", "Control: permuted vector",
        "θ0 + αλ·w·(the elements of δ in a random order, tensor by tensor)",
        "The same values in the wrong places: what δ carries, this must not.",
        "", "", "required", 1, 1, (_WEIGHT_ONE, _LAMBDA), _example("control_permute", 1),
        random=True, mergekit=False, is_control=True,
    ),
)  # fmt: skip

METHODS: Mapping[str, Method] = {method.name: method for method in _ROWS}
"""Every method by name, in the order in which they are listed."""

FUNCTIONS = tuple(sorted(name for name, method in METHODS.items() if not method.is_control))
"""Methods that are a function of the package: ``taskvec.NAME``."""

PARAMETERS = frozenset(p.name for method in _ROWS for p in method.parameters)
"""Every parameter that some method has."""

PUBLISHED = frozenset(
    {"embed_slerp"} | {p.name for method in _ROWS if method.mergekit for p in method.parameters}
)
"""Words of mergekit's recipes: it passes over those that the method does not have, and so do we, with a
note. ``embed_slerp`` is of its first versions, for vocabularies that differ."""


def nearest_method(name: str) -> str | None:
    """The method that an unknown name was meant for: ``TIES``, ``ties-merging``, ``della_ties``."""
    word = name.lower().replace("-", "_")
    begun = [each for each in METHODS if word.startswith(f"{each}_")]
    return max(begun, key=len) if begun else nearest(word, METHODS)


def get(name: str) -> Method:
    """The method of that name.

    Raises
    ------
    RecipeError
        There is none; the hint has the nearest name.
    """
    if isinstance(name, str) and name in METHODS:
        return METHODS[name]
    near = nearest_method(str(name))
    raise RecipeError(
        f"unknown merge method `{shown(name)}`",
        f"did you mean `{near}`?" if near else "`taskvec methods` lists them",
    )


def owners(parameter: str) -> list[str]:
    """The methods that have a parameter of that name."""
    return [method.name for method in METHODS.values() if method.parameter(parameter) is not None]
