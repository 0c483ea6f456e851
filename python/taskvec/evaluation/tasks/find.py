"""lm-eval's tasks by name: which manager knows them, what a group stands for, which of them run code."""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.group import Group
from lm_eval.tasks import TaskManager

from taskvec.errors import EvaluationError
from taskvec.evaluation.settings import Settings
from taskvec.files import look

CHAT_SUFFIX = "_instruct"  # of lm-eval's names for the forms of program tasks that fit a chat template


def find_tasks(settings: Settings) -> TaskManager:
    """The task manager that knows every task of `settings`; consent for code-executing tasks is checked here.

    Raises
    ------
    EvaluationError
        A task is unknown (with the nearest names), runs code without consent, or has no form for the chat
        template that is asked for.
    """
    folder = settings.include_path
    if folder is not None and not look.is_folder(folder):
        raise EvaluationError(f"`{folder}` is not a folder of YAML tasks")
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
    unsafe = sorted(name for name in settings.tasks if runs_code(manager, name))
    if unsafe and not settings.allow_unsafe_code:
        raise EvaluationError(
            f"task `{unsafe[0]}` runs Python code that the model writes, on this machine, as this user",
            "run it in a container or a machine that may be lost, and consent with --confirm-run-unsafe-code",
        )
    if settings.chat_template:
        _check_forms(manager, settings)
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


def runs_code(manager: TaskManager, name: str, seen: frozenset[str] = frozenset()) -> bool:
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
    return any(runs_code(manager, item, seen | {name}) for item in names if isinstance(item, str))


def chat_form(manager: TaskManager, name: str) -> str | None:
    """The task of lm-eval that is `name` for chat templates; None if it is one itself.

    Raises
    ------
    EvaluationError
        There is none: under a template a right answer would count as wrong.
    """
    if name.endswith(CHAT_SUFFIX):
        return None
    if f"{name}{CHAT_SUFFIX}" in manager.task_index:
        return f"{name}{CHAT_SUFFIX}"
    raise EvaluationError(
        f"task `{name}` has no form for chat templates: it scores the continuation of a program, and a chat "
        "model answers with a fenced block",
        "leave it out, or run without --chat-template",
    )


def _check_forms(manager: TaskManager, settings: Settings) -> None:
    """Refuse, before a model is loaded, tasks of programs that have no form for chat templates."""
    for name in settings.tasks:
        entry = manager.task_index.get(name)
        is_task = entry is not None and entry.yaml_path is not None and "group" not in (entry.cfg or {})
        if is_task and is_shipped(manager, name) and runs_code(manager, name):
            chat_form(manager, name)


def members_of(manager: TaskManager, loaded: Any, requested: Sequence[str]) -> dict[str, list[str]]:
    """The leaf tasks of everything that is reported under one name.

    A task stands for itself, a group that aggregates for its tasks; other groups and tags are reported task
    by task.
    """
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


def explained(error: Exception, settings: Settings) -> Exception:
    """An error of loading tasks in words that name the way out."""
    if isinstance(error, EvaluationError):
        return error
    names = ", ".join(f"`{name}`" for name in settings.tasks)
    kind = type(error).__name__
    text = str(error).strip().splitlines()[0][:300] if str(error).strip() else kind
    offline = (
        isinstance(error, ConnectionError)
        or kind in ("OfflineModeIsEnabled", "LocalEntryNotFoundError")
        or ("offline" in text.lower() or "couldn't reach" in text.lower() or "Couldn't find" in text)
    )
    if offline:
        return EvaluationError(
            f"the data of {names} cannot be had: {text}",
            "load them once with a connection, or fetch them there with `taskvec tasks fetch` and give "
            "--data; or give local YAML tasks with --include-path",
        )
    if isinstance(error, FileNotFoundError):
        return EvaluationError(f"the data of {names} cannot be had: {text}")
    return EvaluationError(f"cannot load {names}: {kind}: {text}")
