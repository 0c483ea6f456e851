"""``taskvec average``: the mean of a training run's checkpoints."""

from __future__ import annotations

from typing import Any

import click

from taskvec.cli.console import Console
from taskvec.cli.execute import execute
from taskvec.cli.job import plan_options
from taskvec.cli.options import (
    Alphas,
    argument,
    option,
    out_option,
    run_options,
    storage_options,
    talk_options,
    variant_option,
    verb,
)
from taskvec.recipe.training.schedule import SCHEDULES
from taskvec.text import plural

EXAMPLES = """
All checkpoints of a run, each counting the same:
  taskvec average 'run/checkpoint-*' -o out

Those from step 8000 on, every 500 steps, newer ones counting more:
  taskvec average 'run/checkpoint-*' -o out --from 8000 --every 500 --schedule ema --half-life 1000

The difference of two added to the newest, with weights of your own:
  taskvec average run/checkpoint-1000 run/checkpoint-2000 -o out --weights=-0.5,1.5

The five with the lowest eval_loss:
  taskvec average 'run/checkpoint-*' -o out --best 5

The three that a table of your own says are the best:
  taskvec average 'run/checkpoint-*' -o out --best 3 --metrics scores.csv --metric accuracy
"""


def _choice(*declarations: str, **attributes: Any) -> Any:
    return option(*declarations, section="Selection", **attributes)


@verb("average", examples=EXAMPLES)
@argument(
    "checkpoints",
    metavar="CHECKPOINT...",
    nargs=-1,
    required=True,
    help="Checkpoints of one run, or patterns such as 'run/checkpoint-*', in any order.",
)
@option("--schedule", type=click.Choice(SCHEDULES), section="Arithmetic",
        help="How much each checkpoint counts: the same; 1, 2, 3 ... n; as if the learning rate had "
        "decayed by 1 - sqrt; or halved with every --half-life of age.  [default: uniform]")  # fmt: skip
@option("--half-life", type=float, metavar="STEPS", section="Arithmetic",
        help="Age in training steps at which a checkpoint counts half, for `--schedule ema`.")  # fmt: skip
@option("--weights", type=Alphas(), metavar="W[,W...]", section="Arithmetic",
        help="Instead of a schedule: what each checkpoint is multiplied by, in the order of the steps, taken "
        "as it is.")  # fmt: skip
@_choice("--from", "first", type=int, metavar="STEP", help="First training step.")
@_choice("--to", "last", type=int, metavar="STEP", help="Last training step.")
@_choice(
    "--every", type=int, metavar="STEPS", help="Distance in training steps, from the first of the range."
)
@_choice("--best", type=int, metavar="N", help="Only the N checkpoints with the best values of a metric.")
@_choice("--metrics", type=click.Path(path_type=str), metavar="FILE",
         help="Where the values are: a trainer_state.json, JSON, JSON lines, CSV or TSV.  "
         "[default: the newest checkpoint's trainer_state.json]")  # fmt: skip
@_choice("--metric", metavar="NAME", help="Which one.  [default: eval_loss, or the only one in the file]")
@_choice("--better", type=click.Choice(("lower", "higher")),
         help="Which values are better.  [default: as the metric's name says]")  # fmt: skip
@out_option
@run_options
@storage_options
@variant_option
@talk_options("average")
def command(console: Console, checkpoints: tuple[str, ...], out: str, **options: Any) -> int:
    """Write the weighted mean of CHECKPOINTs of one training run, in one pass over all of them.

    A CHECKPOINT is a folder, a pattern in quotes, the folder of the run, or an address. Training steps are
    taken from the names (checkpoint-500) or from trainer_state.json; config and tokenizer are the newest
    one's. Any number of checkpoints takes a bounded amount of memory and of open files. The path of the
    output goes to stdout.
    """
    from taskvec.lazy.average import plan_average

    plan = plan_average(checkpoints, **plan_options(options))
    count = plural(len(plan.recipe["checkpoints"]), "checkpoint")
    kind = plan.recipe.get("schedule", "with weights that are given")
    execute(console, plan, out, f"average of {count}, {kind}", options)
    return 0
