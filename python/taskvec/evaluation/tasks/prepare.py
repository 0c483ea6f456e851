"""lm-eval's tasks, prepared for one arm.

Preparing a task changes nothing of how lm-eval scores it. It can limit the documents, perturb them, put the
request to reason into the question, and set the generation length and stop strings; what was set is kept in
`TaskSetup`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.utils import handle_non_serializable, hash_string

from taskvec.errors import EvaluationError
from taskvec.evaluation.settings import Settings
from taskvec.evaluation.tasks.defaults import task_defaults
from taskvec.evaluation.tasks.documents import NotPerturbableError, perturb_documents
from taskvec.evaluation.tasks.find import explained, find_tasks, is_shipped, members_of
from taskvec.evaluation.tasks.generation import generation
from taskvec.evaluation.tasks.metrics import check_metrics
from taskvec.evaluation.tasks.programs import continues_code, in_form
from taskvec.evaluation.tasks.served import served
from taskvec.evaluation.tasks.think import OwnRequests, with_think
from taskvec.text import plural


@dataclass(slots=True)
class TaskSetup:
    """The preparations of one task.

    Attributes
    ----------
    doc_ids : list of int
        For each document in order, its position in the task's evaluation split.
    removed_requests : list of str
        The task's own requests to reason, which are taken out of its prompts.
    clean_hashes : list of str or None
        lm-eval's hashes of the clean documents, where documents were perturbed.
    """

    max_gen_toks: int | None = None
    stop: list[str] = field(default_factory=list)
    dropped_stops: list[str] = field(default_factory=list)
    removed_requests: list[str] = field(default_factory=list)
    doc_ids: list[int] = field(default_factory=list)
    clean_hashes: list[str] | None = None
    left_out: int = 0


class PreparedTasks:
    """A task manager for lm-eval's `simple_evaluate` that gives it prepared tasks.

    Attributes
    ----------
    tasks : dict of str to Task
        Every leaf task.
    setups : dict of str to TaskSetup
    members : dict of str to list of str
        Leaf tasks by the name under which they are reported: a task's own, or an aggregating group's.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        think: str | None,
        perturb: str | None,
        max_length: int | None = None,
        keep: Callable[[str], bool] | None = None,
        drawn: bool = False,
    ) -> None:
        self._drawn = drawn
        self._settings, self._keep = settings, keep
        self._think, self._perturb, self._max_length = think, perturb, max_length
        self._manager = find_tasks(settings)
        self.warnings: list[str] = []
        with served(settings.data):
            try:
                self._loaded = self._manager.load(list(settings.tasks))
            except Exception as error:
                raise explained(error, settings) from error
            self.tasks: dict[str, Task] = dict(self._loaded["tasks"])
            for name in self.tasks:
                self._in_form(name)
        self.members = members_of(self._manager, self._loaded, settings.tasks)
        check_metrics(settings, self.members, self.tasks)
        groups = self._loaded.get("groups") or {}
        self.group_versions = {name: group.version for name, group in groups.items()}
        self._left_out: dict[str, NotPerturbableError] = {}
        self._asking: list[str] = []
        self.setups: dict[str, TaskSetup] = {}
        for name, task in self.tasks.items():
            try:
                self.setups[name] = self._prepare(name, task)
            except NotPerturbableError as error:
                self._left_out[name] = error
        self._go_without()
        if drawn:
            self._keep_generating()
        if self._asking:
            names = ", ".join(f"`{name}`" for name in self._asking)
            self.warnings.append(f"asks for steps in its own words, with and without --think: {names}")

    def metric_for(self, task: str) -> str | None:
        """The metric that the user chose for `task`."""
        return self._settings.metric_for(task)

    def hashes(self) -> dict[str, list[str]]:
        """The hashes of every task's documents, by the name under which it is reported."""
        return {
            shown: [
                document_hash(document) for member in members for document in self.tasks[member].eval_docs
            ]
            for shown, members in self.members.items()
        }

    @property
    def task_index(self) -> dict[str, Any]:
        """lm-eval's index of every task it knows."""
        return self._manager.task_index

    def load(self, _tasks: Any) -> Any:
        """The prepared tasks, whatever is asked for; groups are put together from samples afterwards."""
        return {"tasks": self.tasks, "groups": {}, "group_map": {}}

    def _go_without(self) -> None:
        """Leave out the tasks to which the perturbation does not apply, unless they are all there is."""
        for name in self._left_out:
            del self.tasks[name]
        if not self.tasks:
            raise self._nothing_left()
        for shown, members in list(self.members.items()):
            out = [member for member in members if member in self._left_out]
            if not out:
                continue
            some = "" if members == [shown] else _named(shown, out, members)
            self.warnings.append(f"left out of this arm: {some}{self._left_out[out[0]]}")
            self.members[shown] = [member for member in members if member not in self._left_out]
            if not self.members[shown]:
                del self.members[shown]

    def _nothing_left(self) -> NotPerturbableError:
        """The reason why a perturbation applies to no task: of each that is reported the first one."""
        reasons = {shown: self._left_out[members[0]] for shown, members in self.members.items()}
        if len(reasons) == 1:
            return next(iter(reasons.values()))
        each = "; ".join(error.message for error in reasons.values())
        return NotPerturbableError(
            f"perturbation `{self._perturb}` applies to none of the tasks: {each}",
            "name another perturbation, or add a task to which it applies",
        )

    def _keep_generating(self) -> None:
        """Leave out the tasks whose answers are not generated."""
        for name, task in list(self.tasks.items()):
            if task.OUTPUT_TYPE != "generate_until":
                del self.tasks[name]
        for shown, members in list(self.members.items()):
            self.members[shown] = [member for member in members if member in self.tasks]
            if not self.members[shown]:
                del self.members[shown]

    def _in_form(self, name: str) -> None:
        """Put the form that fits the prompt in the place of a task of programs."""
        chat = self._settings.chat_template
        self.tasks[name], other = in_form(self._manager, name, self.tasks[name], chat=chat)
        if other is not None:
            self.warnings.append(f"task `{name}` was run as `{other}`, its form for chat templates")

    def _prepare(self, name: str, task: Task) -> TaskSetup:
        setup = TaskSetup()
        if task.get_config("output_type") == "generate_until":
            self._set_generation(name, task, setup)
        documents: list[Any] = list(task.eval_docs)
        limit = self._settings.limit
        if limit is not None:
            documents = documents[: max(1, round(limit * len(documents))) if limit < 1 else int(limit)]
        if not documents:
            raise EvaluationError(f"task `{name}` has no sample to evaluate: its data set is empty")
        setup.doc_ids = self._asked(name, documents)
        kept: list[Any] = [documents[i] for i in setup.doc_ids]
        if self._perturb is not None:
            pairs = perturb_documents(
                name, task, documents, self._perturb, self._settings.seed,
                shipped=is_shipped(self._manager, name),
            )  # fmt: skip
            asked = setup.doc_ids
            setup.doc_ids = [i for i in asked if pairs[i] is not None]
            setup.left_out = len(asked) - len(setup.doc_ids)
            setup.clean_hashes = [document_hash(documents[i]) for i in setup.doc_ids]
            kept = [pairs[i] for i in setup.doc_ids]
        if not kept:
            raise NotPerturbableError(
                f"perturbation `{self._perturb}` finds nothing to change in what `{name}` asks "
                f"({plural(len(documents), 'document')})",
                "name another perturbation, or raise --limit",
            )
        own = OwnRequests(task) if isinstance(task, ConfigurableTask) else None
        if own is not None:
            setup.removed_requests = list(own.found)
            if own.stays:
                self._asking.append(name)
        think = self._think_for(name, task, own)
        whole = documents if self._perturb or self._keep else None
        _adopt(task, kept, whole, setup.doc_ids, think, own)
        return setup

    def _asked(self, name: str, documents: list[Any]) -> list[int]:
        """The positions of the documents that belong to the part which is asked."""
        keep = self._keep
        asked = [i for i, document in enumerate(documents) if keep is None or keep(document_hash(document))]
        if not asked:
            raise EvaluationError(
                f"of the {plural(len(documents), 'document')} of task `{name}` none is in the part asked for",
                "raise --limit, or change the development share",
            )
        return asked

    def _set_generation(self, name: str, task: Task, setup: TaskSetup) -> None:
        found = generation(
            name,
            dict(task.get_config("generation_kwargs") or {}),
            task_defaults(name if is_shipped(self._manager, name) else ""),
            chat=self._settings.chat_template,
            neutral=self._settings.decoding == "neutral",
            wanted=self._settings.max_gen_toks,
            max_length=self._max_length,
        )
        setup.max_gen_toks, setup.stop = found.max_gen_toks, found.stop
        setup.dropped_stops = found.dropped_stops
        arguments = found.arguments
        if self._drawn:
            settings = self._settings
            arguments |= {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p}
            arguments.setdefault("top_k", 0)  # transformers' own default would be the 50 likeliest
        task.set_config("generation_kwargs", arguments)

    def _think_for(self, name: str, task: Task, own: OwnRequests | None) -> Callable[[str], str] | None:
        """How the request to reason is put into a question of `task`; None where it is not."""
        if self._think is None:
            return None
        if own is None:
            raise EvaluationError(
                f"task `{name}` builds its prompts in Python: a request to reason has no place in it",
                "leave the task out, or run without --think",
            )
        if own.stays:  # it would be asked for twice
            return None
        chat = self._settings.chat_template
        return functools.partial(with_think, text=self._think, chat=chat, code=continues_code(task))


def _named(group: str, out: list[str], members: list[str]) -> str:
    """The tasks of a group that are left out."""
    begin = f"{len(out)} of the {len(members)} tasks of `{group}`"
    if len(out) == len(members):
        return f"{begin}: "
    return f"{begin} ({', '.join(name.removeprefix(f'{group}_') for name in out)}), of which one: "


def document_hash(document: Any) -> str:
    """The hash by which lm-eval names a document in its samples."""
    return hash_string(json.dumps(document, indent=2, default=handle_non_serializable, ensure_ascii=False))


def _adopt(
    task: Task,
    documents: list[Any],
    clean: list[Any] | None,
    doc_ids: list[int],
    think: Callable[[str], str] | None,
    own: OwnRequests | None,
) -> None:
    """Give `task` its documents and prompts; by a subclass, as lm-eval reads documents through a property."""
    kind = type(task)
    asks = own is not None and bool(own.found)

    class Prepared(kind):
        @property
        def eval_docs(self) -> Any:
            return documents

        def doc_to_text(self, *arguments: Any, **rest: Any) -> Any:
            text = super().doc_to_text(*arguments, **rest)
            return own.without(text) if own is not None and isinstance(text, str) else text

        def doc_to_prefix(self, doc: Any) -> Any:
            text = super().doc_to_prefix(doc)
            return own.without(text) or None if own is not None and isinstance(text, str) else text

        @staticmethod
        def resolve_field(doc: Any, field: str | None = None) -> Any:
            text = kind.resolve_field(doc, field)
            return own.without(text) if own is not None and isinstance(text, str) else text

        def build_qa_turn(self, *, q: Any = None, a: Any = None, **rest: Any) -> Any:
            asked = a is None or a == ""
            if think is not None and isinstance(q, str) and asked:
                q = think(q)
            if asks and not asked and isinstance(q, str) and rest.get("tgt_delim") == "":
                # the request that stood between cue and answer brought the space along
                rest["tgt_delim"] = "" if q[-1:].isspace() else " "
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
