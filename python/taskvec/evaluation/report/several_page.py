"""Several sweeps on paper: Markdown, one page, JSON and forest plots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskvec.errors import EvaluationError
from taskvec.evaluation.record import write_whole, writing
from taskvec.evaluation.report.figures import PALETTE, Figure
from taskvec.evaluation.report.forest import forest
from taskvec.evaluation.report.labels import number, p_value, task_file
from taskvec.evaluation.report.render import environment
from taskvec.evaluation.report.side_by_side import table
from taskvec.files import look
from taskvec.text import plural

if TYPE_CHECKING:
    from taskvec.evaluation.report.pooling import Several, Verdict

POOLED = (
    "held against", "results", "better by themselves", "difference", "p (Holm)", "verdict", "between results",
    "of a further result",
)  # fmt: skip


def hold_apart(out: Path) -> None:
    """See that an output folder has no report but an earlier one of this kind, which may be replaced.

    Raises
    ------
    EvaluationError
        It holds a sweep, an evaluation or a search.
    """
    others = [name for name in ("experiment.yaml", "arms", "candidates") if look.exists(out / name)]
    if others or not _is_ours(out / "report.json"):
        raise EvaluationError(
            f"`{out}` holds a sweep, an evaluation or a search, whose report would be replaced",
            "name another folder with -o",
        )


def _is_ours(path: Path) -> bool:
    """Whether a file is missing, or was written by `write_several`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "pooled" in content


def write_several(several: Several, out: Path) -> list[Path]:
    """Write ``report.json``, ``report.md``, ``report.html`` and ``figures/*.png``; the paths written.

    Raises
    ------
    EvaluationError
        They cannot be written.
    """
    figures = figures_of(several)
    texts = {
        "report.json": json.dumps(several.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "report.md": to_markdown(several, figures),
        "report.html": environment(html=True)
        .get_template("several.html.j2")
        .render(_context(several, figures)),
    }
    for name in texts:
        with writing(out / name):
            (out / name).unlink(missing_ok=True)
    pictures = {f"figures/{name}.png": figure.png for name, figure in figures.items()}
    contents = {**pictures, **texts}
    for name in (*pictures, *reversed(texts)):
        write_whole(out / name, contents[name])
    return [out / name for name in (*texts, *pictures)]


def figures_of(several: Several) -> dict[str, Figure]:
    """The forest plots by file name."""
    named = [("Donor", verdict) for verdict in several.gate] + [("+v", v) for v in several.verdicts]
    return {task_file(f"forest-{v.against}-{v.unit}".replace(" ", "-")): forest(v, what) for what, v in named}


def to_html(several: Several, figures: dict[str, Figure]) -> str:
    """``report.html``: one file, its style, script and figures inside."""
    return environment(html=True).get_template("several.html.j2").render(_context(several, figures))


def to_markdown(several: Several, figures: dict[str, Figure] | None = None) -> str:
    """``report.md``, or what a terminal shows where there are no figures."""
    return environment(html=False).get_template("several.md.j2").render(_context(several, figures or {}))


def summary(several: Several) -> list[str]:
    """What the results say together, a sentence each."""
    count = len(several.results)
    sentences = [
        f"The donor beats its reference in {several.passed} of {count}; reasoning transferred in "
        f"{several.transferred} of {count}."
    ]
    sentences += [f"The donor {verdict.in_words}." for verdict in several.gate]
    return sentences + [f"+v {verdict.in_words}." for verdict in several.verdicts]


def pooled_rows(several: Several) -> list[list[str]]:
    """The table of pooled differences, as text under `POOLED`."""
    return [
        *(_pooled_row("donor over reference", verdict) for verdict in several.gate),
        *(_pooled_row(f"+v over {verdict.against}", verdict) for verdict in several.verdicts),
    ]


def _pooled_row(name: str, verdict: Verdict) -> list[str]:
    def shown(value: float | None) -> str:
        return number(value, verdict.scale, signed=True)

    found = verdict.pooled
    further = (
        "–" if found.expected_low is None else f"{shown(found.expected_low)} to {shown(found.expected_high)}"
    )
    return [
        name,
        str(verdict.count),
        f"{verdict.better} of {verdict.count}",
        f"{shown(found.difference)} [{shown(found.low)}, {shown(found.high)}]",
        p_value(verdict.p_holm),
        f"{verdict.verdict}, n = {sum(row.n for row in verdict.rows):,}",
        "not known of one"
        if found.count == 1
        else f"{number(found.between, verdict.scale)} ({100 * found.share:.0f} %)",
        further,
    ]


def _context(several: Several, figures: dict[str, Figure]) -> dict[str, Any]:
    header, rows = table(several.results)
    return {
        "palette": PALETTE,
        "figures": figures,
        "header": header,
        "rows": rows,
        "summary": summary(several),
        "pooled_header": POOLED,
        "pooled": pooled_rows(several),
        "results": plural(len(several.results), "result"),
        "conclusions": [(result.label, result.conclusion["text"]) for result in several.results],
    }
