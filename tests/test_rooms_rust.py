"""Every `use` of the Rust core runs down through its rooms, and no file comes back to itself."""

import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

CORE = Path(__file__).parent.parent / "rust" / "core"
# From the bottom up, as the crate lists them: each may use those before it.
ROOMS = re.findall(r"^(?:pub )?mod (\w+);", (CORE / "lib.rs").read_text(encoding="utf-8"), re.MULTILINE)
FILES = {
    tuple(part for part in path.relative_to(CORE).with_suffix("").parts if part != "mod"): path
    for path in CORE.rglob("*.rs")
    if path.name != "lib.rs"
}


def used(module: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The modules that a file names, but for its tests."""
    code = re.sub(r"//.*", "", FILES[module].read_text(encoding="utf-8")).split("#[cfg(test)]\nmod tests")[0]
    code = re.sub(r"\bpub\(\w+\)", "pub", code)
    code = re.sub(r"\buse (?!crate|super|self|std)(?=\w+::)", "use self::", code)
    for path, group in re.findall(r"\b((?:crate|super|self)(?:::\w+)*)(?:::\{([^;]*?)\};)?", code):
        for last in re.findall(r"\w+", group) or [""]:
            parts = [*path.split("::"), last]
            steps = [part for part in parts if part not in ("crate", "super", "self")]
            start = () if parts[0] == "crate" else module[: len(module) - parts.count("super")]
            whole = (*start, *steps)
            known = [whole[:n] for n in range(1, len(whole) + 1) if whole[:n] in FILES]
            yield from known[-1:]


def test_every_use_runs_down_and_none_in_a_circle() -> None:
    graph = {module: set(used(module)) - {module} for module in FILES}
    assert {module[0] for module in FILES} == set(ROOMS)
    upward = [
        f"{'::'.join(user)} uses {'::'.join(other)}"
        for user, others in graph.items()
        for other in others
        if ROOMS.index(other[0]) > ROOMS.index(user[0])
    ]
    assert not upward
    graphlib.TopologicalSorter(graph).prepare()
