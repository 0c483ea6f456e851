"""Packed weights are told by what lies next to them: tables of what formats store, and of plain buffers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import taskvec as tv
from support.models import DTYPES, Tensors, Trio, edit_json, read_tensors, write_weights
from taskvec.compat.packed import packed_weights
from taskvec.errors import CompatibilityError
from taskvec.models.model import TensorInfo

Stored = dict[str, tuple[str, tuple[int, ...]]]

# What is written by MLX, compressed-tensors, ModelOpt, bitsandbytes, GPTQ, AWQ, HQQ, Quanto, AQLM, torchao,
# ExLlama, ComfyUI, Marlin, and by scripts that nobody has a name for.
PACKED: list[Stored] = [
    {"a.weight": ("F16", (8, 64)), "a.scales": ("F16", (8, 2))},
    {"a.weight": ("BF16", (64, 64)), "a.zeros": ("F32", (4, 4))},
    {"l.q.weight": ("U32", (8, 8)), "l.q.scales": ("F16", (8, 1)), "l.q.biases": ("F16", (8, 1))},
    {"l.q.weight": ("F8_E4M3", (8, 8)), "l.q.weight_scale_inv": ("F32", (1, 1))},
    {"l.q.weight": ("F8_E4M3", (8, 8)), "l.q.scale_weight": ("F32", ())},
    {"l.q.weight": ("F8_E4M3", (8, 8)), "l.q.scale": ("BF16", ())},
    {"l.q.weight": ("F8_E4M3", (8, 8)), "l.q_scale": ("BF16", ())},
    {"l.q.weight": ("I8", (8, 8)), "l.q.weight_scale": ("F32", (8, 1))},
    {"l.q.weight": ("I8", (8, 8)), "l.q.SCB": ("F32", (8,))},
    {
        "l.q.weight": ("U8", (32, 1)),
        "l.q.weight.absmax": ("F32", (4,)),
        "l.q.weight.quant_map": ("F32", (16,)),
    },
    {"l.q.qweight": ("I32", (8, 8)), "l.q.qzeros": ("I32", (1, 1)), "l.q.scales": ("F16", (1, 8))},
    {
        "l.experts.gate_up_proj_blocks": ("U8", (2, 8, 8, 16)),
        "l.experts.gate_up_proj_scales": ("U8", (2, 8, 8)),
    },
    {"l.experts.gate_up_proj": ("F8_E4M3", (2, 8, 8)), "l.experts.gate_up_proj_scale": ("F32", (2, 1, 1))},
    {"l.experts.gate_up_proj": ("I8", (2, 8, 8)), "l.experts.gate_up_proj_scale_inv": ("F32", (2, 1, 1))},
    {"l.w_q": ("U8", (8, 8)), "l.scale": ("F16", (8, 1)), "l.zero": ("F16", (8, 1))},
    {"l.W_q": ("U8", (8, 8)), "l.meta_scale": ("F16", (8, 1))},
    {"l.q.weight._data": ("I8", (8, 8)), "l.q.weight._scale": ("F32", (8, 1))},
    {"l.q.codes": ("I16", (8, 8, 1)), "l.q.codebooks": ("F16", (1, 256, 1, 8)), "l.q.scales": ("F16", (8,))},
    {"l.q.weight:int_data": ("I8", (8, 8)), "l.q.weight:scale": ("F32", (8, 1))},
    {"weight": ("I8", (8, 8)), "scale": ("F32", (8, 1))},
    {"q.weight_q": ("I8", (8, 8)), "q.weight_s": ("F32", (8, 1))},
    {"q.weight_packed": ("I32", (8, 1)), "q.weight_scale": ("F32", (8, 1)), "q.weight_shape": ("I64", (2,))},
    {"q.int_weight": ("I8", (8, 8)), "q.fp_scale": ("F32", (8, 1))},
    {"q.trellis": ("I16", (8, 8, 48)), "q.suh": ("F16", (8,)), "q.svh": ("F16", (8,))},
    {
        "q.q_weight": ("I32", (8, 8)),
        "q.q_scale": ("I32", (8, 8)),
        "q.q_scale_max": ("F16", (8,)),
        "q.q_groups": ("I16", (2,)),
    },
    {"q.q_perm": ("I16", (8,)), "q.q_weight": ("I32", (8, 8)), "q.q_scale_max": ("F16", (8,))},
    {"q.kernel": ("I8", (8, 8)), "q.kernel_scale": ("F32", (8,))},
    {"emb.tokens": ("I8", (8, 8)), "emb.tokens_scale": ("F32", (8,))},
    {"emb.tokens": ("I8", (8, 8)), "emb.scales": ("F32", (8,))},
    {"l.q.weight": ("I64", (8, 8)), "l.q.scales": ("F32", (8,))},
    {"l.q.weight": ("F8_E5M2", (8, 8)), "l.q.weight_scale": ("F32", (1,))},
    {"l.q.weight": ("F8_E4M3", (8, 8)), "l.q.weight.scale": ("F32", (1,))},
    {"l.q.weight": ("F8_E4M3", (8, 8)), "l.q.input_scale": ("F32", (1,)), "l.q.weight_scale": ("F32", (1,))},
    {"l.q.weight": ("F8_E4M3", (8, 8)), "l.q.dequant_scale": ("F32", (1,))},
    {"l.q.weight": ("F8_E4M3", (8, 8)), "l.q.weight_absmax": ("F32", (1,))},
    {"l.q.qweight": ("I32", (8, 8)), "l.q.s": ("F16", (8,))},
    {"l.q.B": ("I32", (8, 8)), "l.q.s": ("F16", (8,))},
    {"blocks.0.wq": ("I8", (8, 8)), "blocks.0.wq.scale": ("F16", (8,))},
    {"blocks.0.wq": ("I8", (8, 8)), "blocks.0.wq_s": ("F16", (8,))},
    {"blocks.0.wq": ("I8", (8, 8)), "blocks.0.scale_wq": ("F16", (8,))},
    # scales under far names
    {"m.layers.0.q.weight": ("F8_E4M3", (8, 8)), "scales.m.layers.0.q.weight": ("F32", (8, 1))},
    {"m.layers.0.q.weight": ("F8_E4M3", (8, 8)), "quant.layers.0.q.inv": ("F32", ())},
    {"m.layers.0.q.weight": ("F8_E5M2", (8, 8)), "m.layers.0.q_quantizer.amax": ("F32", ())},
    {"m.layers.0.q.weight": ("F8_E4M3", (8, 8)), "m.layers.0.fp8.q_scale": ("F32", (1,))},
    {"m.layers.0.q.weight": ("F8_E4M3", (8, 8)), "m.layers.0.scales.q": ("U8", (8, 1))},
    {"m.layers.0.q.weight": ("F8_E4M3", (8, 8)), "layers_0_q_weight_scale": ("F32", ())},
    {"m.layers.0.q.weight": ("F8_E4M3", (8, 8)), "m.layers.0.scale_table": ("F32", (4,))},
    {"m.layers.0.q.weight": ("F8_E4M3", (8, 8)), "fp8_scales": ("F32", (12,))},
    {"lm_head.weight": ("F8_E4M3", (8, 8)), "scale_lm_head": ("F32", ())},
    # integers that are not a known buffer, with tables, signs or nothing next to them
    {"q.indices": ("U16", (1, 8, 64)), "q.centroids.weight": ("F16", (1, 2048))},
    {"q.ids": ("I32", (8, 8)), "q.lookup_table": ("F16", (8, 16))},
    {"q.trellis": ("I16", (8, 8, 48)), "q.su": ("I16", (4,)), "q.sv": ("I16", (4,))},
    {"q.dense_weights": ("I64", (8, 8)), "q.row_offsets": ("I32", (9,)), "q.col_vals": ("I32", (99,))},
    {"q.sign": ("U8", (8, 8)), "q.alpha": ("F16", (8, 1))},
    {"q.weight": ("BOOL", (8, 8)), "q.alpha": ("F16", (8, 1))},
    {"q.planes": ("U8", (4, 8, 8)), "norm.weight": ("BF16", (8,))},
    # signs and a coefficient in the place of a weight (BitDelta), whatever they are called
    *(
        {f"l.q.{codes}": (dtype, shape), f"l.q.{number}": ("BF16", size), "l.norm.weight": ("BF16", (64,))}
        for codes, dtype, shape in (
            ("mask", "I32", (2, 64)),
            ("mask", "U8", (8, 64)),
            ("mask", "BOOL", (64, 64)),
            ("mask", "I32", (128,)),
            ("mask", "I64", (2, 64)),
            ("bits", "I32", (2, 64)),
            ("signs", "I64", (2, 64)),
            ("delta", "U8", (512,)),
            ("indices", "U8", (8, 64)),
            ("bias", "I32", (2, 64)),
        )
        for number, size in (("coeff", ()), ("alpha", (1,)), ("u", (64, 1)), ("magnitude", (64,)))
    ),
    {"mask": ("I32", (2, 64)), "coeff": ("F32", ())},
    {"a.q_mask": ("I32", (2, 64)), "a.q_coeff": ("F32", ()), "a.k.weight": ("BF16", (64, 64))},
    {"a.q_mask": ("I32", (2, 64)), "a.q.coeff": ("F32", ()), "a.k.weight": ("BF16", (64, 64))},
    {"masks.l.q": ("I32", (2, 64)), "coeffs.l.q": ("F32", ()), "l.norm.weight": ("BF16", (64,))},
    {"l.q.mask": ("I32", (2, 64)), "l.q.coeff": ("F32", ()), "l.q.lora_A.weight": ("BF16", (8, 64))},
    {"q.indices": ("I32", (8, 8)), "q.scales": ("F16", (8,))},
    {"q.ids": ("I32", (8, 8)), "q.coeff": ("F16", (8, 1))},
    # codes whose bits are seen as floats
    {"l.W_q": ("F16", (4, 8)), "l.scale": ("F16", (8, 1)), "l.zero": ("F16", (8, 1))},
    {"l.w_q": ("BF16", (32,)), "l.scale": ("BF16", (8, 1)), "l.zero": ("BF16", (8, 1))},
    {"l.qweight": ("F32", (8, 8)), "l.scales": ("F16", (1, 8))},
    {"l.weight_packed": ("F32", (8, 8)), "l.weight_scale": ("F32", (8, 1))},
    # flat codes of long words, sparse matrices, and a number that may be the scale
    {"q.dense_weights": ("I64", (512,)), "q.row_offsets": ("I32", (9,)), "q.col_vals": ("I32", (99,))},
    {"q.weight": ("I64", (512,)), "q.scale": ("F16", (8,))},
    {"q.packed": ("U64", (512,)), "q.scale": ("F16", (8,))},
    {"q.weight_values": ("F16", (99,)), "q.weight_col_indices": ("I64", (99,))},
    {"q.weight.values": ("F32", (99,)), "q.weight.indices": ("I64", (2, 99))},
    {"q.weight": ("F8_E4M3", (8, 8)), "q.alpha": ("F32", (1,))},
    # numbers of rows of a table, whatever the table is called and however large it is
    *(
        {"q.weight_ids": (dtype, (8, 8)), f"q.{table}": ("F16", size)}
        for dtype in ("I32", "I64")
        for table, size in (
            ("levels", (16,)),
            ("values", (16,)),
            ("fancy", ()),
            ("gain", (1,)),
            ("t", (4, 4)),
        )
    ),
    {"m.ids": ("I32", (8, 8)), "m.scale": ("F32", ())},
    {"m.group_index": ("I32", (8, 8)), "m.range": ("F32", ())},
    {"m.q_idx": ("I32", (8, 8)), "m.q_centroid": ("F32", (16,)), "m.k.weight": ("F32", (8, 8))},
    {"q.idx": ("I32", (512,)), "q.levels": ("F16", (16,))},
    {"q.index": ("I64", (512,)), "q.codebook": ("F16", (16, 4))},
    # numbers next to a weight of float8: what is not known to be something else is its scale
    *(
        {"q.weight": ("F8_E4M3", (8, 64)), f"q.{name}": ("F32", size)}
        for name, size in (
            ("exp_bias", (1,)),
            ("exp_bias", (8,)),
            ("exponent_bias", ()),
            ("bias", ()),
            ("bias", (1,)),
            ("range", (8,)),
            ("weight_max", ()),
            ("m.factor", ()),
            ("fp8.step", (8, 1)),
            ("eps", ()),
        )
    ),
    {"a.q.weight": ("F8_E5M2", (8, 64)), "meta.a.q.exponent": ("F32", ())},
    {"a.experts.up_proj": ("F8_E4M3", (2, 8, 64)), "a.experts.up_proj_exp": ("F32", (2,))},
    # codes in a float type, and numbers for their rows and groups
    {"q.weight": ("F16", (8, 64)), "q.scale": ("F16", (8, 1))},
    {"q.weight": ("F32", (8, 64)), "q.scale": ("F32", (8, 2))},
    {"q.weight": ("BF16", (8, 64)), "q.zero_point": ("F32", (8, 2))},
    {"q.weight": ("BF16", (8, 64)), "q.weight_scale": ("F32", (1, 1))},
    {"q.weight": ("BF16", (8, 64)), "q_scale": ("F32", (8, 1))},
    {"m.experts.up_proj": ("BF16", (2, 8, 64)), "m.experts.up_proj_scale": ("F32", (2, 8, 1))},
    {"weight": ("F16", (8, 64)), "scale": ("F16", (8, 1))},
]
ORDINARY: list[Stored] = [
    {"a.weight": ("F16", (8, 64)), "a.scales": ("F16", (8,))},
    {"a.weight": ("BF16", (8, 64)), "a.scales": ("F32", (3, 7))},
    {"a.weight": ("BF16", (8, 64)), "a.zeros": ("BF16", (8, 64))},
    {
        "e.position_ids": ("I64", (1, 512)),
        "e.word.weight": ("F32", (8, 8)),
        "e.class_embedding": ("F32", (8,)),
    },
    {"bn.num_batches_tracked": ("I64", ()), "bn.weight": ("F32", (8,)), "bn.running_mean": ("F32", (8,))},
    {
        "a.relative_position_index": ("I64", (49, 49)),
        "a.relative_position_bias_table": ("F32", (9, 2)),
        "a.logit_scale": ("F32", (2, 1, 1)),
    },
    {"a.bias": ("U8", (1, 1, 8, 8)), "a.masked_bias": ("F16", ()), "a.c_attn.weight": ("F16", (8, 8))},
    {"a.bias": ("U8", (1, 1, 8, 8)), "a.scale": ("F16", ())},
    {"l.q.weight": ("F8_E4M3", (8, 8)), "l.q.bias": ("BF16", (8,))},
    {"l.q.weight": ("F8_E4M3", (8, 8)), "l.q.bias": ("F8_E4M3", (8,)), "norm.scale": ("BF16", (8,))},
    {"gate.weight": ("F8_E4M3", (8, 8)), "gate.e_score_correction_bias": ("F32", (8,))},
    {"text_projection": ("F8_E4M3", (8, 8)), "logit_scale": ("F32", ())},
    {
        "img.norm.query_norm.scale": ("F8_E4M3", (8,)),
        "img.qkv.weight": ("F8_E4M3", (8, 8)),
        "img.proj.weight": ("F8_E4M3", (8, 8)),
    },
    {"m.token_counts": ("I32", (100,)), "m.weight": ("F32", (8, 8)), "m.scale": ("F32", ())},
    {"m.token_counts": ("I64", (100, 2)), "m.scale": ("F32", ())},
    {"m.tid2eid": ("I64", (100, 2)), "m.weight": ("F32", (8, 8))},
    {"m.tid2eid": ("I32", (100, 2)), "m.weight": ("F32", (8, 8)), "m.bias": ("F32", (8,))},
    {
        "q.codebook.initialized": ("F32", (1,)),
        "q.codebook.usage": ("I64", (8,)),
        "q.codebook.embed": ("F32", (8, 8)),
    },
    {"rope.inv_freq_index": ("I32", (8, 8)), "rope.inv_freq": ("F32", (8,))},
    {"e.experts.gate_up_proj": ("F8_E4M3", (2, 8, 8)), "e.experts.gate_up_proj_bias": ("BF16", (2, 8))},
    {"vq.n_steps": ("I32", (1,)), "vq.scale": ("F32", ())},
    {
        "l.q.weight": ("F8_E4M3", (8, 8)),
        "l.q.lora_A.weight": ("BF16", (8, 8)),
        "l.q.lora_B.weight": ("BF16", (8, 8)),
    },
    {"norm.weight": ("F8_E4M3", (8,)), "norm.eps": ("F32", ())},
    {"l.q.weight": ("F8_E4M3", (8, 8)), "l.q.norm.weight": ("BF16", (8,)), "l.scale": ("F32", ())},
    {"pos.table": ("I32", (8, 8)), "pos.weight": ("F32", (8, 8))},
    {"b.0.mlp.weight": ("F8_E4M3", (8, 8)), "b.0.layer_scale1.lambda1": ("F32", (8,))},
    {
        "b.0.mlp.weight": ("F8_E4M3", (8, 8)),
        "b.0.norm1.scale": ("F32", (8,)),
        "b.0.norm1.bias": ("F32", (8,)),
    },
    {"b.0.mlp.weight": ("F8_E4M3", (8, 8)), "b.0.residual_scale": ("F32", (8,))},
    {"l.tokens_per_expert": ("I32", (8, 8)), "l.router_scale": ("F32", (8, 8))},
    {"a.bias": ("BOOL", (1, 1, 8, 8)), "a.masked_bias": ("F32", ()), "a.weight": ("F32", (8, 8))},
    {"a.attn_mask": ("U8", (8, 8)), "a.weight": ("F32", (8, 8)), "a.alpha": ("F32", (8,))},
    {"a.weight_mask": ("BOOL", (8, 8)), "a.weight": ("F32", (8, 8))},
    {"vq.codebook": ("F32", (8, 8)), "vq.usage": ("I64", (8,)), "vq.steps": ("I32", (1,))},
    {"e.embeddings.token_type_ids": ("I64", (1, 512)), "e.embeddings.scale": ("F32", ())},
    {"a.causal_mask": ("BOOL", (1, 1, 64, 64)), "a.scale": ("F32", ())},
    {"a.causal_mask": ("BOOL", (64, 64)), "a.scale": ("F32", ()), "a.qkv.weight": ("F32", (64, 64))},
    {"a.mask": ("U8", (64, 64)), "a.scale": ("F32", ()), "a.qkv.weight": ("F32", (64, 64))},
    {"a.attention_bias_idxs": ("I64", (16, 49)), "a.attention_biases": ("F32", (4, 49))},
    {"a.relative_position_index": ("I64", (49, 49)), "a.tau": ("F32", (4, 1, 1))},
    {"m.d2t": ("I64", (320,)), "m.t2d": ("BOOL", (1280,)), "m.norm.weight": ("BF16", (8,))},
    {"spiece_model": ("U8", (4096,)), "shared.weight": ("BF16", (8, 8)), "logit_scale": ("F32", ())},
    {"norm.num_batches_tracked": ("I64", ()), "norm.scale": ("F32", ()), "norm.running_var": ("F32", (8,))},
    {"t.timesteps": ("I32", (1000,)), "t.betas": ("F32", (1000,))},
    {"n.feature_mask": ("BOOL", (80,)), "n.mean": ("F32", (80,))},
    {"e.position_ids": ("I64", (1, 512)), "e.scale": ("F32", (4,))},
    {"e.position_ids": ("I64", (2, 512)), "e.scale": ("F32", (4,)), "e.gain": ("F32", ())},
    {"a.relative_position_index": ("I64", (49, 49)), "a.tau": ("F32", (4,)), "a.scale": ("F32", ())},
    {"m.tid2eid": ("I64", (100, 2)), "m.scale": ("F32", (8,))},
    {"a.my_index": ("I64", (49, 49)), "a.bias_table": ("F32", (9, 2)), "a.tau": ("F32", (4,))},
    {"r.my_index": ("I32", (8,)), "r.freqs": ("F32", (8,))},
    {"a.in_proj_weight": ("F8_E4M3", (24, 8)), "a.in_proj_bias": ("F32", (24,))},
    {"x.weight": ("F8_E4M3", (8, 8)), "x.bias": ("F32", (8,)), "x.lora.weight": ("F32", (8, 2))},
    {"x.weight": ("F8_E4M3", (8, 8)), "x.norm.weight": ("F32", (8,)), "x.norm.eps": ("F32", ())},
    {"g.weight": ("F8_E4M3", (8, 64)), "g.e_score_correction_bias": ("F32", (8,))},
    {"n.weight": ("F8_E4M3", (8,)), "n.gamma": ("F32", (8,)), "n.running_mean": ("F32", (8,))},
    {"x.weight": ("BF16", (8, 8)), "x.scale": ("F32", (8, 8)), "x.norm_scale": ("F32", (3, 5))},
    {"x.weight": ("BF16", (8, 8)), "x.logit_scale": ("F32", (1, 1)), "x.bias": ("F32", (8, 1))},
    {"x.weight": ("BF16", (8, 64)), "x.weight_g": ("F32", (8, 1)), "x.weight_v": ("F32", (8, 64))},
]


def table(stored: Stored) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, dtype, shape, 1, "file") for name, (dtype, shape) in stored.items()}


@pytest.mark.parametrize("stored", PACKED, ids=lambda stored: " ".join(stored))
def test_packed(stored: Stored) -> None:
    assert packed_weights(table(stored))


@pytest.mark.parametrize("stored", ORDINARY, ids=lambda stored: " ".join(stored))
def test_ordinary(stored: Stored) -> None:
    assert packed_weights(table(stored)) == {}


def test_the_companions_are_named() -> None:
    stored: Stored = {"a.weight": ("U32", (8, 8)), "a.scales": ("F16", (8, 1)), "b.weight": ("F16", (8, 8))}
    assert packed_weights(table(stored)) == {"a.weight": ["a.scales"]}


def add(folder: Path, tensors: Tensors) -> None:
    write_weights(folder, {**read_tensors(folder), **tensors})


def packed(kind: str = "I8") -> Tensors:
    stem = "model.layers.0.extra"
    return {f"{stem}.weight": np.ones((4, 4), DTYPES[kind]), f"{stem}.fancy": np.ones(4, np.float32)}


def signs(folder: Path) -> None:
    """One layer as BitDelta stores it: signs, 32 to a word, and a coefficient."""
    tensors, name = read_tensors(folder), "model.layers.0.self_attn.q_proj"
    weight = tensors.pop(f"{name}.weight").astype(np.float32)
    bits = np.packbits(weight.T > 0, axis=0, bitorder="little")
    words = np.resize(bits, (-(-len(bits) // 4) * 4, bits.shape[1])).T.copy().view(np.int32).T
    mean = np.asarray(np.abs(weight).mean(), np.float32)
    write_weights(folder, {**tensors, f"{name}.mask": words.copy(), f"{name}.coeff": mean})


def test_signs_and_a_coefficient_are_refused(trio: Trio, tmp_path: Path) -> None:
    for folder in trio:
        signs(folder)
    with pytest.raises(CompatibilityError, match="quantised") as caught:
        tv.transfer(*trio, tmp_path / "out")
    (found, *_) = [each.found for each in caught.value.findings if each.id == "quantised"]
    assert "an unknown quantised format (I32 next to `model.layers.0.self_attn.q_proj.coeff`)" in found
    assert "quantised" in [each.id for each in tv.check(*trio)]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shape", [(), (1,), (4,), (4, 1)])
def test_int8_without_a_config_is_refused(trio: Trio, tmp_path: Path, shape: tuple[int, ...]) -> None:
    stem = "model.layers.0.extra"
    for folder in trio:
        add(
            folder,
            {f"{stem}.weight": np.ones((4, 4), np.int8), f"{stem}.weight_scale": np.ones(shape, np.float32)},
        )
    with pytest.raises(CompatibilityError, match="quantised") as caught:
        tv.transfer(*trio, tmp_path / "out")
    (found, *_) = [each.found for each in caught.value.findings if each.id == "quantised"]
    assert "no config says how its integers are packed" in found
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("role", ["target", "donor", "reference"])
def test_no_model_may_be_packed(trio: Trio, tmp_path: Path, role: str) -> None:
    for folder in trio:
        add(folder, packed())
    with pytest.raises(CompatibilityError, match="quantised") as caught:
        tv.transfer(*trio, tmp_path / "out")
    found = {finding.subject: finding.found for finding in caught.value.findings if finding.id == "quantised"}
    assert "unknown quantised format (I8 next to `model.layers.0.extra.fancy`)" in found[role]
    assert not (tmp_path / "out").exists()


def test_a_single_file_without_a_config_is_looked_at_too(trio: Trio, tmp_path: Path) -> None:
    for folder in trio:
        add(folder, packed())
    with pytest.raises(CompatibilityError, match="quantised"):
        tv.transfer(*(folder / "model.safetensors" for folder in trio), tmp_path / "out")


def test_a_packed_tensor_outside_the_selection_is_copied(trio: Trio, tmp_path: Path) -> None:
    for folder in trio:
        add(folder, packed())
    report = tv.transfer(*trio, tmp_path / "out", include=["self_attn"])
    assert [each.id for each in report.findings].count("quantised-copied") == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"quantization": {"group_size": 64, "bits": 4}},
        {"text_config": {"quantization": {"group_size": 64, "bits": 4}}},
        {"language_config": {"quantization_config": {"quant_method": "new"}}},
        {"quantization_config": {"bits": 3}},
        {"quantization_config": "int4"},
    ],
)
def test_a_config_is_enough(trio: Trio, changes: dict[str, Any]) -> None:
    edit_json(trio.target / "config.json", **changes)
    assert "quantised" in [each.id for each in tv.check(*trio)]


@pytest.mark.parametrize(
    ("name", "content", "is_declared"),
    [
        ("hf_quant_config.json", {"quantization": {"quant_algo": "FP8"}}, True),
        ("hf_quant_config.json", {"quantization": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}}, False),
        ("quantize_config.json", {"bits": 4, "group_size": 128}, True),
        ("quant_config.json", {"zero_point": True, "w_bit": 4}, True),
        ("quanto_qmap.json", {"model.layers.0": {"weights": "qint8"}}, True),
    ],
)
def test_a_file_is_enough(trio: Trio, name: str, content: dict[str, Any], is_declared: bool) -> None:
    (trio.donor / name).write_text(json.dumps(content))
    assert ("quantised" in [each.id for each in tv.check(*trio)]) is is_declared


def test_float8_without_scales_is_ordinary(trio: Trio, tmp_path: Path) -> None:
    for folder in trio:
        add(folder, {"model.layers.0.extra.weight": np.ones((4, 4), DTYPES["F8_E4M3"])})
    assert "quantised" not in [each.id for each in tv.transfer(*trio, tmp_path / "out").findings]


@pytest.mark.parametrize("method", ["linear", "passthrough"])
def test_slices_of_packed_models_may_only_be_copied(trio: Trio, tmp_path: Path, method: str) -> None:
    for folder in trio:
        add(folder, packed())
    models = [str(trio.target), str(trio.donor)][: 2 if method == "linear" else 1]
    slices = [{"sources": [{"model": model, "layer_range": [0, 2]} for model in models]}]
    document: dict[str, Any] = {"merge_method": method, "slices": slices, "dtype": "bfloat16"}
    if method == "linear":
        document["parameters"] = {"weight": 0.5}
        with pytest.raises(CompatibilityError, match="quantised"):
            tv.merge(document, tmp_path / "out")
    else:
        del document["dtype"]
        tv.merge(document, tmp_path / "out")
        assert np.array_equal(
            read_tensors(tmp_path / "out")["model.layers.0.extra.weight"],
            packed()["model.layers.0.extra.weight"],
        )


@pytest.mark.parametrize(
    "names",
    [
        [f"m.w{i}" for i in range(3_000)],
        [f"w{i}" for i in range(3_000)],
        [f"m.w_{i}_ids" for i in range(3_000)],
        [f"l.{i}.{leaf}" for i in range(1_000) for leaf in ("weight", "scale", "mask")],
        [f"{prefix}.{i}.q" for i in range(1_500) for prefix in ("scales", "w")],
        [f"{prefix}{i}" for i in range(1_500) for prefix in ("scale_", "w")],
    ],
    ids=lambda names: names[0],
)
@pytest.mark.parametrize("dtype", ["I32", "F8_E4M3", "BF16"])
def test_the_work_grows_with_the_number_of_tensors(names: list[str], dtype: str) -> None:
    """Counted in calls, not in seconds: a few dozen for a tensor, and not one for every other tensor."""
    tensors = table({name: (dtype if i % 2 else "F32", (8, 8)) for i, name in enumerate(names)})
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        packed_weights(tensors)
    finally:
        sys.setprofile(None)
    assert calls < 250 * len(names)
