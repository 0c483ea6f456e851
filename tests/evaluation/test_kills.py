"""Evaluations that are killed: the same call goes on, and ends in the results of an undisturbed run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.evaluation_jobs import JOBS, World, small_demo, worlds
from support.evaluation_stub import results, without_lm_eval
from support.kills import Snapshots, put_back, taken
from support.outcomes import contents

# Names in an output folder that say: this is whole.
WHOLE = ("arms/", "merges/", "report.", "best.", "space.", "development/arms/", "held-out/arms/")
TRIED = 12  # of the states of a job, evenly over its time; which ones differs from job to job


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    yield from worlds()


@pytest.mark.parametrize("name", JOBS)
def test_what_a_kill_leaves(world: World, name: str) -> None:
    job, home = JOBS[name], world.root / name.replace(" ", "-")
    out = home / "out"
    home.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        without_lm_eval(patch)
        small_demo(patch)
        job.before(world, out)
        begun, first = taken(home), results(out)
        job.run(world, out)
        good = results(out)
        put_back(begun, home)
        with pytest.MonkeyPatch.context() as watched:
            snapshots = Snapshots(home, watched)
            snapshots.listen()
            job.run(world, out)
            snapshots.rest()
        states = snapshots.states
        assert len(states) > 1
        step = max(1, len(states) // TRIED)
        for state in states[list(JOBS).index(name) % step :: step]:
            put_back(state, home)
            for file, content in results(out).items():
                if file.startswith(WHOLE) and "/." not in file:
                    assert content in (good.get(file), first.get(file)), file
            job.run(world, out)
            assert results(out) == good, sorted(state)
            assert [path.name for path in home.iterdir()] == ["out"]
            assert not [path for path in contents(out) if path.endswith(".part")]
