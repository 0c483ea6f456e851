"""What became of the tokens of a model that was moved to another tokenizer: the figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from taskvec.compat.token_pieces import SAMPLES
from taskvec.plan.token_rows import Approximation

_QUANTILES = {"p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}
# Tokens that are named: those without a row, and those that are approximated worst.
_NAMED = 20


def figures(made: Approximation, residuals: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The figures of a run, as its report and its manifest have them.

    Parameters
    ----------
    made : Approximation
    residuals : mapping of str to ndarray
        float64, of each matrix of the other model in whose space rows were computed: what is left of the
        row of each token, in parts of its norm; NaN where it has none to be approximated.
    """
    zero = made.origins.of("zero")
    return {
        "method": made.method,
        **({"k": made.k} if made.method != "subword" else {}),
        "tokens": len(made.origins.ids),
        "rows": made.height,
        "shared": len(made.shared),
        **made.origins.counts,
        "roles": made.origins.of("role"),
        "zero_tokens": zero[:_NAMED],
        "round_trip": {"texts": len(SAMPLES), "changed": list(made.changed)},
        "residual": {space: _distribution(made, values) for space, values in residuals.items()},
    }


def _distribution(made: Approximation, values: np.ndarray) -> dict[str, Any]:
    known = np.flatnonzero(~np.isnan(values))
    unknown = [made.tokens[number] for number in np.flatnonzero(np.isnan(values))]
    empty = {"without": len(unknown), "without_tokens": unknown[:_NAMED]}
    if not len(known):
        return {**empty, "mean": None, **dict.fromkeys(_QUANTILES), "worst": []}
    order = known[np.argsort(-values[known], kind="stable")][:_NAMED]
    return {
        **empty,
        "mean": _figure(values[known].mean()),
        **{name: _figure(np.quantile(values[known], share)) for name, share in _QUANTILES.items()},
        "worst": [[made.tokens[number], _figure(values[number])] for number in order],
    }


def _figure(value: Any) -> float:
    return float(f"{value:.5e}")
