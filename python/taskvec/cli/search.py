"""``taskvec search``: the best values of a recipe, by scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from taskvec.cli.console import Console
from taskvec.cli.eval_options import backend_options, setting, settings_given, settings_of
from taskvec.cli.options import (
    Size,
    argument,
    option,
    split_names,
    storage_option,
    talk_options,
    together,
    verb,
)

evaluation_options = together(*settings_of("Evaluation", but=("tasks", "include_path", "data", "seed")))

EXAMPLES = """
A space: a recipe in which `{search: ...}` stands where a value is free:
  recipe:
    merge_method: ties
    base_model: base
    models:
      - {model: a, parameters: {weight: {search: {low: 0, high: 1}}, density: 0.5}}
      - {model: b, parameters: {weight: {search: {low: 0, high: 1}}, density: {search: [0.3, 0.5, 0.9]}}}
  tasks: [gsm8k, sciq]
  optimiser: {name: cma, budget: 100}

Look at it, then search:
  taskvec search space.yaml -o found --dry-run
  taskvec search space.yaml -o found

A factor for each of four groups of layers of a transfer:
  transfer: {target: T, donor: D, reference: R, alpha: {search: {low: 0, high: 2, init: 1, groups: 4}}}
  tasks: [gsm8k]

Four GPUs; a first try of 20 candidates that more can be added to:
  taskvec search space.yaml -o found --devices 0,1,2,3 --budget 20
  taskvec search space.yaml -o found --devices 0,1,2,3 --budget 200

Merge what was found:
  taskvec merge found/best.yaml merged
"""


@verb("search", examples=EXAMPLES)
@argument(
    "space",
    metavar="SPACE",
    help="A YAML file: a recipe with free parameters, and the tasks; `-` is standard input.",
)
@option("--budget", type=click.IntRange(1), metavar="N", section="Evaluation",
        help="Candidates; more than before go on with an ended search.  [default: the space's]")  # fmt: skip
@option("--seed", type=click.IntRange(0), metavar="N", section="Evaluation",
        help="Of the optimiser and of random search.  [default: the space's]")  # fmt: skip
@setting("tasks")
@setting("include_path")
@setting("data")
@evaluation_options
@option("-o", "--out", required=True, metavar="OUT", type=click.Path(file_okay=False), section="Output",
        help="Folder of the report, the best recipe and the records.")  # fmt: skip
@option("--overwrite", is_flag=True, section="Output", help="Begin again where OUT holds another search.")
@option("--scratch", metavar="DIR", type=click.Path(file_okay=False), section="Output",
        help="Where merged models lie while they are evaluated.  [default: memory, if they are small "
             "compared with what is free there, or OUT/scratch]")  # fmt: skip
@option("--scratch-budget", type=Size(), metavar="SIZE", section="Output",
        help="What they may take together.  [default: half of what is free]")  # fmt: skip
@option("--keep", is_flag=True, section="Output", help="Leave merged models in the scratch folder.")
@option("--dry-run", is_flag=True, section="Output", help="Print the space and what will be run, and stop.")
@option("--force", multiple=True, metavar="ID[,ID...]", callback=split_names, section="Checks",
        help="Go on in spite of these compatibility findings.")  # fmt: skip
@backend_options
@option("--devices", multiple=True, callback=split_names, metavar="N[,N...]", section="Machine",
        help="Evaluate candidates side by side, one process per GPU.")  # fmt: skip
@option("--jobs", type=click.IntRange(1), default=1, metavar="N", section="Machine",
        help="Evaluate candidates side by side on one device.")  # fmt: skip
@option("--ray", section="Machine", metavar="[ADDRESS]", is_flag=False, flag_value="local",
        help="Evaluate candidates on a Ray cluster that shares a file system, one on each GPU.")  # fmt: skip
@storage_option
@talk_options("search")
def command(console: Console, space: str, out: str, **options: Any) -> int:
    """Search for the values of a recipe that score best on benchmark tasks.

    SPACE is a YAML file: a `recipe` or a `transfer` with free values, tasks, and an optimiser. Candidates are
    merged in scratch and chosen on a development part of the documents; the best is then tested on the
    others, against the baseline, a random search of the same size and the best plain alpha. OUT/best.yaml is
    the recipe that was found. The same command goes on after an interruption.
    """
    from taskvec.cli.search_output import follow, show, show_plan
    from taskvec.evaluation.backend.evaluate import require_extra
    from taskvec.evaluation.machines import hold_device
    from taskvec.evaluation.search.forecast import forecast
    from taskvec.evaluation.search.run import search
    from taskvec.evaluation.search.space import load_space
    from taskvec.run.sinks import hold_folder

    hold_folder(out, "a search")
    for device in options["devices"]:
        hold_device(device)
    require_extra()
    whole = load_space(space).with_options(
        budget=options["budget"],
        seed=options["seed"],
        tasks=options["tasks"],
        force=options["force"],
        evaluation={key: value for key, value in settings_given(options).items() if key != "seed"},
    )
    if options["dry_run"]:
        show_plan(console, whole, forecast(whole, Path(out)))
        return 0
    with follow(console) as progress:
        result = search(
            whole,
            out,
            overwrite=options["overwrite"],
            scratch=options["scratch"],
            scratch_budget=options["scratch_budget"],
            keep=options["keep"],
            devices=options["devices"],
            jobs=options["jobs"],
            ray=options["ray"],
            progress=progress,
        )
    show(console, result)
    return 0
