"""``taskvec moe``: dense models as one mixture of experts."""

from __future__ import annotations

from typing import Any

from taskvec.cli.console import Console
from taskvec.cli.execute import execute
from taskvec.cli.job import settings_of
from taskvec.cli.options import argument, option, run_options, storage_options, talk_options, verb
from taskvec.cli.place import place_options
from taskvec.text import plural, printable

EXAMPLES = """
Run a recipe, mergekit-moe's or your own:
  taskvec moe experts.yaml out

Say what would happen, and write nothing:
  taskvec moe experts.yaml out --dry-run

The same experts, with gates to train instead of those of the prompts:
  taskvec moe experts.yaml out --set gate_mode=random

A recipe to copy:
  base_model: org/base
  gate_mode: cheap_embed        # or hidden, or random
  experts:
    - source_model: org/maths
      positive_prompts: ["Prove that", "Solve the equation"]
    - source_model: org/code
      positive_prompts: ["Write a function that"]
"""


@verb("moe", examples=EXAMPLES)
@argument("recipe", metavar="RECIPE", help="A YAML file as mergekit-moe takes it; `-` is standard input.")
@place_options("moe")
@option(
    "--set",
    "overrides",
    multiple=True,
    section="Arithmetic",
    metavar="PATH=VALUE",
    help="Replace a value of the recipe: `experts_per_token=1` (repeatable).",
)
@run_options
@storage_options
@talk_options("moe")
def command(console: Console, recipe: str, out: str, overrides: tuple[str, ...], **options: Any) -> int:
    """Write dense models as one mixture of experts to OUT, by a RECIPE in mergekit-moe's YAML format.

    Attention, norms and embeddings are the base's; the MLPs of each expert's model become one expert of
    every layer. Gates are made of the experts' prompts, by their embeddings (cheap_embed) or by running the
    base model on them (hidden, one layer in memory at a time), or drawn (random). The output is Mixtral,
    Qwen2-MoE, Qwen3-MoE or DeepSeek-MoE, as the models ask for or `architecture:` says.
    """
    from taskvec.lazy.moe import open_moe

    merge = open_moe(recipe, overrides=overrides, **settings_of(options))
    experts = plural(len(merge.file.recipe.experts), "expert")
    execute(console, merge.plan(), out, f"{experts} of {printable(recipe)}", options)
    return 0
