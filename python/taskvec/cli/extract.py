"""``taskvec extract``: donor - reference as an artifact of its own."""

from __future__ import annotations

from typing import Any

import click

from taskvec.cli.console import Console
from taskvec.cli.execute import execute
from taskvec.cli.job import plan_options
from taskvec.cli.options import (
    option,
    out_option,
    selection_options,
    storage_options,
    talk_options,
    vector_options,
    verb,
)

EXAMPLES = """
What GRPO taught, as a folder of its own, without loss:
  taskvec extract qwen-grpo qwen-sft -o reasoning.vec

The attention of layers 8 to 20 alone:
  taskvec extract qwen-grpo qwen-sft -o attention.vec --include self_attn --layers 8-20

One of four parts, which may run on as many machines that share a folder:
  taskvec extract qwen-grpo qwen-sft -o reasoning.vec --part 0/4

Then add it to any model that fits:
  taskvec apply qwen-instruct reasoning.vec -o out --alpha 0.8
"""


@verb("extract", examples=EXAMPLES)
@click.argument("donor", metavar="DONOR")
@click.argument("reference", metavar="REFERENCE")
@option(
    "--dtype",
    metavar="DTYPE",
    section="Arithmetic",
    help="One type for all values, with loss.  [default: per tensor the smallest without loss]",
)
@selection_options
@out_option
@vector_options
@storage_options
@talk_options("extract")
def command(
    console: Console,
    donor: str,
    reference: str,
    out: str,
    **options: Any,
) -> int:
    """Save DONOR - REFERENCE as a task vector.

    The vector is stored without loss: each tensor dense, as a bit mask with values, or as indices with
    values, whichever is smallest, and the elements that its type does not hold exactly beside it.
    `taskvec apply` gives bit for bit what `taskvec transfer` gives. The path of the vector goes to stdout.
    """
    from taskvec.api import plan_extract

    plan = plan_extract(donor, reference, **plan_options(options))
    dtype = plan.recipe.get("dtype")
    title = f"donor - reference, rounded to {dtype}, with loss" if dtype else "donor - reference"
    execute(console, plan, out, title, options)
    return 0
