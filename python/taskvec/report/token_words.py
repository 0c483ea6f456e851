"""What became of the tokens of a model that was moved to another tokenizer, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskvec.plan.token_ways import WAYS
from taskvec.text import plural, shown


def token_words(tokens: Mapping[str, Any]) -> list[str]:
    """The figures in a few lines."""
    words = [f"{tokens['copied']:,} of {plural(tokens['tokens'], 'row')} copied"]
    words[0] += f", {tokens['role']:,} by their role" if tokens["role"] else ""
    if tokens["computed"]:
        of = f" of at most {tokens['k']}" if tokens["method"] == "omp" else ""
        words.append(f"{tokens['computed']:,} by {WAYS[tokens['method']]}{of}")
    for space, row in tokens["residual"].items():
        if row["median"] is not None:
            words.append(
                f"left of them in `{shown(space)}`: median {row['median']:.1%}, 90% of them at most "
                f"{row['p90']:.1%}, at most {row['max']:.1%}"
            )
        if row["without"]:
            first = ", ".join(f"`{shown(token)}`" for token in row["without_tokens"][:3])
            words.append(
                f"{plural(row['without'], 'row')} of zeros, as the other model's are zero or not finite in "
                f"`{shown(space)}`: {first} first"
            )
    if tokens["subword"]:
        words.append(f"{tokens['subword']:,} by {WAYS['subword']}")
    if tokens["zero"]:
        first = ", ".join(f"`{shown(token)}`" for token in tokens["zero_tokens"][:3])
        words.append(f"{tokens['zero']:,} of zeros, as nothing stands for them: {first} first")
    back = tokens["round_trip"]["texts"] - len(tokens["round_trip"]["changed"])
    words.append(f"{back} of {tokens['round_trip']['texts']} sample texts come back as they were")
    return words
