"""The merge methods as a table, for a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskvec.methods.listing import table
from taskvec.report.tables import frame, table_html

if TYPE_CHECKING:
    from pandas import DataFrame


class MethodList(list[dict[str, Any]]):
    """One row per merge method: name, summary, formula, parameters, models, base, paper."""

    def to_frame(self) -> DataFrame:
        """The same as a table of pandas."""
        return frame(self)

    def __repr__(self) -> str:
        width = max((len(row["name"]) for row in self), default=0)
        return "\n".join(f"{row['name']:<{width}}  {row['summary']}" for row in self)

    def _repr_html_(self) -> str:
        rows = [{key: row[key] for key in ("name", "summary", "formula", "parameters")} for row in self]
        return table_html(rows, limit=len(rows))


def list_methods() -> MethodList:
    """The merge methods, each a function of its name: ``help(taskvec.ties)`` explains one.

    Returns
    -------
    list of dict
        With ``to_frame()``, and a table in a notebook.
    """
    return MethodList(table())
