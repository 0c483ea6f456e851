"""Task-vector arithmetic on model checkpoints: extract what a fine-tune learned, transfer it, merge, measure.

>>> import taskvec as tv
>>> donor, reference, target = tv.open("grpo"), tv.open("sft"), tv.open("instruct")  # headers only
>>> merged = target + 0.8 * (donor - reference)  # nothing is computed yet
>>> merged.save("out")  # one streamed pass
"""

from __future__ import annotations

# Public name -> the module that has it, imported when the name is first used: `import taskvec` costs nothing.
_MODULES = {
    "_core": ("__version__",),
    "api": (
        "analyse",
        "apply",
        "check",
        "check_merge",
        "convert",
        "diff",
        "extract",
        "inspect",
        "plan_apply",
        "plan_convert",
        "plan_extract",
        "plan_tokens",
        "plan_transfer",
        "tokens",
        "transfer",
        "verify",
    ),
    "evaluation.importance.make": ("importance",),
    "lazy.average": ("average", "plan_average"),
    "lazy.checkpoint": ("Checkpoint", "from_state_dict", "open"),
    "models.model": ("TensorInfo",),
    "compat.findings": ("Finding",),
    "report.composition": ("Composition",),
    "report.difference": ("Difference",),
    "errors": (
        "CompatibilityError",
        "EngineError",
        "Error",
        "EvaluationError",
        "FindingWarning",
        "FormatError",
        "HubError",
        "NonFiniteError",
        "NotFoundError",
        "OutputError",
        "RecipeError",
        "TaskvecWarning",
        "TensorNotFoundError",
        "VerificationError",
    ),
    "again": ("repeat",),
    "resolve.storage": ("storage",),
    "run.in_place": ("Change",),
    "run.parts": ("PartReport",),
    "report.inspect": ("Inspection",),
    "lazy.listed": ("MethodList", "list_methods"),
    "lazy.lora": ("extract_lora", "plan_extract_lora"),
    "lazy.merge": ("Merge",),
    "lazy.measured": ("Stats",),
    "lazy.moe": ("MoeMerge", "moe", "open_moe"),
    "lazy.part": ("Part", "finish"),
    "lazy.plan": ("Plan",),
    "progress": ("Progress",),
    "lazy.recipe": ("RecipeMerge", "merge", "open_recipe"),
    "report.merge_check": ("MergeCheck",),
    "report.report": ("Report",),
    "report.survival": ("Survival",),
    "models.selection": ("Selection",),
    "selftest.bench": ("bench",),
    "settings": ("Settings",),
    "lazy.vector": ("TaskVector", "load_vector"),
    "report.tables": ("Findings",),
    "report.verify": ("Verification",),
    # above this module: named here, and imported when it is asked for
    "evaluation.search.run": ("search",),
    "evaluation.sweep.evaluate": ("evaluate",),
    "evaluation.sweep.call": ("sweep",),
    "evaluation.miniature.call": ("demo",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name == "__all__":
        return __dir__()
    if name not in _HOME and (name.startswith("_") or name not in _functions()):
        raise AttributeError(f"module `taskvec` has no attribute `{name}`")
    value = getattr(import_module(f"taskvec.{_HOME.get(name, 'lazy.methods')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*_HOME, *_functions()])


def _functions() -> tuple[str, ...]:
    """The methods of the catalogue: each is a function of its name."""
    from taskvec.methods.catalogue import FUNCTIONS

    return FUNCTIONS
