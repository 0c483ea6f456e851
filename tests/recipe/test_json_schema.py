"""The JSON schema of recipes, and the chat templates that a recipe can name."""

from __future__ import annotations

import json

import jsonschema
import pytest
import yaml

from support.command_line import invoke
from support.recipe_corpus import ACCEPTED, MISTAKES
from support.recipes import LINEAR, SAME_AS_MERGEKIT, SLICE, TIES
from taskvec.methods.catalogue import METHODS
from taskvec.recipe.chat_templates import TEMPLATES
from taskvec.recipe.json_schema import schema
from taskvec.recipe.load import load


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    made = schema()
    jsonschema.Draft202012Validator.check_schema(made)
    assert made["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    return jsonschema.Draft202012Validator(made)


def test_what_loads_is_valid(validator: jsonschema.Draft202012Validator) -> None:
    examples = [method.example for method in METHODS.values()]
    for text in [*examples, *SAME_AS_MERGEKIT.values(), *ACCEPTED.values(), LINEAR, SLICE]:
        assert load(text)
        assert list(validator.iter_errors(yaml.safe_load(text))) == [], text


@pytest.mark.parametrize(
    "name",
    [
        "unknown key", "parameter at the top", "unknown parameter", "unknown method", "no method",
        "nothing to merge", "two ways at once", "no models", "models is text",
        "model is a number", "model and vector", "no layer range", "half a layer", "no base",
        "misspelt filter", "filter without value", "empty gradient", "no value",
        "preset", "rounding", "seed", "single tokens", "padding",
    ],
)  # fmt: skip
def test_editors_see_the_same_mistakes(name: str, validator: jsonschema.Draft202012Validator) -> None:
    assert list(validator.iter_errors(yaml.safe_load(MISTAKES[name][0])))


@pytest.mark.parametrize(
    "text",
    [
        TIES + "models: [{model: b, parameters: {weight: 1, tall_lambda: 0.1}}]\n",
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1, normalize: true}}]\n",
        SLICE + "    residual_weight: 0.5\n",
    ],
)
def test_editors_mark_words_without_effect(text: str, validator: jsonschema.Draft202012Validator) -> None:
    assert load(text).last.remarks
    assert list(validator.iter_errors(yaml.safe_load(text)))


def test_the_schema_explains_every_method_and_parameter() -> None:
    made = schema()
    methods = {each["const"]: each["description"] for each in made["properties"]["merge_method"]["oneOf"]}
    assert set(methods) == set(METHODS)
    assert all(methods.values())
    parameters = made["$defs"]["Parameters"]["properties"]
    assert all(each["description"] for each in parameters.values())


def test_the_command_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    done = invoke(capsys, "methods", "--schema")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == json.loads(json.dumps(schema()))


def test_the_command_gives_a_method_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    made = json.loads(invoke(capsys, "methods", "ties", "--json").out)
    assert (made["schema"], made["command"], made["method"]["name"]) == (1, "methods", "ties")
    assert load(made["method"]["recipe"]).final.merge_method == "ties"
    every = json.loads(invoke(capsys, "methods", "--json").out)
    assert [row["name"] for row in every["methods"]] == list(METHODS)


# --- chat templates ---------------------------------------------------------------------------------------

TURNS = [("system", "S"), ("user", "U"), ("assistant", "A"), ("user", "V")]
WRITTEN = {
    "alpaca": "S\n\n### Instruction:\nU\n\n### Response:\nA</s>\n\n### Instruction:\nV\n\n### Response:\n",
    "chatml": "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in TURNS)
    + "<|im_start|>assistant\n",
    "exaone": "[|system|]S[|endofturn|]\n[|user|]U\n[|assistant|]A[|endofturn|]\n[|user|]V\n[|assistant|]",
    "llama3": "<s>"
    + "".join(f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>" for role, text in TURNS)
    + "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] S\n\nU [/INST] A</s>[INST] V [/INST]",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_templates_write_the_published_formats(name: str) -> None:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATES[name]
    )
    messages = [{"role": role, "content": text} for role, text in TURNS]
    written = template.render(
        messages=messages, bos_token="<s>", eos_token="</s>", add_generation_prompt=True
    )
    assert written == WRITTEN[name]
    assert load(LINEAR + f"chat_template: {name}\n").final.chat_template == name
