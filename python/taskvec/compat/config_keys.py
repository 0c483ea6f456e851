"""Keys of config.json by what they mean for the function of the same weights.

What is passed over is known by its whole name: here, or from transformers' own classes in ``families.json``.
A key that is neither and differs is told, whatever it is called.
"""

from __future__ import annotations

from typing import Any

from taskvec.compat.families import known_keys


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The language model's own settings inside a multimodal wrapper's config.
INNER = ("text_config", "llm_config", "language_config")

# Housekeeping and training: the weights compute the same whatever these say, wherever they stand. The tie
# flag is judged together with the stored heads, dtypes by what is stored, families on their own,
# vocabularies by
# their rows.
IGNORED = _words(
    """
    architectures model_type tie_word_embeddings tie_embedding tie_encoder_decoder dtype torch_dtype
    transformers_version use_cache _name_or_path name_or_path _commit_hash commit_hash auto_map
    output_attentions output_hidden_states output_scores return_dict return_dict_in_generate
    gradient_checkpointing pretraining_tp tensor_parallel_degree use_sliding_window quantization_config
    compression_config id2label label2id num_labels problem_type task_specific_params finetuning_task
    _attn_implementation _attn_implementation_autoset attn_implementation _attn_implementation_internal
    _experts_implementation is_encoder_decoder
    cross_attention_hidden_size chunk_size_feed_forward torchscript pruned_heads use_bfloat16 tf_legacy_loss
    router_aux_loss_coef output_router_logits aux_loss_alpha seq_aux ep_size unsloth_version unsloth_fixed
    model_name base_model_tp_plan tokenizer_class
    attn_dropout_prob emb_dropout_prob moe_aux_loss_coef moe_router_aux_loss_coef
    use_mambapy use_mamba_kernels use_flash_attn use_flash_attention _flash_attn_2_enabled
    fp32_residual_connection_training gradient_checkpointing_policy return_loss
    """
)

# Settings of generation, and what transformers takes where they are absent. They say nothing of the weights
# where transformers has put them, in the config of a model that it knows; elsewhere `top_k` may be the number
# of experts, and `temperature` that of a router.
GENERATION: dict[str, Any] = {
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None,
    "forced_decoder_ids": None,
    "length_penalty": 1.0,
    "max_length": 20,
    "max_new_tokens": None,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "prefix": None,
    "remove_invalid_values": False,
    "repetition_penalty": 1.0,
    "suppress_tokens": None,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
}

# Names of one activation: the same formula, whoever computes it.
_ACTIVATIONS = {
    "swish": "silu",
    "gelu_python": "gelu",
    **dict.fromkeys(("gelu_accurate", "gelu_fast", "gelu_new", "gelu_python_tanh"), "gelu_pytorch_tanh"),
}

# Tokens by their text, as old configs have them.
_TOKENS = _words("bos_token eos_token pad_token unk_token sep_token cls_token mask_token")

CONTEXT = _words(
    """
    max_position_embeddings n_positions n_ctx max_sequence_length max_seq_len max_seq_length seq_length
    model_max_length sliding_window max_window_layers attention_chunk_size max_source_positions
    max_target_positions
    """
)

# Parts of names that say that a key changes the function of the same weights.
_FUNCTION_PARTS = _words(
    """
    rope theta rotary norm eps epsilon scale scaling scalar multiplier alibi window relative bias num n size
    dim
    dims ratio factor act activation heads head layers layer hidden ffn position positions positional softcap
    softcapping router routed expert experts topk top group groups attention attn kernel stride patch rank
    expand
    parallel residual interval period pattern conv state gate gated mlp channels pooling feature window depth
    depths embed embedding embeddings width image temperature frequency freq base causal cross function fn
    threshold clamp cap limit temp mamba ssm glu swiglu alpha beta gamma logit logits mean std groups shared
    interleave dilation padding offset
    """
)


def is_ignored(key: str) -> bool:
    """Whether a key is known to say nothing of the function of the weights."""
    return key in IGNORED or key in known_keys("harmless")


def activation(value: Any) -> Any:
    """The one name of an activation that has several; any other value as it is."""
    return _ACTIVATIONS.get(value, value) if isinstance(value, str) else value


def is_token(key: str) -> bool:
    """Whether a key is known to be the id of a token: a note, the tokenizers are compared themselves."""
    return key in _TOKENS or key in known_keys("tokens")


def names_function(key: str) -> bool:
    """Whether a key's name says that it changes the function."""
    return any(part in _FUNCTION_PARTS for part in key.lower().strip("_").split("_"))
