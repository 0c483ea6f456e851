"""``taskvec convert``: a checkpoint in another type or format, without a vector."""

from __future__ import annotations

from typing import Any

from taskvec.cli.console import Console
from taskvec.cli.execute import execute
from taskvec.cli.job import plan_options
from taskvec.cli.options import (
    argument,
    option,
    out_option,
    run_options,
    storage_options,
    talk_options,
    variant_option,
    verb,
)

EXAMPLES = """
Plain weights of a quantised checkpoint:
  taskvec convert qwen-fp8 -o out --out-dtype bfloat16

Back to block FP8, with the attention left as it is:
  taskvec convert out -o out-fp8 --out-dtype fp8-block --keep self_attn
"""


@verb("convert", examples=EXAMPLES)
@argument("model", metavar="MODEL", help="The checkpoint to write in another form.")
@option(
    "--keep",
    multiple=True,
    section="Selection",
    metavar="REGEX",
    help="Leave weights whose name matches plain where a packed format is written (repeatable).",
)
@out_option
@run_options
@storage_options
@variant_option
@talk_options("convert")
def command(console: Console, model: str, out: str, **options: Any) -> int:
    """Write MODEL in another type or format: dequantised, cast, or quantised.

    --out-dtype is a float type, or one of fp8-block, fp8-channel, int8-channel, mxfp4 and int4-g32: linear
    layers are then packed by the rule of the tool that reads the format, embeddings, head, norms and routers
    stay plain. Without it, packed weights become plain, and GGUF files and distributed checkpoints of torch
    safetensors. The path of the output goes to stdout.
    """
    from taskvec.api import plan_convert

    plan = plan_convert(model, **plan_options(options))
    form = plan.recipe.get("out_dtype") or "plain weights"
    execute(console, plan, out, f"model as {form}", options)
    return 0
