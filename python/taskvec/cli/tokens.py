"""``taskvec tokens``: a checkpoint with another model's tokenizer."""

from __future__ import annotations

from typing import Any

import click

from taskvec.cli.console import Console
from taskvec.cli.execute import execute
from taskvec.cli.job import plan_options
from taskvec.cli.options import (
    argument,
    option,
    out_option,
    storage_options,
    talk_options,
    unparted_options,
    verb,
)

EXAMPLES = """
A Llama with the tokenizer of Qwen, other tokens as combinations of 64 shared ones:
  taskvec tokens llama-1b --from qwen-0.5b -o llama-qwen

Then it takes the vectors of models that have that tokenizer and its own architecture:
  taskvec apply llama-qwen reasoning.vec -o out

In seconds, without reading the other model's weights:
  taskvec tokens llama-1b --from qwen-0.5b -o llama-qwen --method subword
"""


@verb("tokens", examples=EXAMPLES)
@argument("target", metavar="TARGET", help="The model that gets another tokenizer.")
@option(
    "--from",
    "model",
    required=True,
    section="Models",
    metavar="MODEL",
    help="Has the tokenizer, and rows by which those of other tokens are approximated.",
)
@option(
    "--method",
    type=click.Choice(["omp", "nearest", "subword"]),
    default="omp",
    section="Arithmetic",
    help="How rows of tokens that TARGET lacks are made: of k shared tokens by orthogonal matching "
    "pursuit, of the k nearest ones, or of the pieces of the token's text.  [default: omp]",
)
@option(
    "-k",
    "--k",
    type=int,
    section="Arithmetic",
    metavar="K",
    help="Shared tokens that a row is made of.  [default: 64 for omp, 1 for nearest]",
)
@out_option
@unparted_options
@storage_options
@talk_options("tokens")
def command(console: Console, target: str, model: str, out: str, **options: Any) -> int:
    """Write TARGET with MODEL's tokenizer: rows of embedding and head go by token.

    Tokens that both have keep TARGET's rows, special ones by their role too. Other rows are made of
    TARGET's: with the weights by which MODEL's own row is made of its rows of shared tokens, or of the pieces
    of the token's text. The plan says how much arithmetic that is, the report how near the rows come. The
    path of the output goes to stdout.
    """
    from taskvec.api import plan_tokens

    plan = plan_tokens(target, model, **plan_options(options))
    title = f"target with another tokenizer, rows of other tokens by {options['method']}"
    execute(console, plan, out, title, options)
    return 0
