"""Findings: one table of cases per part, from folders that differ in one thing."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

import taskvec as tv
from support.models import (
    DTYPES,
    Tensors,
    Trio,
    edit_json,
    qwen2_config,
    qwen2_shapes,
    random_tensors,
    read_tensors,
    tokenizer_json,
    write_trio,
    write_weights,
)
from taskvec.compat.canonical import canonical
from taskvec.compat.check import check_models, check_transfer
from taskvec.compat.counterparts import counterparts
from taskvec.compat.findings import FINDINGS, Finding, enforce
from taskvec.compat.tied_heads import tie_decision
from taskvec.errors import CompatibilityError, FormatError, RecipeError
from taskvec.lazy.checkpoint import Checkpoint
from taskvec.models.model import TensorInfo
from taskvec.models.selection import Selection
from taskvec.resolve.open import open as open_checkpoint

EVERYTHING = Selection()


def check(trio: Trio, selection: Selection = EVERYTHING, force: tuple[str, ...] = ()) -> list[Finding]:
    target, donor, reference = map(open_checkpoint, trio)
    return check_transfer(target, donor, reference, selection=selection, force=force)


def ids(findings: list[Finding]) -> list[str]:
    return [finding.id for finding in findings]


def only(findings: list[Finding], name: str) -> Finding:
    found = [finding for finding in findings if finding.id == name]
    assert len(found) == 1, findings
    return found[0]


def change_weights(folder: Path, change: Callable[[Tensors], None]) -> None:
    tensors = dict(read_tensors(folder))
    change(tensors)
    write_weights(folder, tensors)


def test_models_that_fit(trio: Trio, sharded_trio: Trio) -> None:
    assert check(trio) == []
    assert check(sharded_trio) == []


# --- config ---


@pytest.mark.parametrize(
    ("changes", "name", "parts"),
    [
        ({"rope_theta": 10000.0}, "config-function", ["`rope`", "10000.0", "1000000.0"]),
        ({"rms_norm_eps": 1e-5}, "config-function", ["`rms_norm_eps`", "`1e-05`", "`1e-06`"]),
        ({"hidden_act": "gelu"}, "config-function", ["`hidden_act`", "`'gelu'`"]),
        (
            {"num_attention_heads": 8, "head_dim": 8},
            "config-function",
            ["`num_attention_heads`", "`8`", "`4`"],
        ),
        ({"head_dim": 16}, "config-function", ["`head_dim`", "`16`", "`8`"]),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "config-function", ["`rope`", "yarn"]),
        ({"attention_bias": True}, "config-function", ["`attention_bias`", "`True`", "`False`"]),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "config-other", ["`layer_types`"]),
        ({"max_position_embeddings": 64}, "config-context", ["`max_position_embeddings`", "`64`", "`512`"]),
        ({"sliding_window": 32}, "config-context", ["`sliding_window`", "`32`", "absent"]),
        ({"model_type": "llama"}, "architecture", ["`llama`", "`qwen2`"]),
        ({"architectures": ["Qwen2Model"]}, "architecture-class", ["`Qwen2Model`", "`Qwen2ForCausalLM`"]),
        ({"pad_token_id": 5}, "config-other", ["`pad_token_id`"]),
        ({"something_new": {"a": 1}}, "config-other", ["`something_new.a`"]),
        # unknown, whatever they are called
        ({"lossy_levels": [1, 2]}, "config-other", ["`lossy_levels`"]),
        ({"flash_steps": 3}, "config-other", ["`flash_steps`"]),
        ({"jitter_table": [0.5]}, "config-other", ["`jitter_table`"]),
        ({"word_token_id": 5}, "config-other", ["`word_token_id`"]),
        ({"tied_initializer": 5}, "config-other", ["`tied_initializer`"]),
        ({"vision_config": {"hidden_size": 4}}, "config-other", ["`vision_config.hidden_size`"]),
    ],
)
def test_config_keys_that_count(trio: Trio, changes: dict[str, Any], name: str, parts: list[str]) -> None:
    edit_json(trio.donor / "config.json", **changes)
    finding = only(check(trio), name)
    assert "donor" in finding.message
    assert "reference" not in finding.message
    for part in parts:
        assert part in finding.message


@pytest.mark.parametrize(
    "changes",
    [
        {"transformers_version": "9.9.9"},
        {"use_cache": False},
        {"torch_dtype": "bfloat16", "dtype": None},
        {"dtype": "float32"},
        {"_name_or_path": "elsewhere"},
        {"attention_dropout": 0.5},
        {"initializer_range": 0.3},
        {"rope_theta": 1000000},
        {"rope_scaling": {"type": "default"}},
        {"rope_theta": None, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
        {"head_dim": 8},
        {"num_key_value_heads": 2},
        {"attention_bias": False},
        {"layer_types": ["full_attention", "full_attention"]},
        {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 21},
    ],
)
def test_config_keys_that_do_not_count(trio: Trio, changes: dict[str, Any]) -> None:
    edit_json(trio.donor / "config.json", **changes)
    assert check(trio) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            {"rope_theta": 5.0, "rope_scaling": {"rope_type": "llama3", "factor": 8}},
            {"rope_parameters": {"rope_theta": 5.0, "rope_type": "llama3", "factor": 8.0}},
        ),
        (
            {"rope_theta": 5.0, "rope_scaling": {"type": "yarn"}},
            {"rope_theta": 5, "rope_scaling": {"rope_type": "yarn"}},
        ),
        (
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
            {
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                }
            },
        ),
        ({"text_config": {"hidden_size": 8}}, {"hidden_size": 8}),
        ({"a": None}, {}),
    ],
)
def test_spellings_of_the_same_config(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert canonical(one) == canonical(other)


def test_config_of_an_inner_language_model(trio: Trio) -> None:
    for folder in trio:
        config = json.loads((folder / "config.json").read_text())
        outer = {
            "architectures": config.pop("architectures"),
            "model_type": "qwen2_vl",
            "text_config": config,
        }
        (folder / "config.json").write_text(json.dumps(outer))
    assert check(trio) == []
    config = json.loads((trio.reference / "config.json").read_text())
    config["text_config"]["rms_norm_eps"] = 0.5
    (trio.reference / "config.json").write_text(json.dumps(config))
    assert "`rms_norm_eps` of reference" in only(check(trio), "config-function").message


def test_both_models_that_differ_are_one_finding(trio: Trio) -> None:
    edit_json(trio.target / "config.json", rope_theta=10000.0)
    assert "of donor and reference" in only(check(trio), "config-function").subject


def test_missing_config(trio: Trio) -> None:
    (trio.reference / "config.json").unlink()
    assert "reference" in only(check(trio), "config-missing").subject
    for folder in (trio.target, trio.donor):
        (folder / "config.json").unlink()
    assert "target, donor and reference" in only(check(trio), "config-missing").subject


# --- tensors ---


def test_missing_tensor(trio: Trio) -> None:
    change_weights(trio.donor, lambda t: [t.pop(f"model.layers.{i}.mlp.up_proj.weight") for i in range(2)])  # type: ignore[arg-type,return-value]
    finding = only(check(trio), "tensor-missing")
    assert finding.level == "error"
    assert finding.subject == "donor"
    assert "`model.layers.0.mlp.up_proj.weight`" in finding.message
    forced = only(check(trio, force=("tensor-missing",)), "tensor-missing")
    assert forced.level == "warning"
    assert "target's bytes" in forced.fix
    assert check(trio, Selection(exclude=("up_proj",))) == []


def test_unused_tensor(trio: Trio) -> None:
    change_weights(trio.reference, lambda t: t.update({"mtp.layers.0.weight": t["model.norm.weight"]}))
    finding = only(check(trio), "tensor-unused")
    assert finding.level == "warning"
    assert "`mtp.layers.0.weight`" in finding.message
    assert check(trio, Selection(exclude=("mtp",))) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("model.", "model.language_model."),
        ("model.", "language_model.model."),
        ("model.", "base_model.model.model."),
        ("model.", "_orig_mod.model."),
    ],
)
def test_other_names_for_the_same_weights(trio: Trio, old: str, new: str) -> None:
    def rename(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[new + name.removeprefix(old)] = tensors.pop(name)

    change_weights(trio.donor, rename)
    findings = check(trio)
    assert "names the same weights" in only(findings, "tensor-missing").fix
    assert "names the same weights" in only(findings, "tensor-unused").fix
    assert "nothing-selected" in ids(findings)


def test_fused_and_single_experts(trio: Trio) -> None:
    def single(tensors: Tensors) -> None:
        for expert in range(3):
            for part in ("gate_proj", "up_proj", "down_proj"):
                tensors[f"model.layers.0.mlp.experts.{expert}.{part}.weight"] = tensors["model.norm.weight"]

    def fused(tensors: Tensors) -> None:
        for part in ("gate_up_proj", "down_proj"):
            tensors[f"model.layers.0.mlp.experts.{part}"] = tensors["model.norm.weight"]

    change_weights(trio.target, single)
    change_weights(trio.donor, fused)
    change_weights(trio.reference, fused)
    findings = check(trio)
    assert "experts fused" in only(findings, "tensor-missing").fix
    assert "experts one by one" in only(findings, "tensor-unused").fix


def test_shape(trio: Trio) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    change_weights(trio.donor, lambda t: t.update({name: t[name][:-1]}))
    finding = only(check(trio), "shape")
    assert (finding.level, finding.subject) == ("error", f"`{name}` of donor")
    assert (finding.expected, finding.found) == ("[64, 32] as in the target", "[63, 32]")
    assert only(check(trio, force=("shape",)), "shape").level == "warning"


def test_vocabulary_rows(trio: Trio) -> None:
    name = "model.embed_tokens.weight"
    for folder in (trio.donor, trio.reference):
        change_weights(folder, lambda t: t.update({name: np.concatenate([t[name], t[name][:8]])}))
        edit_json(folder / "config.json", vocab_size=104)
    findings = check(trio)
    finding = only(findings, "vocabulary-rows")
    assert finding.subject == f"`{name}` of donor and reference"
    assert "padded" in finding.fix
    assert "--preset no-embed" in finding.fix
    assert "config-function" not in ids(findings)
    assert [f.level for f in check(trio, Selection(preset="no-embed"))] == ["note"]


def test_dtypes(tmp_path: Path) -> None:
    trio = write_trio(tmp_path, dtypes=("BF16", "F16", "F32"))
    finding = only(check(trio), "dtype")
    assert finding.level == "note"
    assert "target BF16; donor F16; reference F32" in finding.found


def test_float_in_one_and_integer_in_another(trio: Trio) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    change_weights(trio.donor, lambda t: t.update({name: t[name].view(np.int16)}))
    finding = only(check(trio), "dtype-kind")
    assert (finding.level, finding.found) == ("error", "I16")


def test_integer_tensors_are_named(trio: Trio) -> None:
    for folder in trio:
        change_weights(folder, lambda t: t.update({"model.positions": np.arange(8)}))
    finding = only(check(trio), "non-float")
    assert finding.level == "note"
    assert "`model.positions`" in finding.subject


def test_selection(trio: Trio) -> None:
    with pytest.raises(RecipeError, match="matches none of 26 tensors"):
        check(trio, Selection(include=("nothing",)))
    finding = only(check(trio, Selection(include=("mlp", "self_atn"))), "selection-unused")
    assert "include `self_atn`" in finding.subject


def test_files_left_behind(trio: Trio) -> None:
    (trio.target / "pytorch_model.bin").write_bytes(b"x")
    assert "`pytorch_model.bin`" in only(check(trio), "files-left").found


# --- tied and untied heads ---


@pytest.mark.parametrize(
    ("tied", "donor_tied", "substitutes", "unused", "text"),
    [
        (True, True, {}, {}, None),
        (False, False, {}, {}, None),
        (
            True,
            False,
            {},
            {"donor": ("lm_head.weight",), "reference": ("lm_head.weight",)},
            "config stays tied",
        ),
        (
            False,
            True,
            {role: {"lm_head.weight": "model.embed_tokens.weight"} for role in ("donor", "reference")},
            {},
            "serves as the head",
        ),
    ],
)
def test_heads(
    tmp_path: Path, tied: bool, donor_tied: bool, substitutes: dict, unused: dict, text: str | None
) -> None:
    trio = write_trio(tmp_path, tied=tied, donor_tied=donor_tied)
    target, donor, reference = map(open_checkpoint, trio)
    others = [("donor", donor), ("reference", reference)]
    decision = tie_decision(target, others)
    assert (decision.substitutes, decision.unused) == (substitutes, unused)
    findings = check(trio)
    if text is None:
        assert findings == []
    else:
        assert ids(findings) == ["tied-head"]
        assert text in findings[0].fix
    pairs = counterparts(target, others, list(target.tensors), decision)
    assert list(pairs) == list(target.tensors)
    if not tied:
        expected = ("model.embed_tokens.weight" if donor_tied else "lm_head.weight",) * 2
        assert pairs["lm_head.weight"] == expected
    assert check(trio, Selection(preset="no-embed")) == []


def test_head_stored_twice(tmp_path: Path) -> None:
    trio = write_trio(tmp_path, tied=False)
    edit_json(trio.target / "config.json", tie_word_embeddings=True)
    target, donor, reference = map(open_checkpoint, trio)
    others = [("donor", donor), ("reference", reference)]
    decision = tie_decision(target, others)
    assert decision.base.state == "double"
    assert decision.finding is not None
    pairs = counterparts(target, others, list(target.tensors), decision)
    assert pairs["lm_head.weight"] == ("model.embed_tokens.weight",) * 2
    assert ids(check(trio)) == ["tied-head"]


def test_models_without_a_head(trio: Trio) -> None:
    for folder in trio:
        edit_json(folder / "config.json", tie_word_embeddings=False)
    assert tie_decision(open_checkpoint(trio.target), []).base.state == "none"
    assert check(trio) == []


def test_head_of_a_prediction_layer_is_not_the_models(trio: Trio) -> None:
    for folder in trio:
        change_weights(folder, lambda t: t.update({"model.layers.2.lm_head.weight": t["model.norm.weight"]}))
    assert tie_decision(open_checkpoint(trio.target), []).base.state == "tied"


# --- formats ---


@pytest.mark.parametrize(
    ("config", "suffixes", "text"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, {".weight_scale_inv": "F32"}, "block FP8"),
        ({}, {".weight_scale_inv": "F32"}, "block FP8"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, {"_blocks": "U8", "_scales": "U8"}, "MXFP4"),
        ({}, {"_blocks": "U8", "_scales": "U8"}, "MXFP4"),
        ({"quantization_config": {"quant_method": "gptq"}}, {".qweight": "I32", ".qzeros": "I32"}, "GPTQ"),
        ({"quantization_config": {"quant_method": "awq"}}, {".qweight": "I32"}, "AWQ"),
        ({}, {".weight_packed": "I32"}, "compressed-tensors"),
        ({}, {".weight_scale": "F32"}, "scaled FP8"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, {".SCB": "F32"}, "bitsandbytes"),
        ({"quantization_config": {"quant_method": "hqq"}}, {}, "HQQ"),
        ({"quantization_config": {"quant_method": "brand-new"}}, {}, "`brand-new`"),
        ({"text_config": {"quantization_config": {"quant_method": "modelopt"}}}, {}, "ModelOpt"),
    ],
)
def test_quantised(trio: Trio, config: dict[str, Any], suffixes: dict[str, str], text: str) -> None:
    edit_json(trio.target / "config.json", **config)
    stem = "model.layers.0.mlp.up_proj"
    change_weights(
        trio.target,
        lambda t: t.update({stem + end: np.zeros(4, DTYPES[kind]) for end, kind in suffixes.items()}),
    )
    finding = only(check(trio), "quantised")
    assert (finding.level, finding.subject) == ("error", "target")
    assert text in finding.found
    with pytest.raises(RecipeError, match="cannot be forced"):
        check(trio, force=("quantised",))


def test_quantised_tensors_outside_the_selection(trio: Trio) -> None:
    for folder in trio:
        edit_json(folder / "config.json", quantization_config={"quant_method": "fp8"})
        change_weights(
            folder,
            lambda t: t.update({"model.layers.0.mlp.up_proj.weight_scale_inv": np.zeros(1, np.float32)}),
        )
    findings = check(trio, Selection(include=("self_attn",)))
    assert ids(findings) == ["quantised-copied"] * 3
    assert {finding.level for finding in findings} == {"note"}
    assert ids(check(trio, Selection(include=("mlp.up_proj",)))).count("quantised") == 3


def test_names_that_only_look_quantised(trio: Trio) -> None:
    for folder in trio:
        change_weights(folder, lambda t: t.update({"model.layers.0.logit_scale": t["model.norm.weight"][:1]}))
    assert check(trio) == []


def test_adapter_in_place_of_a_model(trio: Trio) -> None:
    factors = {f"base_model.model.q_proj.lora_{x}.weight": np.zeros((2, 2), np.float32) for x in "AB"}
    shutil.rmtree(trio.donor)
    write_weights(trio.donor, factors)
    finding = only(check(trio), "lora-adapter")
    assert (finding.level, finding.subject) == ("error", "donor")
    assert "merge_and_unload" in finding.fix


# --- tokenizers ---


def rewrite_tokenizer(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tokenizer = tokenizer_json()
    change(tokenizer)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("change", "name", "level", "text"),
    [
        (
            lambda t: t["model"]["vocab"].update(new=70),
            "tokenizer-vocabulary",
            "error",
            "1 more, 'new' first",
        ),
        (lambda t: t["model"]["vocab"].pop("A"), "tokenizer-vocabulary", "error", "1 lacking, 'A' first"),
        (lambda t: t["model"]["vocab"].update(A=99), "tokenizer-vocabulary", "error", "1 with another id"),
        (lambda t: t["model"]["merges"].reverse(), "tokenizer-merges", "error", "another order"),
        (lambda t: t["model"]["merges"].append("C D"), "tokenizer-merges", "error", "3 of type BPE"),
        (lambda t: t["model"].update(type="WordLevel"), "tokenizer-merges", "error", "WordLevel"),
        (lambda t: t["added_tokens"][2].update(content="<|human|>"), "added-tokens", "error", "'<|human|>'"),
        (lambda t: t["added_tokens"].pop(), "added-tokens-extra", "warning", "1 of the target are lacking"),
        (
            lambda t: t["added_tokens"].append({"id": 70, "content": "<think>"}),
            "added-tokens-extra",
            "warning",
            "'<think>' first",
        ),
        (lambda t: t.update(normalizer={"type": "NFC"}), "tokenizer-pipeline", "warning", "`normalizer`"),
    ],
)
def test_tokenizer(trio: Trio, change: Callable[[dict], object], name: str, level: str, text: str) -> None:
    rewrite_tokenizer(trio.donor, change)
    findings = check(trio)
    assert ids(findings) == [name]
    assert findings[0].level == level
    assert text in findings[0].message
    assert "donor" in findings[0].subject
    without = check(trio, Selection(preset="no-embed"))
    assert [finding.level for finding in without] == ["warning"]


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update(truncation={"max_length": 8}),
        lambda t: t["model"].update(merges=[pair.split() for pair in t["model"]["merges"]]),
    ],
)
def test_tokenizers_that_mean_the_same(trio: Trio, change: Callable[[dict], object]) -> None:
    rewrite_tokenizer(trio.donor, change)
    assert check(trio) == []


def test_unigram_vocabulary(trio: Trio) -> None:
    for folder in trio:
        rewrite_tokenizer(
            folder, lambda t: t.update(model={"type": "Unigram", "vocab": [["a", 0.0], ["b", -1.0]]})
        )
    assert check(trio) == []
    rewrite_tokenizer(
        trio.donor, lambda t: t.update(model={"type": "Unigram", "vocab": [["b", 0.0], ["a", -1.0]]})
    )
    assert "2 with another id" in only(check(trio), "tokenizer-vocabulary").message


@pytest.mark.parametrize(
    ("changes", "name", "level"),
    [
        ({"eos_token": "<|user|>"}, "special-tokens", "warning"),
        ({"eos_token": {"content": "</s>", "lstrip": False}}, None, None),
        ({"pad_token": "<s>"}, "tokenizer-settings", "note"),
        ({"chat_template": "{{ other }}"}, "chat-template", "note"),
        ({"chat_template": None}, "chat-template", "note"),
        ({"model_max_length": 9}, None, None),
    ],
)
def test_tokenizer_settings(trio: Trio, changes: dict[str, Any], name: str | None, level: str | None) -> None:
    edit_json(trio.reference / "tokenizer_config.json", **changes)
    findings = check(trio)
    assert ids(findings) == ([name] if name else [])
    assert [finding.level for finding in findings] == ([level] if level else [])


def test_chat_template_in_a_file_of_its_own(trio: Trio) -> None:
    settings = json.loads((trio.donor / "tokenizer_config.json").read_text())
    (trio.donor / "chat_template.jinja").write_text(settings.pop("chat_template") + "\n")
    (trio.donor / "tokenizer_config.json").write_text(json.dumps(settings))
    assert check(trio) == []


def test_no_tokenizer(trio: Trio) -> None:
    (trio.donor / "tokenizer.json").unlink()
    assert "donor" in only(check(trio), "tokenizer-missing").subject


def test_tokenizer_as_a_model_file(trio: Trio) -> None:
    for folder in trio:
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.model").write_bytes(b"pieces")
    assert check(trio) == []
    (trio.donor / "tokenizer.model").write_bytes(b"others")
    assert "`tokenizer.model` of donor" in only(check(trio), "tokenizer-vocabulary").subject


def test_damaged_tokenizer(trio: Trio) -> None:
    (trio.donor / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0, "a": 1}}}')
    with pytest.raises(FormatError, match=r"tokenizer\.json") as caught:
        check(trio)
    assert str(trio.donor) in str(caught.value)


@pytest.mark.parametrize(
    "content", ["{}", '{"model": 1}', '{"model": {"vocab": 3, "merges": 3}, "added_tokens": {}}']
)
def test_odd_tokenizers_do_not_crash(trio: Trio, content: str) -> None:
    (trio.donor / "tokenizer.json").write_text(content)
    assert "tokenizer-vocabulary" in ids(check(trio))


# --- the whole ---


def test_donor_that_is_the_reference(trio: Trio, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(trio.donor)
    for reference in (trio.donor, link):
        finding = only(check(Trio(trio.target, trio.donor, reference)), "zero-vector")
        assert finding.level == "warning"


def test_models_of_a_merge(trio: Trio) -> None:
    target, donor, reference = map(open_checkpoint, trio)
    assert check_models([("one", donor), ("two", reference)], target) == []
    edit_json(trio.donor / "config.json", rms_norm_eps=1.0)
    findings = check_models([("one", open_checkpoint(trio.donor)), ("two", reference)], target)
    assert "`rms_norm_eps` of one" in only(findings, "config-function").message
    assert "as the base has it" in findings[0].message


def test_errors_come_first(trio: Trio) -> None:
    edit_json(trio.donor / "config.json", rms_norm_eps=1.0, pad_token_id=4, max_position_embeddings=9)
    assert [finding.level for finding in check(trio)] == ["error", "warning", "note"]


def test_enforce(trio: Trio) -> None:
    edit_json(trio.donor / "config.json", rms_norm_eps=1.0)
    findings = check(trio)
    with pytest.raises(CompatibilityError, match="rms_norm_eps") as caught:
        enforce(findings)
    assert caught.value.findings == tuple(findings)
    assert "--force config-function" in str(caught.value.hint)
    assert [finding.level for finding in enforce(findings, ["config-function"])] == ["warning"]
    edit_json(trio.donor / "config.json", model_type="llama")
    with pytest.raises(CompatibilityError, match="the models are incompatible in 2 ways") as caught:
        enforce(check(trio))
    lines = str(caught.value).splitlines()
    assert lines[1].startswith("  [architecture] model_type of donor: `llama`, expected `qwen2`")
    assert lines[2].startswith("  [config-function] `rms_norm_eps` of donor: `1.0`, expected `1e-06`")
    with pytest.raises(CompatibilityError) as caught:
        enforce(check(trio), ["architecture"])
    assert [finding.level for finding in caught.value.findings] == ["error", "warning"]
    assert enforce([]) == []


@pytest.mark.parametrize(
    ("force", "text", "hint"),
    [
        ("arcitecture", "no finding `arcitecture`", "did you mean `architecture`?"),
        ("zzzzz", "no finding `zzzzz`", "what can be forced"),
        ("quantised", "cannot be forced", "hint of the finding"),
    ],
)
def test_force_of_what_cannot_be(force: str, text: str, hint: str) -> None:
    with pytest.raises(RecipeError, match=text) as caught:
        enforce([], [force])
    assert hint in str(caught.value.hint)


def test_forcing_warnings_and_the_engines_findings_is_allowed() -> None:
    assert enforce([], ["non-finite", "tied-head"]) == []


def test_every_kind_is_explained() -> None:
    for name, kind in FINDINGS.items():
        assert name == name.lower().replace("_", "-").replace(" ", "-")
        assert kind.meaning
        assert kind.forced is None or kind.level == "error"


def of_experts(name: str, layers: int, lacking: str = "none") -> Checkpoint:
    """A model of a thousand experts in each layer, as headers describe it."""
    names = [f"model.layers.{i // 1000}.mlp.experts.{i % 1000}.up_proj.weight" for i in range(1000 * layers)]
    tensors = {n: TensorInfo(n, "BF16", (4, 4), 32, "model.safetensors") for n in names if lacking not in n}
    return Checkpoint(
        spec=name,
        path=None,
        tensors=MappingProxyType(tensors),
        config=qwen2_config(layers=layers),
        other_files=(),
        file_sizes={},
        fingerprint=name,
    )


def test_work_grows_with_tensors_alone() -> None:
    def calls(layers: int) -> int:
        models = [of_experts("target", layers), of_experts("donor", layers), of_experts("reference", layers)]
        counted = itertools.count()
        sys.setprofile(lambda *_: next(counted))
        try:
            check_transfer(*models)
        finally:
            sys.setprofile(None)
        return next(counted)

    assert calls(12) < 5 * calls(3)


def test_a_hundred_thousand_tensors() -> None:
    models = [
        of_experts("target", 100),
        of_experts("donor", 100),
        of_experts("reference", 100, lacking="layers.7."),
    ]
    findings = check_transfer(*models)
    finding = only(findings, "tensor-missing")
    assert "and 997 more" in finding.expected
    assert len(finding.message) < 500


def test_findings_of_random_pairs_never_crash(tmp_path: Path) -> None:
    shapes = qwen2_shapes(qwen2_config(layers=1))
    other = {name.replace("mlp", "ffn"): shape[::-1] for name, shape in shapes.items()}
    write_weights(tmp_path / "a", random_tensors(shapes))
    write_weights(tmp_path / "b", random_tensors(other, dtype="F16"))
    write_weights(tmp_path / "c", {"x": np.zeros((0, 3), np.float32)})
    models = [open_checkpoint(tmp_path / name) for name in "abc"]
    for target in models:
        for donor in models:
            for reference in models:
                for finding in check_transfer(target, donor, reference):
                    assert finding.message
                    assert str(finding).startswith(f"{finding.level}[{finding.id}]")


@pytest.mark.parametrize("kind", ["vit", "resnet", "dinov2"])
def test_models_of_images_have_no_tokenizer_to_compare(tmp_path: Path, kind: str) -> None:
    from transformers import AutoConfig, AutoModel

    small = {
        "vit": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
        "resnet": {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]},
        "dinov2": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    }[kind]
    folders = Trio(*(tmp_path / name for name in ("target", "donor", "reference")))
    for folder in folders:
        AutoModel.from_config(AutoConfig.for_model(kind, **small)).save_pretrained(folder)
    assert "tokenizer-missing" not in ids(check(folders))
    edit_json(folders.target / "config.json", text_config={"vocab_size": 100})
    assert "tokenizer-missing" in ids(check(folders))


def test_a_tensor_that_a_merge_lacks_is_named_once(trio: Trio, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    change_weights(trio.donor, lambda tensors: tensors.pop(name))  # type: ignore[arg-type,return-value]
    models = [{"model": str(model), "parameters": {"weight": 0.5}} for model in (trio.target, trio.donor)]
    recipe = {"merge_method": "linear", "base_model": str(trio.target), "models": models}
    with pytest.raises(CompatibilityError) as refused:
        tv.merge(recipe, tmp_path / "out")
    found = [finding for finding in refused.value.findings if finding.id == "tensor-missing"]
    assert len(found) == 1
    assert name in found[0].expected
