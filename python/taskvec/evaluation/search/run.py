"""A search from end to end: candidates proposed, merged, evaluated; the best tested on documents held out."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskvec.arguments import path
from taskvec.errors import EvaluationError
from taskvec.evaluation.analysis.compare import Split
from taskvec.evaluation.analysis.scores import part_scores
from taskvec.evaluation.backend.evaluate import require_extra
from taskvec.evaluation.backend.held import let_go
from taskvec.evaluation.backend.identity import settings_identity, versions
from taskvec.evaluation.machines import hold_machines
from taskvec.evaluation.record import ArmRecord, digest_json, write_whole
from taskvec.evaluation.search.candidates import Candidate, Merges, as_yaml, baseline_of
from taskvec.evaluation.search.evaluator import LARGE, Evaluator, Outcome, part_settings
from taskvec.evaluation.search.explore import Exploration
from taskvec.evaluation.search.journal import Book
from taskvec.evaluation.search.places import check_documents, scratch_place
from taskvec.evaluation.search.result import HeldOut, SearchResult
from taskvec.evaluation.search.space import Space, load_space
from taskvec.evaluation.search.trial import Kind, Trial, best, score
from taskvec.evaluation.search.verdict import by_task, verdicts
from taskvec.evaluation.settings import Settings, torch_device
from taskvec.evaluation.sweep.events import Event, Progress
from taskvec.evaluation.sweep.scratch import Scratch, locked
from taskvec.evaluation.sweep.sweep import model_bytes
from taskvec.evaluation.sweep.workers import Pool
from taskvec.evaluation.tasks.apart import keep_apart
from taskvec.extras import install
from taskvec.files import look
from taskvec.run.sinks import hold_folder
from taskvec.shown import watched

if TYPE_CHECKING:
    from taskvec.evaluation.sweep.cluster import RayPool


def search(
    space: str | os.PathLike[str] | Mapping[str, Any] | Space,
    out: str | os.PathLike[str],
    *,
    budget: int | None = None,
    seed: int | None = None,
    overwrite: bool = False,
    scratch: str | os.PathLike[str] | None = None,
    scratch_budget: int | None = None,
    keep: bool = False,
    devices: Sequence[str] = (),
    jobs: int = 1,
    threads: int | None = None,
    ray: str | None = None,
    progress: Progress | bool | None = None,
) -> SearchResult:
    """Search for the best values of a recipe by scores of lm-eval tasks, and test what was found.

    Candidates are judged on a development part of the documents. The best is then held against the baseline,
    the best of a random search and the best plain recipe on the other documents, which nothing was chosen
    by. A search that was killed goes on with the same call.

    Parameters
    ----------
    space : str, path, mapping or Space
        A file, or its content.
    out : str or path
        Receives ``best.yaml``, ``report.html``, ``report.json``, ``journal.jsonl`` and the records.
    budget : int, optional
        Candidates, in place of what the space says. A larger one goes on with a search that has ended.
    seed : int, optional
        Of the optimiser.
    overwrite : bool
        Begin again where the folder holds another search.
    scratch : str or path, optional
        Where merged models lie while they are evaluated; by default in memory (``/dev/shm``) where they take
        no more than a quarter of what is free there, else ``OUT/scratch``.
    scratch_budget : int, optional
        Bytes that they may take together.
    keep : bool
        Leave merged models in the scratch folder, which is then ``OUT/scratch`` by default.
    devices : sequence of str
        GPU numbers or torch devices: one worker process each.
    jobs : int
        Worker processes, where `devices` are not named: they share the one device.
    threads : int, optional
        Torch threads of a worker on the CPU.
    ray : str, optional
        The address of a Ray cluster on which candidates are evaluated; ``"local"`` starts one.
    progress : callable or bool, optional
        Called with an `Event`; ``True`` draws a bar.

    Raises
    ------
    taskvec.Error
        The space is not valid, its models are incompatible, a candidate could not be evaluated for a reason
        that is not its own. Finished candidates are kept.
    """
    require_extra()
    from taskvec.evaluation.tasks.datasets import loaded_once
    from taskvec.evaluation.tasks.find import find_tasks

    hold_folder(path(out, "out"), "a search")
    hold_machines(devices, jobs, threads, scratch, scratch_budget, ray)
    watching = contextlib.ExitStack()
    seen = watching.enter_context(watched(progress))
    given = space if isinstance(space, Space) else load_space(space)
    given = given.with_options(budget=budget, seed=seed)
    out, settings = Path(out), given.settings()
    if ray is not None and (devices or jobs > 1):
        raise EvaluationError("`ray` excludes `devices` and `jobs`", "the cluster says what it has")
    workers = list(devices) or ([torch_device(settings.device)] * jobs if jobs > 1 else [])
    if workers:
        settings = replace(settings, device="cuda" if workers[0].isdigit() else workers[0])
    find_tasks(settings)
    keep_apart(settings, out, scratch)
    merges = Merges(given.form.force)
    start = given.recipe(given.start())
    reference = merges.model("baseline", baseline_of(start, given.form.baseline))
    merges.plan(start)  # models that are incompatible are found before anything is evaluated
    for recipe in given.choices():  # as are models that do not exist
        merges.candidate("choice", recipe)
    tell = seen or (lambda _event: None)
    for remark in start.last.remarks:
        tell(Event("note", remark.message))
    with watching, contextlib.ExitStack() as opened:
        opened.enter_context(loaded_once())
        check_documents(given, settings)
        opened.enter_context(locked(out))
        if ray is not None:
            settings = _connect(opened, ray, settings, out, _folders(start))
        model = reference.folder or str(baseline_of(start, given.form.baseline).path)
        size = model_bytes(model)
        place = scratch_place(out, scratch, size, len(workers) or 1, shared=ray is not None or keep)
        store = Scratch(
            place, out / "merges", merges.merge, model_bytes=size, budget=scratch_budget, keep=keep,
            hold=merges.hold,
        )  # fmt: skip
        opened.callback(store.clear)
        opened.callback(let_go)
        split = Split(given.form.development, settings.seed)

        def evaluator(part: str) -> Evaluator:
            # a process of a cluster that waits must not hold the memory of a GPU
            asked = part_settings(settings, part, split.share, split.seed, holds=ray is None)
            folder = out / part
            pool: Pool | RayPool | None = None
            if ray is not None:
                from taskvec.evaluation.sweep.cluster import RayPool

                pool = RayPool(asked, folder, threads or 1)
            elif workers:
                pool = opened.enter_context(Pool(workers, asked, folder, threads))
            return Evaluator(
                asked, folder, store, think=given.form.think, pool=pool, progress=tell, is_large=size > LARGE,
                sources=lambda: merges.sources,
            )  # fmt: skip

        identity = search_identity(
            given, part_settings(settings, "development", split.share, split.seed, holds=False), merges
        )
        book = Book(out, identity, overwrite=overwrite)
        opened.callback(book.close)
        write_whole(out / "space.yaml", _as_written(given))
        development = evaluator("development")
        runner = Exploration(given, merges, development, book, tell)
        found = runner.run(reference)
        development.close()
        return _finish(given, found, runner, evaluator("held-out"), split, out, settings.seed)


def _finish(
    space: Space,
    trials: dict[Kind, list[Trial]],
    runner: Exploration,
    held_out: Evaluator,
    split: Split,
    out: Path,
    seed: int,
) -> SearchResult:
    """Test the best of each kind on the held-out part, and write what was found."""
    from taskvec.evaluation.search.report import write_report

    chosen = {kind: best(rows) for kind, rows in trials.items()}
    winner = chosen["search"]
    if winner is None:
        failures = {trial.failed for trial in trials["search"]}
        raise EvaluationError(
            f"all {len(trials['search'])} candidates failed: {next(iter(failures))}",
            "narrow the ranges, or look at the recipe with `taskvec merge --dry-run`",
        )
    roles: dict[str, Trial] = {"best": winner}
    for kind in ("baseline", "random", "plain"):
        trial = chosen.get(kind)  # type: ignore[call-overload]
        if trial is not None:
            roles[kind] = trial
    records: dict[str, ArmRecord] = {}

    def done(candidate: Candidate, outcome: Outcome) -> None:
        if outcome.record is None:
            raise EvaluationError(f"`{candidate.name}` cannot be evaluated again: {outcome.failed}")
        records[candidate.name] = outcome.record
        runner.tell("held-out", candidate.name)

    held_out.run([runner.candidates[trial.name] for trial in roles.values()], done)
    rows = [
        _held_out(role, trial, records[trial.name], runner, split, space) for role, trial in roles.items()
    ]
    record = records[winner.name]
    rivals = {row.role: (row.trial.name, row.record) for row in rows[1:]}
    judged = verdicts(
        record, rivals, split, weights=space.form.weights, margin=space.form.compare.margin, seed=seed
    )
    recipe = runner.merges.recipes[winner.name]
    head = (
        f"{winner.name}, the best of {len(trials['search'])} of a search: score {winner.score:.6g} on the\n"
        "development part. `taskvec merge best.yaml OUT` makes its weights."
    )
    text = as_yaml(recipe, head)
    write_whole(out / "best.yaml", text)
    result = SearchResult(
        space=space, split=split, metrics=runner.metrics, best=winner, trace=tuple(trials["search"]),
        random=tuple(trials["random"]), plain=tuple(trials["plain"]), baseline=trials["baseline"][0],
        held_out=tuple(rows), verdicts=tuple(judged),
        comparisons=tuple(by_task(record, [r for _, r in rivals.values()], split, seed=seed)),
        recipe=out / "best.yaml", recipe_text=text, report=out / "report.html", looks=_looks(out),
    )  # fmt: skip
    write_report(result, out)
    return result


def _held_out(
    role: str, trial: Trial, record: ArmRecord, runner: Exploration, split: Split, space: Space
) -> HeldOut:
    found, _, failed = score(record, runner.metrics, space.form.weights)
    if found is None:
        raise EvaluationError(f"`{trial.name}` has no score on the held-out part: {failed}")
    scores = part_scores(record, split, "report")
    return HeldOut(
        role, trial, record, {task: scores[task][metric] for task, metric in runner.metrics.items()}, found
    )


def _looks(out: Path) -> int:
    """How many candidates of the search were looked at on the held-out part."""
    return sum(name.startswith("candidate-") for name in look.listing(out / "held-out" / "arms"))


def search_identity(space: Space, settings: Settings, merges: Merges) -> dict[str, Any]:
    """All that decides the trials of a search, as plain data; its budget does not."""
    form = space.form
    optimiser = form.optimiser.model_dump(mode="json", exclude={"budget", "generations"})
    package = {"cma": "cmaes", "tpe": "optuna"}.get(form.optimiser.name)
    start = merges.candidate("start", space.recipe(space.start()))
    return {
        "recipe": digest_json(space.written),
        "models": start.weights,
        "optimiser": {**optimiser, "population": space.population},
        "weights": dict(form.weights),
        "think": form.think,
        "baseline": form.baseline,
        "evaluation": settings_identity(settings),
        "versions": versions(settings) | ({package: _version(package)} if package else {}),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _connect(
    opened: contextlib.ExitStack, address: str, settings: Settings, out: Path, models: Sequence[str]
) -> Settings:
    """Connect to a cluster; the settings with the kind of device that it has."""
    try:
        from taskvec.evaluation.sweep.cluster import has_gpus, ray_pool  # an extra of its own
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise EvaluationError("Ray is not installed", f"install it: {install('ray')}") from None
    opened.enter_context(ray_pool(address, settings, out, models, None))
    return replace(settings, device="cuda" if has_gpus() else "cpu")


def _folders(recipe: Any) -> list[str]:
    """The folders of the models that a recipe reads."""
    paths = dict.fromkeys(ref.path for ref, _ in recipe.final.models_named())
    return [path for path in paths if look.is_folder(path)]


def _as_written(space: Space) -> str:
    """The space as a file, with every default in place."""
    import yaml

    content = space.to_json()
    content.pop("free")
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
