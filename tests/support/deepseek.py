"""DeepSeek-MoE in torch, from the paper (2401.06066) and the names of its published checkpoints.

transformers has no class for the model type ``deepseek``. Names and shapes are those of
deepseek-moe-16b-base: a checkpoint that this class loads whole, its authors' code loads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

Config = dict[str, Any]


class Norm(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.ones(config["hidden_size"])), config["rms_norm_eps"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon)


class Attention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, self.keys = config["num_attention_heads"], config["num_key_value_heads"]
        self.size, self.theta = config["hidden_size"] // self.heads, config["rope_theta"]
        for name, heads in {"q": self.heads, "k": self.keys, "v": self.keys}.items():
            setattr(self, f"{name}_proj", nn.Linear(config["hidden_size"], heads * self.size, bias=False))
        self.o_proj = nn.Linear(config["hidden_size"], config["hidden_size"], bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = len(x)
        q, k, v = (
            getattr(self, f"{name}_proj")(x).view(length, -1, self.size).transpose(0, 1) for name in "qkv"
        )
        rates = self.theta ** (-torch.arange(0, self.size, 2) / self.size)
        angles = torch.cat([torch.outer(torch.arange(length), rates)] * 2, -1)
        q, k = (each * angles.cos() + turned(each) * angles.sin() for each in (q, k))
        k, v = (each.repeat_interleave(self.heads // self.keys, 0) for each in (k, v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(0, 1).reshape(length, -1))


def turned(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


class Expert(nn.Module):
    def __init__(self, config: Config, times: int = 1) -> None:
        super().__init__()
        hidden, inner = config["hidden_size"], config["moe_intermediate_size"] * times
        self.gate_proj, self.up_proj = (nn.Linear(hidden, inner, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        assert config["scoring_func"] == "softmax"
        self.most, self.is_normal = config["num_experts_per_tok"], config["norm_topk_prob"]
        self.gate = nn.Linear(config["hidden_size"], config["n_routed_experts"], bias=False)
        self.experts = nn.ModuleList(Expert(config) for _ in range(config["n_routed_experts"]))
        shared = config.get("n_shared_experts")
        self.shared_experts = Expert(config, shared) if shared else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.gate(x).softmax(-1).topk(self.most)
        if self.is_normal:
            weights = weights / weights.sum(-1, keepdim=True)
        y = torch.stack(
            [
                sum(w * self.experts[int(n)](row) for w, n in zip(*each, strict=True))
                for row, each in zip(x, zip(weights, chosen, strict=True), strict=True)
            ]
        )
        return y if self.shared_experts is None else y + self.shared_experts(x)


class Layer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(config), Experts(config)
        self.input_layernorm, self.post_attention_layernorm = Norm(config), Norm(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class DeepseekMoe(nn.Module):
    """All layers have experts: `first_k_dense_replace` of 0, `moe_layer_freq` of 1."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        assert (config["first_k_dense_replace"], config["moe_layer_freq"]) == (0, 1)
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.model.layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        self.model.norm = Norm(config)
        self.lm_head = nn.Linear(config["hidden_size"], config["vocab_size"], bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x)
        return self.lm_head(self.model.norm(x))

    def generate(self, ids: torch.Tensor, count: int) -> torch.Tensor:
        for _ in range(count):
            ids = torch.cat([ids, self(ids)[-1].argmax(keepdim=True)])
        return ids


def load(folder: Path) -> DeepseekMoe:
    """A checkpoint in float32; every name and shape has to be there, and no other."""
    model = DeepseekMoe(json.loads((folder / "config.json").read_text()))
    tensors: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        tensors |= {name: each.float() for name, each in load_file(path).items()}
    model.load_state_dict(tensors, strict=True)
    return model.eval()
