"""Arguments of another kind than a call takes are errors that name them, before anything is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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
    **{
        f"transfer.{name}": (of(tv.transfer, name, **TRIO), [None, "no", 0, 1, *ODD[1:2], *ODD[3:]])
        for name in ("overwrite", "resume", "rehash", "stream", "public", "strict", "input_digests")
    },
    **{
        f"transfer.{name}": (of(tv.transfer, name, **TRIO), ["2", *ODD[1:]])
        for name in ("threads", "seed", "max_memory")
    },
    **{
        f"transfer.{name}": (of(tv.transfer, name, **TRIO), ["x", *ODD[1:]])
        for name in ("max_shard_size", "scratch_size")
    },
    "transfer.tokenizer": (of(tv.transfer, "tokenizer", **TRIO), ["x", *ODD]),
    "transfer.control": (of(tv.transfer, "control", **TRIO), ["x", *ODD]),
    "diff.threads": (of(tv.diff, "threads", left="base", right="a"), ["2", 0, *ODD[1:]]),
    "verify.threads": (of(tv.verify, "threads", path="base"), ["2", 0, *ODD[1:]]),
    "finish.threads": (of(tv.finish, "threads", out="base"), ["2", 0, *ODD[1:]]),
    "bench.threads": (of(tv.bench, "threads", size="0.1b"), ["2", 0, *ODD[1:]]),
    "bench.runs": (of(tv.bench, "runs", size="0.1b"), ["2", 0, None, *ODD[1:]]),
    "analyse.groups": (of(tv.analyse, "groups", vector="a", reference="base"), ["x", 0, *ODD[1:]]),
    "analyse.spectra": (of(tv.analyse, "spectra", vector="a", reference="base"), [None, "no", *ODD[:2]]),
    "demo.overwrite": (of(tv.demo, "overwrite", folder="out"), [None, "no", *ODD[:2]]),
    "evaluate.kind": (of(tv.evaluate, "kind", model="base", tasks="sciq", out="out"), NO_TEXTS),
    "evaluate.model": (of(tv.evaluate, "model", tasks="sciq", out="out"), ["nowhere", *NO_TEXTS]),
    **{
        f"sweep.{name}": (of(tv.sweep, name, **{**TRIO, "tasks": ["sciq"]}), ["nowhere", *ODD])
        for name in ("target", "donor", "reference")
    },
    "sweep.vector": (of(tv.sweep, "vector", target="base", tasks=["sciq"], out="out"), ["nowhere", *ODD]),
    "sweep.keep": (of(tv.sweep, "keep", **{**TRIO, "tasks": ["sciq"]}), [None, "no", *ODD[:2]]),
    "from_state_dict.tensors": (tv.from_state_dict, [None, "x", *ODD[:6]]),
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
        with pytest.raises(RecipeError, match="`progress` is true, false or a function"):
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
    with pytest.raises(RecipeError, match=r"`overwrite` is true or false, found the text `no`"):
        tv.transfer(**TRIO, overwrite="no")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"`threads` is a whole number, found the text `2`"):
        tv.transfer(**TRIO, threads="2")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"`ties` has no parameter `base_model`") as caught:
        tv.ties(["a", "b"], base_model=tv.open("base"), weight=1.0)  # type: ignore[call-arg]
    assert caught.value.hint == "give it as `base=`"
    with pytest.raises(RecipeError, match=r"`slerp` needs a base model") as caught:
        tv.slerp(["a", "b"], t=0.5)  # type: ignore[call-arg]
    assert caught.value.hint is not None
    assert "`base=`" in caught.value.hint


def test_numbers_of_numpy(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    vector, target = tv.open("a") - tv.open("base"), tv.open("b")
    half = np.float32(0.5) * vector
    assert str(half) == str(0.5 * vector) == str(vector * np.float64(0.5))
    assert str(np.int64(2) * vector) == str(2 * vector)
    assert str(vector + target) == str(target + vector)  # a sum has no order
    assert tv.Settings(seed=np.int64(3)).seed == 3
    for value in (np.ones(2), np.bool_(True), "0.5"):
        with pytest.raises(TypeError):
            value * vector


def test_models_that_are_open(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from taskvec.evaluation.sweep.named import named

    monkeypatch.chdir(world)
    assert named(tv.open("a")) == "a"
    with pytest.raises(RecipeError, match="is in memory"):
        named(tv.from_state_dict({"w": np.ones(2, np.float32)}))
    with pytest.raises(RecipeError, match="takes a vector that is saved"):
        tv.sweep(target="b", vector=tv.open("a") - tv.open("base"), tasks=["sciq"], out="out")
