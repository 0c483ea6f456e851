"""Errors at the calls of the Python layer's file operations, for every verb.

Each run ends in the right bytes, or in a named error with a way out and nothing that looks complete and is
not; the same command afterwards ends in the bytes of an undisturbed run. Inputs stay as they are, nothing
is left next to an output, and an output that is replaced is there until the new one is.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import save_file

import taskvec as tv
from support.file_faults import FAULTS, Injector, Site, fails_honestly
from support.models import Trio, write_trio
from support.oracle import same_files
from support.outcomes import Continued, Whole, contents, settled
from support.vocabularies import write_words
from taskvec import cli
from taskvec.lazy.recipe import scratch_of
from taskvec.run import shared_state
from taskvec.selftest import bench, demo, synthetic

# Of the faults, how many are tried at the first call of each line of the package that makes some. Which ones
# differs from verb to verb.
AT_EACH = 1
SIZES = {"layers": 1, "hidden": 8, "intermediate": 8, "heads": 2, "kv_heads": 1, "vocabulary": 32}


SMALL = synthetic.Shape(layers=1, hidden=8, intermediate=8, vocabulary=32, heads=2, kv_heads=1)  # of the demo


class World(NamedTuple):
    """The inputs of all verbs, and a folder for outputs."""

    root: Path
    trio: Trio
    vector: Path
    adapter: Path

    @property
    def inputs(self) -> Path:
        return self.root / "in"

    @property
    def recipe(self) -> Path:
        return self.root / "in" / "recipe.yaml"

    @property
    def temporary(self) -> Path:
        return self.root / "temporary"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """In memory, where there is such a place: the runs flush many times."""
    shared = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(dir=shared if os.access(shared, os.W_OK) else None)).resolve()
    trio = write_trio(root / "in", **SIZES)
    (trio.target / "sub").mkdir()
    (trio.target / "sub" / "notes.txt").write_text("notes")
    tv.extract(trio.donor, trio.reference, root / "in" / "vector")
    made = World(root, trio, root / "in" / "vector", root / "in" / "adapter")
    write_adapter(made.adapter)
    made.recipe.write_text(json.dumps(ties(made)))
    for name, words in (("few", range(20)), ("many", range(8, 30))):
        shutil.copytree(trio.target, root / "in" / name)
        write_words(root / "in" / name, words)
    (root / "in" / "plan.json").write_bytes(tv.plan_transfer(*trio).to_bytes())
    for step, folder in ((1, trio.donor), (2, trio.reference)):
        shutil.copytree(folder, root / "in" / "run" / f"checkpoint-{step}")
    made.temporary.mkdir()
    yield made
    shutil.rmtree(root, ignore_errors=True)


def write_adapter(folder: Path) -> None:
    folder.mkdir()
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_{}.weight"
    factors = {name.format("A"): np.ones((2, 8), np.float32), name.format("B"): np.ones((8, 2), np.float32)}
    save_file(factors, folder / "adapter_model.safetensors")
    settings = '{"peft_type": "LORA", "r": 2, "lora_alpha": 1}'
    (folder / "adapter_config.json").write_text(settings)


class Verb(NamedTuple):
    """What is run into an output folder, and how that folder is made ready for it."""

    job: Callable[[Path], object]
    before: Callable[[Path], object] = lambda _: None


def ties(world: World) -> dict[str, Any]:
    models = [{"model": str(world.trio.donor)}]
    parameters = {"weight": 1.0, "density": 0.5}
    return {
        "merge_method": "ties",
        "base_model": str(world.trio.target),
        "models": models,
        "parameters": parameters,
    }


def documents(world: World, alphas: str = "") -> str:
    one = "{{model: {}, parameters: {{weight: 1}}}}".format
    mean = f"merge_method: linear\nmodels: [{one(world.trio.donor)}]\nname: mean\n"
    last = (
        f"merge_method: task_arithmetic\nbase_model: {world.trio.target}\nmodels: [{one('mean')}]\n{alphas}"
    )
    return f"{mean}---\n{last}"


def mixture(trio: Trio) -> dict[str, object]:
    """A recipe of experts whose gates are made of prompts."""
    donor = {"source_model": str(trio.donor), "positive_prompts": ["12"]}
    reference = {"source_model": str(trio.reference), "positive_prompts": ["34"]}
    return {
        "base_model": str(trio.target),
        "gate_mode": "cheap_embed",
        "experts": [donor, reference],
        "shared_experts": [donor],
    }


def command(*arguments: object) -> None:
    """The command line in this process: its errors are raised again, with the way out that it has printed."""
    told = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(told):
        code = cli.run([str(argument) for argument in arguments])
    if code == 130:
        raise KeyboardInterrupt
    if code:
        message, _, hint = told.getvalue().partition("\n  hint: ")
        assert "\nerror: " in f"\n{message}", message
        assert "Traceback" not in message, message
        raise tv.Error(message, hint)


def planned(world: World, out: Path) -> None:
    """A plan in a file."""
    target, donor, reference = world.trio
    roles = ["--target", target, "--donor", donor, "--reference", reference]
    command("plan", "transfer", *roles, "--to", "elsewhere", "-o", out / "plan.json")


def parts(world: World, out: Path, **more: Any) -> None:
    """A run in two parts."""
    plan = tv.plan_transfer(*world.trio, max_shard_size=2000)
    for number in range(2):
        plan.part(number, 2).run(out, **more)


def unended(world: World, out: Path) -> None:
    """What is left where the part that ends last is killed before its end."""

    def stop(_: Path) -> bool:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_state, "claim_end", stop)
        with pytest.raises(KeyboardInterrupt):
            parts(world, out)


def ended(world: World, out: Path) -> None:
    """The end of a run in parts; where it was stopped in the middle of that, or at its end, a part again."""
    try:
        command("finish", out)
    except tv.Error as error:
        if "any part again" not in (error.hint or "") and "holds a finished output" not in error.message:
            raise
        parts(world, out)


def measured(world: World, out: Path) -> None:
    """A benchmark, which leaves nothing."""
    bench.bench(
        world.trio.target, donor=world.trio.donor, reference=world.trio.reference, directory=out, runs=1
    )


def half(world: World) -> Callable[[Path], object]:
    """What a kill leaves behind when the weights and some other files are in place."""

    def before(out: Path) -> None:
        def stop(progress: tv.Progress) -> None:
            if progress.phase == "publish":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            tv.transfer(*world.trio, out, alpha=0.5, progress=stop)

    return before


def writers(world: World) -> dict[str, Verb]:
    trio, adapted = world.trio, {"model": f"{world.trio.donor}+{world.adapter}"}
    transfer = lambda out, **settings: tv.transfer(*trio, out, alpha=0.5, **settings)  # noqa: E731
    finished = lambda out: tv.merge(world.recipe, out)  # noqa: E731

    def tokens(out: Path, **settings: Any) -> None:
        with tv.storage(scratch=world.root / "scratch"):
            tv.tokens(world.inputs / "few", world.inputs / "many", out, k=3, **settings)

    return {
        "transfer": Verb(transfer),
        "overwrite": Verb(lambda out: transfer(out, overwrite=True), finished),
        "resume": Verb(transfer, half(world)),
        "again": Verb(transfer, transfer),
        "alphas": Verb(lambda out: tv.transfer(*trio, out, alpha=[0, 1])),
        "extract": Verb(lambda out: tv.extract(trio.donor, trio.reference, out)),
        "extract overwrite": Verb(
            lambda out: tv.extract(trio.donor, trio.reference, out, overwrite=True), finished
        ),
        "lora": Verb(lambda out: tv.extract_lora(trio.donor, trio.reference, out, rank=2)),
        "lora overwrite": Verb(
            lambda out: tv.extract_lora(trio.donor, trio.reference, out, rank=2, overwrite=True), finished
        ),
        "apply": Verb(lambda out: tv.apply(trio.target, world.vector, out=out)),
        "plan": Verb(lambda out: planned(world, out), Path.mkdir),
        "run": Verb(lambda out: command("run", world.inputs / "plan.json", "-o", out)),
        "parts": Verb(lambda out: parts(world, out)),
        "finish": Verb(lambda out: ended(world, out), lambda out: unended(world, out)),
        "bench": Verb(lambda out: measured(world, out), Path.mkdir),
        "demo": Verb(lambda out: demo.demo(out, overwrite=True)),
        "convert": Verb(lambda out: tv.convert(trio.target, out, out_dtype="float32")),
        "average": Verb(lambda out: tv.average([trio.donor, trio.reference], out)),
        "average of a run": Verb(
            lambda out: command("average", world.inputs / "r*n" / "checkpoint-*", "-o", out)
        ),
        "tokens": Verb(tokens),
        "tokens overwrite": Verb(lambda out: tokens(out, overwrite=True), finished),
        "merge": Verb(finished),
        "moe": Verb(lambda out: tv.moe(mixture(trio), out)),
        "adapter": Verb(lambda out: tv.merge({"merge_method": "passthrough", "models": [adapted]}, out)),
        "documents": Verb(lambda out: tv.merge(documents(world), out)),
        "documents overwrite": Verb(lambda out: tv.merge(documents(world), out, overwrite=True), finished),
        "documents alphas": Verb(lambda out: tv.merge(documents(world, "alpha: [0.5, 1]\n"), out)),
    }


VERBS = (
    *(
        "transfer",
        "overwrite",
        "resume",
        "again",
        "alphas",
        "extract",
        "extract overwrite",
        "apply",
        "convert",
        "average",
    ),
    *("merge", "adapter", "documents", "documents overwrite", "documents alphas"),
    *("lora", "lora overwrite", "tokens", "tokens overwrite", "moe"),
    *("plan", "run", "parts", "finish", "average of a run", "bench", "demo"),
)
# The commands that have no row here, and why.
ELSEWHERE = {
    **dict.fromkeys(("eval", "sweep", "search", "importance"), "tests/evaluation/test_file_faults.py"),
    **dict.fromkeys(("methods", "completion"), "reads and writes no file"),
    "tasks": "tests/evaluation/tasks/test_fetch.py: a file that is cut, changed or in the way",
    "report": "reads what a sweep has written, whose faults are in tests/evaluation/test_file_faults.py",
    "check-merge": "reads through the same door as diff, and writes no file",
    "analyse": "reads through the same door as diff, and writes its figures after all has been read",
}
READERS = ("inspect", "check", "diff", "verify", "plan", "norms", "in place")


def points(sites: dict[Site, list[int]], verb: str) -> Iterator[tuple[int, int | None]]:
    """The first call of every site with some of the faults, and the last one with another; of two verbs all.

    Recipes of several documents, parts and benchmarks take several runs each: the last calls are those of
    another verb.
    """
    if verb in ("transfer", "extract"):
        for at in range(1, sum(map(len, sites.values())) + 1):
            yield at, FAULTS[at % len(FAULTS)]
        return
    for number, calls in enumerate(sites.values()):
        first = number + 3 * VERBS.index(verb)
        for turn in range(AT_EACH):
            yield calls[0], FAULTS[(first + turn) % len(FAULTS)]
        if len(calls) > 1 and not verb.startswith(("documents", "parts", "finish", "bench")):
            yield calls[-1], FAULTS[(first + AT_EACH) % len(FAULTS)]


@pytest.mark.parametrize("verb", VERBS)
def test_every_call_of_a_verb_that_writes(world: World, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", os.fspath(world.temporary))
    monkeypatch.setattr(bench, "MEMCPY_BYTES", 1000)
    monkeypatch.setitem(synthetic.SHAPES, "demo", SMALL)
    monkeypatch.setattr(synthetic, "BLOCK", 1 << 12)
    job, before = writers(world)[verb]
    home = world.root / verb.replace(" ", "-")
    out, good, begun = home / "out", world.root / f"{home.name}-good", world.root / f"{home.name}-begun"
    home.mkdir()
    before(out)
    if out.exists():
        shutil.copytree(out, begun)
    job(out)
    shutil.copytree(out, good)
    inputs, whole = contents(world.inputs), Whole()
    left = (home, scratch_of(out), world.root / "scratch", world.temporary)
    continued = Continued(lambda: [settled(folder) for folder in left])
    injector = Injector(world.root, monkeypatch)

    def ready() -> None:
        for folder in (out, scratch_of(out)):
            shutil.rmtree(folder, ignore_errors=True)
        if begun.exists():
            shutil.copytree(begun, out)

    ready()
    injector.listen()
    job(out)
    injector.rest()
    assert len(injector.sites) > 40
    tried = list(points(injector.sites, verb))
    print(f"{verb}: {len(tried)} points")

    def is_right() -> None:
        same_files(out, good)
        assert [path.name for path in home.iterdir()] == ["out"], injector.hit
        assert not list(world.temporary.iterdir()), injector.hit

    def go_on() -> None:
        job(out)
        is_right()

    for at, fault in tried:
        ready()
        injector.arm(at, fault)
        failed = fails_honestly(injector, fault, lambda: job(out))
        complete = whole(out)
        if failed:
            assert complete or "overwrite" not in verb, injector.hit
            continued(go_on)
        else:
            is_right()
    # nothing has stayed behind in this process either
    ready()
    go_on()
    assert contents(world.inputs) == inputs


def test_every_command_has_a_row_or_a_reason() -> None:
    """A new command is a row in `writers` or `readers`, or says in `ELSEWHERE` where it is tried."""
    assert set(cli.VERBS) == {each for each in (*VERBS, *READERS) if each in cli.VERBS} | ELSEWHERE.keys()
    assert not ELSEWHERE.keys() & {*VERBS, *READERS}


def readers(world: World, out: Path) -> dict[str, Callable[[], object]]:
    trio, recipe = world.trio, world.recipe
    adapted = {"merge_method": "passthrough", "models": [{"model": f"{trio.donor}+{world.adapter}"}]}

    def plans() -> object:
        kinds = (tv.open_recipe(recipe).plan(), tv.open_recipe(adapted).plan(), tv.plan_transfer(*trio))
        return [plan.json for plan in kinds]

    def in_place() -> object:
        opened = tv.open(trio.target)
        model = {name: array.copy() for name, array in opened.items()}
        tv.load_vector(world.vector).apply_(model)
        return {name: array.tobytes() for name, array in model.items()}

    return {
        "inspect": lambda: tv.inspect(out).to_dict(),
        "check": lambda: [finding.to_dict() for finding in tv.check(*trio)],
        "diff": lambda: tv.diff(trio.donor, trio.reference).to_dict(),
        "verify": lambda: tv.verify(out).to_dict()["files"],
        "plan": plans,
        "norms": lambda: tv.load_vector(world.vector).norm(),
        "in place": in_place,
    }


@pytest.mark.parametrize("verb", READERS)
def test_every_call_of_a_verb_that_reads(world: World, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = world.root / "verified"
    if not out.exists():
        tv.transfer(*world.trio, out)
    result = readers(world, out)[verb]

    def told() -> object:
        found = result()
        return {k: v for k, v in found.items() if k != "seconds"} if isinstance(found, dict) else found

    expected = told()
    injector = Injector(world.root, monkeypatch)
    injector.listen()
    told()
    assert injector.sites
    firsts = [(calls[0], fault) for calls in injector.sites.values() for fault in FAULTS]
    lasts = [(calls[-1], FAULTS[calls[-1] % len(FAULTS)]) for calls in injector.sites.values()]
    print(f"{verb}: {len(firsts) + len(lasts)} points")
    for at, fault in firsts + lasts:
        injector.arm(at, fault)
        found: list[object] = []
        if not fails_honestly(injector, fault, lambda found=found: found.append(told())):
            assert found == [expected], injector.hit
