"""The types of a recipe's values: what is accepted of a file, and what an editor's schema says of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema

from taskvec.dtypes import parse_dtype
from taskvec.methods.values import Setting, SettingError, parse
from taskvec.recipe.chat_templates import TEMPLATES
from taskvec.recipe.model_ref import ModelRef, TokenRow, native, parse_model
from taskvec.settings import TARGET, TOUCHED, parse_alphas
from taskvec.text import kind_of, nearest, shown

CHAT_TEMPLATES = tuple(TEMPLATES)
MAXIMUM_LAYERS = 100_000
MAXIMUM_SEED = 2**64 - 1


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
    try:
        spec = native(spec) if isinstance(value, str) else spec
    except ValueError as error:
        raise SettingError(*error.args) from None
    return ModelRef(spec, "vector", opened=None if isinstance(value, str) else value)


def _dtype(value: Any) -> Any:
    return value if value is None else parse_dtype(value)


def _out_dtype(value: Any) -> Any:
    word = str(value).strip().lower()
    return word if word in (TARGET, TOUCHED) else _dtype(value)


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
    first, end = (_layer(item, hint) for item in value)
    if not 0 <= first <= end:
        raise SettingError(f"layer range [{shown(first)}, {shown(end)}] runs backwards or below zero", hint)
    if end > MAXIMUM_LAYERS:
        raise SettingError(
            f"layer range [{shown(first)}, {shown(end)}] ends above {MAXIMUM_LAYERS} layers", hint
        )
    return first, end


def _layer(value: Any, hint: str) -> int:
    """A layer's number, which may be text or a whole float, as mergekit takes it."""
    if isinstance(value, str) and value.strip().isdecimal() and len(value.strip()) < 10:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise SettingError(f"a layer is a whole number, found {kind_of(value)}", hint)
    return value


def _tokenizer_source(value: Any) -> Any:
    return value if value in ("base", "union", None) else _model(value)


_TOKEN_HINT = (
    "write `{source: MODEL}`, `{source: {kind: model_token, model: MODEL, token: TEXT}}` (or `token_id`), or "
    "`{source: {kind: zero}}`, with `force: true` for the models that have the token as well"
)


def _tokens(value: Any) -> dict[str, TokenRow]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise SettingError(f"{kind_of(value)} where tokens belong", f"each token has a source: {_TOKEN_HINT}")
    return {token: row for token, each in value.items() if (row := _token_row(token, each)) is not None}


def _token_row(token: str, value: Any) -> TokenRow | None:
    if not isinstance(value, Mapping) or not value.keys() <= {"source", "force"}:
        raise SettingError(f"{kind_of(value)} where the source of a token belongs", _TOKEN_HINT, (token,))
    force, source = value.get("force", False), value.get("source")
    if not isinstance(force, bool):
        raise SettingError(f"`force` is true or false, found {kind_of(force)}", _TOKEN_HINT, (token,))
    if source is None:
        if force:
            raise SettingError("`force` without a `source`", _TOKEN_HINT, (token,))
        return None
    kind = source.get("kind") if isinstance(source, Mapping) else None
    if kind == "zero" and source.keys() == {"kind"}:
        return TokenRow(None, force=force)
    if kind == "model_token":
        named = [key for key in ("token", "token_id") if source.get(key) is not None]
        other = source[named[0]] if len(named) == 1 else None
        fits = isinstance(other, str if named == ["token"] else int) and not isinstance(other, bool)
        if not fits or not source.keys() <= {"kind", "model", "token", "token_id"}:
            raise SettingError("a source of that kind has one token", _TOKEN_HINT, (token,))
        return TokenRow(_model(source.get("model")), other, force)
    if kind is not None:
        raise SettingError(f"unknown kind of source `{shown(str(kind))}`", _TOKEN_HINT, (token,))
    return TokenRow(_model(source), force=force)


MAXIMUM_MULTIPLE = 65_536


def _padding(value: Any) -> int | None:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if value is not None and not (is_number and 0 < value <= MAXIMUM_MULTIPLE):
        raise SettingError(
            f"rows are padded to a multiple of a whole number, found {kind_of(value)}",
            f"write a number from 1 to {MAXIMUM_MULTIPLE}, such as `pad_to_multiple_of: 64`",
        )
    return value


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


def _defined(name: str) -> WithJsonSchema:
    """A definition that :mod:`taskvec.recipe.json_schema` adds."""
    return WithJsonSchema({"definition": name})


ModelName = Annotated[ModelRef, PlainValidator(_model), _defined("ModelName")]
VectorName = Annotated[ModelRef, PlainValidator(_vector), WithJsonSchema({"minLength": 1, "type": "string"})]
DtypeName = Annotated[str | None, BeforeValidator(_dtype), _defined("DtypeName")]
OutDtypeName = Annotated[str | None, BeforeValidator(_out_dtype), _defined("DtypeName")]
Patterns = Annotated[
    tuple[str, ...],
    PlainValidator(_words),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"items": {"type": "string"}, "type": "array"}]}),
]
Parameters = Annotated[dict[str, Annotated[Setting, PlainValidator(parse)]], _defined("Parameters")]
LayerRange = Annotated[
    tuple[int, int],
    PlainValidator(_range),
    WithJsonSchema(
        {"items": {"minimum": 0, "type": "integer"}, "maxItems": 2, "minItems": 2, "type": "array"}
    ),
]
TokenizerSource = Annotated[
    ModelRef | Literal["base", "union"] | None,
    PlainValidator(_tokenizer_source),
    WithJsonSchema({"anyOf": [{"enum": ["base", "union"]}, {"definition": "ModelName"}, {"type": "null"}]}),
]
Tokens = Annotated[
    dict[str, TokenRow],
    PlainValidator(_tokens),
    WithJsonSchema(
        {
            "additionalProperties": {
                "additionalProperties": False,
                "properties": {
                    "force": {"type": "boolean"},
                    "source": {
                        "anyOf": [
                            {"definition": "ModelName"},
                            {
                                "properties": {
                                    "kind": {"enum": ["zero", "model_token"]},
                                    "model": {"definition": "ModelName"},
                                    "token": {"type": ["string", "null"]},
                                    "token_id": {"type": ["integer", "null"]},
                                },
                                "required": ["kind"],
                                "type": "object",
                            },
                            {"type": "null"},
                        ]
                    },
                },
                "type": "object",
            },
            "type": ["object", "null"],
        }
    ),
]
Padding = Annotated[
    int | None,
    PlainValidator(_padding),
    WithJsonSchema({"maximum": MAXIMUM_MULTIPLE, "minimum": 1, "type": ["integer", "null"]}),
]
ChatTemplate = Annotated[str | None, BeforeValidator(_template)]
DocumentName = Annotated[str | None, BeforeValidator(_name)]
Alphas = Annotated[
    tuple[float, ...] | None,
    PlainValidator(_alphas),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": ["number", "null"]},
                {"items": {"type": "number"}, "minItems": 1, "type": "array"},
            ]
        }
    ),
]
Seed = Annotated[int, Field(ge=0, le=MAXIMUM_SEED)]
