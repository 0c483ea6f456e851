"""A plan as a file: what another process or machine needs to run it, without a secret, and a digest."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from taskvec._core import __version__, blake3_hex
from taskvec.compat.findings import Finding
from taskvec.errors import Error, FormatError, RecipeError
from taskvec.models.adapter import Adapter
from taskvec.models.model import Model
from taskvec.models.saved_vector import SavedVector
from taskvec.models.source import recorded_path, source_path
from taskvec.models.state_dict import buffers_of, in_memory, is_fleeting
from taskvec.models.storage import plain
from taskvec.plan.extract import written_vector
from taskvec.plan.plan import ARITHMETIC, FORMAT, PlanRecord, Source, written
from taskvec.plan.rows import encode
from taskvec.resolve.adapter import open_adapter
from taskvec.resolve.open import open as open_model
from taskvec.resolve.saved_vector import open_vector
from taskvec.settings import Settings

SCHEMA = 1
Checkpoint = Model | SavedVector | Adapter
_OPEN: dict[str, Callable[[str], Checkpoint]] = {
    "checkpoint": open_model,
    "vector": open_vector,
    "lora": open_adapter,
}


class Saved(NamedTuple):
    """A plan that was read from a file, and the folder that it was made for, if one was named."""

    plan: PlanRecord
    out: str | None

    def settings(self, given: Settings | None = None) -> Settings:
        """The settings to run it with: those given, with what the plan was made to go on in spite of."""
        given = given or Settings()
        force = (*(self.plan.recipe.get("force") or ()), *given.force)
        rounding = self.plan.document.get("rounding", given.rounding)  # a vector is not rounded
        return replace(given, force=tuple(dict.fromkeys(force)), rounding=rounding)


def to_file(plan: PlanRecord, out: str | None = None) -> bytes:
    """The bytes of a plan as a file: JSON, one object.

    Raises
    ------
    RecipeError
        It cannot be run elsewhere: it reads tensors of this process, or results of the documents before it.
    """
    if plan.kind == "adapter":
        raise RecipeError(
            "the plan of an adapter cannot be run elsewhere", "run `taskvec extract --lora` there"
        )
    if plan.tokens is not None:
        raise RecipeError("the plan of `tokens` cannot be run elsewhere", "run `taskvec tokens` there")
    if any(map(is_fleeting, plan.checkpoints)):
        raise RecipeError(
            "the plan reads tensors of the process that made it", "run it here, or save the models first"
        )
    if plan.request is not None:
        raise RecipeError(
            "a recipe of several documents is run as a whole", "make a recipe of its own of each document"
        )
    facts = {
        "taskvec": __version__,
        "schema": SCHEMA,
        "out": out,
        "kind": plan.kind,
        "models": [[checkpoint.spec, _lasting(checkpoint)] for checkpoint in plan.checkpoints],
        **_held(plan.checkpoints),
        "sources": [source._asdict() for source in plan.sources],
        "recipe": dict(plan.recipe),
        "findings": [finding.to_dict() for finding in plan.findings],
        "config": dict(plan.config),
        "files": {name: base64.b64encode(data).decode() for name, data in plan.files.items()},
        "left": list(plan.left),
    }
    body = json.dumps(facts)[:-1].encode() + b', "plan": ' + plan.json + b"}"
    return b'{"digest": "' + blake3_hex(body).encode() + b'", "body": ' + body + b"}\n"


def from_file(data: bytes, subject: str) -> Saved:
    """The plan in a file; its models are opened by their names.

    Parameters
    ----------
    data : bytes
        What :func:`to_file` gave.
    subject : str
        What the file is called, for messages.

    Raises
    ------
    RecipeError
        It is not a plan of this version, or was edited.
    FormatError
        A model is not what it was when the plan was made.
    NotFoundError, HubError
        A model cannot be opened here.
    """
    try:
        return _read(data, subject)
    except Error:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise RecipeError(
            f"`{subject}` is not a plan: {error!r}", "make it again with `taskvec plan`"
        ) from None


def _read(data: bytes, subject: str) -> Saved:
    body = _body(data, subject)
    facts = json.loads(body)
    document = facts.pop("plan")
    version = facts["schema"], document["format"], document.get("arithmetic", ARITHMETIC)
    if version != (SCHEMA, FORMAT, ARITHMETIC):
        raise RecipeError(
            f"`{subject}` was made by taskvec {facts['taskvec']}, whose plans have another form",
            "make it again with this version, and run all parts with one version",
        )
    held = iter(facts.get("held", ()))
    checkpoints = [
        _from_held(source, spec, next(held), subject)
        if source["kind"] == "memory"
        else _opened(source, spec, lasting, subject)
        for source, (spec, lasting) in zip(document["sources"], facts["models"], strict=True)
    ]
    data = encode(document)
    plan = PlanRecord(
        json=data,
        document=document,
        digest=blake3_hex(data),
        kind=facts["kind"],
        sources=tuple(Source(**source) for source in facts["sources"]),
        findings=tuple(_finding(each) for each in facts["findings"]),
        recipe=facts["recipe"],
        config=facts["config"],
        checkpoints=tuple(checkpoints),
        files={name: base64.b64decode(text) for name, text in facts["files"].items()},
        left=tuple(facts["left"]),
        **_written(facts["kind"], document, checkpoints),
    )
    return Saved(plan, facts["out"])


def _written(kind: str, document: Mapping[str, Any], checkpoints: Sequence[Checkpoint]) -> dict[str, Any]:
    if kind != "vector":
        return written(document, checkpoints)
    reference = checkpoints[1]
    assert isinstance(reference, Model)
    return written_vector(document, reference)


def _body(data: bytes, subject: str) -> bytes:
    """The part of the file that its digest is of."""
    begin, end = b'{"digest": "', b"}\n"
    middle = b'", "body": '
    at = len(begin) + 64
    if not data.startswith(begin) or data[at : at + len(middle)] != middle or not data.endswith(end):
        raise RecipeError(f"`{subject}` is not a plan that `taskvec plan` has written", "make it again")
    body = data[at + len(middle) : -len(end)]
    if blake3_hex(body).encode() != data[len(begin) : at]:
        raise RecipeError(
            f"`{subject}` was changed after it was made: its digest is of other contents",
            "make the plan again with the options that you want",
        )
    return body


def _held(checkpoints: Sequence[Checkpoint]) -> dict[str, Any]:
    """The tensors of the sources that lie in memory, where there are any: type, shape and bytes of each."""
    tables = [
        {
            name: [dtype, shape, base64.b64encode(data.tobytes()).decode()]
            for name, dtype, shape, data in buffer
        }
        for buffer in buffers_of(checkpoints)
    ]
    return {"held": tables} if tables else {}


def _from_held(source: Mapping[str, Any], spec: str, table: Mapping[str, Any], subject: str) -> Model:
    """A source that :func:`_held` has written."""
    infos = {name: plain(name, dtype, tuple(shape)) for name, (dtype, shape, _) in table.items()}
    arrays = {name: np.frombuffer(base64.b64decode(data), np.uint8) for name, (_, _, data) in table.items()}
    model = in_memory(infos, arrays, name=spec.strip("<>"), is_fixed=True)
    if model.fingerprint != source["fingerprint"]:
        raise RecipeError(f"`{subject}` holds tensors that it was not made for", "make it again")
    return model


def _finding(row: Mapping[str, Any]) -> Finding:
    return Finding(**{key: value for key, value in row.items() if key != "message"})


def _lasting(checkpoint: Checkpoint) -> str:
    """What opens the very checkpoint again, from any folder."""
    if checkpoint.repository is not None:
        address = None if isinstance(checkpoint, Adapter) else checkpoint.address
        return address or f"hf://{checkpoint.repository}@{checkpoint.revision}"
    return str(checkpoint.path) if isinstance(checkpoint, Adapter) else source_path(checkpoint)


def _opened(source: dict[str, Any], spec: str, lasting: str, subject: str) -> Checkpoint:
    """The model of a source of a plan, under the name that its maker gave it; the plan gets its path.

    Raises
    ------
    FormatError
        It is not the one that the plan was made for.
    """
    checkpoint = replace(_OPEN[source["kind"]](lasting), spec=spec)
    is_other = "://" in source["path"] and recorded_path(checkpoint) != source["path"]
    if is_other or checkpoint.fingerprint != source["fingerprint"]:
        raise FormatError(
            f"`{lasting}` is not what it was when `{subject}` was made",
            "use the same files, or make the plan again",
        )
    source["path"] = recorded_path(checkpoint)
    return checkpoint
