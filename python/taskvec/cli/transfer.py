"""``taskvec transfer``: the main job."""

from __future__ import annotations

from typing import Any

from taskvec.cli.console import Console
from taskvec.cli.execute import execute
from taskvec.cli.job import braced, plan_options
from taskvec.cli.options import (
    alpha_option,
    control_option,
    layer_scale_option,
    option,
    out_option,
    run_options,
    selection_options,
    storage_options,
    talk_options,
    tokenizer_option,
    variant_option,
    verb,
)

EXAMPLES = """
Add the reasoning that GRPO taught one model to another:
  taskvec transfer --target qwen-instruct --donor qwen-grpo --reference qwen-sft -o out

Four strengths from one read of the inputs, in out/alpha=-1 ... out/alpha=1:
  taskvec transfer --target T --donor D --reference R -o out --alpha -1,0,0.5,1

Say what would happen, and write nothing:
  taskvec transfer --target T --donor D --reference R -o out --dry-run

Leave embeddings, output head and norms alone; keep more of a small step:
  taskvec transfer --target T --donor D --reference R -o out --preset no-embed-norm --rounding stochastic
"""


@verb("transfer", examples=EXAMPLES)
@option(
    "--target",
    required=True,
    section="Models",
    metavar="MODEL",
    help="Receives the vector: a folder, a hub id such as org/name[@revision], or s3://, gs://, az://, https://.",
)
@option(
    "--donor",
    required=True,
    section="Models",
    metavar="MODEL",
    help="The fine-tuned model to take the change from.",
)
@option(
    "--reference",
    required=True,
    section="Models",
    metavar="MODEL",
    help="What the donor was before it was fine-tuned.",
)
@alpha_option("Factor of the vector, negative and above 1 too; several write one output each.  [default: 1]")
@layer_scale_option
@control_option
@tokenizer_option
@selection_options
@out_option
@run_options
@storage_options
@variant_option
@talk_options("transfer")
def command(
    console: Console,
    target: str,
    donor: str,
    reference: str,
    alpha: tuple[float, ...],
    out: str,
    **options: Any,
) -> int:
    """Write target + alpha * (donor - reference), in one streamed pass.

    The three checkpoints are compared first, by their headers, configurations and tokenizers; nothing is
    written if they are incompatible. An interrupted run goes on where it stopped when the same command is
    given again. The path of the output goes to stdout.
    """
    from taskvec.api import plan_transfer

    alphas = alpha or (1.0,)
    plan = plan_transfer(target, donor, reference, alpha=alphas, **plan_options(options))
    vector = f"{options['control'] or ''}(donor - reference)"
    execute(console, plan, out, f"target + {braced(alphas)} * {vector}", options)
    return 0
