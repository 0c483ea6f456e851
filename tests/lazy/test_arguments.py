"""Arguments of another kind than a call takes are errors that name them, before anything is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import taskvec as tv
from support.moe import recipe, write_models
from taskvec.errors import Error, RecipeError

ODD = [5, 1.5, True, b"bytes", object(), [3], {1: 2}]
NO_TEXTS = [None, *ODD]
UNCALLED = [value for value in ODD if not isinstance(value, bool)]  # `True` draws a bar
EXPERTS = recipe("random")
SPACE = {
    "transfer": {
        "target": "base",
        "donor": "a",
        "reference": "b",
        "alpha": {"search": {"low": 0, "high": 1}},
    },
    "tasks": ["sciq"],
}
MEAN = {"checkpoints": ["base", "a"], "out": "out"}
ADAPTER = {"donor": "a", "reference": "base", "out": "out", "rank": 2}
TRIO = {"target": "base", "donor": "a", "reference": "b", "out": "out"}
MAP = {"model": "base", "out": "out", "tasks": "sciq"}


def of(call: Callable[..., Any], name: str, **given: Any) -> Callable[[Any], Any]:
    return lambda value: call(**{**given, name: value})


# The argument, how it is given, and values of another kind.
CALLS: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
    "moe.recipe": (of(tv.moe, "recipe", out="out"), [None, *ODD]),
    "moe.out": (of(tv.moe, "out", recipe=EXPERTS), NO_TEXTS),
    "moe.overrides": (of(tv.moe, "overrides", recipe=EXPERTS, out="out"), NO_TEXTS),
    "moe.force": (of(tv.moe, "force", recipe=EXPERTS, out="out"), NO_TEXTS),
    "moe.progress": (of(tv.moe, "progress", recipe=EXPERTS, out="out"), [*UNCALLED, "x"]),
    "tokens.target": (of(tv.tokens, "target", model="a", out="out"), NO_TEXTS),
    "tokens.model": (of(tv.tokens, "model", target="base", out="out"), NO_TEXTS),
    "tokens.out": (of(tv.tokens, "out", target="base", model="a"), NO_TEXTS),
    "tokens.k": (of(tv.tokens, "k", target="base", model="a", out="out"), ["x", *ODD[1:]]),
    "average.checkpoints": (of(tv.average, "checkpoints", out="out"), NO_TEXTS),
    "average.out": (of(tv.average, "out", checkpoints=["base", "a"]), NO_TEXTS),
    **{
        f"average.{name}": (of(tv.average, name, **MEAN), ["x", *ODD[1:]])
        for name in ("first", "last", "every", "best", "schedule")
    },
    "average.half_life": (of(tv.average, "half_life", schedule="ema", **MEAN), ["x", *ODD[2:]]),
    "average.metrics": (of(tv.average, "metrics", best=1, **MEAN), ODD),
    "extract_lora.donor": (of(tv.extract_lora, "donor", **ADAPTER), NO_TEXTS),
    "extract_lora.reference": (of(tv.extract_lora, "reference", **ADAPTER), ODD),
    "extract_lora.out": (of(tv.extract_lora, "out", **ADAPTER), NO_TEXTS),
    "extract_lora.rank": (of(tv.extract_lora, "rank", **ADAPTER), [None, "x", *ODD[1:]]),
    "extract_lora.energy": (
        of(tv.extract_lora, "energy", **{**ADAPTER, "rank": "auto"}),
        ["x", *ODD[2:]],
    ),
    **{
        f"extract_lora.{name}": (of(tv.extract_lora, name, **ADAPTER), ODD)
        for name in ("include", "exclude", "layers", "embeddings", "others", "dtype")
    },
    "search.space": (of(tv.search, "space", out="out"), [None, *ODD]),
    "search.out": (of(tv.search, "out", space=SPACE), NO_TEXTS),
    **{
        f"search.{name}": (of(tv.search, name, space=SPACE, out="out"), ["x", *ODD[1:]])
        for name in ("jobs", "threads", "budget", "seed", "scratch_budget", "devices")
    },
    **{f"search.{name}": (of(tv.search, name, space=SPACE, out="out"), ODD) for name in ("scratch", "ray")},
    "search.progress": (of(tv.search, "progress", space=SPACE, out="out"), UNCALLED),
    **{
        f"importance.{name}": (of(tv.importance, name, **MAP), NO_TEXTS) for name in ("model", "out", "tasks")
    },
    **{
        f"importance.{name}": (of(tv.importance, name, **MAP), ["x", *ODD[3:]])
        for name in ("limit", "seed", "labels", "dtype", "chat_template")
    },
    "importance.device": (of(tv.importance, "device", **MAP), ["foo", "cuda:x", "cpu:1:2", "", *ODD]),
    "importance.model_args": (of(tv.importance, "model_args", **MAP), ["x", *ODD[:6]]),
    "repeat.path": (of(tv.repeat, "path", out="out"), NO_TEXTS),
    "repeat.out": (of(tv.repeat, "out", path="base"), NO_TEXTS),
    **{
        f"check_merge.{name}": (of(tv.check_merge, name, base="base", step="a", merged="b"), NO_TEXTS)
        for name in ("base", "step", "merged")
    },
    "check_merge.alpha": (of(tv.check_merge, "alpha", base="base", step="a", merged="b"), ["x", *ODD[3:]]),
    "diff.left": (of(tv.diff, "left", right="base"), NO_TEXTS),
    "diff.right": (of(tv.diff, "right", left="base"), NO_TEXTS),
    "analyse.vector": (of(tv.analyse, "vector", reference="base"), NO_TEXTS),
    "analyse.reference": (of(tv.analyse, "reference", vector="a"), ODD),
    "ties.models": (of(tv.ties, "models", weight=1.0), [None, "base", *ODD[:5], ODD[6]]),
    "transfer.alpha": (of(tv.transfer, "alpha", **TRIO), [None, "x", b"bytes", object(), {1: 2}]),
    "transfer.layer_scale": (of(tv.transfer, "layer_scale", **TRIO), ["x", *ODD[:5], {1: 2}, ["a"]]),
    "demo.paper": (of(tv.demo, "paper"), ["1.5b", 3, None]),
    "sweep.out": (of(tv.sweep, "out", target="base", donor="a", reference="b", tasks=["sciq"]), NO_TEXTS),
    "importance.include_path": (of(tv.importance, "include_path", **MAP), ODD),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"), "llama")


@pytest.mark.parametrize("name", CALLS)
def test_a_value_of_another_kind_is_an_error_of_ours(
    name: str, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    call, values = CALLS[name]
    for value in values:
        with pytest.raises(Error):
            call(value)
    assert not (world / "out").exists()


def test_parts_of_a_plan(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    plan = tv.open_moe(EXPERTS).plan()
    for value in ODD:
        with pytest.raises(RecipeError, match="`out` is a text or a path"):
            plan.part(0, 2).run(value)
    for value in UNCALLED:
        with pytest.raises(RecipeError, match="`progress` is a function"):
            plan.part(0, 2).run("out", progress=value)


def test_the_argument_is_named(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    with pytest.raises(RecipeError, match=r"`jobs` is a whole number, 1 or more, found the text `x`"):
        tv.search(SPACE, "out", jobs="x")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"`space` is a text or a path, found nothing"):
        tv.search(None, "out")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"`foo` is not a device"):
        tv.importance(**MAP, device="foo")
    with pytest.raises(TypeError, match=r"unknown setting `limt`; did you mean `limit`\?"):
        tv.importance(**MAP, limt=3)
