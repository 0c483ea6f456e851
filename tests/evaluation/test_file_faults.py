"""Errors at the calls on files of evaluations: an error with a way out, and never a part for the whole.

A record, a merge or a report that is there is the one of an undisturbed run; the same call afterwards ends in
all of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from support.evaluation_jobs import JOBS, World, small_demo, worlds
from support.evaluation_stub import results, without_lm_eval
from support.file_faults import FAULTS, Injector, Site, fails_honestly
from support.outcomes import Continued, contents
from taskvec.files.names import MANIFEST

REPORT = ("report.json", "report.md", "report.html")
PARTS = ("best.yaml", "space.yaml", "development/arms/", "held-out/arms/")  # of a search


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    yield from worlds()


# A call, and the lines of the package that have led to it last; what another job has tried is left out.
INNERMOST = 4
tried: set[Site] = set()


def points(sites: dict[Site, list[int]], number: int) -> Iterator[tuple[int, int | None]]:
    """The first call of each line, and of some lines the last one, with a fault each."""
    new = {site: calls for site, calls in sites.items() if site[:INNERMOST] not in tried}
    tried.update(site[:INNERMOST] for site in new)
    for place, calls in enumerate(new.values()):
        yield calls[0], FAULTS[(place + number) % len(FAULTS)]
        if len(calls) > 1 and place % 4 == 0:
            yield calls[-1], FAULTS[(place + number + 3) % len(FAULTS)]


def is_of(found: dict[str, Any], good: dict[str, Any], begun: dict[str, Any]) -> bool:
    """Whether all that looks whole is that of an undisturbed run, or was there before."""
    parts = {
        name: content
        for name, content in found.items()
        if not name.startswith("scratch/") and "partial" not in name and ".taskvec" not in name
    }
    if MANIFEST in parts and parts not in (good, begun):
        return False
    reports = any(parts.get(name) == good.get(name) for name in REPORT if name in parts)
    return all(
        content in (good.get(name), begun.get(name))
        for name, content in parts.items()
        if name.startswith(("arms/", "merges/", *PARTS, *REPORT)) and (name not in REPORT or reports)
    )


@pytest.mark.parametrize("name", JOBS)
def test_every_call_of_an_evaluation(world: World, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_lm_eval(monkeypatch)
    small_demo(monkeypatch)
    job, home = JOBS[name], world.root / name.replace(" ", "-")
    out, begun = home / "out", home / "begun"
    home.mkdir()

    def ready() -> None:
        shutil.rmtree(out, ignore_errors=True)
        if begun.exists():
            shutil.copytree(begun, out)

    job.before(world, out)
    if out.exists():
        shutil.copytree(out, begun)
    first = results(out)
    job.run(world, out)
    good = results(out)
    assert not [path for path in good if path.startswith("scratch")]
    injector = Injector(world.root, monkeypatch)
    ready()
    injector.listen()
    job.run(world, out)
    injector.rest()
    assert results(out) == good
    chosen = list(points(injector.sites, list(JOBS).index(name)))
    print(f"{name}: {len(chosen)} points")
    continued = Continued(lambda: (results(out), [*contents(home)]))

    def go_on() -> None:
        job.run(world, out)
        assert results(out) == good, injector.hit

    for at, fault in chosen:
        ready()
        injector.arm(at, fault)
        failed = fails_honestly(injector, fault, lambda: job.run(world, out))
        if failed:
            assert is_of(results(out), good, first), injector.hit
            continued(go_on)
        else:
            assert results(out) == good, injector.hit
    # nothing has stayed behind in this process either
    ready()
    go_on()
