"""lm-eval's tasks, prepared for one arm.

Preparing a task changes nothing of how lm-eval scores it. It can limit the documents, perturb them, put the
request to reason into the question, and set the generation length and stop strings; what was set is kept in
`TaskSetup`.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass, field
from typing import Any

from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.utils import handle_non_serializable, hash_string

from taskvec.errors import EvaluationError
from taskvec.evaluation.settings import Settings
from taskvec.evaluation.tasks.defaults import FALLBACK_MAX_GEN_TOKS, task_defaults
from taskvec.evaluation.tasks.documents import NotPerturbableError, perturb_documents
from taskvec.evaluation.tasks.find import explained, find_tasks, is_shipped, members_of


@dataclass(slots=True)
class TaskSetup:
    """The preparations of one task.

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
        self, settings: Settings, *, think: str | None, perturb: str | None, max_length: int | None = None
    ) -> None:
        self._settings = settings
        self._think, self._perturb, self._max_length = think, perturb, max_length
        self._manager = find_tasks(settings)
        try:
            self._loaded = self._manager.load(list(settings.tasks))
        except Exception as error:
            raise explained(error, settings) from error
        self.tasks: dict[str, Task] = dict(self._loaded["tasks"])
        self.members = members_of(self._manager, self._loaded, settings.tasks)
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


# The last line of a prompt that asks for the answer: "Answer:", "A:", "Solution:".
_CUE = re.compile(r"\n[^\n:]{1,40}:[ \t]*\Z")


def with_think(question: str, text: str, *, chat: bool, code: bool) -> str:
    """`question` with the request to reason in its place.

    The request closes the question that is asked and never enters worked examples, so that a prompt with and
    one without it differ in this sentence alone:

    - with a chat template it closes the last user turn, on a line of its own;
    - in a completion prompt it stands before the cue that the answer follows (``Answer:``, ``A:``), so that
      the model does not read it as the beginning of its own answer; without such a cue it closes the prompt;
    - in a completion prompt of program code, where a sentence would be a syntax error, it is a comment in the
      first line.

    Parameters
    ----------
    question : str
        The question of the task, without worked examples.
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
