"""How a recipe names a model: a path, a hub id or an earlier document, with a revision and a LoRA adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from taskvec.files import look
from taskvec.files.windows import way_out
from taskvec.text import kind_of, nearest, shown

# Linux: bytes of a path, and of one of its parts.
MAXIMUM_PATH = 4096
MAXIMUM_NAME = 255
_QUOTES = frozenset("\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb")


@dataclass(frozen=True, slots=True)
class ModelRef:
    """One source of tensors.

    Parameters
    ----------
    spec : str
        Path or hub id as the user wrote it, ``@revision`` included; the name of a document of the same
        recipe; the path of a vector or of an adapter.
    kind : {"checkpoint", "vector", "adapter", "importance"}
        ``adapter``: what the adapter adds, without the model that it is made for. ``importance``: a
        checkpoint whose values say what the elements of a model matter.
    adapter : str, optional
        Of a checkpoint: a LoRA adapter to add to it.
    made_for : str, optional
        Of an adapter: the model whose tensors it adds to.
    opened : object, optional
        A checkpoint that the caller has open already (recipes given as dicts).
    """

    spec: str
    kind: Literal["checkpoint", "vector", "adapter", "importance"] = "checkpoint"
    adapter: str | None = None
    made_for: str | None = None
    opened: Any = field(default=None, compare=False, repr=False)

    @property
    def path(self) -> str:
        """``spec`` without its revision."""
        return self.spec.partition("@")[0] if not exists(self.spec) else self.spec

    @property
    def plain(self) -> ModelRef:
        """The same checkpoint without the adapter."""
        return ModelRef(self.spec, opened=self.opened)

    def __str__(self) -> str:
        return f"{self.spec}+{self.adapter}" if self.adapter else self.spec


@dataclass(frozen=True, slots=True)
class TokenRow:
    """Where the rows of a token come from, in models that lack it; with ``force`` in all models.

    Attributes
    ----------
    model : ModelRef or None
        ``None``: they are zero.
    token : str or int or None
        Another token of that model, by its text or its id; ``None``: the same one.
    force : bool
    """

    model: ModelRef | None
    token: str | int | None = None
    force: bool = False


def exists(text: str) -> bool:
    """Whether a file or folder of that name is there."""
    name = text.encode("utf-8", "replace")
    # longer than any path: an error of the file system and not an answer, but no such file can be there
    if len(name) >= MAXIMUM_PATH or max(map(len, name.split(b"/"))) > MAXIMUM_NAME:
        return False
    return look.exists(text)


def parse_model(value: Any) -> ModelRef:
    """The model that a plain value of a recipe names.

    Forms: ``path``, ``org/name@revision``, ``path+adapter``, ``{path, revision}``, and mergekit's
    ``{model: {path, revision}, lora: {path, revision}}``. A local folder that has a ``+`` or ``@`` in its
    own name takes precedence.

    Raises
    ------
    ValueError
        None of these; its arguments are the message and a hint.
    """
    if isinstance(value, ModelRef):
        return value
    if isinstance(value, str):
        if not value.strip() or not value.isprintable():
            raise ValueError(f"`{shown(value)}` where a model belongs", _text_hint(value))
        if value[0] in _QUOTES and not exists(value):
            raise ValueError(
                f"`{shown(value)}` begins with a typographic quote",
                "use straight quotes, or none: texts copied from a web page have others",
            )
        if "+" not in value or exists(value):
            value = native(value)
            _check_revision(value)
            return ModelRef(value)
        model, adapter = _parted(value)
        model, adapter = native(model), native(adapter)
        _check_revision(model)
        _check_revision(adapter)
        return ModelRef(model, adapter=adapter)
    if isinstance(value, Mapping):
        return _from_mapping(value)
    spec = getattr(value, "spec", None)
    if isinstance(spec, str):
        return ModelRef(spec, opened=value)
    raise ValueError(f"{kind_of(value)} where a model belongs", "write a folder or a hub id, org/name")


# Two paths of the longest kind, and more signs than names of folders have.
_LONGEST, _MOST_SIGNS = 2 * 4096 + 1, 16


def _parted(value: str) -> tuple[str, str]:
    """Model and adapter of a text with a `+` between them, which folders may have in their names too."""
    # of a text with more of them, which is no path, none is looked for
    signs = [place for place, sign in enumerate(value[:_LONGEST]) if sign == "+"][: _MOST_SIGNS + 1]
    is_path = len(value) <= _LONGEST and len(signs) <= _MOST_SIGNS
    pairs = [(value[:place], value[place + 1 :]) for place in signs] if is_path else []
    if len(pairs) > 1:
        pairs = [pair for pair in pairs if all(pair) and (exists(pair[0]) or exists(pair[1]))]
        both = [pair for pair in pairs if exists(pair[0]) and exists(pair[1])]
        pairs = both or pairs
    if len(pairs) != 1 or not all(pairs[0]):
        raise ValueError(
            f"`{shown(value)}` is not of the form MODEL+ADAPTER",
            "one model takes one adapter; if a `+` is part of a name, write `model: {path: MODEL}` and "
            "`lora: {path: ADAPTER}` under `model:`",
        )
    return pairs[0]


def native(text: str) -> str:
    """A path as this system has it: relative ones of Windows are known by their parts.

    Raises
    ------
    ValueError
        A path that only Windows has; its arguments are the message and a hint.
    """
    hint = None if exists(text) else way_out(text)
    if hint is None:
        return text
    own = text.replace("\\", "/")
    if exists(own):
        return own
    raise ValueError(f"`{shown(text)}` is not found", hint)


def _text_hint(text: str) -> str:
    escapes = any(not character.isprintable() for character in text) and text.strip()
    return (
        "between double quotes a backslash begins an escape: write the path without quotes"
        if escapes
        else "write a folder or a hub id, org/name"
    )


def _check_revision(text: str) -> None:
    if text.count("@") > 1 and not exists(text):
        raise ValueError(f"`{shown(text)}` has more than one `@`", "write `org/name@revision`")


def _from_mapping(value: Mapping[str, Any]) -> ModelRef:
    if "path" in value and "model" not in value:
        return ModelRef(_path(value))
    for key in value:
        if key not in ("model", "lora", "override_architecture"):
            near = nearest(key, ("model", "lora"))
            raise ValueError(
                f"unknown key `{shown(key)}` in a model",
                f"did you mean `{near}`?" if near else "the keys are `model` and `lora`",
            )
    if value.get("override_architecture") is not None:
        raise ValueError(
            "`override_architecture` cannot be honoured: no architecture tables are used, tensors go by name",
            "remove it; the base model's config.json is the output's",
        )
    if "model" not in value:
        raise ValueError("a model without `model`", "write `{model: {path: …}, lora: {path: …}}`")
    lora = value.get("lora")
    return ModelRef(_path(value["model"]), adapter=None if lora is None else _path(lora))


def _path(value: Any) -> str:
    if isinstance(value, str) and value.strip():
        return native(value)
    if isinstance(value, Mapping) and isinstance(value.get("path"), str) and value["path"].strip():
        revision = value.get("revision")
        if set(value) <= {"path", "revision"} and isinstance(revision, str | None):
            path = native(value["path"])
            return path if revision is None else f"{path}@{revision}"
    raise ValueError("a model is `{path: …, revision: …}`, its revision optional")
