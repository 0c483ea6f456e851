"""Spaces over the tiny models: a transfer and a recipe with free values, judged by 24 questions."""

from __future__ import annotations

from typing import Any

from support.evaluation_models import tiny

ALPHA: dict[str, Any] = {"search": {"low": 0, "high": 2, "init": 1, "groups": 2}}


def transfer_space(**more: Any) -> dict[str, Any]:
    """A factor for each of two groups of layers."""
    models = tiny()
    content = {
        "transfer": {
            "target": str(models.target),
            "donor": str(models.donor),
            "reference": str(models.reference),
            "alpha": ALPHA,
        },
        **judged(),
    }
    return {**content, **more}


def recipe_space(**more: Any) -> dict[str, Any]:
    """A method, a weight and a density."""
    models = tiny()
    content = {
        "recipe": {
            "merge_method": {"search": ["ties", "task_arithmetic"]},
            "base_model": str(models.target),
            "models": [
                {"model": str(models.donor), "parameters": {"weight": {"search": {"low": 0.1, "high": 1}}}},
                {"model": str(models.reference), "parameters": {"weight": 0.5}},
            ],
            "parameters": {"density": {"search": {"low": 0.2, "high": 0.9}}},
        },
        **judged(),
    }
    return {**content, **more}


def judged() -> dict[str, Any]:
    """How the candidates of these spaces are judged."""
    return {
        "tasks": ["tiny_choice"],
        "evaluation": {"device": "cpu", "batch_size": 32, "include_path": str(tiny().tasks)},
        "optimiser": {"name": "cma", "population": 4, "budget": 8, "seed": 1},
        "compare": {"random": 0.25, "alphas": [0.5, 1]},
    }
