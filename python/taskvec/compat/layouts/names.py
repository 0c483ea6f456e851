"""Common names of weights: the same weight has one, whatever wrapper and block it lies in."""

from __future__ import annotations

from functools import lru_cache

from taskvec.models.part_names import block_name
from taskvec.models.tensor_names import without_wrappers
from taskvec.regex import regex

_TOWERS = (
    "visual|vision_tower|vision_model|audio_tower|audio_model|multi_modal_projector|mm_projector|"
    "embed_vision|embed_audio|image_newline"
)
# What a name begins with, and the common form of it; the first that fits is taken.
_PREFIXES = (
    (regex(r"^(?:base_model\.model\.|module\.|_forward_module\.|pretrained_model\.)+"), ""),
    # a module of Lightning that holds the model as `model`
    (regex(r"^model\.(?=model\.|lm_head\.)"), ""),
    (regex(rf"^(?:model\.)?(?={_TOWERS})"), "model."),
    (regex(r"^(?:(?:model\.)?(?:language_model|text_model)\.lm_head|embed_out)\."), "lm_head."),
    (regex(r"^model\.(?:language_model|text_model)\.(?:model\.)?"), "model."),
    (regex(r"^(?:language_model|text_model)\.(?:model\.)?"), "model."),
    (regex(r"^backbone\."), "model."),
    (regex(r"^(?=(?:layers\.\d+|embed_tokens|norm)\.)"), "model."),
)


@lru_cache(maxsize=1 << 18)
def common_name(name: str) -> str:
    """The common name of a stored tensor that is one weight as it is."""
    name = without_wrappers(name)
    for pattern, prefix in _PREFIXES[:2]:
        name = pattern.sub(prefix, name)
    for pattern, prefix in _PREFIXES[2:]:
        found = pattern.match(name)
        if found is not None:
            name = prefix + name[found.end() :]
            break
    return block_name(name)
