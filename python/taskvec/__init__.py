"""Task-vector arithmetic on model checkpoints: extract what a fine-tune learned, transfer it, merge, measure.

>>> import taskvec as tv
>>> donor, reference, target = tv.open("grpo"), tv.open("sft"), tv.open("instruct")  # headers only
>>> merged = target + 0.8 * (donor - reference)  # nothing is computed yet
>>> merged.save("out")  # one streamed pass
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskvec._core import __version__ as __version__
    from taskvec.api import apply as apply
    from taskvec.api import check as check
    from taskvec.api import diff as diff
    from taskvec.api import extract as extract
    from taskvec.api import inspect as inspect
    from taskvec.api import plan_apply as plan_apply
    from taskvec.api import plan_extract as plan_extract
    from taskvec.api import plan_transfer as plan_transfer
    from taskvec.api import transfer as transfer
    from taskvec.api import verify as verify
    from taskvec.compat.findings import Finding as Finding
    from taskvec.errors import CompatibilityError as CompatibilityError
    from taskvec.errors import EngineError as EngineError
    from taskvec.errors import Error as Error
    from taskvec.errors import EvaluationError as EvaluationError
    from taskvec.errors import FormatError as FormatError
    from taskvec.errors import HubError as HubError
    from taskvec.errors import NonFiniteError as NonFiniteError
    from taskvec.errors import NotFoundError as NotFoundError
    from taskvec.errors import OutputError as OutputError
    from taskvec.errors import RecipeError as RecipeError
    from taskvec.errors import VerificationError as VerificationError
    from taskvec.lazy.checkpoint import Checkpoint as Checkpoint
    from taskvec.lazy.checkpoint import from_state_dict as from_state_dict
    from taskvec.lazy.checkpoint import open as open
    from taskvec.lazy.merge import Merge as Merge
    from taskvec.lazy.methods import arcee_fusion as arcee_fusion
    from taskvec.lazy.methods import breadcrumbs as breadcrumbs
    from taskvec.lazy.methods import breadcrumbs_ties as breadcrumbs_ties
    from taskvec.lazy.methods import consensus as consensus
    from taskvec.lazy.methods import dare_linear as dare_linear
    from taskvec.lazy.methods import dare_ties as dare_ties
    from taskvec.lazy.methods import della as della
    from taskvec.lazy.methods import della_linear as della_linear
    from taskvec.lazy.methods import emr as emr
    from taskvec.lazy.methods import karcher as karcher
    from taskvec.lazy.methods import linear as linear
    from taskvec.lazy.methods import localize as localize
    from taskvec.lazy.methods import model_stock as model_stock
    from taskvec.lazy.methods import multislerp as multislerp
    from taskvec.lazy.methods import nearswap as nearswap
    from taskvec.lazy.methods import nuslerp as nuslerp
    from taskvec.lazy.methods import passthrough as passthrough
    from taskvec.lazy.methods import ram as ram
    from taskvec.lazy.methods import ramplus_tl as ramplus_tl
    from taskvec.lazy.methods import sce as sce
    from taskvec.lazy.methods import slerp as slerp
    from taskvec.lazy.methods import task_arithmetic as task_arithmetic
    from taskvec.lazy.methods import ties as ties
    from taskvec.lazy.plan import Plan as Plan
    from taskvec.lazy.recipe import RecipeMerge as RecipeMerge
    from taskvec.lazy.recipe import merge as merge
    from taskvec.lazy.recipe import open_recipe as open_recipe
    from taskvec.lazy.vector import TaskVector as TaskVector
    from taskvec.lazy.vector import load_vector as load_vector
    from taskvec.models.model import TensorInfo as TensorInfo
    from taskvec.models.selection import Selection as Selection
    from taskvec.progress import Progress as Progress
    from taskvec.report.difference import Difference as Difference
    from taskvec.report.inspect import Inspection as Inspection
    from taskvec.report.report import Report as Report
    from taskvec.report.report import Survival as Survival
    from taskvec.report.verify import Verification as Verification
    from taskvec.run.in_place import Change as Change
    from taskvec.settings import Settings as Settings

# Public name -> the module that has it, imported when the name is first used: `import taskvec` costs nothing.
_MODULES = {
    "_core": ("__version__",),
    "api": (
        "apply",
        "check",
        "diff",
        "extract",
        "inspect",
        "plan_apply",
        "plan_extract",
        "plan_transfer",
        "transfer",
        "verify",
    ),
    "lazy.checkpoint": ("Checkpoint", "from_state_dict", "open"),
    "models.model": ("TensorInfo",),
    "compat.findings": ("Finding",),
    "report.difference": ("Difference",),
    "errors": (
        "CompatibilityError",
        "EngineError",
        "Error",
        "EvaluationError",
        "FormatError",
        "HubError",
        "NonFiniteError",
        "NotFoundError",
        "OutputError",
        "RecipeError",
        "VerificationError",
    ),
    "run.in_place": ("Change",),
    "report.inspect": ("Inspection",),
    "lazy.merge": ("Merge",),
    "lazy.plan": ("Plan",),
    "progress": ("Progress",),
    "lazy.methods": (
        "arcee_fusion",
        "breadcrumbs",
        "breadcrumbs_ties",
        "consensus",
        "dare_linear",
        "dare_ties",
        "della",
        "della_linear",
        "emr",
        "karcher",
        "linear",
        "localize",
        "model_stock",
        "multislerp",
        "nearswap",
        "nuslerp",
        "passthrough",
        "ram",
        "ramplus_tl",
        "sce",
        "slerp",
        "task_arithmetic",
        "ties",
    ),
    "lazy.recipe": ("RecipeMerge", "merge", "open_recipe"),
    "report.report": ("Report", "Survival"),
    "models.selection": ("Selection",),
    "settings": ("Settings",),
    "lazy.vector": ("TaskVector", "load_vector"),
    "report.verify": ("Verification",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module `taskvec` has no attribute `{name}`")
    from importlib import import_module

    value = getattr(import_module(f"taskvec.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
