"""Chat templates that a recipe can name (``chat_template: chatml``), and those that checkpoints bring along.

Each writes the turns of a conversation in a published format. The texts are our own; the formats are those of
the model families.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from taskvec.compat.tokenizer import SETTINGS, TEMPLATE
from taskvec.files.json import parse_object

if TYPE_CHECKING:
    from taskvec.models.model import Model

_GENERATION = "{% if add_generation_prompt %}"

_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}" + _GENERATION + "{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}" + _GENERATION + "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)

# A system text goes in front of the first instruction: the format has no turn for it.
_MISTRAL = (
    "{{ bos_token }}{% set state = namespace(system='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set state.system = message['content'] + '\\n\\n' %}"
    "{% elif message['role'] == 'user' %}"
    "{{ '[INST] ' + state.system + message['content'] + ' [/INST]' }}{% set state.system = '' %}"
    "{% else %}{{ ' ' + message['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)

_ALPACA = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}"
    "{% else %}{{ '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}{% endif %}"
    "{% endfor %}" + _GENERATION + "{{ '### Response:\\n' }}{% endif %}"
)

_EXAONE = (
    "{% for message in messages %}{{ '[|' + message['role'] + '|]' + message['content'] }}"
    "{% if message['role'] != 'user' %}{{ '[|endofturn|]' }}{% endif %}{{ '\\n' }}"
    "{% endfor %}" + _GENERATION + "{{ '[|assistant|]' }}{% endif %}"
)

TEMPLATES: Mapping[str, str] = {
    "alpaca": _ALPACA,
    "chatml": _CHATML,
    "exaone": _EXAONE,
    "llama3": _LLAMA3,
    "mistral": _MISTRAL,
}
"""Jinja by the name that a recipe uses."""


def template_of(model: Model) -> str | None:
    """A checkpoint's chat template, from its own file or the tokenizer's settings; of several the default."""
    if TEMPLATE in model.other_files:
        return model.read_file(TEMPLATE).decode("utf-8", "replace").strip() or None
    if SETTINGS not in model.other_files:
        return None
    found = parse_object(model.read_file(SETTINGS), f"{model.spec}/{SETTINGS}").get("chat_template")
    if isinstance(found, list):
        entries = [entry for entry in found if isinstance(entry, dict)]
        found = {entry.get("name"): entry.get("template") for entry in entries}
    if isinstance(found, dict):
        found = found.get("default")
    return found.strip() or None if isinstance(found, str) else None


def most_common(models: Iterable[Model]) -> str | None:
    """The chat template that most of the models have, of equally many the first; ``None`` if none has one."""
    counted = Counter(filter(None, map(template_of, models)))
    return counted.most_common(1)[0][0] if counted else None
