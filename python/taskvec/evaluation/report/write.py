"""The report of a sweep on disk: JSON, HTML, Markdown and figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from taskvec.evaluation.record import write_whole, writing

if TYPE_CHECKING:
    from taskvec.evaluation.report.report import Report


TEXTS = ("report.json", "report.md", "report.html")


def remove_report(out: Path) -> None:
    """Remove the texts of a report, which do not speak of what is there from now on."""
    for name in TEXTS:
        with writing(out / name):
            (out / name).unlink(missing_ok=True)


def write_report(report: Report, out: Path) -> list[Path]:
    """Write ``report.json``, ``report.md``, ``report.html`` and ``figures/*.png``; the paths written.

    An older report goes first and the texts come last: pages and pictures of two reports never lie together.
    """
    from taskvec.evaluation.report.figures import draw
    from taskvec.evaluation.report.part_figures import draw_parts
    from taskvec.evaluation.report.render import to_html, to_markdown

    figures = draw(report)
    figures |= {name: figure for task in report.tasks for name, figure in draw_parts(report, task).items()}
    pictures = {f"figures/{name}.png": figure.png for name, figure in figures.items()}
    content = json.dumps(report.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    texts = dict(zip(TEXTS, (content, to_markdown(report, figures), to_html(report, figures)), strict=True))
    remove_report(out)
    contents = {**pictures, **texts}
    for name in (*pictures, *reversed(texts)):
        write_whole(out / name, contents[name])
    return [out / name for name in (*texts, *pictures)]
