"""Models that are no language models alone, as transformers saves them: merged, and loaded again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

import taskvec as tv

TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def clip() -> transformers.PreTrainedModel:
    config = transformers.CLIPConfig(
        text_config={**TEXT, "vocab_size": 30}, vision_config={**TEXT, "image_size": 8, "patch_size": 4},
        projection_dim=8,
    )  # fmt: skip
    return transformers.CLIPModel(config)


def whisper() -> transformers.PreTrainedModel:
    config = transformers.WhisperConfig(
        vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=8,
        max_source_positions=20, max_target_positions=12, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config)


def t5() -> transformers.PreTrainedModel:
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


def vit() -> transformers.PreTrainedModel:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**TEXT, image_size=8, patch_size=4))


def bert() -> transformers.PreTrainedModel:
    return transformers.BertForMaskedLM(transformers.BertConfig(**TEXT, vocab_size=50))


def encoder_decoder() -> transformers.PreTrainedModel:
    encoder = transformers.BertConfig(**TEXT, vocab_size=50)
    decoder = transformers.BertConfig(**TEXT, vocab_size=50, is_decoder=True, add_cross_attention=True)
    return transformers.EncoderDecoderModel(
        transformers.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    )


@pytest.mark.parametrize("make", [clip, whisper, t5, vit, bert, encoder_decoder])
def test_models_of_other_kinds(make: Callable[[], transformers.PreTrainedModel], tmp_path: Path) -> None:
    states = []
    for seed, name in enumerate("tdr"):
        torch.manual_seed(seed)
        model = make()
        model.save_pretrained(tmp_path / name)
        states.append({key: value.double() for key, value in model.state_dict().items()})
    t, d, r = states
    folders = [tmp_path / name for name in "tdr"]
    tv.transfer(*folders, tmp_path / "out", alpha=0.5)
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(path), "parameters": {"weight": 0.5}} for path in folders[:2]],
    }
    tv.merge(recipe, tmp_path / "mean")
    kind = type(make())
    made, mean = (kind.from_pretrained(tmp_path / name).state_dict() for name in ("out", "mean"))
    assert made.keys() == t.keys()
    for name, value in made.items():
        if value.is_floating_point():
            assert torch.allclose(value.double(), t[name] + 0.5 * (d[name] - r[name]), atol=1e-6), name
            assert torch.allclose(mean[name].double(), (t[name] + d[name]) / 2, atol=1e-6), name
