"""Measure transformers' config classes and write what the comparison of configs needs to know of each family.

Run as ``python tests/compat/make_families.py`` with the version of transformers that the table is to
describe. Every class is made with its defaults, then again with one key changed at a time, and what follows
is written down; of its sources, only the names of old keys are read.

A row of the table, by ``model_type`` (a section without one of its own: ``OUTER/SECTION``):

- ``d``: defaults, without housekeeping; ``r``: default parameters of the rotary embedding.
- ``a``: other names of keys, alias to stored name; ``s``: sections and the rows that describe them.
- ``f``: keys that follow from others where they are absent: ``[operation, keys or numbers]``, or ``null``
  where the rule is not a simple one.
- ``l``: lists with an entry per layer, as ``{"n": key of the count, "head", "cycle", "tail", "period",
  "first"}``.
- ``o``: by section, defaults that the outer class sets otherwise; ``m``: the model type that it writes.
- ``n``: keys for which ``null`` means the default; ``p``: old keys that are taken in and not written.

Beside the rows, keys of any class: ``harmless``, of training and initialisation, and ``tokens``, ids and
their number. They are picked by their names from what transformers has, and looked through by hand:
``NOT_HARMLESS`` are those that do something else than they are called.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from taskvec.compat.config_keys import GENERATION

TABLE = Path(__file__).parents[2] / "python" / "taskvec" / "compat" / "families.json"
COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "depth")
PERIODS = ("sliding_window_pattern", "_sliding_window_pattern", "full_attention_interval")
ROPE = (
    "rope_theta", "rope_local_base_freq", "global_rope_theta", "local_rope_theta", "rotary_emb_base",
    "rotary_pct", "rope_ratio", "original_max_position_embeddings",
)  # fmt: skip
# Settings of generation, and a key that the measured parameters of the rotary embedding speak for.
UNUSED = frozenset({*GENERATION, "rope_scaling"})
# Words that decide over other keys.
WORDS = ("relu", "gelu", "silu", "gated-relu", "gated-gelu", "gated-silu")

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "swish")

HARMLESS_ENDS = (
    "dropout", "drop_rate", "dropout_rate", "drop_path_rate", "pdrop", "layerdrop", "_loss", "loss_coef",
    "loss_coefficient", "loss_weight", "loss_alpha", "loss_type", "_cost", "init_std", "init_method",
    "init_xavier_std", "drop_prob",
)  # fmt: skip
HARMLESS_WORDS = (
    "loss", "dropout", "initializer", "jitter", "mask_time", "mask_feature", "spec_augment", "flash",
)  # fmt: skip
# ESM and NLLB-MoE scale by what is dropped in training; SpeechT5 drops always; these have sizes.
NOT_HARMLESS = (
    "token_dropout", "moe_token_dropout", "speech_decoder_prenet_dropout", "loss_weighting_hidden_size",
    "loss_weighting_num_layers", "mask_feature_size",
)  # fmt: skip
TOKEN_ENDS = ("_token_id", "_token_ids", "_token_index", "vocab_size")


def is_harmless(key: str) -> bool:
    """Whether a key of transformers is one of training or initialisation."""
    by_name = key.endswith(HARMLESS_ENDS) or any(word in key for word in HARMLESS_WORDS)
    return by_name and key not in NOT_HARMLESS


def is_token(key: str) -> bool:
    """Whether a key of transformers is the id of a token, or how many there are."""
    return key.endswith(TOKEN_ENDS)


def is_tied(cls: Any) -> bool:
    """Whether a class ties head and embedding where the config does not say."""
    return (made(cls) or {}).get("tie_word_embeddings") is True


def all_keys(cls: Any, depth: int = 3) -> Iterator[str]:
    """Every key of a class and of its sections, old ones and other names included."""
    whole = made(cls) or {}
    yield from whole
    yield from popped(cls, whole)
    yield from getattr(cls, "attribute_map", None) or {}
    for inner in section_classes(cls).values() if depth else ():
        yield from all_keys(inner, depth - 1)


def quiet() -> None:
    """Let transformers say nothing."""
    warnings.filterwarnings("ignore")
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    import logging

    logging.getLogger("transformers").setLevel(logging.CRITICAL)


def classes() -> dict[str, Any]:
    """Config classes by model type."""
    quiet()
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    found = {}
    for kind in sorted(CONFIG_MAPPING.keys()):
        try:
            found[kind] = CONFIG_MAPPING[kind]
        except Exception:
            continue
    return found


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    return json.loads(json.dumps(value, default=str))


def made(cls: Any, **changes: Any) -> dict[str, Any] | None:
    """What the class writes for these keys; nothing where it refuses them."""
    try:
        return plain(cls(**changes).to_dict())
    except Exception:
        return None


def housekeeping() -> frozenset[str]:
    """Keys that every class has."""
    from transformers import PretrainedConfig

    return frozenset(PretrainedConfig().to_dict())


def row(cls: Any, skipped: frozenset[str]) -> dict[str, Any] | None:
    """The table's row for a class, without its sections."""
    from taskvec.compat.config_keys import IGNORED

    whole = made(cls)
    if whole is None:
        return None
    sections = set(section_classes(cls))
    rope = whole.get("rope_parameters")
    left = skipped | sections | (UNUSED - (declared(cls) & set(GENERATION))) | {"rope_parameters"}
    base = {
        k: v
        for k, v in whole.items()
        if k not in left and (k in ROPE or k not in IGNORED) and not is_harmless(k) and not is_token(k)
    }
    result = {
        "d": base,
        "r": rope,
        "a": dict(getattr(cls, "attribute_map", None) or {}),
        "p": popped(cls, whole),
    }
    result["a"].update(renamed(cls, whole, result["p"]))
    result["p"] = [
        name
        for name in result["p"]
        if name not in result["a"]
        and (name in ROPE or not (name in IGNORED or name in UNUSED or is_harmless(name)))
    ]
    result["l"] = {key: found for key in list(base) if (found := layer_rule(cls, key, base, result["p"]))}
    depends = dependencies(cls, whole, base)
    result["f"] = {key: formula(cls, key, on, base) for key, on in depends.items() if key not in result["l"]}
    result["n"] = [key for key in base if _null_is_default(cls, key, base, result)]
    result["v"] = {key: found for key in base if (found := words_read_as_others(cls, key, base))}
    for key in (*result["f"], *result["l"]):
        base.pop(key, None)
    return {key: value for key, value in result.items() if value}


def _null_is_default(cls: Any, key: str, base: dict[str, Any], result: dict[str, Any]) -> bool:
    if base[key] is None or key in result["f"] or key in result["l"]:
        return False
    other = made(cls, **{key: None})
    return other is not None and other.get(key) == base[key]


def declared(cls: Any) -> set[str]:
    """Keys that the classes of a family declare, and not the one that they all have in common."""
    own = (each for each in cls.__mro__ if "transformers.models" in each.__module__)
    return {key for each in own for key in vars(each).get("__annotations__", {})}


def words_read_as_others(cls: Any, key: str, base: dict[str, Any]) -> dict[str, Any]:
    """Names of activations that the class replaces by another one where they are the value of a key."""
    if not isinstance(base[key], str) or base[key] not in ACTIVATIONS:
        return {}
    found = {word: (made(cls, **{key: word}) or {}).get(key) for word in ACTIVATIONS}
    return {word: new for word, new in found.items() if new is not None and new != word}


def section_classes(cls: Any) -> dict[str, Any]:
    """Sections of a config and their classes, as an object with defaults has them."""
    from transformers import PretrainedConfig

    try:
        instance = cls()
    except Exception:
        return {}
    return {k: type(v) for k, v in vars(instance).items() if isinstance(v, PretrainedConfig)}


def popped(cls: Any, whole: dict[str, Any]) -> list[str]:
    """Old keys that the class takes out of what it is given."""
    names: set[str] = set()
    for each in cls.__mro__:
        if (
            each.__name__ in ("PreTrainedConfig", "PretrainedConfig")
            or "transformers.models" not in each.__module__
        ):
            continue
        for node in ast.walk(ast.parse(inspect.getsource(each).lstrip())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                is_taken = node.func.attr in ("pop", "get") and ast.unparse(node.func.value) == "kwargs"
                if is_taken and node.args and isinstance(node.args[0], ast.Constant):
                    names.add(str(node.args[0].value))
    return sorted(name for name in names if name not in whole)


def renamed(cls: Any, whole: dict[str, Any], old: list[str]) -> dict[str, str]:
    """Old keys whose value a class writes under another name."""
    result = {}
    for name in old:
        targets = []
        for value in (48, 96):
            new = made(cls, **{name: value}) or {}
            targets.append([key for key in new if new[key] != whole.get(key)])
            targets[-1] = [key for key in targets[-1] if new[key] == value]
        if targets[0] == targets[1] and len(targets[0]) == 1:
            result[name] = targets[0][0]
    return result


def changed(value: Any) -> Iterator[Any]:
    """Other values of the same sort."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int) and value > 0:
        yield value * 2
        yield max(value // 2, 1)
    elif isinstance(value, float):
        yield value * 2 + 0.25
    elif isinstance(value, str):
        yield from (word for word in WORDS if word != value)


def dependencies(cls: Any, whole: dict[str, Any], base: dict[str, Any]) -> dict[str, list[str]]:
    """Which keys change when one other key is given another value."""
    result: dict[str, list[str]] = {}
    for key, value in base.items():
        for other in changed(value):
            new = made(cls, **{key: other})
            if new is None:
                continue
            for each in base:
                if each != key and new.get(each) != whole.get(each):
                    result.setdefault(each, [])
                    if key not in result[each]:
                        result[each].append(key)
    return result


OPERATIONS: dict[str, Any] = {
    "=": lambda a: a,
    "//": lambda a, b: a // b,
    "/": lambda a, b: a / b,
    "*": lambda a, b: a * b,
    "+": lambda a, b: a + b,
    "ceil/": lambda a, b: -(-a // b),
}


def formula(cls: Any, key: str, on: list[str], base: dict[str, Any]) -> list[Any] | None:
    """The simplest rule that gives a key's default from the keys that it depends on, or None."""
    points = [base] + [
        {**base, **new} for k in on for v in changed(base[k]) if (new := made(cls, **{k: v})) is not None
    ]
    numbers = [k for k in on if isinstance(base.get(k), int | float) and not isinstance(base.get(k), bool)]
    value = base.get(key)
    constants = []
    if isinstance(value, int | float) and len(on) == 1 and numbers and value and base[on[0]]:
        constants = [base[on[0]] / value, value / base[on[0]]]
        constants = [int(c) for c in constants if c == int(c) and c > 1]
    candidates: list[tuple[str, list[Any]]] = [("=", [k]) for k in on]
    pairs = [(a, b) for a in numbers for b in [*numbers, *constants] if a != b]
    candidates += [(op, [a, b]) for op in OPERATIONS if op != "=" for a, b in pairs]
    for op, names in candidates:
        try:
            is_rule = all(
                OPERATIONS[op](*(p[n] if isinstance(n, str) else n for n in names)) == p.get(key)
                for p in points
            )
        except (ZeroDivisionError, TypeError):
            continue
        if is_rule:
            return [op, *names]
    return _choice(cls, key, on, base)


def _choice(cls: Any, key: str, on: list[str], base: dict[str, Any]) -> list[Any] | None:
    """A rule that names the value for each value of one switch or word."""
    if len(on) != 1 or not isinstance(base.get(on[0]), bool | str) or isinstance(base.get(key), list | dict):
        return None
    seen = {json.dumps(base[on[0]]): base.get(key)}
    for value in changed(base[on[0]]):
        new = made(cls, **{on[0]: value})
        if new is not None:
            seen[json.dumps(value)] = new.get(key)
    # A count or a list may hang on further keys that this switch hides.
    is_plain = all(isinstance(value, bool | str) or value in (None, 1) for value in seen.values())
    return ["by", on[0], seen] if is_plain else None


def layer_rule(cls: Any, key: str, base: dict[str, Any], old: list[str]) -> dict[str, Any] | None:
    """The rule of a list with an entry per layer, where its default is one."""
    count = next(
        (c for c in COUNTS if isinstance(base.get(c), int) and not isinstance(base.get(c), bool)), None
    )
    value = base.get(key)
    if not isinstance(value, list) or count is None or len(value) != base[count] or not value:
        return None
    lists = []
    for number in (2, 3, 5, 8, 13, 24, 31, 48):
        new = made(cls, **{count: number})
        if new is not None and isinstance(new.get(key), list) and len(new[key]) == number:
            lists.append(new[key])
    if len(lists) < 3:
        return None
    found = fitted(lists) if "theta" not in key else None  # these follow from `rope_theta`
    if found is None:
        return {"n": count}
    result = {"n": count, **found}
    for name in {*PERIODS, *base, *old}:
        for value in (3, 5):
            new = made(cls, **{name: value, count: 16})
            if new is None or not isinstance(new.get(key), list) or new[key] == expanded(found, 16):
                continue
            if len(found["cycle"]) > 1 and new[key] == expanded(stretched(found, value), 16):
                result["period"] = name
            elif new[key] == expanded(with_first(found, value), 16):
                result["first"] = name
    return result


def fitted(lists: list[list[Any]]) -> dict[str, Any] | None:
    """Head, cycle and tail that all lists are made of."""
    longest = max(lists, key=len)
    for tail in (0, 1):
        for head in range(5):
            for period in range(1, 13):
                if head + period > len(longest) - tail:
                    continue
                rule = {"head": longest[:head], "cycle": longest[head : head + period]}
                rule["tail"] = longest[len(longest) - tail :]
                if all(expanded(rule, len(each)) == each for each in lists):
                    return rule
    return None


def expanded(rule: dict[str, Any], count: int) -> list[Any]:
    """The list of a rule for so many layers."""
    from taskvec.compat.layer_patterns import expand

    return expand(rule, count)


def stretched(rule: dict[str, Any], period: int) -> dict[str, Any]:
    """The rule with another period."""
    from taskvec.compat.layer_patterns import stretch

    return stretch(rule, period)


def with_first(rule: dict[str, Any], count: int) -> dict[str, Any]:
    """The rule with another number of first layers."""
    from taskvec.compat.layer_patterns import lead

    return lead(rule, count)


def measure(kinds: Any = None) -> dict[str, Any]:
    """Rows of these model types (all of them unless given), and of sections without a type of their own."""
    known = classes()
    skipped = housekeeping()
    result: dict[str, Any] = {}

    def add(name: str, cls: Any) -> None:
        found = row(cls, skipped)
        if found is None:
            return
        result[name] = found
        for section, inner in section_classes(cls).items():
            kind = getattr(inner, "model_type", "")
            ref = kind if known.get(kind) is inner else f"{name}/{section}"
            found.setdefault("s", {})[section] = ref
            if ref not in known and ref not in result:
                add(ref, inner)

    for kind in kinds or known:
        add(kind, known[kind])
    for name in list(result):
        _add_overrides(result, name, known.get(name))
    return result


def _add_overrides(rows: dict[str, Any], name: str, cls: Any) -> None:
    """Where the outer class gives a section other defaults than the section's own class has."""
    if cls is None:
        return
    if getattr(cls, "model_type", name) not in ("", name):
        rows[name]["m"] = cls.model_type
    whole = made(cls) or {}
    for section, inner in section_classes(cls).items():
        own, given = made(inner) or {}, whole.get(section) or {}
        names = set(own) & set(given) - housekeeping()
        other = {key: given[key] for key in sorted(names) if given[key] != own[key]}
        other = {k: v for k, v in other.items() if not isinstance(v, dict) or k == "rope_parameters"}
        if other:  # these may follow from what is set, and come out the same by chance
            other.update({key: given[key] for key in ("head_dim", "num_key_value_heads") if given.get(key)})
        if other:
            rows[name].setdefault("o", {})[section] = other


def packed(rows: dict[str, Any]) -> dict[str, Any]:
    """Rows that are equal are written once; the others name them."""
    first: dict[str, str] = {}
    result: dict[str, Any] = {}
    for name, each in sorted(rows.items()):
        text = json.dumps(each, sort_keys=True)
        result[name] = first.get(text, each)
        first.setdefault(text, name)
    return result


def main() -> None:
    """Write the table."""
    import transformers

    keys = {key for cls in classes().values() for key in all_keys(cls)}
    table = {
        "transformers": transformers.__version__,
        "harmless": sorted(filter(is_harmless, keys)),
        "tokens": sorted(filter(is_token, keys)),
        "tied": [kind for kind, cls in classes().items() if is_tied(cls)],
        "families": packed(measure()),
    }
    text = json.dumps(table, separators=(",", ":"), sort_keys=True)
    TABLE.write_text(text.replace('},"', '},\n"') + "\n")
    print(len(table["families"]), "rows,", len(text), "bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
