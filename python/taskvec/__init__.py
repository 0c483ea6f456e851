"""Task-vector arithmetic on model checkpoints: extract what a fine-tune learned, transfer it, merge, measure.

>>> import taskvec as tv
>>> donor, reference, target = tv.open("grpo"), tv.open("sft"), tv.open("instruct")  # headers only
>>> merged = target + 0.8 * (donor - reference)  # nothing is computed yet
>>> merged.save("out")  # one streamed pass
"""

from __future__ import annotations

# As type checkers know it; importing `typing` would be most of what `import taskvec` takes.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from typing import Any

    from taskvec._core import __version__ as __version__
    from taskvec.again import repeat as repeat
    from taskvec.api import analyse as analyse
    from taskvec.api import apply as apply
    from taskvec.api import check as check
    from taskvec.api import check_merge as check_merge
    from taskvec.api import convert as convert
    from taskvec.api import diff as diff
    from taskvec.api import extract as extract
    from taskvec.api import inspect as inspect
    from taskvec.api import plan_apply as plan_apply
    from taskvec.api import plan_convert as plan_convert
    from taskvec.api import plan_extract as plan_extract
    from taskvec.api import plan_tokens as plan_tokens
    from taskvec.api import plan_transfer as plan_transfer
    from taskvec.api import tokens as tokens
    from taskvec.api import transfer as transfer
    from taskvec.api import verify as verify
    from taskvec.compat.findings import Finding as Finding
    from taskvec.errors import CompatibilityError as CompatibilityError
    from taskvec.errors import EngineError as EngineError
    from taskvec.errors import Error as Error
    from taskvec.errors import EvaluationError as EvaluationError
    from taskvec.errors import FindingWarning as FindingWarning
    from taskvec.errors import FormatError as FormatError
    from taskvec.errors import HubError as HubError
    from taskvec.errors import NonFiniteError as NonFiniteError
    from taskvec.errors import NotFoundError as NotFoundError
    from taskvec.errors import OutputError as OutputError
    from taskvec.errors import RecipeError as RecipeError
    from taskvec.errors import TaskvecWarning as TaskvecWarning
    from taskvec.errors import TensorNotFoundError as TensorNotFoundError
    from taskvec.errors import VerificationError as VerificationError
    from taskvec.lazy.average import average as average
    from taskvec.lazy.average import plan_average as plan_average
    from taskvec.lazy.checkpoint import Checkpoint as Checkpoint
    from taskvec.lazy.checkpoint import from_state_dict as from_state_dict
    from taskvec.lazy.checkpoint import open as open
    from taskvec.lazy.listed import MethodList as MethodList
    from taskvec.lazy.listed import list_methods as list_methods
    from taskvec.lazy.lora import extract_lora as extract_lora
    from taskvec.lazy.lora import plan_extract_lora as plan_extract_lora
    from taskvec.lazy.measured import Stats as Stats
    from taskvec.lazy.merge import Merge as Merge
    from taskvec.lazy.methods import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]
    from taskvec.lazy.moe import MoeMerge as MoeMerge
    from taskvec.lazy.moe import moe as moe
    from taskvec.lazy.moe import open_moe as open_moe
    from taskvec.lazy.part import Part as Part
    from taskvec.lazy.part import finish as finish
    from taskvec.lazy.plan import Plan as Plan
    from taskvec.lazy.recipe import RecipeMerge as RecipeMerge
    from taskvec.lazy.recipe import merge as merge
    from taskvec.lazy.recipe import open_recipe as open_recipe
    from taskvec.lazy.vector import TaskVector as TaskVector
    from taskvec.lazy.vector import load_vector as load_vector
    from taskvec.models.model import TensorInfo as TensorInfo
    from taskvec.models.selection import Selection as Selection
    from taskvec.progress import Progress as Progress
    from taskvec.report.composition import Composition as Composition
    from taskvec.report.difference import Difference as Difference
    from taskvec.report.inspect import Inspection as Inspection
    from taskvec.report.merge_check import MergeCheck as MergeCheck
    from taskvec.report.report import Report as Report
    from taskvec.report.survival import Survival as Survival
    from taskvec.report.tables import Findings as Findings
    from taskvec.report.verify import Verification as Verification
    from taskvec.resolve.storage import storage as storage
    from taskvec.run.in_place import Change as Change
    from taskvec.run.parts import PartReport as PartReport
    from taskvec.selftest.bench import bench as bench
    from taskvec.selftest.demo import demo as demo
    from taskvec.settings import Settings as Settings

    # Their homes stand above this module, which imports nothing of them.
    def evaluate(
        model: str | os.PathLike[str],
        *,
        tasks: str | Sequence[str],
        out: str | os.PathLike[str] | None = None,
        name: str | None = None,
        kind: str = "baseline",
        alpha: float | None = None,
        think: str | None = None,
        perturb: str | Sequence[str] = (),
        progress: Any = None,
        **settings: Any,
    ) -> Any: ...
    def importance(
        model: str | os.PathLike[str],
        out: str | os.PathLike[str],
        *,
        tasks: str | Sequence[str],
        progress: Any = None,
        **settings: Any,
    ) -> Any: ...
    def search(space: Any, out: str | os.PathLike[str], *, progress: Any = None, **options: Any) -> Any: ...
    def sweep(
        file: Any = None, *, out: str | os.PathLike[str], progress: Any = None, **content: Any
    ) -> Any: ...


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
    "selftest.demo": ("demo",),
    "settings": ("Settings",),
    "lazy.vector": ("TaskVector", "load_vector"),
    "report.tables": ("Findings",),
    "report.verify": ("Verification",),
    # above this module: named here, and imported when it is asked for
    "evaluation.search.run": ("search",),
    "evaluation.sweep.evaluate": ("evaluate",),
    "evaluation.sweep.call": ("sweep",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
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
