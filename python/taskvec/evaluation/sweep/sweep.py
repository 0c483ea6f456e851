"""The experiment from end to end: merge, evaluate, choose alpha, run the controls, report."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from taskvec.arguments import function, path, switch, texts
from taskvec.errors import EvaluationError
from taskvec.evaluation.analysis.compare import Part, Split
from taskvec.evaluation.analysis.conclusions import Choice, choose_alpha
from taskvec.evaluation.arms import MERGED, PARTS, Arm, control_arms, plan_arms
from taskvec.evaluation.backend.decoding import check_alike
from taskvec.evaluation.backend.delta import Placement
from taskvec.evaluation.backend.evaluate import document_hashes, evaluate_into, finished, require_extra
from taskvec.evaluation.backend.identity import hold_unchanged, resolve, source
from taskvec.evaluation.experiment import Experiment
from taskvec.evaluation.machines import hold_machines
from taskvec.evaluation.record import ArmRecord, record_path, write_whole
from taskvec.evaluation.report.report import Report, build_report
from taskvec.evaluation.report.write import remove_report, write_report
from taskvec.evaluation.settings import Settings, torch_device
from taskvec.evaluation.sweep.adapters import with_adapters
from taskvec.evaluation.sweep.check_vectors import check_vectors
from taskvec.evaluation.sweep.events import Event, Progress
from taskvec.evaluation.sweep.merge import MergeArms, Merger, arm_weights, model_of
from taskvec.evaluation.sweep.named import hold_found
from taskvec.evaluation.sweep.other_models import hold_same_sweep
from taskvec.evaluation.sweep.part_arms import part_arms
from taskvec.evaluation.sweep.part_vectors import vector_names
from taskvec.evaluation.sweep.parts import check_parts
from taskvec.evaluation.sweep.place import Places
from taskvec.evaluation.sweep.ram import is_in_memory, ram_folder
from taskvec.evaluation.sweep.rivals import check_rivals, matched_arms
from taskvec.evaluation.sweep.scratch import Scratch, locked, read_facts
from taskvec.evaluation.sweep.workers import Job, Pool
from taskvec.evaluation.tasks.apart import keep_apart
from taskvec.extras import install
from taskvec.files import look
from taskvec.text import plural

if TYPE_CHECKING:
    from taskvec.evaluation.sweep.cluster import RayPool


def run_sweep(
    experiment: Experiment,
    out: Path,
    *,
    merge: MergeArms | None = None,
    scratch: Path | None = None,
    budget: int | None = None,
    keep: bool = False,
    devices: Sequence[str] = (),
    jobs: int = 1,
    threads: int | None = None,
    ray: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Run an experiment and write its report.

    Arms that are done under the same settings are not run again; a run that was killed goes on with the same
    call, within an arm at the block where it stopped.

    Parameters
    ----------
    experiment : Experiment
    out : Path
        Output folder: ``report.html``, ``report.json``, ``report.md``, ``figures/``, ``arms/``.
    merge : callable, optional
        Makes the weights of arms; by default taskvec's engine.
    scratch : Path, optional
        Where merged models lie meanwhile; by default ``OUT/scratch``, or in memory for one engine of vLLM.
    budget : int, optional
        Bytes that they may take together.
    keep : bool
        Leave merged models in the scratch folder.
    devices : sequence of str
        GPU numbers or torch devices: one worker process each. Without any, arms run in this process.
    jobs : int
        Worker processes, where `devices` are not named: they share the one device.
    threads : int, optional
        Torch threads of a worker on the CPU; by default the cores are divided among them.
    ray : str, optional
        The address of a Ray cluster on which arms are evaluated, one at a time on each GPU, or on the CPUs
        where it has none; ``"local"`` starts one. `devices` and `jobs` are of this machine alone.
    progress : callable, optional
        Called with an `Event`.

    Returns
    -------
    Report

    Raises
    ------
    EvaluationError, taskvec.Error
        An arm could not be merged or evaluated; finished arms are kept.
    """
    require_extra()
    from taskvec.evaluation.tasks.datasets import loaded_once
    from taskvec.evaluation.tasks.find import find_tasks

    out, settings = Path(path(out, "out")), experiment.settings()
    hold_machines(devices, jobs, threads, scratch, budget, ray)
    keep_apart(settings, out, scratch)
    function(progress, "progress")
    switch(keep, "keep")
    if ray is not None and (devices or jobs > 1):
        raise EvaluationError("`ray` excludes `devices` and `jobs`", "the cluster says what it has")
    devices = texts(devices, "devices")  # one text is one device
    workers = list(devices) or ([torch_device(settings.device)] * jobs if jobs > 1 else [])
    if workers:
        # the kind of device is part of an arm's identity: this process has to name the workers' own
        settings = replace(settings, device="cuda" if workers[0].isdigit() else workers[0])
    with contextlib.ExitStack() as opened:
        pool: Pool | RayPool | None = None
        if ray is not None:
            pool, settings = _on_cluster(opened, ray, experiment, settings, out, threads)
        elif workers:
            pool = opened.enter_context(Pool(workers, settings, out, threads))
        if pool is not None and not all(
            look.exists(record_path(out, a.name)) for a in planned_arms(experiment)
        ):
            pool.start()  # they get ready while this process does
        opened.enter_context(loaded_once())
        find_tasks(settings)  # an unknown task is found before anything is merged
        hold_found(dict.fromkeys((experiment.target, *experiment.models)))
        opened.enter_context(locked(out))
        hold_same_sweep(experiment, out, planned_arms(experiment))
        write_whole(out / "experiment.yaml", experiment.to_yaml())
        tell = progress or (lambda _event: None)
        experiment = with_adapters(experiment, out, lambda text: tell(Event("note", text, "", 0, 0)))
        runner = _Runner(experiment, settings, out, pool, tell)
        merger = Merger(experiment, runner.digests)
        in_place = merge is None and not keep and experiment.arms == "place"
        if scratch is None and settings.backend == "vllm" and pool is None and not keep and budget is None:
            scratch = opened.enter_context(ram_folder(out, model_bytes(experiment.target)))
        if scratch is not None and is_in_memory(scratch):
            runner.tell("note", f"merged arms lie in memory while they are evaluated, under `{scratch}`")
        runner.scratch = Scratch(
            scratch or out / "scratch",
            out / "merges",
            merge or merger,
            model_bytes=model_bytes(experiment.target),
            budget=budget,
            keep=keep,
            waits=in_place and not experiment.parts,
            has_manifests=merge is None,
            hold=runner.hold,
        )
        if in_place:
            runner.merger = merger
        if merge is None:
            target = runner.folder(experiment.target)
            runner.hold_vectors = functools.partial(
                check_vectors, experiment, merger, planned_arms(experiment), target
            )
        opened.callback(_let_go)
        report = _every_arm(experiment, out, runner)
        write_report(report, out)
        return report


def _let_go() -> None:
    """Give the memory of a model back that was held in this process."""
    for name in ("place", "engine"):
        module = sys.modules.get(f"taskvec.evaluation.backend.{name}")
        if module is not None:
            module.let_go()


def _on_cluster(
    opened: contextlib.ExitStack,
    address: str,
    experiment: Experiment,
    settings: Settings,
    out: Path,
    threads: int | None,
) -> tuple[RayPool, Settings]:
    """The pool on a cluster, and the settings with the kind of device that it has: part of an arm."""
    try:
        from taskvec.evaluation.sweep.cluster import has_gpus, ray_pool  # an extra of its own
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise EvaluationError("Ray is not installed", f"install it: {install('ray')}") from None
    pool = opened.enter_context(ray_pool(address, settings, out, experiment.models, threads))
    settings = replace(settings, device="cuda" if has_gpus() else "cpu")
    pool.settings = settings
    return pool, settings


def _every_arm(experiment: Experiment, out: Path, runner: _Runner) -> Report:
    """Run the arms, choose alpha, run the arms that wait for it, and compare."""
    records = runner.run(planned_arms(experiment))
    think = experiment.think if experiment.think_only else None
    choice = choose_alpha(records, split(experiment), think=think, choosing=experiment.choose)
    if choice is not None:
        arms = waiting_arms(experiment, choice, runner.matched(records, choice))
        records += runner.run(arms + part_arms(experiment, choice.alphas, vector_names(experiment)))
    runner.scratch.clear()
    merges = {
        record.name: facts
        for record in records
        if record.kind in MERGED
        and (facts := read_facts(out / "merges" / f"{record.arm.weights}.json")) is not None
    }
    return build_report(
        records,
        split=split(experiment),
        think=think,
        choosing=experiment.choose,
        merges=merges,
        commands=[f"taskvec sweep {out / 'experiment.yaml'} -o {out}"],
        recovery=runner.is_recovery,
        size=experiment.paper,
        pass_at=experiment.settings().pass_at,
    )


def planned_arms(experiment: Experiment) -> list[Arm]:
    """The arms that are known before any result."""
    return plan_arms(
        alphas=experiment.alphas,
        donor=experiment.donor is not None,
        reference=experiment.reference is not None,
        base=experiment.base is not None,
        rivals=tuple(experiment.rival_models),
        sft_alphas=experiment.sft_alphas,
        think=experiment.think,
        think_only=experiment.think_only,
        perturb=experiment.perturb,
    )


def waiting_arms(experiment: Experiment, choice: Choice, matched: Mapping[float, Sequence[Arm]]) -> list[Arm]:
    """The arms that wait for the choice of alpha, each alpha that was chosen with its own controls."""
    return [
        arm
        for alpha in choice.alphas
        for arm in control_arms(
            alpha=alpha,
            random=experiment.controls.random,
            permuted=experiment.controls.permuted,
            matched=matched.get(alpha, ()),
            numbered=len(choice.alphas) == 1,
            think=experiment.think,
            think_only=experiment.think_only,
            perturb=experiment.perturb,
        )
    ]


def split(experiment: Experiment) -> Split:
    """The division into a development and a report part; its seed is the evaluation's."""
    return Split(experiment.development, experiment.settings().seed)


LARGE = 100_000_000  # bytes of a model that must not wait for the garbage collector


class _Runner:
    """Evaluates arms, merging what they need in batches that fit into the scratch budget."""

    scratch: Scratch
    merger: Merger | None = None  # where arms are made in the target
    hold_vectors: Callable[[], None] | None = None  # sees that every vector can be added

    def __init__(
        self,
        experiment: Experiment,
        settings: Settings,
        out: Path,
        pool: Pool | RayPool | None,
        progress: Progress,
    ) -> None:
        self._experiment, self._settings, self._out, self._progress = experiment, settings, out, progress
        self._models = {model: resolve(model) for model in experiment.models}
        self.digests = self._digests = {model: weights for model, (_, weights) in self._models.items()}
        self._sources = tuple(source(folder, weights) for folder, weights in self._models.values())
        self._pool = pool
        # a collection takes most of a second in a process that knows lm-eval's tasks
        self._large = model_bytes(experiment.target) > LARGE
        self._done = self._known_of = 0
        self._checked = False
        self._places: Places | None = None

    def folder(self, model: str) -> str:
        """Where the files of a model are."""
        return self._models[model][0]

    def hold(self) -> None:
        """Return if every model is what it was when the run began; raises if not."""
        hold_unchanged(self._sources)

    @property
    def is_recovery(self) -> bool:
        """Whether the target is the model that the reference was tuned from, or the reference itself."""
        given = self._experiment
        origins = [self._digests[model] for model in (given.base, given.reference) if model is not None]
        return self._digests[given.target] in origins

    def matched(self, records: Sequence[ArmRecord], choice: Choice) -> dict[float, list[Arm]]:
        """The rivals' vectors at the norm of each chosen vector; a note of each that has none."""
        found, several = dict[float, list[Arm]](), len(choice.alphas) > 1
        for alpha in choice.alphas:
            facts = self._out / "merges"
            found[alpha], notes = matched_arms(records, alpha, facts, several=several)
            for text in notes:
                self.tell("note", text)
        return found

    def run(self, arms: list[Arm]) -> list[ArmRecord]:
        """The records of `arms`, in their order."""
        if not arms:
            return []
        self._known_of += len(arms)
        self.tell("plan", ",".join(arm.name for arm in arms))
        identities = {arm.weights: arm_weights(arm, self._experiment, self._digests) for arm in arms}
        records: dict[str, ArmRecord] = {}
        pending: list[Arm] = []
        for arm in arms:
            known = finished(self._out, self._settings, arm, identities[arm.weights])
            if known is None:
                pending.append(arm)
            else:
                records[arm.name] = known
                self._done += 1
                self.tell("known", arm.name)
        if pending:
            self._check_before_the_first()
            remove_report(self._out)  # an older one would pass for that of these arms
        self._measure_again([arm for arm in arms if arm.name in records], identities)
        placements = self._placements(pending, identities)
        jobs = [
            Job(
                arm,
                self._models[model][0],
                identities[arm.weights],
                model,
                placements.get(arm.weights),
                self._sources,
            )
            for arm in pending
            if arm.kind not in MERGED
            for model in (model_of(arm, self._experiment),)
        ]
        target = self._models[self._experiment.target][0]
        # the target last: what comes next is made in it, or is of its kind
        jobs.sort(key=lambda job: job.model == target)
        placed = [arm for arm in pending if arm.kind in MERGED and arm.weights in placements]
        jobs += [
            Job(arm, target, identities[name], f"merged: {name}", placements[name], self._sources)
            for name in dict.fromkeys(arm.weights for arm in placed)  # one after the other, each is made once
            for arm in placed
            if arm.weights == name
        ]
        merged = [arm for arm in pending if arm.kind in MERGED and arm.weights not in placements]
        batches = list(_batches(merged, self.scratch.capacity)) if merged else []
        for batch in batches or [[]]:
            models: dict[str, Path] = {}
            if batch:  # merged before the first job begins: incompatible models are found early
                self.tell("merge", ",".join(dict.fromkeys(arm.weights for arm in batch)))
                models = self.scratch.models(batch, identities)
            jobs += [
                Job(
                    arm,
                    str(models[arm.weights]),
                    identities[arm.weights],
                    f"merged: {arm.weights}",
                    sources=self._sources,
                )
                for arm in batch
            ]
            try:
                self._evaluate(jobs)
            except EvaluationError:
                for name in models:  # weights that could not be evaluated are made again next time
                    self.scratch.release(name)
                raise
            jobs = []
        for arm in pending:
            found = finished(self._out, self._settings, arm, identities[arm.weights])
            if found is None:
                raise EvaluationError(f"arm `{arm.name}` left no record under `{self._out}`")
            records[arm.name] = found
        return [records[arm.name] for arm in arms]

    def _measure_again(self, arms: Sequence[Arm], identities: dict[str, str]) -> None:
        """Make the facts of merges that are not found, or are damaged, for arms whose records are sound."""
        lost = [
            arm
            for name, arm in {arm.weights: arm for arm in arms if arm.kind in MERGED}.items()
            if not self.scratch.is_measured(name, identities[name])
        ]
        placements = self._placements(lost, identities)
        for arm in lost:
            self.tell("note", f"the measurements of `{arm.weights}` are not found, or damaged: made again")
            if arm.weights in placements:
                from taskvec.evaluation.backend.changed import measure

                self.hold()
                measure(placements[arm.weights])
            else:
                self.scratch.models([arm], identities)
                self.scratch.release(arm.weights)

    def _placements(self, arms: list[Arm], identities: dict[str, str]) -> dict[str, Placement]:
        """How the weights that can be made in the target come into it, by `Arm.weights`."""
        if self.merger is None or not arms:
            return {}
        if self._places is None:
            target, facts = self._models[self._experiment.target][0], self._out / "merges"
            self._places = Places(self._experiment, self._settings, target, self.merger, facts)
            if self._places.refused is not None:
                self.tell("note", f"arms are merged, not made in place: {self._places.refused}")
        found: dict[str, Placement] = {}
        parts = {arm.weights for arm in arms if arm.kind in PARTS}
        if parts and self._places.refused is None:
            self.tell("note", f"{plural(len(parts), 'part')} of the vector: merged into a folder, one by one")
        for arm in {arm.weights: arm for arm in arms if arm.weights not in parts}.values():
            placement = self._places.placement(arm, identities[arm.weights])
            if placement is not None:
                found[arm.weights] = placement
            elif self._places.refused is None:
                self.tell("note", f"`{arm.weights}` is merged: it changes more than values of plain tensors")
        return found

    def _check_before_the_first(self) -> None:
        """See once, before anything is merged or evaluated, what would spoil the report afterwards."""
        if self._checked:
            return
        self._checked = True
        given = self._experiment
        check_rivals(given, self._digests)
        if self.hold_vectors is not None:
            self.hold_vectors()
        if self._settings.decoding == "model":
            named = filter(None, (given.target, given.donor, given.reference))
            check_alike({model: self._models[model][0] for model in named})
        for perturb in given.perturb:
            document_hashes(self._settings, perturb)
        if given.development:
            chosen = sum(alpha > 0 for alpha in given.alphas) > 1
            parts: tuple[Part, ...] = ("development", "report") if chosen else ("report",)
            for text in check_parts(document_hashes(self._settings), split(given), parts):
                self.tell("note", text)

    def _evaluate(self, jobs: list[Job]) -> None:
        """Evaluate arms, on the workers or in this process; merged weights go when no arm needs them."""
        waiting = Counter(job.arm.weights for job in jobs)

        def say(arm: Arm, task: str, done: int, total: int) -> None:
            self._progress(Event("progress", arm.name, task, done, total))

        def done(job: Job) -> None:
            self._done += 1
            self.tell("done", job.arm.name)
            waiting[job.arm.weights] -= 1
            if job.placement is None and job.arm.kind in MERGED and not waiting[job.arm.weights]:
                self.scratch.release(job.arm.weights)

        if not jobs:
            return
        if self._pool is not None:
            self._pool.run(jobs, say, done)
            return
        from taskvec.evaluation.backend.memory import free_memory

        for job in jobs:
            self.tell("start", job.arm.name)
            tell = functools.partial(say, job.arm)
            evaluate_into(
                self._out,
                job.model,
                self._settings,
                job.arm,
                job.weights,
                progress=tell,
                shown=job.shown,
                placement=job.placement,
                sources=job.sources,
            )
            if self._large:
                free_memory()
            done(job)

    def tell(self, kind: str, arm: str) -> None:
        self._progress(Event(kind, arm, "", self._done, self._known_of))


def _batches(arms: list[Arm], capacity: int) -> Iterator[list[Arm]]:
    """Arms in batches of at most `capacity` different weights; all arms of one model are in one batch."""
    by_weights: dict[str, list[Arm]] = {}
    for arm in arms:
        by_weights.setdefault(arm.weights, []).append(arm)
    groups = list(by_weights.values())
    for start in range(0, len(groups), max(1, capacity)):
        yield [arm for group in groups[start : start + max(1, capacity)] for arm in group]


def model_bytes(model: str) -> int:
    """The bytes of a model's folder; for a hub model the bytes of its tensors."""
    folder = Path(model)
    if look.is_folder(folder):
        paths = (folder / level.path / name for level in look.walk(folder) for name in level.files)
        return sum(stamp.size for path in paths if (stamp := look.stamp(path)) is not None)
    import taskvec as tv

    return tv.open(model).total_bytes
