"""``taskvec eval``: one model on benchmark tasks."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any, get_args

import click

from taskvec.cli.console import Console
from taskvec.cli.eval_options import (
    backend_options,
    preset_given,
    settings_given,
    task_options,
    tasks_given,
)
from taskvec.cli.eval_output import show, watching
from taskvec.cli.options import argument, option, reading_options, talk_options, verb
from taskvec.evaluation.arms import PARTS, Kind, arm_stem
from taskvec.evaluation.settings import Settings

EXAMPLES = """
Two tasks, on the GPU if there is one:
  taskvec eval out --tasks gsm8k,sciq --chat-template

The paper's tasks and prompt:
  taskvec eval Qwen/Qwen2.5-1.5B-Instruct --paper --think --confirm-run-unsafe-code

Compare a merged model with its target, in one folder:
  taskvec eval target --tasks gsm8k -o results
  taskvec eval merged --tasks gsm8k -o results --as vector --alpha 0.8

Local tasks, offline, on the CPU:
  taskvec eval out --include-path tasks --tasks sums --device cpu
"""


HIDDEN = {"candidate", *PARTS}  # kinds that sweeps and searches alone make


@verb("eval", examples=EXAMPLES)
@argument("model", metavar="MODEL", help="The model to evaluate: a folder or a hub id.")
@task_options
@option("--as", "kind", type=click.Choice([kind for kind in get_args(Kind) if kind not in HIDDEN]),
        default=None, section="Evaluation",
        help="What the model is among the arms of OUT.  [default: baseline, and then vector]")  # fmt: skip
@option("--alpha", type=float, metavar="A", section="Evaluation", help="The factor of a vector in the model.")
@option("--name", metavar="NAME", section="Evaluation", help="Of the arm.  [default: the model's]")
@option("-o", "--out", metavar="OUT", type=click.Path(file_okay=False), section="Output",
        help="Folder of the report and the arms.  [default: eval-NAME]")  # fmt: skip
@backend_options
@reading_options
@talk_options("eval")
def command(console: Console, model: str, **options: Any) -> int:
    """Run a model on benchmark tasks through lm-eval, and report scores with intervals.

    The record of an arm holds settings, versions, scores, samples and output lengths. An arm that was run
    under the same settings is not run again; an interrupted one goes on where it stopped. A second model in
    the same OUT is compared with the first, document by document.
    """
    from taskvec.evaluation.backend.evaluate import require_extra
    from taskvec.evaluation.sweep.single import evaluate_model

    require_extra()
    out = Path(options["out"] or f"eval-{options['name'] or arm_stem(model)}")
    preset = preset_given(options)
    given = {key: value for key, value in settings_given(options).items() if value is not None}
    settings = Settings.of({"tasks": tasks_given(options), **preset.get("evaluation", {}), **given})
    with watching(console) as progress:
        report = evaluate_model(
            model,
            settings,
            out,
            name=options["name"],
            kind=options["kind"],
            alpha=options["alpha"],
            think=options["think"],
            perturb=options["perturb"],
            size=preset.get("paper"),
            progress=progress,
            command=shlex.join(["taskvec", *sys.argv[1:]]),
        )
    show(console, report, out)
    return 0
