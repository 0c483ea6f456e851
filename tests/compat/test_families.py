"""Configs of every family that transformers knows: as published, and as it writes them again."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.compat import make_families as table

from taskvec.compat.canonical import canonical
from taskvec.compat.config import check_config
from taskvec.compat.families import family
from taskvec.compat.findings import Finding

Config = dict[str, Any]

# Families whose class changes these configs when it reads them, and why.
LEFT_OUT = {
    "dory": "the class doubles counts of layers each time that it reads a config",
    "efficientnet": "the class computes num_hidden_layers from other keys, whatever the config says",
    "maskformer": "the class takes num_hidden_layers from its decoder, whatever the config says",
    "musicflamingo": "the class drops partial_rotary_factor when it reads what it wrote",
    "glmasr": "the class sets rope_parameters of its text section, whatever rope_theta says",
    "esmfold2": "an empty config: defaults that are set two sections deep",
    "nemo_speechlm": "an empty config: defaults that are set two sections deep",
    "nemotron3_5_transcribe_audio": "an empty config: defaults that are set two sections deep",
    "pi0": "an empty config: defaults that are set two sections deep",
}

# What a published config does not say, because transformers 4 did not write it.
_NEW = ("rope_parameters", "layer_types", "mlp_layer_types", "dtype", "transformers_version", "_name_or_path")


def published(config: Config) -> Config:
    """A config in the spelling of transformers 4, made from what transformers 5 writes."""
    own = family(str(config.get("model_type", "")))
    left = {*_NEW, *own.formulas, *own.layers}
    result = {
        key: published(value) if isinstance(value, dict) and key.endswith("_config") else value
        for key, value in config.items()
        if key not in left or key == "model_type"
    }
    result.update(_rope_of_old(config.get("rope_parameters"), own))
    return {key: value for key, value in result.items() if value is not None}


def _rope_of_old(given: Any, own: Any) -> Config:
    if not isinstance(given, dict) or not given:
        return {}
    if all(each is None or isinstance(each, dict) for each in given.values()):
        full, local = given.get("full_attention"), given.get("sliding_attention")
        if "global_rope_theta" in own.old:
            return {"global_rope_theta": full["rope_theta"], "local_rope_theta": local["rope_theta"]}
        if "rope_local_base_freq" in own.old:
            return {"rope_theta": full["rope_theta"], "rope_local_base_freq": local["rope_theta"]}
        return {"rope_parameters": given}
    names = {"rope_theta": "rope_theta", "partial_rotary_factor": "partial_rotary_factor"}
    if "rotary_pct" in own.old:
        names = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
    result = {name: given[key] for key, name in names.items() if given.get(key) is not None}
    scaling = {key: value for key, value in given.items() if key not in names and value is not None}
    kind = scaling.pop("rope_type", "default")
    if scaling or kind != "default":
        result["rope_scaling"] = {"type": kind, **scaling}
    return result


def saved(config: Config, folder: Path) -> Config:
    """What ``AutoConfig.from_pretrained(...).save_pretrained(...)`` makes of a config."""
    from transformers import AutoConfig

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        AutoConfig.from_pretrained(folder).save_pretrained(folder / "saved")
    return json.loads((folder / "saved" / "config.json").read_text())


def findings(one: Config, other: Config) -> list[Finding]:
    return check_config("target", one, [("donor", other)])


@cache
def written(kind: str) -> Config | None:
    """The default config of a family, as transformers 5 writes it."""
    try:
        return table.plain(table.classes()[kind]().to_diff_dict()) | {"model_type": kind}
    except Exception:
        return None


@cache
def is_taken(kind: str) -> bool:
    """Whether the class looks at ``rope_theta``: where its own default is a whole dictionary, it does not."""
    return "54321.0" in json.dumps(table.made(table.classes().get(kind), rope_theta=54321.0))


def variants(kind: str) -> Iterator[Config]:
    """Published configs of a family: with its defaults, with other sizes, and with nothing said."""
    config = written(kind)
    if config is None:
        return
    old = published(config)
    yield old
    other = json.loads(json.dumps(old))
    sections = [value for key, value in other.items() if isinstance(value, dict) and key.endswith("_config")]
    for section in (other, *sections):
        if isinstance(section.get("rope_theta"), float) and is_taken(str(section.get("model_type"))):
            section["rope_theta"] = 54321.0
        if isinstance(section.get("num_hidden_layers"), int):
            section["num_hidden_layers"] = 7
        # With several sections, some sizes of one have to be those of another.
        if isinstance(section.get("hidden_size"), int) and not sections:
            section["hidden_size"] *= 2
    yield other
    yield {"model_type": kind}


def test_every_family_as_published_and_as_saved(tmp_path: Path) -> None:
    table.quiet()
    refused: dict[str, list[str]] = {}
    covered, left_out = set(), {}
    for kind in table.classes():
        if kind in LEFT_OUT:
            continue
        for number, old in enumerate(variants(kind)):
            try:
                new = saved(old, tmp_path / f"{kind}-{number}")
            except Exception as error:  # the class refuses such a config
                left_out[f"{kind}-{number}"] = f"{type(error).__name__}: {error}"[:100]
                continue
            covered.add(kind)
            for one, two in ((old, new), (new, old)):
                errors = [str(each) for each in findings(one, two) if each.level == "error"]
                if errors:
                    refused.setdefault(f"{kind}-{number}", errors)
    assert not refused
    assert len(covered) >= 800


FUNCTION_KEYS = [
    ("gpt_neox", "rotary_emb_base", 10000, 500000),
    ("gpt_neox", "rotary_pct", 0.25, 1.0),
    ("gemma2", "query_pre_attn_scalar", 256, 144),
    ("gemma3_text", "rope_local_base_freq", 10000.0, 50000.0),
    ("modernbert", "local_rope_theta", 10000.0, 160000.0),
    ("t5", "relative_attention_num_buckets", 32, 64),
    ("bloom", "layer_norm_epsilon", 1e-5, 1e-6),
    ("mpt", "attn_config", {"alibi": True}, {"alibi": False}),
    ("glm4", "partial_rotary_factor", 0.5, 1.0),
    ("minimax_m2", "rotary_dim", 64, 32),
    ("deepseek_v3", "routed_scaling_factor", 2.5, 1.0),
    ("chatglm", "rope_ratio", 1, 50),
    ("gptj", "rotary_dim", 64, 32),
    ("granite", "residual_multiplier", 1.0, 0.22),
]


@pytest.mark.parametrize(("kind", "key", "one", "other"), FUNCTION_KEYS)
def test_a_key_of_the_function_is_refused(kind: str, key: str, one: Any, other: Any) -> None:
    found = findings({"model_type": kind, key: one}, {"model_type": kind, key: other})
    assert "config-function" in {each.id for each in found}
    assert findings({"model_type": kind, key: one}, {"model_type": kind, key: one}) == []


# Not a section, and not a key whose default stands under another name.
@pytest.mark.parametrize(
    ("kind", "key", "one", "other"), [row for row in FUNCTION_KEYS if row[0] not in ("mpt", "minimax_m2")]
)
def test_absence_is_the_default_of_the_family(kind: str, key: str, one: Any, other: Any) -> None:
    assert findings({"model_type": kind}, {"model_type": kind, key: one}) == []
    assert "config-function" in {
        each.id for each in findings({"model_type": kind}, {"model_type": kind, key: other})
    }


OTHERWISE = [
    # Values of another kind than the comparison knows.
    {"rope_theta": [1e4, 1e6]},
    {"rope_theta": "10000"},
    {"rope_local_base_freq": "10000"},
    {"partial_rotary_factor": [0.5, 1.0]},
    {"rope_scaling": 2},
    {"rope_scaling": "linear"},
    {"rope_scaling": [1, 2]},
    # Keys that mean nothing where transformers puts them, in other places.
    {"moe": {"top_k": 2}},
    {"ffn_config": {"top_k": 2}},
    {"attn_config": {"temperature": 2.0}},
    {"top_k": 2},
    {"decoder": {"max_length": 2}},
    {"decoder": {"rope_theta": 1e6}},
    {"decoder": {"rope_scaling": {"type": "linear", "factor": 2}}},
    {"decoder": {"original_max_position_embeddings": 64}},
    {"rope_scaling": {"type": "default", "factor": 2}},
    {"rope_scaling": {"type": "linear", "factor": 2, "original_max_position_embeddings": 64}},
]


def changed(value: Any) -> Any:
    """The same with another number or word at its end."""
    if isinstance(value, dict):
        last = list(value)[-1]
        return {**value, last: changed(value[last])}
    if isinstance(value, list):
        return [*value[:-1], changed(value[-1])]
    return f"{value}0" if isinstance(value, str) else value * 4


@pytest.mark.parametrize("keys", OTHERWISE, ids=json.dumps)
def test_what_differs_is_told_wherever_it_stands(keys: Config) -> None:
    one, other = ({"model_type": "not_known", **each} for each in (keys, changed(keys)))
    found = findings(one, other)
    assert [each.level for each in found if each.id in ("config-function", "config-other")]
    assert all(each.level in ("error", "warning") for each in found)
    assert findings(one, dict(one)) == findings(one, json.loads(json.dumps({**one, "use_cache": True}))) == []


@pytest.mark.parametrize(
    ("kind", "key"), [("tapas", "temperature"), ("audio-spectrogram-transformer", "max_length")]
)
def test_a_setting_of_generation_by_its_name_alone_is_told(kind: str, key: str) -> None:
    found = findings({"model_type": kind}, {"model_type": kind, key: 7})
    assert [(each.level, each.id) for each in found] == [("warning", "config-other")]
    assert key in found[0].message
    assert findings({"model_type": "llama"}, {"model_type": "llama", key: 7}) == []


def test_families_that_tie_their_head_by_default() -> None:
    table.quiet()
    tied = json.loads(table.TABLE.read_text())["tied"]
    assert tied == [kind for kind, cls in table.classes().items() if table.is_tied(cls)]
    assert "gemma2" in tied
    assert "llama" not in tied


def test_what_stands_outside_of_the_language_model_and_differs() -> None:
    inner = {"text_config": {"my_word": 2}}
    found = findings({"model_type": "a", "my_word": 1, **inner}, {"model_type": "a", "my_word": 3, **inner})
    assert "my_word outside of text_config" in found[0].message
    assert findings({"model_type": "a", "my_word": 2, **inner}, {"model_type": "a", **inner}) == []


def test_of_two_spellings_in_one_config_the_one_that_transformers_takes() -> None:
    from transformers import LlamaConfig

    new = {"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0}
    old = {"type": "linear", "factor": 2.0, "rope_theta": 1e4}
    taken = LlamaConfig(rope_parameters=dict(new), rope_scaling=dict(old)).rope_parameters
    both = {"model_type": "llama", "rope_parameters": new, "rope_scaling": old}
    found = findings({"model_type": "llama", "rope_parameters": dict(taken)}, both)
    assert [(each.level, each.id) for each in found] == [("warning", "config-other")]
    assert "rope_parameters" in found[0].message
    other = findings({"model_type": "llama", "rope_parameters": new}, both)
    assert "config-function" in {each.id for each in other}


def test_activations_of_several_names_are_compared_as_functions() -> None:
    import torch
    from transformers.activations import ACT2FN

    x = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    names = [name for name in ACT2FN if name not in ("prelu", "xielu")]
    values = {name: ACT2FN[name](x) for name in names}
    for one in names:
        for other in names:
            is_one = torch.allclose(values[one], values[other], rtol=0, atol=1e-9)
            configs = ({"model_type": "llama", "hidden_act": name} for name in (one, other))
            assert (findings(*configs) == []) == is_one, (one, other)


def test_a_word_that_a_class_reads_as_another(tmp_path: Path) -> None:
    old = {"model_type": "gemma", "hidden_act": "gelu", "hidden_activation": None}
    new = saved(old, tmp_path / "gemma")
    assert new["hidden_act"] == "gelu_pytorch_tanh"
    assert [each for each in findings(old, new) if each.level == "error"] == []
    assert [each.id for each in findings(old, {**old, "hidden_act": "silu"})] == ["config-function"]


def test_an_unknown_key_is_a_warning() -> None:
    found = findings({"model_type": "llama", "my_word": 1}, {"model_type": "llama", "my_word": 2})
    assert [(each.level, each.id) for each in found] == [("warning", "config-other")]
    assert "my_word" in found[0].message


def test_the_table_is_what_transformers_has() -> None:
    table.quiet()
    kinds = [
        "gemma2",
        "gemma3_text",
        "llama",
        "qwen3",
        "gpt_neox",
        "t5",
        "phi3",
        "bloom",
        "falcon",
        "mixtral",
    ]
    stored = json.loads(table.TABLE.read_text())["families"]
    for kind, row in table.measure([*kinds, "deepseek_v3", "modernbert"]).items():
        own = stored[kind]
        assert (stored[own] if isinstance(own, str) else own) == json.loads(json.dumps(row))


def test_old_words_and_numbers_of_the_rotary_embedding() -> None:
    assert canonical(
        {"rope_theta": 5, "rope_scaling": {"type": "mrope", "mrope_section": [1, 2]}}
    ) == canonical({"rope_parameters": {"rope_theta": 5.0, "rope_type": "default", "mrope_section": [1, 2]}})


@pytest.mark.parametrize(
    ("one", "other", "levels"),
    [
        ({"hidden_size": 32}, {"hidden_size": 128}, ["error"]),  # transformers takes the other name's value
        ({"hidden_size": 128}, {}, ["error", "warning"]),
        ({"hidden_size": 128}, {"n_embd": 128}, ["warning"]),
        ({"n_embd": 32, "hidden_size": 64}, {"n_embd": 16, "hidden_size": 64}, ["warning"]),
        ({"hidden_size": 64}, {}, []),
        ({"n_embd": None, "hidden_size": 64}, {}, []),
    ],
)
def test_two_names_of_a_key_that_contradict_each_other(one: Config, other: Config, levels: list[str]) -> None:
    base = {"model_type": "gpt2", "n_embd": 64}
    for here, there in ((one, other), (other, one)):
        found = check_config("target", base | here, [("donor", base | there)])
        assert [each.level for each in found] == levels


def test_the_other_name_of_a_key_is_what_transformers_takes() -> None:
    from transformers import AutoConfig

    given = AutoConfig.for_model("gpt2", n_embd=64, hidden_size=128)
    assert given.n_embd == canonical({"model_type": "gpt2", "n_embd": 64, "hidden_size": 128})["n_embd"]
