"""Factors of parameters that are not a module's weight (PEFT's ``target_parameters``): experts in one tensor.

A and B hold the factors of all experts: A as [experts · rank, inputs], expert by expert, and B as [outputs,
rank · experts], rank by rank. Where a module has two such parameters, PEFT puts one wrapper into the other:
which factors are of which parameter only their shapes tell, once the model is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from taskvec.errors import FormatError
from taskvec.models.adapter_config import CORRECT, MERGE_FIRST, rank_of, scale_of
from taskvec.models.model import TensorInfo
from taskvec.text import kind_of, shown

_WRAPPED = ".base_layer"


class ParameterFactors(NamedTuple):
    """Factors of a parameter of a module.

    Attributes
    ----------
    module : str
        The module, without PEFT's wrappers.
    names : tuple of str
        The parameters of it that the settings name: one of them it is.
    a, b : TensorInfo
        The stored factors.
    settings : mapping of str to (int, float)
        Rank and scale by the name of the parameter, of those that match the factors.
    """

    module: str
    names: tuple[str, ...]
    a: TensorInfo
    b: TensorInfo
    settings: Mapping[str, tuple[int, float]]


def target_parameters(config: Mapping[str, Any], spec: str) -> list[str]:
    """The parameters, or the ends of their names, that an adapter changes.

    Raises
    ------
    FormatError
        ``target_parameters`` is not a list of names.
    """
    names = config.get("target_parameters") or []
    if not isinstance(names, list) or not all(isinstance(name, str) and "." in name for name in names):
        raise FormatError(
            f"`target_parameters` of the adapter `{spec}` is {shown(names)}, {kind_of(names)}; expected "
            "a list of names of parameters with their modules",
            CORRECT,
        )
    return names


def named(module: str, targets: list[str]) -> tuple[str, tuple[str, ...]]:
    """A module without PEFT's wrappers, and the parameters of it that are targets."""
    while module.endswith(_WRAPPED):
        module = module.removesuffix(_WRAPPED)
    ends = [target.rpartition(".") for target in targets]
    names = (name for owner, _, name in ends if module == owner or module.endswith(f".{owner}"))
    return module, tuple(dict.fromkeys(names))


def parameter_factors(
    module: str,
    names: tuple[str, ...],
    factors: tuple[TensorInfo, TensorInfo],
    config: Mapping[str, Any],
    spec: str,
) -> ParameterFactors:
    """The factors of a parameter, held against the settings.

    Raises
    ------
    FormatError
        Their shapes are not a multiple of the rank.
    """
    a, b = factors
    rows = a.shape[0]
    ranks = {name: rank_of(config, f"{module}.{name}", spec) for name in names}
    fitting = {name: rank for name, rank in ranks.items() if rank > 0 and not rows % rank}
    if not fitting or b.shape[1] != rows:
        raise FormatError(
            f"the factors of `{module}` in the adapter `{spec}` do not fit: A is {list(a.shape)}, B is "
            f"{list(b.shape)}, the rank {next(iter(ranks.values()))}",
            f"save it again, or {MERGE_FIRST}",
        )
    settings = {
        name: (rank, scale_of(config, f"{module}.{name}", rank, spec)) for name, rank in fitting.items()
    }
    return ParameterFactors(module, names, a, b, settings)
