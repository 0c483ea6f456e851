"""``taskvec extract``: donor - reference as an artifact of its own, a vector or an adapter."""

from __future__ import annotations

from typing import Any

from taskvec.cli.console import Console, UsageError
from taskvec.cli.execute import execute
from taskvec.cli.job import plan_options
from taskvec.cli.lora import LORA, hold_none, lora_options, write_adapter
from taskvec.cli.options import (
    argument,
    declared_option,
    option,
    out_option,
    selecting,
    storage_options,
    talk_options,
    variant_option,
    vector_options,
    verb,
)
from taskvec.option import options_of
from taskvec.settings import Settings

EXAMPLES = """
What GRPO taught, as a folder of its own, without loss:
  taskvec extract qwen-grpo qwen-sft -o reasoning.vec

The attention of layers 8 to 20 alone:
  taskvec extract qwen-grpo qwen-sft -o attention.vec --include self_attn --layers 8-20

As a LoRA adapter of rank 64, with a map of what it keeps:
  taskvec extract qwen-math qwen-base -o math-lora --lora 64 --html kept.html

Of every module the smallest rank that keeps 95% of its change:
  taskvec extract qwen-math qwen-base -o math-lora --lora auto --energy 0.95

One of four parts, which may run on as many machines that share a folder:
  taskvec extract qwen-grpo qwen-sft -o reasoning.vec --part 0/4

Then add it to any compatible model:
  taskvec apply qwen-instruct reasoning.vec -o out --alpha 0.8
"""


@verb("extract", examples=EXAMPLES)
@argument(
    "donor",
    metavar="DONOR",
    help="The fine-tuned model to take the change from; with --lora also a saved task vector.",
)
@argument(
    "reference", metavar="[REFERENCE]", required=False, help="What the donor was before it was fine-tuned."
)
@option(
    "--dtype",
    metavar="DTYPE",
    section="Arithmetic",
    help="One type for all values, with loss.  [default: per tensor the smallest without loss; of an "
    "adapter float32]",
)
@lora_options
@selecting("Save", "what is left out counts as zero")
@out_option
@vector_options
@declared_option("seed", options_of(Settings)["seed"])
@storage_options
@variant_option
@talk_options("extract")
def command(
    console: Console,
    donor: str,
    reference: str | None,
    out: str,
    lora: str | None,
    **options: Any,
) -> int:
    """Save DONOR - REFERENCE as a task vector.

    The vector is stored without loss: each tensor dense, as a bit mask with values, or as indices with
    values, whichever is smallest, and the elements that its type does not hold exactly next to it.
    `taskvec apply` gives bit for bit what `taskvec transfer` gives. The path of the vector goes to stdout.

    With --lora it is saved as a LoRA adapter on REFERENCE, with the loss that the report tells; DONOR may
    then be a saved vector, without a REFERENCE.
    """
    if lora is not None:
        return write_adapter(console, donor, reference, out, lora, options)
    hold_none(options)
    if reference is None:
        raise UsageError("missing argument `REFERENCE`", "`taskvec extract --help` explains the options")
    from taskvec.api import plan_extract

    options = {name: value for name, value in options.items() if name not in LORA}
    plan = plan_extract(donor, reference, **plan_options(options))
    dtype = plan.recipe.get("dtype")
    title = f"donor - reference, rounded to {dtype}, with loss" if dtype else "donor - reference"
    execute(console, plan, out, title, options)
    return 0
