"""Defaults of known tasks with which a chain of thought is neither cut nor mis-scored.

lm-eval's own defaults are made for short answers: 256 new tokens, and stop strings that a chain of thought
contains ("Q", a blank line). The rows here apply to tasks that lm-eval ships; a task of the user's own YAML
keeps the stop strings and the length that it states.
"""

from __future__ import annotations

from dataclasses import dataclass

FALLBACK_MAX_GEN_TOKS = 1024  # for a generating task that states no length itself


# In a completion prompt nothing but a stop string ends an answer: a model that is done invents the next
# question, in the form of its own examples.
NEXT_QUESTION = ("\nQ:", "\nQuestion:")
# What follows a function that is complete, and lm-eval's own stop strings lack: a decorator, the end of a
# fenced block, a test.
AFTER_FUNCTION = ("\n@", "\n```", "\nassert")


@dataclass(frozen=True, slots=True)
class TaskDefaults:
    """Defaults of the tasks whose name begins with one prefix.

    Attributes
    ----------
    max_gen_toks : int, optional
        New tokens allowed; the task's own figure stands where it is larger.
    cutting_stops : tuple of str
        Stop strings of the task that a right answer may contain. They are dropped with a chat template, where
        the end of the turn ends the answer.
    chain_stops : tuple of str
        Those of them that are dropped without a template too: a chain of thought contains them, and
        `completion_stops` end what follows it.
    completion_stops : tuple of str
        Stop strings added without a chat template: what a model writes when it runs on.
    metric : str, optional
        The metric that comparisons use, fixed before any result is seen.
    """

    max_gen_toks: int | None = None
    cutting_stops: tuple[str, ...] = ()
    chain_stops: tuple[str, ...] = ()
    completion_stops: tuple[str, ...] = ()
    metric: str | None = None


# longest prefix wins
KNOWN: dict[str, TaskDefaults] = {
    "gsm8k": TaskDefaults(
        2048, ("Question:", "Q:", "\n\n"), ("\n\n",), NEXT_QUESTION, metric="exact_match,flexible-extract"
    ),
    "gsm_plus": TaskDefaults(2048, ("Question:",), (), NEXT_QUESTION, metric="exact_match,flexible-extract"),
    "humaneval": TaskDefaults(
        2048, ("\nclass", "\ndef", "\n#"), (), AFTER_FUNCTION, metric="pass@1,create_test"
    ),
    "mbpp": TaskDefaults(2048),
    "bbh_": TaskDefaults(2048, ("Q", "Q:", "\n\n"), (), NEXT_QUESTION),
    # with worked chains of thought: a blank line or a capital Q is a part of them
    "bbh_cot_": TaskDefaults(2048, ("Q", "Q:", "\n\n"), ("Q", "\n\n"), NEXT_QUESTION),
    "minerva_math": TaskDefaults(4096, ("Problem:",)),
    "hendrycks_math": TaskDefaults(4096, ("Problem:",)),
    "aime": TaskDefaults(16384, ("Question:", "\n\n"), ("\n\n",), NEXT_QUESTION),
    "sciq": TaskDefaults(metric="acc,none"),
}

# where a task has several metrics and no row names one
METRIC_ORDER = ("exact_match", "pass@1", "acc", "acc_norm", "f1")


def task_defaults(name: str) -> TaskDefaults:
    """The row for `name`, or one without defaults."""
    for prefix in sorted(KNOWN, key=len, reverse=True):
        if name.startswith(prefix):
            return KNOWN[prefix]
    return TaskDefaults()


def primary_metric(name: str, metrics: list[str], chosen: str | None = None) -> str | None:
    """The metric that comparisons of a task use.

    Parameters
    ----------
    name : str
        Task or group.
    metrics : list of str
        The metrics that can be compared sample for sample, as lm-eval names them
        (``exact_match,strict-match``).
    chosen : str, optional
        The user's own choice, with or without the filter.
    """
    for wanted in (chosen, task_defaults(name).metric):
        if wanted is not None:
            for metric in metrics:
                if names_metric(wanted, metric):
                    return metric
    for wanted in METRIC_ORDER:
        for metric in metrics:
            if metric.split(",")[0] == wanted:
                return metric
    return metrics[0] if metrics else None


def names_metric(wanted: str, metric: str) -> bool:
    """Whether a name means a metric of lm-eval's results, with or without the filter."""
    return wanted in (metric, metric.split(",")[0])
