"""The floor plan: data below, objects above, and every import runs downward, lazy and type-only ones too."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import taskvec

ROOT = Path(taskvec.__file__).parent
EVALUATION = [
    "machines", "settings", "paper", "keywords", "arms", "record", "experiment", "tasks", "analysis",
    "backend", "report", "sweep", "search", "importance", "__init__",
    "miniature",
]  # fmt: skip
# From the ground up: a room knows those before it.
ROOMS = [
    "_core", "host", "keywords", "errors", "progress", "regex", "text", "extras", "bar", "arguments", "shown",
    "files", "dtypes", "option",
    "methods", "models", "settings", "resolve", "compat", "recipe",
    "plan", "report", "run", "lazy", "api", "again", "selftest", "__init__", "integrations",
    *(f"evaluation.{room}" for room in EVALUATION),
    "cli", "__main__",
]  # fmt: skip


def room_of(module: str) -> int:
    """The place of a module's room in their order."""
    return max(at for at, room in enumerate(ROOMS) if f"{module}.__init__.".startswith(f"{room}."))


def imports() -> dict[str, set[str]]:
    """Every module and those that it imports, without the package's name in front."""
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.rglob("*.py")}
    found: dict[str, set[str]] = {module: set() for module in files}
    for module, path in files.items():
        for node in ast.walk(ast.parse(path.read_text())):
            assert not getattr(node, "level", 0), f"{module}: a relative import hides where it leads"
            stated = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                stated = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in stated:
                if name.partition(".")[0] == "taskvec":
                    inner = name.removeprefix("taskvec").removeprefix(".")
                    outer = inner.rpartition(".")[0]
                    ways = (inner, f"{inner}.__init__", outer, f"{outer}.__init__", "__init__")
                    found[module].add(next(way for way in ways if way in files or way == "_core"))
    return found


def test_every_import_runs_downward() -> None:
    upward = [
        f"{module} imports {other}"
        for module, others in imports().items()
        for other in others
        if room_of(other) > room_of(module)
    ]
    assert not upward


def test_there_is_no_circle() -> None:
    TopologicalSorter({module: others - {module} for module, others in imports().items()}).prepare()
