"""``taskvec apply``: saved task vectors onto a checkpoint."""

from __future__ import annotations

from typing import Any

from taskvec.cli.console import Console
from taskvec.cli.execute import execute
from taskvec.cli.job import braced, plan_options
from taskvec.cli.options import (
    alpha_option,
    argument,
    control_option,
    layer_scale_option,
    out_option,
    run_options,
    selection_options,
    storage_options,
    talk_options,
    variant_option,
    verb,
)

EXAMPLES = """
One vector, one strength:
  taskvec apply qwen-instruct reasoning.vec -o out --alpha 0.8

One vector, four strengths from one read, in out/alpha=-1 ... out/alpha=1:
  taskvec apply qwen-instruct reasoning.vec -o out --alpha -1,0,0.5,1

Two vectors in one pass, each with its own strength:
  taskvec apply qwen-instruct reasoning.vec safety.vec -o out --alpha 0.8,0.3
"""


@verb("apply", examples=EXAMPLES)
@argument(
    "target",
    metavar="TARGET",
    help="The model that receives the vectors: a folder, a hub id, or s3://, gs://, az://, https://.",
)
@argument(
    "vectors",
    metavar="VECTOR...",
    nargs=-1,
    required=True,
    help="Saved task vectors, as `taskvec extract` writes them.",
)
@alpha_option(
    "Factor of the vectors: one for all, or one for each. Several for one vector write one output each."
    "  [default: 1]"
)
@layer_scale_option
@control_option
@selection_options
@out_option
@run_options
@storage_options
@variant_option
@talk_options("apply")
def command(
    console: Console,
    target: str,
    vectors: tuple[str, ...],
    alpha: tuple[float, ...],
    out: str,
    **options: Any,
) -> int:
    """Write TARGET + the sum of alpha * VECTOR, in one streamed pass.

    Each VECTOR is a folder that `taskvec extract` wrote; it is read as it is stored, never as a whole. It
    is checked to be compatible with the target before a weight is read. The path of the output goes to
    stdout.
    """
    from taskvec.api import plan_apply
    from taskvec.settings import format_alpha

    alphas = alpha or (1.0,)
    plan = plan_apply(target, *vectors, alpha=alphas, **plan_options(options))
    if len(vectors) == 1:
        vector = f"{options['control']}(vector)" if options["control"] else "vector"
        title = f"target + {braced(alphas)} * {vector}"
    else:
        factors = [*alphas, *alphas * (len(vectors) - len(alphas))]
        title = "target" + "".join(
            f" {'-' if factor < 0 else '+'} {format_alpha(abs(factor))} * vector {number}"
            for number, factor in enumerate(factors, 1)
        )
    execute(console, plan, out, title, options)
    return 0
