"""A JSON schema of recipes (draft 2020-12), from which editors complete and check them."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from taskvec.methods.catalogue import METHODS, PARAMETERS, PUBLISHED
from taskvec.methods.method import Method, Parameter
from taskvec.recipe.schema import Recipe

ADDRESS = "https://json-schema.org/draft/2020-12/schema"

_SCALAR = {"type": ["number", "boolean", "string"]}
_GRADIENT = {"type": "array", "items": _SCALAR, "minItems": 1}
_FILTER = {
    "type": "object",
    "properties": {
        "filter": {
            "type": ["string", "null"],
            "description": "looked for anywhere in the tensor's name; `*` or none matches all",
        },
        "value": {"anyOf": [_SCALAR, _GRADIENT]},
    },
    "required": ["value"],
    "additionalProperties": False,
}
_VALUE = {
    "description": "a value, a gradient over the layers, {filter, value}, or a list of those",
    "anyOf": [_SCALAR, _GRADIENT, _FILTER, {"type": "array", "items": _FILTER, "minItems": 1}],
}
_PATH = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {
            "type": "object",
            "properties": {"path": {"type": "string"}, "revision": {"type": ["string", "null"]}},
            "required": ["path"],
            "additionalProperties": False,
        },
    ]
}
_MODEL = {
    "description": "a folder, a hub id (org/name@revision), an earlier document; `+` adds a LoRA adapter",
    "anyOf": [
        {"type": "string", "minLength": 1},
        {
            "type": "object",
            "properties": {
                "model": _PATH,
                "lora": {"anyOf": [_PATH, {"type": "null"}]},
                "override_architecture": {"type": "null"},
            },
            "required": ["model"],
            "additionalProperties": False,
        },
    ],
}
_DTYPE = {
    "anyOf": [
        {"enum": ["bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"]},
        {"type": "string"},
        {"type": "null"},
    ]
}
# Slices may have bases of their own.
_BASED = [{"required": ["base_model"]}, {"required": ["slices"]}, {"required": ["modules"]}]


class _Generator(GenerateJsonSchema):
    """pydantic's schema without what repeats the names of the keys, or that a key may be left out."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False

    def default_schema(self, schema: Any) -> JsonSchemaValue:
        without = schema.get("default") in (None, ())
        return self.generate_inner(schema["schema"]) if without else super().default_schema(schema)


def schema() -> dict[str, Any]:
    """The schema of one document of a recipe."""
    result = _linked(Recipe.model_json_schema(schema_generator=_Generator))
    definitions = result.pop("$defs")
    for form in (result, *definitions.values()):
        del form["title"]
    definitions.update(
        Value=_VALUE,
        ModelName=_MODEL,
        DtypeName=_DTYPE,
        Parameters={
            "type": "object",
            "properties": {name: _parameter(name) for name in sorted(PARAMETERS | PUBLISHED)},
            "additionalProperties": False,
        },
    )
    for name in ("Input", "SliceInput"):
        definitions[name]["oneOf"] = [
            {"required": [key], "properties": {key: {"not": {"type": "null"}}}} for key in ("model", "vector")
        ]
    result["properties"]["merge_method"] = {
        "description": "how the models are merged; see `taskvec methods`",
        "oneOf": [{"const": m.name, "description": m.summary} for m in METHODS.values()],
    }
    result["allOf"] = [_names_of(method) for method in METHODS.values()]
    result["oneOf"] = [_given(key) for key in ("models", "slices", "modules")]
    return {
        "$schema": ADDRESS,
        "title": "taskvec recipe",
        "$defs": definitions,
        **result,
    }


def _linked(value: Any) -> Any:
    """A schema with references to the definitions that are made here."""
    if isinstance(value, list):
        return [_linked(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        "$ref" if key == "definition" else key: f"#/$defs/{item}" if key == "definition" else _linked(item)
        for key, item in value.items()
    }


def _parameter(name: str) -> dict[str, Any]:
    texts = []
    for method in METHODS.values():
        parameter = method.parameter(name)
        if parameter is not None and _text(parameter) not in texts:
            texts.append(_text(parameter))
    return {"$ref": "#/$defs/Value", "description": "; or ".join(texts) or "without effect"}


def _text(parameter: Parameter) -> str:
    return f"{parameter.text} ({parameter.range})"


def _names_of(method: Method) -> dict[str, Any]:
    """Which parameters a recipe of this method may have, on every level."""
    own = {p.name: p.scope for p in method.parameters}
    # Words without effect come last: an editor offers the names in this order.
    foreign = sorted(PUBLISHED - own.keys())
    everywhere = {"propertyNames": {"enum": [*own, *foreign]}}
    per_model = {
        "propertyNames": {"enum": [*(name for name, scope in own.items() if scope == "model"), *foreign]}
    }

    def inputs(key: str) -> dict[str, Any]:
        return {key: {"items": {"properties": {"parameters": per_model}}}}

    slices = {"slices": {"items": {"properties": {"parameters": everywhere, **inputs("sources")}}}}
    part = {"parameters": everywhere, **inputs("models"), **slices}
    return {
        "if": {"properties": {"merge_method": {"const": method.name}}, "required": ["merge_method"]},
        "then": {
            "properties": {**part, "modules": {"additionalProperties": {"properties": part}}},
            **({"anyOf": _BASED} if method.base == "required" else {}),
        },
    }


def _given(key: str) -> dict[str, Any]:
    return {"required": [key], "properties": {key: {"type": "object" if key == "modules" else "array"}}}
