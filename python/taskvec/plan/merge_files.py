"""The files of a merge's output that are not the base's: tokenizer, chat template."""

from __future__ import annotations

import json

from taskvec.compat.tokenizer import SETTINGS, TEMPLATE, is_tokenizer_file
from taskvec.files.json import parse_object
from taskvec.models.model import Model
from taskvec.plan.merge_models import Opened, checkpoint_of
from taskvec.plan.vocabulary import Tokens
from taskvec.plan.vocabulary_files import files_of
from taskvec.recipe.chat_templates import TEMPLATES, most_common, template_of
from taskvec.recipe.expanded import ExpandedMerge
from taskvec.recipe.schema import Recipe


def merge_files(
    merge: ExpandedMerge, opened: Opened, config_from: Model, recipe: Recipe, tokens: Tokens | None
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Tokenizer files where they are not the base's, and the chat template; the base's that are left."""
    files: dict[str, bytes] = {}
    left: tuple[str, ...] = ()
    chosen = checkpoint_of(opened, merge.models[merge.tokenizer_from])
    if tokens is not None:
        files, left = files_of(tokens, config_from)
    elif chosen is not config_from:
        files = {name: chosen.read_file(name) for name in chosen.other_files if is_tokenizer_file(name)}
    if chosen is not config_from and TEMPLATE in config_from.other_files and TEMPLATE not in files:
        left = tuple(name for name in left if name != TEMPLATE)
        if own := template_of(chosen):
            files[TEMPLATE] = own.encode()  # its file would go before what is in the settings
    if merge.chat_template is not None:
        if SETTINGS in config_from.other_files or SETTINGS in files:
            text = files.get(SETTINGS) or config_from.read_file(SETTINGS)
            settings = parse_object(text, SETTINGS)
            settings.pop("chat_template", None)
            files[SETTINGS] = json.dumps(settings, indent=2, ensure_ascii=False).encode()
        files[TEMPLATE] = _template(merge.chat_template, opened, recipe).encode()
    return files, tuple(name for name in left if name not in files)


def _template(chosen: str, opened: Opened, recipe: Recipe) -> str:
    """The chat template that a recipe means: a known one by name, ``auto``, or the template itself."""
    if chosen != "auto":
        return TEMPLATES.get(chosen, chosen)
    # A model that is only subtracted is not an input. An adapter has its model's template.
    inputs = dict.fromkeys(
        ref.plain
        for group in recipe.groups()
        for ref in (group.base, *(source.ref for source in group.sources))
        if ref is not None and ref.kind != "vector"
    )
    by_name = {ref.plain: model for ref, model in opened.items() if isinstance(model, Model)}
    template = most_common(by_name[ref] for ref in inputs)
    if template is None:
        raise recipe.error(
            ("chat_template",),
            "`chat_template` is `auto`, and none of the models has a chat template",
            f"name one ({', '.join(f'`{name}`' for name in TEMPLATES)}), or remove `chat_template`",
        )
    return template
