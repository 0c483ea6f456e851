"""A search from end to end: candidates proposed, merged, evaluated; the best tested on documents held out."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import math
import os
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskvec.errors import EvaluationError, RecipeError
from taskvec.evaluation.analysis.compare import Split
from taskvec.evaluation.analysis.scores import part_scores
from taskvec.evaluation.backend.evaluate import document_hashes, require_extra
from taskvec.evaluation.backend.held import let_go
from taskvec.evaluation.backend.identity import settings_identity, versions
from taskvec.evaluation.record import ArmRecord, digest_json, write_whole
from taskvec.evaluation.search.candidates import Candidate, Merges, as_yaml, baseline_of
from taskvec.evaluation.search.evaluator import LARGE, Evaluator, Outcome, part_settings
from taskvec.evaluation.search.journal import Book
from taskvec.evaluation.search.optimiser import Proposer, RandomPoints, losses, proposer
from taskvec.evaluation.search.result import HeldOut, SearchResult
from taskvec.evaluation.search.space import Point, Space, load_space
from taskvec.evaluation.search.trial import Kind, Trial, best, score
from taskvec.evaluation.search.verdict import by_task, verdicts
from taskvec.evaluation.settings import Settings, torch_device
from taskvec.evaluation.sweep.events import Event, Progress
from taskvec.evaluation.sweep.scratch import Scratch, locked
from taskvec.evaluation.sweep.sweep import model_bytes
from taskvec.evaluation.sweep.workers import Pool
from taskvec.files import look
from taskvec.run.sinks import hold_folder

if TYPE_CHECKING:
    from taskvec.evaluation.sweep.cluster import RayPool

MEMORY = Path("/dev/shm")
NAMES: dict[Kind, str] = {"search": "candidate", "random": "random"}


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
    progress: Progress | None = None,
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
    progress : callable, optional
        Called with an `Event`.

    Raises
    ------
    taskvec.Error
        The space is none, its models do not fit each other, a candidate could not be evaluated for a reason
        that is not its own. Finished candidates are kept.
    """
    require_extra()
    from taskvec.evaluation.tasks.datasets import loaded_once
    from taskvec.evaluation.tasks.find import find_tasks

    hold_folder(out, "a search")
    given = space if isinstance(space, Space) else load_space(space)
    given = given.with_options(budget=budget, seed=seed)
    out, settings = Path(out), given.settings()
    if ray is not None and (devices or jobs > 1):
        raise EvaluationError("`ray` excludes `devices` and `jobs`", "the cluster says what it has")
    workers = list(devices) or ([torch_device(settings.device)] * jobs if jobs > 1 else [])
    if workers:
        settings = replace(settings, device="cuda" if workers[0].isdigit() else workers[0])
    find_tasks(settings)
    merges = Merges(given.form.force)
    start = given.recipe(given.start())
    reference = merges.model("baseline", baseline_of(start, given.form.baseline))
    merges.plan(start)  # models that do not fit each other are found before anything is evaluated
    tell = progress or (lambda _event: None)
    for remark in start.last.remarks:
        tell(Event("note", remark.message))
    with contextlib.ExitStack() as opened:
        opened.enter_context(loaded_once())
        check_documents(given, settings)
        opened.enter_context(locked(out))
        if ray is not None:
            settings = _connect(opened, ray, settings, out, _folders(start))
        model = reference.folder or str(baseline_of(start, given.form.baseline).path)
        size = model_bytes(model)
        place = scratch_place(out, scratch, size, len(workers) or 1, shared=ray is not None or keep)
        store = Scratch(
            place, out / "merges", merges.merge, model_bytes=size, budget=scratch_budget, keep=keep
        )
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
                asked, folder, store, think=given.form.think, pool=pool, progress=tell, is_large=size > LARGE
            )

        identity = search_identity(
            given, part_settings(settings, "development", split.share, split.seed, holds=False), merges
        )
        book = Book(out, identity, overwrite=overwrite)
        opened.callback(book.close)
        write_whole(out / "space.yaml", _as_written(given))
        runner = _Search(given, merges, evaluator("development"), book, tell)
        found = runner.run(reference)
        return _finish(given, found, runner, evaluator("held-out"), split, out, settings.seed)


def _finish(
    space: Space,
    trials: dict[Kind, list[Trial]],
    runner: _Search,
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
    role: str, trial: Trial, record: ArmRecord, runner: _Search, split: Split, space: Space
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


class _Search:
    """The part of a search on the development documents."""

    def __init__(
        self, space: Space, merges: Merges, evaluator: Evaluator, book: Book, progress: Progress
    ) -> None:
        self.space, self.merges = space, merges
        self._evaluator, self._book, self._progress = evaluator, book, progress
        self.metrics: dict[str, str] = {}
        self.candidates: dict[str, Candidate] = {}
        self._scored: dict[str, Trial] = {}
        self._best: Trial | None = None
        self._done, self._total = 0, 0
        # now, so that a package which is missing is named before anything is evaluated
        self._source = proposer(space.free, space.optimiser, space.population, space.start())

    def run(self, reference: Candidate) -> dict[Kind, list[Trial]]:
        """Every trial, by its kind."""
        space = self.space
        plain = list(space.plain_points())
        self._total = 1 + len(plain) + space.budget + space.random_budget
        found: dict[Kind, list[Trial]] = {"baseline": [self._baseline(reference)]}
        found["plain"] = self._plain(plain)
        found["search"] = self._explore("search", self._source, space.budget)
        draws = RandomPoints(space.free, [space.optimiser.seed, 1], space.population)
        found["random"] = self._explore("random", draws, space.random_budget)
        return found

    def tell(self, kind: str, name: str, text: str = "") -> None:
        """Say what is done."""
        self._progress(Event(kind, name, text, self._done, self._total))

    def _baseline(self, candidate: Candidate) -> Trial:
        """The baseline, which decides the metric of each task."""

        def metrics(record: ArmRecord) -> None:
            for task, facts in record.tasks.items():
                if facts.metric is None:
                    raise EvaluationError(
                        f"task `{task}` has no metric per document to search by",
                        "leave it out, or name one in `metrics`",
                    )
                self.metrics[task] = facts.metric

        self.candidates[candidate.name] = candidate
        record = self._evaluator.known(candidate)
        if record is not None:
            metrics(record)
        trial = Trial(candidate.name, "baseline", 1, 0, {}, None, {})
        return self._score([(trial, candidate)], before=metrics)[0]

    def _plain(self, points: Sequence[tuple[str, float | None, Point]]) -> list[Trial]:
        asked = []
        for number, (name, alpha, point) in enumerate(points, start=1):
            values = self.space.values(point) | ({} if alpha is None else {"alpha": alpha})
            trial = Trial(name, "plain", number, 0, values, None, {})
            asked.append((trial, self._candidate(name, point, alpha)))
        return self._score(asked)

    def _explore(self, kind: Kind, source: Proposer, budget: int) -> list[Trial]:
        """Generations of a proposer until the budget is spent; the last may be cut short."""
        trials: list[Trial] = []
        generation = 0
        while len(trials) < budget:
            generation += 1
            points = source.ask()
            asked = []
            for number, point in enumerate(points[: budget - len(trials)], start=len(trials) + 1):
                name = f"{NAMES[kind]}-{number:04d}"
                trial = Trial(name, kind, number, generation, self.space.values(point), None, {})
                asked.append((trial, self._candidate(name, point)))
            trials += self._score(asked)
            if len(asked) == len(points):
                source.tell(losses([trial.score for trial in trials])[-len(points) :])
        return trials

    def _candidate(self, name: str, point: Point, alpha: float | None = None) -> Candidate | str:
        """The candidate at a point, or why there is none."""
        try:
            found = self.merges.candidate(name, self.space.recipe(point, alpha))
        except RecipeError as error:
            return str(error)
        self.candidates[name] = found
        return found

    def _score(
        self,
        asked: Sequence[tuple[Trial, Candidate | str]],
        before: Callable[[ArmRecord], None] = lambda _record: None,
    ) -> list[Trial]:
        """The trials with their scores: from the journal, from equal weights before, or evaluated now."""
        found: dict[str, Trial] = {}
        first: dict[str, str] = {}
        pending: list[Candidate] = []
        trials = {trial.name: trial for trial, _ in asked}

        def finish(trial: Trial, weights: str | None) -> None:
            found[trial.name] = trial
            if weights is not None:
                self._scored.setdefault(weights, trial)
            self._done += 1
            if trial.score is not None and (
                self._best is None or trial.score > (self._best.score or -math.inf)
            ):
                self._best = trial if trial.kind == "search" else self._best

        def record(trial: Trial, weights: str | None) -> None:
            self._book.put(trial)
            finish(trial, weights)
            self.tell("done", trial.name, self._in_words(trial))

        def done(candidate: Candidate, outcome: Outcome) -> None:
            trial = trials[candidate.name]
            seconds = round(outcome.seconds, 3)
            if outcome.record is None:
                record(replace(trial, failed=outcome.failed, seconds=seconds), candidate.weights)
                return
            before(outcome.record)
            total, tasks, failed = score(outcome.record, self.metrics, self.space.form.weights)
            record(
                replace(trial, score=total, tasks=tasks, failed=failed, seconds=seconds), candidate.weights
            )

        for trial, candidate in asked:
            known = self._book.get(trial.name)
            weights = candidate.weights if isinstance(candidate, Candidate) else None
            if known is not None:
                self._hold_same(trial, known)
                finish(known, weights)
                self.tell("known", trial.name)
            elif isinstance(candidate, str):
                record(replace(trial, failed=candidate), None)
            elif candidate.weights not in self._scored and candidate.weights not in first:
                first[candidate.weights] = trial.name
                pending.append(candidate)
        self._evaluator.run(pending, done)
        for trial, candidate in asked:
            if trial.name not in found and isinstance(candidate, Candidate):
                same = self._scored[candidate.weights]
                record(
                    replace(trial, score=same.score, tasks=same.tasks, failed=same.failed, same_as=same.name),
                    candidate.weights,
                )
        return [found[trial.name] for trial, _ in asked]

    def _hold_same(self, trial: Trial, known: Trial) -> None:
        if known.values != trial.values:
            raise EvaluationError(
                f"the journal has `{trial.name}` with other values than are proposed now: another version of "
                "NumPy, or another processor, may draw other points",
                "name another folder with -o, or give --overwrite to begin again",
            )

    def _in_words(self, trial: Trial) -> str:
        if trial.failed is not None:
            return f"failed: {trial.failed}"
        best = "" if self._best is None or self._best.score is None else f", best {self._best.score:.4f}"
        return f"score {trial.score:.4f}{best if trial.kind == 'search' else ''}"


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


def check_documents(space: Space, settings: Settings) -> dict[str, tuple[int, int]]:
    """The documents of each task in the development and in the held-out part.

    Raises
    ------
    EvaluationError
        A part has none of a task's documents, or a weight is of no task.
    """
    split = Split(space.form.development, settings.seed)
    found = {}
    for task, hashes in document_hashes(settings).items():
        inside = sum(map(split.is_development, hashes))
        if inside in (0, len(hashes)):
            part = "development" if inside == 0 else "held-out"
            raise EvaluationError(
                f"none of the {len(hashes)} documents of task `{task}` is in the {part} part",
                "raise `limit`, or change the `development` share",
            )
        found[task] = inside, len(hashes) - inside
    return found


def scratch_place(
    out: Path, named: str | os.PathLike[str] | None, size: int, at_once: int, *, shared: bool
) -> Path:
    """Where merged models lie: in memory if they are small beside what is free there."""
    if named is not None:
        return Path(named)
    name = hashlib.blake2b(os.fsencode(out.absolute()), digest_size=8).hexdigest()
    place = MEMORY / f"taskvec-search-{os.getuid()}-{name}"
    if not shared and _is_ours(place) and 4 * size * at_once <= shutil.disk_usage(MEMORY).free:
        return place
    return out / "scratch"


def _is_ours(place: Path) -> bool:
    """Whether a folder in memory can be made, or was made by this user: anyone may write where it lies."""
    if not os.access(MEMORY, os.W_OK):
        return False
    try:
        status = place.lstat()
    except OSError as error:
        look.hold_absent(place, error)
        return True
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def _connect(
    opened: contextlib.ExitStack, address: str, settings: Settings, out: Path, models: Sequence[str]
) -> Settings:
    """Connect to a cluster; the settings with the kind of device that it has."""
    try:
        from taskvec.evaluation.sweep.cluster import has_gpus, ray_pool  # an extra of its own
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise EvaluationError("Ray is not installed", "install it: pip install 'taskvec[ray]'") from None
    opened.enter_context(ray_pool(address, settings, out, models, None))
    return replace(settings, device="cuda" if has_gpus() else "cpu")


def _folders(recipe: Any) -> list[str]:
    """The folders of the models that a recipe reads."""
    paths = dict.fromkeys(ref.path for ref, _ in recipe.final.models_named())
    return [path for path in paths if os.path.isdir(path)]


def _as_written(space: Space) -> str:
    """The space as a file, with every default in place."""
    import yaml

    content = space.to_json()
    content.pop("free")
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
