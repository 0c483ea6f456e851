"""The kinds of values that a recipe has: what is accepted, and what an editor's schema says of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Strict, WithJsonSchema

from taskvec.chat_templates import TEMPLATES
from taskvec.model_ref import ModelRef, parse_model
from taskvec.parameters import Setting, SettingError, parse
from taskvec.recipe_document import kind_of, nearest, shown
from taskvec.settings import parse_alphas, parse_dtype

CHAT_TEMPLATES = tuple(TEMPLATES)
MAXIMUM_LAYERS = 100_000


def _model(value: Any) -> ModelRef:
    try:
        return parse_model(value)
    except ValueError as error:
        raise SettingError(*error.args) from None


def _vector(value: Any) -> ModelRef:
    if isinstance(value, ModelRef):
        return value
    spec = value if isinstance(value, str) else getattr(value, "spec", None)
    if not isinstance(spec, str) or not spec.strip():
        raise SettingError(f"{kind_of(value)} where a saved vector belongs", "write the path of a `.vec`")
    return ModelRef(spec, "vector", opened=None if isinstance(value, str) else value)


def _dtype(value: Any) -> Any:
    return value if value is None else parse_dtype(value)


def _words(value: Any) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise SettingError(
            f"{kind_of(value)} where patterns belong", "write one regular expression or a list"
        )
    return tuple(items)


def _alphas(value: Any) -> tuple[float, ...]:
    items = value if isinstance(value, list | tuple) else [value]
    for item in items:
        if isinstance(item, bool) or not isinstance(item, int | float | str):
            raise SettingError(
                f"{kind_of(item)} where an alpha belongs", "write a number or a list: [0.5, 1]"
            )
    return parse_alphas(value)


def _range(value: Any) -> tuple[int, int]:
    hint = "write `[0, 24]`: the first layer, and the one after the last"
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise SettingError(f"a layer range is two whole numbers, found {kind_of(value)}", hint)
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int):
            raise SettingError(f"a layer is a whole number, found {kind_of(item)}", hint)
    first, end = value
    if not 0 <= first <= end:
        raise SettingError(f"layer range [{shown(first)}, {shown(end)}] runs backwards or below zero", hint)
    if end > MAXIMUM_LAYERS:
        raise SettingError(
            f"layer range [{shown(first)}, {shown(end)}] ends above {MAXIMUM_LAYERS} layers", hint
        )
    return first, end


def _tokenizer_source(value: Any) -> Any:
    if value == "union":
        raise SettingError(
            "a tokenizer of all vocabularies together (`union`) cannot be made yet",
            "choose one model's: `base`, or the model itself; the vocabularies have to be equal",
        )
    return value if value in ("base", None) else _model(value)


def _no_tokens(value: Any) -> None:
    if value:
        raise SettingError("embeddings of single tokens cannot be set yet", "remove `tokens`")


def _no_padding(value: Any) -> None:
    if value is not None:
        raise SettingError("vocabularies cannot be padded yet", "remove `pad_to_multiple_of`")


def _template(value: Any) -> Any:
    if isinstance(value, str) and value not in ("auto", *CHAT_TEMPLATES) and "{" not in value:
        near = nearest(value, ("auto", *CHAT_TEMPLATES))
        known = ", ".join(f"`{name}`" for name in ("auto", *CHAT_TEMPLATES))
        raise SettingError(
            f"`{shown(value)}` is neither a known chat template nor a Jinja template",
            f"did you mean `{near}`?" if near else f"known are {known}",
        )
    return value


def _name(value: Any) -> Any:
    if value is None:
        return value
    if not isinstance(value, str) or not value.strip():
        raise SettingError(f"the name of a document is text, found {kind_of(value)}")
    if (
        not value.isprintable()
        or any(c in value for c in '/\\@+:*?"<>|')
        or value.startswith(".")
        or len(value) > 100
    ):
        raise SettingError(
            f"`{shown(value)}` cannot name a document", "use letters, digits, `-`, `_` and dots, at most 100"
        )
    return value


_TEXT = {"type": "string", "minLength": 1}
# Stands for a definition that `recipe_schema` makes.
_MODEL_SCHEMA = {"is": "ModelName"}
_LIST_OF_TEXT = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}

ModelName = Annotated[ModelRef, BeforeValidator(_model), WithJsonSchema(_MODEL_SCHEMA)]
VectorName = Annotated[ModelRef, BeforeValidator(_vector), WithJsonSchema(_TEXT)]
DtypeName = Annotated[str | None, BeforeValidator(_dtype), WithJsonSchema({"is": "DtypeName"})]
Patterns = Annotated[tuple[str, ...], Strict(False), BeforeValidator(_words), WithJsonSchema(_LIST_OF_TEXT)]
Value = Annotated[Setting, BeforeValidator(parse), WithJsonSchema({"is": "Value"})]
Parameters = dict[str, Value]
LayerRange = Annotated[
    tuple[int, int],
    BeforeValidator(_range),
    WithJsonSchema(
        {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 2, "maxItems": 2}
    ),
]
TokenizerSource = Annotated[
    ModelRef | Literal["base"] | None,
    BeforeValidator(_tokenizer_source),
    WithJsonSchema({"anyOf": [{"const": "base"}, _MODEL_SCHEMA, {"type": "null"}]}),
]
NoTokens = Annotated[
    None, BeforeValidator(_no_tokens), WithJsonSchema({"type": ["object", "null"], "maxProperties": 0})
]
NoPadding = Annotated[None, BeforeValidator(_no_padding)]
ChatTemplate = Annotated[str | None, BeforeValidator(_template)]
DocumentName = Annotated[str | None, BeforeValidator(_name)]
Alphas = Annotated[
    tuple[float, ...] | None,
    BeforeValidator(_alphas),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": ["number", "null"]},
                {"type": "array", "items": {"type": "number"}, "minItems": 1},
            ]
        }
    ),
]
