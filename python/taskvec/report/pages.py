"""The templates of pages and texts, as all of them are read."""

from __future__ import annotations

import functools
from typing import Any

from taskvec.text import percent


@functools.cache  # a template is compiled once
def templates(*packages: str, html: bool = True) -> Any:
    """The templates in the folder ``templates`` of some packages; the first that has a name gives it.

    Parameters
    ----------
    packages : str
        Names of packages, such as ``taskvec.report``.
    html : bool
        Values are escaped.

    Returns
    -------
    Environment
        With the filter ``percent``.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=ChoiceLoader([PackageLoader(package) for package in packages]),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["percent"] = percent
    return made
