"""What the fuzz targets of the Python layer began with and what they have found, tried again."""

from __future__ import annotations

import tomllib

import pytest

from fuzz.python_targets import SEEDS, TARGETS, check


@pytest.mark.parametrize("target", TARGETS)
def test_kept_inputs(target: str) -> None:
    kept = sorted((SEEDS / target).iterdir())
    assert len(kept) > 2
    for path in kept:
        data = path.read_bytes()
        check(target, data)
        for length in range(0, len(data), max(1, len(data) // 40)):
            check(target, data[:length])


def test_the_lock_of_the_targets_has_what_the_core_needs() -> None:
    """They are built with `--locked`, which nothing else in the tests does."""
    root = SEEDS.parents[2]
    needs = tomllib.loads((root / "Cargo.toml").read_text())
    wanted = set(needs["dependencies"])
    for each in needs.get("target", {}).values():
        wanted |= set(each.get("dependencies", ()))
    locked = tomllib.loads((root / "tests" / "fuzz" / "Cargo.lock").read_text())["package"]
    (core,) = (package for package in locked if package["name"] == needs["package"]["name"])
    assert wanted <= {name.split()[0] for name in core["dependencies"]}
    assert {name.split()[0] for name in core["dependencies"]} <= {package["name"] for package in locked}
