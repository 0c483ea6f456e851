"""The check of config.json: families, and every key that changes what the same weights compute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from taskvec.compat.findings import Finding, finding
from taskvec.text import listed, roles

Models = Sequence[tuple[str, Mapping[str, Any]]]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The language model's own settings inside a multimodal wrapper's config.
_INNER = ("text_config", "llm_config", "language_config")

# Last parts of keys that change the function of the same weights. `num_*` and `n_*` count layers, heads,
# experts.
_FUNCTION = _words(
    """
    hidden_size intermediate_size moe_intermediate_size shared_expert_intermediate_size ffn_dim d_model
    d_ff head_dim qk_nope_head_dim qk_rope_head_dim v_head_dim q_lora_rank kv_lora_rank layer_types rope
    rope_interleave partial_rotary_factor rotary_pct rotary_dim position_embedding_type alibi
    no_rope_layers no_rope_layer_interval hidden_act hidden_activation activation_function rms_norm_eps
    layer_norm_eps layer_norm_epsilon norm_eps norm_epsilon use_qk_norm qk_norm use_parallel_residual
    parallel_attn new_decoder_architecture attention_bias mlp_bias use_bias dual_chunk_attention_config
    attn_logit_softcapping final_logit_softcapping query_pre_attn_scalar attention_multiplier
    residual_multiplier embedding_multiplier logits_scaling logit_scale scale_emb scale_depth
    norm_topk_prob scoring_func topk_method routed_scaling_factor topk_group first_k_dense_replace
    moe_layer_freq decoder_sparse_step mlp_only_layers linear_conv_kernel_dim linear_key_head_dim
    linear_value_head_dim full_attention_interval state_size conv_kernel expand time_step_rank
    patch_size image_size
    """
)
_COUNTS_NOTHING = frozenset({"num_labels", "num_return_sequences", "num_beams", "num_beam_groups"})
_CONTEXT = _words(
    """
    max_position_embeddings n_positions max_sequence_length seq_length model_max_length sliding_window
    max_window_layers attention_chunk_size
    """
)

# Housekeeping, training and generation: the weights compute the same whatever these say. The tie flag is
# judged together with the stored heads, dtypes by what is stored, families on their own.
_IGNORED = _words(
    """
    architectures model_type tie_word_embeddings dtype torch_dtype transformers_version use_cache
    _name_or_path name_or_path _commit_hash auto_map initializer_range attention_dropout hidden_dropout
    attn_pdrop embd_pdrop resid_pdrop hidden_dropout_prob attention_probs_dropout_prob dropout
    output_attentions output_hidden_states return_dict gradient_checkpointing pretraining_tp
    use_sliding_window quantization_config id2label label2id num_labels problem_type
    task_specific_params _attn_implementation _attn_implementation_autoset attn_implementation
    bad_words_ids is_decoder is_encoder_decoder chunk_size_feed_forward torchscript pruned_heads
    router_aux_loss_coef output_router_logits aux_loss_alpha seq_aux ep_size unsloth_version
    unsloth_fixed model_name rope_theta rope_scaling rope_parameters rope_local_base_freq
    """
)

# The values that transformers takes where a key is absent; only where every family agrees.
_DEFAULTS: dict[str, Any] = {
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "hidden_act": "silu",
    "rope_interleave": True,
    "rope": {"rope_theta": 10000.0, "rope_type": "default"},
}


def canonical(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as flat ``key.key: value``, equal where two configs mean the same.

    The inner language model's settings come to the top, the spellings of the rotary embedding become one
    (``rope``), defaults that follow from other keys are filled in, ``null`` is the same as absent.
    """
    merged = dict(config)
    for inner in _INNER:
        if isinstance(merged.get(inner), dict):
            merged.update(merged.pop(inner))
            break
    merged["rope"] = _rope(merged)
    heads, hidden = merged.get("num_attention_heads"), merged.get("hidden_size")
    if isinstance(heads, int) and heads > 0:
        merged.setdefault("num_key_value_heads", heads)
        if isinstance(hidden, int):
            merged["head_dim"] = merged.get("head_dim") or hidden // heads
    if merged.get("use_sliding_window") is False:
        merged.pop("sliding_window", None)
        merged.pop("max_window_layers", None)
    layer_types = merged.get("layer_types")
    if isinstance(layer_types, list) and all(kind == "full_attention" for kind in layer_types):
        merged.pop("layer_types")
    return dict(_flat(merged, ""))


def _flat(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if item is None or key in _IGNORED:
            continue
        if isinstance(item, dict) and key != "rope":
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def _rope(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """One form for ``rope_theta`` + ``rope_scaling`` and for ``rope_parameters``; per layer type where it
    differs."""
    given = config.get("rope_parameters")
    if isinstance(given, dict):
        if given and all(isinstance(each, dict) for each in given.values()):
            return {kind: _rope_kind(each, None) for kind, each in sorted(given.items())}
        return _rope_kind(given, config.get("rope_theta"))
    scaling = config.get("rope_scaling")
    if config.get("rope_theta") is None and not isinstance(scaling, dict):
        return None
    single = _rope_kind(scaling if isinstance(scaling, dict) else {}, config.get("rope_theta"))
    if config.get("rope_local_base_freq") is not None:
        local = _rope_kind({}, config["rope_local_base_freq"])
        return {"full_attention": single, "sliding_attention": local}
    return single


def _rope_kind(given: Mapping[str, Any], theta: Any) -> dict[str, Any]:
    result = {key: value for key, value in given.items() if value is not None and key != "type"}
    result["rope_type"] = given.get("rope_type") or given.get("type") or "default"
    base = given.get("rope_theta", theta)
    result["rope_theta"] = float(base) if isinstance(base, int | float) else 10000.0
    if "factor" in result and isinstance(result["factor"], int):
        result["factor"] = float(result["factor"])
    return dict(sorted(result.items()))


def check_config(base_role: str, base: Mapping[str, Any], others: Models) -> list[Finding]:
    """Compare the configs of `others` with the base's."""
    missing = [role for role, config in [(base_role, base), *others] if not config]
    findings = []
    if missing:
        findings.append(
            finding(
                "config-missing",
                f"config.json of {roles(missing)}",
                "",
                "there is none, so the function of the weights cannot be compared",
                "make sure that the models are of one family and size",
            )
        )
    present = [(role, config) for role, config in others if config]
    if not base or not present:
        return findings
    findings += _check_family(base_role, base, present)
    findings += _check_keys(base_role, base, present)
    return findings


def _families(config: Mapping[str, Any]) -> list[str]:
    inner = next((config[key] for key in _INNER if isinstance(config.get(key), dict)), {})
    return [str(kind) for kind in (config.get("model_type"), inner.get("model_type")) if kind]


def _classes(config: Mapping[str, Any]) -> str:
    classes = config.get("architectures")
    return ", ".join(map(str, classes)) if isinstance(classes, list) else ""


def _check_family(base_role: str, base: Mapping[str, Any], others: Models) -> Iterator[Finding]:
    own, own_classes = _families(base), _classes(base)
    for found, who in _grouped((role, tuple(_families(config))) for role, config in others):
        if own and found and not set(own) & set(found):
            yield finding(
                "architecture",
                f"model_type of {roles(who)}",
                f"`{own[0]}` as the {base_role} has it",
                f"`{found[0]}`",
                "give models of one family",
            )
    for found, who in _grouped((role, _classes(config)) for role, config in others):
        if own_classes and found and found != own_classes:
            yield finding(
                "architecture-class",
                f"architectures of {roles(who)}",
                f"`{own_classes}` as the {base_role} has it",
                f"`{found}`",
                "their heads are not comparable; leave them out with `--preset no-embed`",
            )


def _check_keys(base_role: str, base: Mapping[str, Any], others: Models) -> Iterator[Finding]:
    own = canonical(base)
    differing: dict[tuple[str, str, str], list[str]] = {}
    for role, config in others:
        other = canonical(config)
        for key in [*own, *(key for key in other if key not in own)]:
            default = _DEFAULTS.get(key)
            mine, theirs = own.get(key, default), other.get(key, default)
            if mine != theirs:
                differing.setdefault((key, _show(mine), _show(theirs)), []).append(role)
    rest: list[str] = []
    for (key, mine, theirs), who in differing.items():
        last = key.rpartition(".")[2]
        is_function = last in _FUNCTION or (last.startswith(("num_", "n_")) and last not in _COUNTS_NOTHING)
        if last in _CONTEXT:
            id, fix = "config-context", "the target's context length is kept; test long inputs"  # noqa: A001
        elif is_function and "absent" not in (mine, theirs):  # where one is absent, its default is unknown
            id, fix = "config-function", "equal shapes, but another function: give models of one lineage"  # noqa: A001
        else:
            rest.append(key)
            continue
        yield finding(id, f"`{key}` of {roles(who)}", f"{mine} as the {base_role} has it", theirs, fix)
    if rest:
        names = list(dict.fromkeys(rest))
        who = [role for role, _ in others if any(role in group for group in differing.values())]
        yield finding("config-other", f"config.json of {roles(who)}", "", f"differs in {listed(names, 6)}")


def _show(value: Any) -> str:
    if value is None:
        return "absent"
    text = repr(value) if isinstance(value, str) else str(value)
    return f"`{text if len(text) <= 80 else text[:77] + '...'}`"


def _grouped(pairs: Any) -> list[tuple[Any, list[str]]]:
    """Roles by equal value, in order of appearance."""
    groups: dict[Any, list[str]] = {}
    for role, value in pairs:
        groups.setdefault(value, []).append(role)
    return list(groups.items())
