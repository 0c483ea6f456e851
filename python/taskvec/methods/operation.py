"""From a method and the values of its parameters for one tensor to the operation that the plan carries.

An operation is ``{"kind": method, "terms": [...], ...}``. A term names its inputs by their position among
the tensor's inputs: ``model``, and ``reference`` (what is subtracted from it) or ``None``; ``weight`` is its
factor. Parameters per model stand in the terms, the others in the operation itself. What Python can settle is
settled here: weights that only have to be divided by their sum are, and a parameter that then means nothing
is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taskvec.methods.method import Method
from taskvec.methods.values import SettingError

COPY: dict[str, Any] = {"kind": "copy"}
DEFAULT = "default_importance"
"""The parameter that stands for a map where there is none."""
# Operations whose result at an element depends on the inputs there alone; `_TRIMS` where all is kept, and
# `_DROPS` where what is dropped is drawn.
_BY_ELEMENT = frozenset({
    "copy", "task_arithmetic", "linear", "passthrough", "ram", "nearswap", "consensus", "emr", "fisher",
})  # fmt: skip
_DROPS = frozenset({"dare_linear", "dare_ties"})
_TRIMS = _DROPS | {"ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties", "localize", "sar"}


@dataclass(frozen=True, slots=True)
class Term:
    """One model of a merge, as the operation sees it.

    Parameters
    ----------
    model : int
        Position among the tensor's inputs.
    reference : int, optional
        Position of what is subtracted from it.
    parameters : mapping
        Values of the parameters that each model has.
    stream : int
        Which random numbers it draws.
    importance : int, optional
        Position of the map that says what its elements matter.
    """

    model: int
    reference: int | None
    parameters: Mapping[str, Any]
    stream: int = 0
    importance: int | None = None


def operation(
    method: Method, terms: Sequence[Term], parameters: Mapping[str, Any], *, base: int | None = None
) -> dict[str, Any]:
    """The operation of one tensor.

    Parameters
    ----------
    method : Method
    terms : sequence of Term
        In the order of the recipe, without the base.
    parameters : mapping
        Values of the parameters that the merge has one of.
    base : int, optional
        Position of the base among the inputs.

    Returns
    -------
    dict
        Plain data; ``{"kind": "copy"}`` where nothing changes.

    Raises
    ------
    SettingError
        Weights that sum to zero where they are divided by their sum, or density ± epsilon outside of 0 and 1.
    """
    if method.parameter("scale") is not None and terms[0].parameters["scale"] in (None, 1.0):
        return dict(COPY)
    weights = [float(term.parameters.get("weight", term.parameters.get("scale", 1.0))) for term in terms]
    weights = _normalized(method, weights, parameters)
    result: dict[str, Any] = {"kind": method.name}
    result["terms"] = [
        _term(term, weight, **_per_model(method, term)) for term, weight in zip(terms, weights, strict=True)
    ]
    if method.base == "required" and not method.step:
        # The base is one of the whole models that are merged, the first.
        assert base is not None
        result["terms"].insert(0, {"model": base, "reference": None, "weight": 1.0})
    if method.base == "optional":
        result["base"] = base
    for parameter in method.parameters:
        if parameter.scope == "model" or parameter.ignored or parameter.settled:
            continue
        if parameter.name == "normalize" and method.divides_weights:
            continue
        result[parameter.engine or parameter.name] = parameters[parameter.name]
    if "rescale" in result:
        result["rescale"] = _rescaling(parameters)
    return result


def sees_whole(operation: Mapping[str, Any]) -> bool:
    """Whether an operation ranks or measures all of a tensor before it computes any element."""
    kind = operation["kind"]
    if kind in _BY_ELEMENT or (kind in _DROPS and operation.get("rescale") != "l1"):
        return False
    return kind not in _TRIMS or any(
        term.get("density", term.get("s", 1.0)) < 1.0 for term in operation["terms"]
    )


def _term(term: Term, weight: float, **more: Any) -> dict[str, Any]:
    return {"model": term.model, "reference": term.reference, "weight": weight, **more}


def _per_model(method: Method, term: Term) -> dict[str, Any]:
    values = {
        p.name: term.parameters[p.name]
        for p in method.parameters
        if p.scope == "model" and p.name != "weight" and not p.ignored and not p.settled
    }
    if "density" in values and "epsilon" in values:
        density, epsilon = values["density"], values["epsilon"]
        if 0.0 < density < 1.0 and (density - epsilon < 0.0 or density + epsilon > 1.0):
            raise SettingError(
                f"density {density:g} ± epsilon {epsilon:g} leaves the range of probabilities, 0 to 1",
                f"epsilon of at most {min(density, 1.0 - density):g} fits",
            )
    if method.random:
        values["stream"] = term.stream
    if method.importance:
        values["importance"] = term.importance
        if term.importance is not None:
            values[DEFAULT] = None
    return values


def _rescaling(parameters: Mapping[str, Any]) -> str:
    return parameters.get("rescale_norm", "l1") if parameters["rescale"] else "none"


def _normalized(method: Method, weights: list[float], parameters: Mapping[str, Any]) -> list[float]:
    """The weights, divided by their sum where that is all that normalising means."""
    wanted = parameters.get("normalize", parameters.get("normalize_weights", method.weighs_by_ratio))
    if not wanted:
        return weights
    total = math.fsum(weights)
    size = math.fsum(abs(weight) for weight in weights)
    if size == 0.0 and method.step:
        return weights
    if abs(total) <= 1e-9 * size:
        switch = next((p for p in ("normalize", "normalize_weights") if p in parameters), None)
        listed = ", ".join(f"{weight:g}" for weight in weights)
        raise SettingError(
            f"the weights {listed} sum to zero, and are to be divided by their sum",
            f"change a weight, or set `{switch}: false`" if switch else "change a weight",
        )
    return [weight / total for weight in weights] if method.divides_weights else weights
