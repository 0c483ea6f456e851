"""The places outside of the catalogue that list the methods: a stub, and a table of the page on recipes."""

from __future__ import annotations

from pathlib import Path

import taskvec
from taskvec.methods.catalogue import FUNCTIONS, METHODS
from taskvec.methods.method import Method

STUB = Path(taskvec.__file__).parent / "lazy" / "methods.pyi"
PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
BEGIN, END = "<!-- methods: written from the catalogue -->\n", "<!-- end of methods -->\n"


def stub() -> str:
    """``lazy/methods.pyi``."""
    listed = "".join(f'    "{name}",\n' for name in FUNCTIONS)
    functions = "".join(f"{name}: Method\n" for name in FUNCTIONS)
    return f"""from collections.abc import Sequence
from typing import Any, Protocol

from taskvec.lazy.recipe import RecipeMerge

__all__ = [
{listed}]

class Method(Protocol):
    def __call__(
        self, models: Sequence[Any], *, base: Any = None, dtype: str | None = None, **parameters: Any
    ) -> RecipeMerge: ...

{functions}"""


def table() -> str:
    """The methods as a table in Markdown."""
    rows = [f"| {_linked(method)} | {method.summary} |\n" for method in METHODS.values()]
    return "\n| method | what it does |\n|---|---|\n" + "".join(rows) + "\n"


def _linked(method: Method) -> str:
    return f"[`{method.name}`]({method.url})" if method.url else f"`{method.name}`"
