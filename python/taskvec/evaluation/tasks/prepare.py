"""lm-eval's tasks, found by name and prepared for one arm.

Preparing a task changes nothing of how lm-eval scores it. It can limit the documents, perturb them, put the
request to reason into the question, and set the generation length and stop strings; what was set is kept in
`TaskSetup`.
"""

from __future__ import annotations

import difflib
import functools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable, hash_string

from taskvec.errors import EvaluationError
from taskvec.evaluation.settings import Settings
from taskvec.evaluation.tasks.defaults import FALLBACK_MAX_GEN_TOKS, task_defaults
from taskvec.evaluation.tasks.documents import NotPerturbableError, perturb_documents


@dataclass(slots=True)
class TaskSetup:
    """What was prepared for one task.

    Attributes
    ----------
    doc_ids : list of int
        For each document in order, its position in the task's evaluation split.
    clean_hashes : list of str or None
        lm-eval's hashes of the clean documents, where documents were perturbed.
    """

    max_gen_toks: int | None = None
    stop: list[str] = field(default_factory=list)
    dropped_stops: list[str] = field(default_factory=list)
    doc_ids: list[int] = field(default_factory=list)
    clean_hashes: list[str] | None = None
    left_out: int = 0


class PreparedTasks:
    """What lm-eval's `simple_evaluate` takes for a task manager: hands out prepared tasks.

    Attributes
    ----------
    tasks : dict of str to Task
        Every leaf task.
    setups : dict of str to TaskSetup
    members : dict of str to list of str
        What is reported under one name: a task by itself, a group that aggregates by its leaf tasks.
    """

    def __init__(
        self, settings: Settings, *, think: str | None, perturb: str | None, max_length: int | None = None
    ) -> None:
        self._settings = settings
        self._think, self._perturb, self._max_length = think, perturb, max_length
        self._manager = find_tasks(settings)
        try:
            self._loaded = self._manager.load(list(settings.tasks))
        except Exception as error:
            raise _explained(error, settings) from error
        self.tasks: dict[str, Task] = dict(self._loaded["tasks"])
        self.members = _members(self._manager, self._loaded, settings.tasks)
        groups = self._loaded.get("groups") or {}
        self.group_versions = {name: group.version for name, group in groups.items()}
        self.warnings: list[str] = []
        self.setups: dict[str, TaskSetup] = {}
        for name, task in list(self.tasks.items()):
            try:
                self.setups[name] = self._prepare(name, task)
            except NotPerturbableError as error:
                self._leave_out(name, error)

    def metric_for(self, task: str) -> str | None:
        """The metric that the user chose for `task`."""
        return self._settings.metric_for(task)

    @property
    def task_index(self) -> dict[str, Any]:
        """lm-eval's index of every task it knows."""
        return self._manager.task_index

    def load(self, _tasks: Any) -> Any:
        """The prepared tasks, whatever is asked for; groups are put together from samples afterwards."""
        return {"tasks": self.tasks, "groups": {}, "group_map": {}}

    def _leave_out(self, name: str, reason: NotPerturbableError) -> None:
        """Go on without a task to which the perturbation does not apply, unless it is the last one."""
        del self.tasks[name]
        if not self.tasks:
            raise reason
        self.warnings.append(f"left out of this arm: {reason}")
        self.members = {
            shown: kept
            for shown, members in self.members.items()
            if (kept := [member for member in members if member != name])
        }

    def _prepare(self, name: str, task: Task) -> TaskSetup:
        setup = TaskSetup()
        if task.get_config("output_type") == "generate_until":
            self._set_generation(name, task, setup)
        documents: list[Any] = list(task.eval_docs)
        limit = self._settings.limit
        if limit is not None:
            documents = documents[: max(1, round(limit * len(documents))) if limit < 1 else int(limit)]
        setup.doc_ids = list(range(len(documents)))
        kept: list[Any] = documents
        if self._perturb is not None:
            pairs = perturb_documents(name, task, documents, self._perturb, self._settings.seed)
            setup.doc_ids = [i for i, new in enumerate(pairs) if new is not None]
            setup.left_out = len(documents) - len(setup.doc_ids)
            setup.clean_hashes = [document_hash(documents[i]) for i in setup.doc_ids]
            kept = [new for new in pairs if new is not None]
        if not documents:
            raise EvaluationError(f"task `{name}` has no sample to evaluate: its data set is empty")
        if not kept:
            raise NotPerturbableError(
                f"perturbation `{self._perturb}` fits none of the {len(documents)} documents of `{name}`",
                "name another perturbation, or raise --limit",
            )
        think = None
        if self._think is not None:
            if not isinstance(task, ConfigurableTask):
                raise EvaluationError(
                    f"task `{name}` builds its prompts in Python: a request to reason has no place in it",
                    "leave the task out, or run without --think",
                )
            code = bool(getattr(task, "UNSAFE_CODE", False)) and task.OUTPUT_TYPE == "generate_until"
            think = functools.partial(
                with_think, text=self._think, chat=self._settings.chat_template, code=code
            )
        _adopt(task, kept, documents if self._perturb else None, setup.doc_ids, think)
        return setup

    def _set_generation(self, name: str, task: Task, setup: TaskSetup) -> None:
        asked = dict(task.get_config("generation_kwargs") or {})
        own = asked.get("max_gen_toks") or asked.get("max_new_tokens") or asked.get("max_tokens")
        shipped = is_shipped(self._manager, name)
        row = task_defaults(name) if shipped else task_defaults("")
        if self._settings.max_gen_toks is not None:
            length = self._settings.max_gen_toks
        else:
            length = max(own or 0, row.max_gen_toks or 0) or FALLBACK_MAX_GEN_TOKS
            if self._max_length is not None and (own is None or length != own):
                # a default never takes more than half of what the model can hold; a stated length is the
                # user's
                length = max(own or 1, min(length, self._max_length // 2))
        if self._max_length is not None and length >= self._max_length:
            raise EvaluationError(
                f"task `{name}` asks for {length} new tokens, the model holds {self._max_length} in all",
                f"set --max-gen-toks below {self._max_length}",
            )
        stops = asked.get("until") or []
        stops = [stops] if isinstance(stops, str) else list(stops)
        examples = task.get_config("num_fewshot") or 0
        if self._settings.chat_template or not examples:
            setup.dropped_stops = [stop for stop in stops if stop in row.cutting_stops]
        setup.stop = [stop for stop in stops if stop not in setup.dropped_stops]
        setup.max_gen_toks = length
        for alias in ("max_new_tokens", "max_tokens"):
            asked.pop(alias, None)
        task.set_config("generation_kwargs", {**asked, "until": setup.stop, "max_gen_toks": length})


def find_tasks(settings: Settings) -> TaskManager:
    """The task manager that knows every task of `settings`; consent for code-executing tasks is checked here.

    Raises
    ------
    EvaluationError
        A task is unknown (with the nearest names), or runs code without consent.
    """
    folder = settings.include_path
    if folder is not None and not Path(folder).is_dir():
        raise EvaluationError(f"`{folder}` is no folder of YAML tasks")
    path = None if folder is None else str(Path(folder).resolve())
    manager = _knowing(settings.tasks, path)
    if manager is None:
        known = [*_manager(None, True).all_tasks, *(_manager(path, False).all_tasks if path else ())]
        unknown = next(name for name in settings.tasks if name not in known)
        near = difflib.get_close_matches(unknown, known, n=3, cutoff=0.5)
        raise EvaluationError(
            f"lm-eval knows no task `{unknown}`" + (f", nor does `{folder}`" if folder else ""),
            f"did you mean {', '.join(f'`{name}`' for name in near)}?"
            if near
            else "`lm-eval ls tasks` lists them",
        )
    unsafe = sorted(name for name in settings.tasks if _runs_code(manager, name))
    if unsafe and not settings.allow_unsafe_code:
        raise EvaluationError(
            f"task `{unsafe[0]}` runs Python code that the model writes, on this machine, as this user",
            "run it in a container or a machine that may be lost, and consent with --confirm-run-unsafe-code",
        )
    if unsafe:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # the metric asks for its own consent when the task is loaded
    return manager


def _knowing(names: Sequence[str], path: str | None) -> TaskManager | None:
    """The manager that knows every name; None if there is none.

    Indexing lm-eval's own 14 000 tasks takes seconds: left out where the folder has all that is asked.
    """
    local = set(_manager(path, False).task_index) if path else set()
    if path and local.issuperset(names):
        return _manager(path, False)
    shipped = _manager(None, True)
    if not all(name in local or name in shipped.task_index for name in names):
        return None
    return _manager(path, True) if local.intersection(names) else shipped


@functools.lru_cache(maxsize=4)
def _manager(path: str | None, with_defaults: bool) -> TaskManager:
    return TaskManager(include_path=path, include_defaults=with_defaults)


def is_shipped(manager: TaskManager, name: str) -> bool:
    """Whether a task is one of lm-eval's own, and not of the user's folder."""
    entry = manager.task_index.get(name)
    if entry is None or entry.yaml_path is None or manager.include_path is None:
        return True
    return not Path(entry.yaml_path).resolve().is_relative_to(Path(str(manager.include_path)).resolve())


def _runs_code(manager: TaskManager, name: str, seen: frozenset[str] = frozenset()) -> bool:
    """Whether a task, or a member of a group, is marked as running code; nothing of it is imported."""
    entry = manager.task_index.get(name)
    if entry is None or name in seen:
        return False
    config = entry.cfg or {}
    if config.get("unsafe_code"):
        return True
    members = config.get("task")
    names = [members] if isinstance(members, str) else members if isinstance(members, list) else []
    names = [item.get("task", "") if isinstance(item, dict) else item for item in names]
    if not config:  # a tag: the tasks that carry it
        names = sorted(entry.tags)
    return any(_runs_code(manager, item, seen | {name}) for item in names if isinstance(item, str))


def _members(manager: TaskManager, loaded: Any, requested: Sequence[str]) -> dict[str, list[str]]:
    members: dict[str, list[str]] = {}
    groups: dict[str, Group] = loaded.get("groups") or {}
    grouped = {
        task.task_name for name in requested if name in groups for task in groups[name].get_all_tasks()
    }
    for name in requested:
        if name in loaded["tasks"]:
            members[name] = [name]
        elif name in groups:
            leaves = [task.task_name for task in groups[name].get_all_tasks()]
            if groups[name].has_aggregation:
                members[name] = leaves
            else:
                members.update({leaf: [leaf] for leaf in leaves})
        else:  # a tag stands for tasks that are reported one by one
            tagged = [leaf for leaf in loaded["tasks"] if leaf not in grouped and leaf not in requested]
            members.update({leaf: [leaf] for leaf in tagged if _carries(manager, name, leaf)})
    return members


def _carries(manager: TaskManager, tag: str, task: str) -> bool:
    entry = manager.task_index.get(tag)
    return entry is not None and task in entry.tags


def document_hash(document: Any) -> str:
    """The hash by which lm-eval names a document in its samples."""
    return hash_string(json.dumps(document, indent=2, default=handle_non_serializable, ensure_ascii=False))


def _adopt(
    task: Task, documents: list[Any], clean: list[Any] | None, doc_ids: list[int], think: Any | None
) -> None:
    """Give `task` its documents and prompts; by a subclass, as lm-eval reads documents through a property."""
    kind = type(task)

    class Prepared(kind):
        @property
        def eval_docs(self) -> Any:
            return documents

        def build_qa_turn(self, *, q: Any = None, a: Any = None, **rest: Any) -> Any:
            if think is not None and isinstance(q, str) and (a is None or a == ""):
                q = think(q)
            return super().build_qa_turn(q=q, a=a, **rest)  # type: ignore[misc]

        def fewshot_context(self, doc: Any, *arguments: Any, **rest: Any) -> Any:
            if clean is not None:
                # documents that were left out make their draws, so the others get the examples of the clean
                # run
                position = progress[0]
                last = doc_ids[position - 1] if position else -1
                for skipped in range(last + 1, doc_ids[position]):
                    super().fewshot_context(clean[skipped], *arguments, **rest)
                progress[0] = (position + 1) % len(doc_ids)
            return super().fewshot_context(doc, *arguments, **rest)

    progress = [0]
    Prepared.__name__, Prepared.__qualname__ = kind.__name__, kind.__qualname__
    task.__class__ = Prepared
    sampler = getattr(task, "sampler", None)
    if clean is not None and sampler is not None:
        twins = {id(new): clean[old] for new, old in zip(documents, doc_ids, strict=True)}
        draw = sampler.sample

        def sample(n: int, eval_doc: Any = None, **rest: Any) -> Any:
            # a perturbed document must not see its clean self, answer and all, among its examples
            return draw(n, eval_doc=twins.get(id(eval_doc), eval_doc), **rest)

        sampler.sample = sample


def _explained(error: Exception, settings: Settings) -> Exception:
    """An error of loading tasks in words that name the way out."""
    if isinstance(error, EvaluationError):
        return error
    names = ", ".join(f"`{name}`" for name in settings.tasks)
    kind = type(error).__name__
    said = str(error).strip().splitlines()[0][:300] if str(error).strip() else kind
    offline = (
        isinstance(error, ConnectionError)
        or kind in ("OfflineModeIsEnabled", "LocalEntryNotFoundError")
        or ("offline" in said.lower() or "couldn't reach" in said.lower() or "Couldn't find" in said)
    )
    if offline:
        return EvaluationError(
            f"the data of {names} cannot be had: {said}",
            "load them once with a connection, or give local YAML tasks with --include-path",
        )
    if isinstance(error, FileNotFoundError):
        return EvaluationError(f"the data of {names} cannot be had: {said}")
    return EvaluationError(f"cannot load {names}: {kind}: {said}")


# the last line of a prompt that asks for the answer: "Answer:", "A:", "Solution:"
_CUE = re.compile(r"\n[^\n:]{1,40}:[ \t]*\Z")


def with_think(question: str, text: str, *, chat: bool, code: bool) -> str:
    """`question` with the request to reason in its place.

    Parameters
    ----------
    question : str
        What the task asks, without worked examples.
    text : str
        The request, such as "Think step by step.".
    chat : bool
        Whether the question becomes a chat turn.
    code : bool
        Whether the question is program code that the model completes.
    """
    if chat:
        return f"{question.rstrip()}\n{text}"
    if code:
        return f"# {text}\n{question}"
    cue = _CUE.search(question)
    if cue is None:
        return f"{question.rstrip()}\n{text}"
    return f"{question[: cue.start()].rstrip()} {text}{question[cue.start() :]}"
