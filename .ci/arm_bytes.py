#!/usr/bin/env python3
"""The weights that every merge method writes, as digests: `python .ci/arm_bytes.py DEMO`, a line for each.

DEMO is a folder that `taskvec demo` made. The recipes are the examples of the catalogue, with its models in
the place of theirs. Two machines, or two instruction sets of one, agree where the lines are the same.
"""

import hashlib
import re
import sys
import tempfile
from pathlib import Path

from taskvec.cli import run
from taskvec.methods.catalogue import METHODS

MODELS = ("sft", "grpo", "instruct", "merged")


def main(demo: Path) -> int:
    for name, method in METHODS.items():
        if method.importance:  # needs a map that torch makes
            continue
        named = list(dict.fromkeys(re.findall(r"org/[\w-]+", method.example)))
        base = re.search(r"base_model: (org/[\w-]+)", method.example)
        if base is not None:
            named.sort(key=lambda model: model != base[1])
        text = re.sub(r"org/[\w-]+", lambda found: str(demo / MODELS[named.index(found[0])]), method.example)  # noqa: B023
        with tempfile.TemporaryDirectory() as folder:
            recipe, out = Path(folder, "recipe.yaml"), Path(folder, "out")
            recipe.write_text(text)
            if run(["merge", str(recipe), str(out), "--progress", "none"]) != 0:
                return 1
            digest = hashlib.sha256()
            for shard in sorted(out.glob("*.safetensors")):
                digest.update(shard.read_bytes())
        print(f"bytes {name} {digest.hexdigest()[:32]}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
