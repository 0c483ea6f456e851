"""Results as a notebook shows them: short in words, as tables of HTML, and as tables of pandas (optional)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskvec.compat.findings import findings_summary
from taskvec.errors import Error
from taskvec.text import nearest, printable

if TYPE_CHECKING:
    from pandas import DataFrame

    from taskvec.compat.findings import Finding

ROWS = 12  # of a table below a cell: more are for `to_frame`
_LEFT = "style='text-align:left'"


class Tabled:
    """The part of a result that a notebook, a prompt and pandas look at.

    A class says what it is in ``_facts``, and which tables it has in ``_tables``, the first being that of
    ``to_frame()``.
    """

    __slots__ = ()

    def _subject(self) -> str:
        """What it is about, as its short form names it."""
        return ""

    def _facts(self) -> dict[str, str]:
        """The figures of its short form."""
        return {}

    def _tables(self) -> Mapping[str, Any]:
        """A function that gives the rows, for each table by its name."""
        return {}

    def _more_html(self) -> str:
        """What follows the table of facts in a notebook."""
        return ""

    def to_frame(self, table: str | None = None) -> DataFrame:
        """Its figures as a table of pandas.

        Parameters
        ----------
        table : str, optional
            Which, where it has several; the first by default. An unknown name is an error that lists them.

        Raises
        ------
        taskvec.Error
            pandas is not installed, or there is no such table.
        """
        tables = self._tables()
        name = next(iter(tables)) if table is None else table
        if name not in tables:
            near = nearest(str(name), tables)
            known = ", ".join(f"`{each}`" for each in tables)
            raise Error(
                f"there is no table `{name}`",
                f"did you mean `{near}`?" if near else f"the tables are {known}",
            )
        return frame(tables[name]())

    def __repr__(self) -> str:
        facts = [f"{key}: {value}" for key, value in self._facts().items()]
        subject = [repr(self._subject())] if self._subject() else []
        return printable(f"{type(self).__name__}({', '.join([*subject, *facts])})")

    def _repr_html_(self) -> str:
        return facts_html(type(self).__name__, self._subject(), self._facts()) + self._more_html()


class Findings(list["Finding"]):
    """Findings of a check: a list, which a notebook shows as a table."""

    @property
    def ok(self) -> bool:
        """Whether none of them is an error."""
        return all(each.level != "error" for each in self)

    def to_frame(self) -> DataFrame:
        """One row each: level, identifier, subject, expected, found, fix."""
        return frame([each.to_dict() for each in self])

    def __repr__(self) -> str:
        lines = "".join(f"\n  {printable(each)}" for each in self)
        return f"Findings({findings_summary(self)}){lines}"

    def _repr_html_(self) -> str:
        return findings_html(self) or f"<p>{findings_summary(self)}</p>"


def frame(rows: Iterable[Mapping[str, Any]]) -> DataFrame:
    """Rows as a table of pandas, which is imported for it alone.

    Raises
    ------
    taskvec.Error
        pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise Error("a table needs pandas, which is not installed", "pip install pandas") from None
    return pandas.DataFrame(list(rows))


def facts_html(kind: str, subject: str, facts: Mapping[str, str]) -> str:
    """A table of two columns; everything in it is escaped."""
    rows = "".join(
        f"<tr><th {_LEFT}>{escaped(key)}</th><td {_LEFT}>{escaped(value)}</td></tr>"
        for key, value in facts.items()
    )
    named = f" <code>{escaped(subject)}</code>" if subject else ""
    return f"<table><caption {_LEFT}>{escaped(kind)}{named}</caption><tbody>{rows}</tbody></table>"


def table_html(
    rows: Sequence[Mapping[str, Any]], caption: str = "", *, limit: int = ROWS, more: str = "`.to_frame()`"
) -> str:
    """A table of some rows, and how many more there are; everything in it is escaped."""
    if not rows:
        return ""
    shown = rows[: limit if len(rows) > limit + 1 else None]
    head = "".join(f"<th {_LEFT}>{escaped(key)}</th>" for key in shown[0])
    body = "".join(
        "<tr>" + "".join(f"<td {_LEFT}>{escaped(value)}</td>" for value in row.values()) + "</tr>"
        for row in shown
    )
    rest = len(rows) - len(shown)
    after = f"<p>and {rest:,} more: {escaped(more.strip('`'))} has all</p>" if rest else ""
    title = f"<caption {_LEFT}>{escaped(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{after}"


def findings_html(findings: Sequence[Finding], *, notes: bool = True) -> str:
    """Findings as a table: level, identifier, what it is, the way out."""
    rows = [
        {"level": each.level, "finding": each.id, "message": each.message, "hint": each.fix}
        for each in findings
        if notes or each.level != "note"
    ]
    return table_html(rows, limit=50)


def escaped(value: Any) -> str:
    """A value as a page shows it."""
    import html  # whose table of names takes more than a millisecond

    return html.escape(printable("" if value is None else value))
