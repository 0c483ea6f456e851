"""The layouts of a mixture of experts that dense models can be written in: names of tensors, and config.json.

The names are those of published checkpoints, one tensor for each matrix of each expert; transformers fuses
them when it loads them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from taskvec.compat.families import NOT_KNOWN, family, filled
from taskvec.regex import regex

Config = Mapping[str, Any]

# The matrices of an expert, by their names in a dense MLP.
MATRICES = ("gate_proj", "up_proj", "down_proj")
MLP = regex(r"model\.layers\.(?P<layer>\d+)\.mlp\.(?P<matrix>gate_proj|up_proj|down_proj)\.weight")
# All other tensors that some layout has a place for.
_COMMON = (
    r"model\.embed_tokens\.weight|model\.norm\.weight|lm_head\.weight|"
    r"model\.layers\.\d+\.(?:input_layernorm|post_attention_layernorm|self_attn\.[qkvo]_proj)\.weight|"
    r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
)
_BIAS = r"model\.layers\.\d+\.self_attn\.[qkv]_proj\.bias"
_NORMS = r"model\.layers\.\d+\.self_attn\.[qk]_norm\.weight"


class Layout(NamedTuple):
    """A layout of experts.

    Attributes
    ----------
    name : str
        The model type.
    architecture : str
        The class.
    dense : frozenset of str
        Model types of the dense models that it can be made of.
    shared : {0, 1} or None
        How many shared experts it has; ``None``: none or one.
    others : re.Pattern
        Names of all tensors but those of the MLPs.
    block : str
        Where router and experts are, within a layer.
    names : tuple of str
        What gate, up and down are called in an expert.
    shared_name : str
        Where the shared expert is, within a layer; empty if there is none.
    shared_gate : str
        The matrix that weighs the shared expert; empty if it has weight one.
    has_window : bool
        Whether attention may have a window in every layer.
    """

    name: str
    architecture: str
    dense: frozenset[str]
    shared: int | None
    others: re.Pattern[str]
    block: str = "mlp"
    names: tuple[str, str, str] = MATRICES
    shared_name: str = ""
    shared_gate: str = ""
    has_window: bool = True

    @property
    def router(self) -> str:
        """The router's matrix, within a layer."""
        return f"{self.block}.gate.weight"

    def expert(self, number: int, matrix: str) -> str:
        """One matrix of an expert, within a layer."""
        return f"{self.block}.experts.{number}.{self.names[MATRICES.index(matrix)]}.weight"


_LLAMAS = frozenset({"llama", "mistral"})
# The first that fits is taken where the recipe names none.
LAYOUTS = (
    Layout("mixtral", "MixtralForCausalLM", _LLAMAS, 0, regex(_COMMON),
           "block_sparse_moe", ("w1", "w3", "w2")),
    Layout("deepseek", "DeepseekForCausalLM", _LLAMAS, None, regex(_COMMON),
           shared_name="mlp.shared_experts", has_window=False),
    Layout("qwen2_moe", "Qwen2MoeForCausalLM", _LLAMAS | {"qwen2"}, 1, regex(f"{_COMMON}|{_BIAS}"),
           shared_name="mlp.shared_expert", shared_gate="mlp.shared_expert_gate.weight", has_window=False),
    Layout("qwen3_moe", "Qwen3MoeForCausalLM", frozenset({"qwen3"}), 0, regex(f"{_COMMON}|{_NORMS}")),
)  # fmt: skip

_DEEPSEEK_CODE = "deepseek-ai/deepseek-moe-16b-base"


def config_changes(
    layout: Layout, config: Config, experts: int, per_token: int, *, shared: bool
) -> dict[str, Any]:
    """The keys of the base's config.json that change, and what they become; ``None`` takes a key out.

    Defaults that differ between the dense family and the layout's are written out.
    """
    inner, has_bias = config.get("intermediate_size"), config["model_type"] == "qwen2"
    own: dict[str, dict[str, Any]] = {
        "mixtral": {"num_local_experts": experts, "sliding_window": config.get("sliding_window")},
        "qwen2_moe": {
            "num_experts": experts,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "moe_intermediate_size": inner,
            "shared_expert_intermediate_size": inner,
            "qkv_bias": has_bias,
        },
        "qwen3_moe": {
            "num_experts": experts,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "moe_intermediate_size": inner,
        },
        "deepseek": {
            "auto_map": {
                "AutoConfig": f"{_DEEPSEEK_CODE}--configuration_deepseek.DeepseekConfig",
                "AutoModel": f"{_DEEPSEEK_CODE}--modeling_deepseek.DeepseekModel",
                "AutoModelForCausalLM": f"{_DEEPSEEK_CODE}--modeling_deepseek.DeepseekForCausalLM",
            },
            "n_routed_experts": experts,
            "n_shared_experts": 1 if shared else None,
            "moe_intermediate_size": inner,
            "norm_topk_prob": True,
            "scoring_func": "softmax",
            "first_k_dense_replace": 0,
            "moe_layer_freq": 1,
        },
    }
    changes = {
        "architectures": [layout.architecture],
        "model_type": layout.name,
        "num_experts_per_tok": per_token,
        "output_router_logits": False,
        **own[layout.name],
    }
    if "auto_map" in config and "auto_map" not in changes:
        changes["auto_map"] = None
    changes = {key: value for key, value in changes.items() if value is not None or key in config}
    return {**_defaults(layout, config, changes), **changes}


def _defaults(layout: Layout, config: Config, changes: Config) -> dict[str, Any]:
    """Values that the dense family has by default and the layout's has not."""
    dense, target = family(str(config["model_type"])), family(layout.name)
    values = filled(config, dense)
    written = {
        key: value
        for key, value in values.items()
        if key not in config
        and key not in changes
        and value is not NOT_KNOWN
        and value is not None
        and key in _FUNCTION
        and target.defaults.get(key) != value
    }
    theta = {"rope_theta", "rope_parameters", "rope_scaling"}
    if not theta & config.keys() and dense.rope is not None:
        written["rope_theta"] = dense.rope.get("rope_theta", 10000.0)
    heads = config.get("num_attention_heads")
    if config.get("num_key_value_heads") is None and heads is not None:
        written["num_key_value_heads"] = heads
    return written


# The keys with a default that a dense family and a layout share, and that the function depends on.
_FUNCTION = frozenset({
    "attention_bias", "head_dim", "hidden_act", "hidden_size", "intermediate_size", "max_position_embeddings",
    "num_attention_heads", "num_hidden_layers", "rms_norm_eps", "sliding_window", "tie_word_embeddings",
    "use_sliding_window", "max_window_layers", "vocab_size",
})  # fmt: skip
