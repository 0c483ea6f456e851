"""config.json after layers were taken out, repeated or put in another order: every key that counts layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from taskvec.compat.families import NO_FAMILY, NOT_KNOWN, Family, family, filled

Config = Mapping[str, Any]


class Origin(NamedTuple):
    """Where a layer of the output comes from: the config of its model, and its number there."""

    config: Config
    layer: int


# Where each part of a model keeps its settings, and under which keys the number of its layers. The text part
# of a multimodal config may stand in a section of its own: the nested one decides.
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_SECTIONS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "text": (("text_config", "language_config", "llm_config", ""), _COUNTS),
    "vision": (("vision_config",), ("depth", *_COUNTS)),
    "audio": (("audio_config",), ("encoder_layers", *_COUNTS)),
    "encoder": (("",), ("encoder_layers", "num_hidden_layers", "num_layers")),
    "decoder": (("",), ("decoder_layers", "num_decoder_layers")),
}

# One entry per layer, under names that do not have `layer` in them; names that do, and mean something else.
_ENTRIES = frozenset({"activation_sparsity_pattern", "block_configs", "intermediate_size"})
_OTHER_LAYERS = ("mtp_", "vision_", "num_")
# One character per layer.
_LETTERS = frozenset({"hybrid_override_pattern"})
# Lists of layer numbers.
_NUMBERS = frozenset(
    {
        "attn_layer_indices", "cross_attention_layers", "deepstack_visual_indexes", "full_attn_idxs",
        "fullatt_block_indexes", "mlp_only_layers", "moe_layers", "window_block_indices",
    }
)  # fmt: skip
# How many of the first layers, and how many of the last, are of a kind.
_LEADING = frozenset({"first_k_dense_replace", "max_window_layers", "n_dense_layers", "num_dense_layers"})
_TRAILING = frozenset({"num_kv_shared_layers"})
# After how many layers a kind returns, and from where that is counted.
_PERIODS: Mapping[str, str | None] = {
    "_sliding_window_pattern": None,
    "attn_layer_period": "attn_layer_offset",
    "decoder_sparse_step": None,
    "expert_layer_period": "expert_layer_offset",
    "full_attention_interval": None,
    "interleave_moe_layer_step": None,
    "no_rope_layer_interval": None,
    "sliding_window_pattern": None,
}
# A key with one entry per layer that overrules the pattern, where it is there.
_OVERRULED = {
    "_sliding_window_pattern": "layer_types",
    "full_attention_interval": "layer_types",
    "interleave_moe_layer_step": "moe_layers",
    "max_window_layers": "layer_types",
    "no_rope_layer_interval": "no_rope_layers",
    "sliding_window_pattern": "layer_types",
}


def layer_count(config: Config, kind: str) -> int | None:
    """How many layers a config gives to a part of the model (``text``, ``vision`` …)."""
    for _, section, keys in _sections(config, kind):
        for key in keys:
            count = section.get(key)
            if isinstance(count, int) and not isinstance(count, bool) and count > 0:
                return count
    return None


def _sections(config: Config, kind: str) -> Iterator[tuple[str, Config, tuple[str, ...]]]:
    names, keys = _SECTIONS.get(kind, ((), ()))
    for name in names:
        section = config.get(name) if name else config
        if isinstance(section, Mapping):
            yield f"{name}." if name else "", section, keys


def edits(config: Config, kind: str, origins: Sequence[Origin]) -> tuple[dict[str, Any], list[str]]:
    """Changes to a config, and keys that cannot describe what the layers now are.

    Parameters
    ----------
    config : mapping
        The config that the output starts from.
    kind : str
        Which part of the model the layers are of.
    origins : sequence of Origin
        One per layer of the output.

    Returns
    -------
    changes : dict
        Keys and values, nested keys as ``text_config.num_hidden_layers``.
    problems : list of str
        Keys that describe a pattern which the new order breaks.
    """
    changes: dict[str, Any] = {}
    problems: list[str] = []
    old = layer_count(config, kind)
    for prefix, section, keys in _sections(config, kind):
        own = [Origin(_same_section(origin.config, prefix), origin.layer) for origin in origins]
        row = _family(config, section, prefix)
        lists, unknown = _implied_lists(section, row, own, keys)
        changes.update({prefix + key: value for key, value in lists.items()})
        problems += [prefix + key for key in unknown]
        rewriter = _Rewriter(section, own, old, frozenset(row.layers))
        for key, value in row.defaults.items():
            if key not in section and key not in _settled_by_lists(row) and _is_pattern(key):
                new = rewriter.rewritten(key, value)
                if new != value:
                    changes[prefix + key] = new
        for key, value in section.items():
            is_count = key in keys and value == old
            new = len(origins) if is_count else rewriter.rewritten(key, value)
            if new != value:
                changes[prefix + key] = new
        problems += [prefix + key for key in rewriter.problems]
    return changes, problems


def _same_section(config: Config, prefix: str) -> Config:
    section = config.get(prefix[:-1]) if prefix else None
    return section if isinstance(section, Mapping) else config


def _family(config: Config, section: Config, prefix: str) -> Family:
    """What transformers knows of a section that has layers; nothing where its text part stands elsewhere."""
    own = family(str(section.get("model_type"))) if section.get("model_type") else NO_FAMILY
    if own is NO_FAMILY and prefix:
        own = family(family(str(config.get("model_type"))).sections.get(prefix[:-1], ""))
    return own


def _is_pattern(key: str) -> bool:
    # `max_window_layers` says nothing where the config does not switch a window on.
    return key in _PERIODS or key in _LEADING - {"max_window_layers"} or key in _TRAILING or key in _NUMBERS


def _settled_by_lists(own: Family) -> set[Any]:
    return {rule.get(name) for rule in own.layers.values() for name in ("period", "first")}


def _implied_lists(
    section: Config, own: Family, origins: Sequence[Origin], counts: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """Lists with an entry per layer that the class makes by itself, where it would now make other ones.

    Returns
    -------
    lists : dict
        What to write.
    unknown : list of str
        Keys whose rule is not known, or that the class would change.
    """
    lists: dict[str, Any] = {}
    unknown: list[str] = []
    for key, rule in own.layers.items():
        has_list = section.get(key) is not None
        if (has_list and not rule.get("tail")) or rule["n"] not in counts:
            continue
        is_same = all(origin.layer == index for index, origin in enumerate(origins))
        wanted = [_implied_entry(origin, key, own) for origin in origins]
        made = filled({**section, rule["n"]: len(origins), key: None}, own)[key]
        if NOT_KNOWN in wanted or made is NOT_KNOWN:
            if not (is_same and len(origins) == section.get(rule["n"])):
                unknown.append(key)
            continue
        if rule["tail"] and wanted[-1] != rule["tail"][-1]:
            unknown.append(key)
        if made != wanted and not has_list:
            lists[key] = wanted
    return lists, unknown


def _implied_entry(origin: Origin, key: str, own: Family) -> Any:
    kind = origin.config.get("model_type")
    row = family(str(kind)) if kind else own
    entries = filled(origin.config, row).get(key)
    if not isinstance(entries, list) or origin.layer >= len(entries):
        return NOT_KNOWN
    return entries[origin.layer]


@dataclass(slots=True)
class _Rewriter:
    """Values of one section, counted again for layers that come from elsewhere."""

    section: Config
    origins: Sequence[Origin]
    old: int | None
    implied: frozenset[str] = frozenset()
    problems: list[str] = field(default_factory=list)

    def rewritten(self, key: str, value: Any) -> Any:
        """The value that belongs to the new layers."""
        if isinstance(value, list):
            return self._list(key, value)
        if isinstance(value, str):
            if key in _LETTERS and len(value) == self.old:
                return "".join(self._entry(origin, key, value) for origin in self.origins)
            if key in _PERIODS:
                self._check_period(key, value, len(value))
        elif isinstance(value, int) and not isinstance(value, bool):
            if key in _LEADING or key in _TRAILING:
                return self._run(key, value)
            if key in _PERIODS:
                self._check_period(key, value, value)
        return value

    def _list(self, key: str, value: list[Any]) -> list[Any]:
        if key in _NUMBERS:
            own = [origin.config.get(key) for origin in self.origins]
            listed = [numbers if isinstance(numbers, list) else value for numbers in own]
            return [index for index, origin in enumerate(self.origins) if origin.layer in listed[index]]
        is_named = key in _ENTRIES or ("layer" in key and not key.startswith(_OTHER_LAYERS))
        if is_named and len(value) == self.old:
            return [self._entry(origin, key, value) for origin in self.origins]
        return value

    def _entry(self, origin: Origin, key: str, otherwise: Any) -> Any:
        own: Any = origin.config.get(key)
        is_usable = isinstance(own, type(otherwise)) and origin.layer < len(own)
        entries = own if is_usable else otherwise
        return entries[min(origin.layer, len(entries) - 1)]

    def _is_overruled(self, key: str) -> bool:
        if key == "max_window_layers" and not self.section.get("use_sliding_window"):
            return True
        listed = _OVERRULED.get(key, "")
        return self.section.get(listed) is not None or listed in self.implied

    def _run(self, key: str, value: int) -> int:
        """A count of layers at one end; a problem where they no longer stand together at that end."""
        if self.old is not None and value >= self.old:
            return len(self.origins) + (value - self.old)
        flags = [self._is_of_kind(key, value, origin) for origin in self.origins]
        if key in _TRAILING:
            flags.reverse()
        run = flags.index(False) if False in flags else len(flags)
        if any(flags[run:]) and not self._is_overruled(key):
            self.problems.append(key)
        return run

    def _is_of_kind(self, key: str, value: int, origin: Origin) -> bool:
        count = origin.config.get(key, value)
        count = count if isinstance(count, int) else value
        if key in _LEADING:
            return origin.layer < count
        total = next((origin.config[k] for k in _COUNTS if isinstance(origin.config.get(k), int)), self.old)
        return origin.layer >= (total or 0) - count

    def _check_period(self, key: str, value: Any, period: int) -> None:
        if period < 2 or self._is_overruled(key):
            return
        offset = _PERIODS[key]
        for index, origin in enumerate(self.origins):
            moved = (index - origin.layer) % period != 0
            other = origin.config.get(key, value) != value
            shifted = offset is not None and origin.config.get(offset) != self.section.get(offset)
            if moved or other or shifted:
                self.problems.append(key)
                return
