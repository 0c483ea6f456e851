"""The target's other files, which come along to an output byte for byte; config.json where a fact changed."""

from __future__ import annotations

CONFIG = "config.json"
CARD = "README.md"
MANIFEST = "taskvec.json"
# What was asked for, as a recipe that makes the output again.
RECIPE = "taskvec_recipe.yaml"
STATE = ".taskvec"
# In the name of a model, between a base and a patch that is put into it.
PATCH = "?patch="
# In the state folder: the plan of an unfinished run, byte for byte.
PLAN = "plan.json"
# There too: the engine's journal of the weight files that are in place, and the states of its inputs.
JOURNAL = "journal.jsonl"
INPUTS = "inputs.json"
# There too: the plan of a run in parts, from the moment the first one begins.
PARTS = "parts.json"
# There too: an output that is to replace the one in the folder, until it is whole; and what is there while
# the one is put in the place of the other.
NEW = "new"
SWAP = "swap.json"


def listed_file(name: str) -> str:
    """A file by the name that an index has for it: `./` in front of it leads to the index's own folder."""
    while name.startswith("./"):
        name = name[2:]
    return name


def is_own(name: str) -> bool:
    """Whether an output has a file of its own by this name, so that the target's is not copied."""
    first = name.split("/", 1)[0]
    return name.lower() == CARD.lower() or name in (MANIFEST, RECIPE) or first == STATE
