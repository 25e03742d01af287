"""Encoders behind which an adapter can stand: their states are transformers', and alone they are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from export.checkpoints.hub import local_source
from export.checkpoints.safetensors_file import CheckpointError
from models.features.nemo_mel import NemoMel
from models.protocols import Float32
from tests.export.checkpoints.conftest import Pull
from tests.support.tiny.tiny_checkpoints import spread_weights
from tests.support.tiny.tiny_speech_llms import new_fast_conformer
from training.frozen_encoder import FrozenEncoder

SAMPLES = (1_200, 16_000, 64_321)


def noise(samples: int) -> Float32:
    return np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)


def new_w2v_bert() -> Any:
    """Return a tiny random w2v-BERT with a CTC head."""
    torch.manual_seed(0)
    config = transformers.Wav2Vec2BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50
    )
    model: Any = transformers.Wav2Vec2BertForCTC(config).eval()
    spread_weights(model, 0.2)
    return model


@pytest.mark.parametrize("part", ["whole", "encoder alone"])
def test_w2v_bert_is_transformers(part: str, tmp_path: Path) -> None:
    model = new_w2v_bert()
    (model if part == "whole" else model.wav2vec2_bert).save_pretrained(tmp_path / "w2v")
    encoder = FrozenEncoder(local_source(tmp_path / "w2v"), tmp_path / "graph", 1)
    assert encoder.reduction == 4
    for samples in SAMPLES:
        audio = noise(samples)
        given = transformers.SeamlessM4TFeatureExtractor()(audio, sampling_rate=16_000, return_tensors="pt")
        with torch.inference_mode():
            states = model.wav2vec2_bert(**given).last_hidden_state[0]
        own = states[given["attention_mask"][0].bool()].numpy()
        np.testing.assert_allclose(encoder(audio), own, atol=2e-4)


def test_parakeet_is_transformers(tmp_path: Path) -> None:
    config = new_fast_conformer(bins=80).config.to_dict()
    torch.manual_seed(3)
    model: Any = transformers.ParakeetForCTC(transformers.ParakeetCTCConfig(vocab_size=40, encoder_config=config)).eval()
    spread_weights(model, 0.2)
    for layer in model.encoder.layers:
        torch.nn.init.uniform_(layer.conv.norm.running_var, 0.5, 2.0)
    model.save_pretrained(tmp_path / "parakeet")
    encoder = FrozenEncoder(local_source(tmp_path / "parakeet"), tmp_path / "graph", 1)
    assert encoder.reduction == 1
    for samples in SAMPLES:
        features = NemoMel(mel_bins=80)(noise(samples))
        with torch.inference_mode():
            states = model.encoder(torch.from_numpy(features).T[None]).last_hidden_state[0]
        np.testing.assert_allclose(encoder(noise(samples)), states.numpy(), atol=2e-4)


def test_an_encoder_alone_is_refused(tmp_path: Path, pull: Pull) -> None:
    new_w2v_bert().save_pretrained(tmp_path / "w2v")
    with pytest.raises(CheckpointError, match=r"w2v is an encoder \(wav2vec2-bert\).*train an adapter from it to an LLM"):
        pull(tmp_path / "w2v", "w2v")


def test_positions_of_another_kind_are_refused(tmp_path: Path) -> None:
    config = transformers.Wav2Vec2BertConfig(position_embeddings_type="rotary", num_hidden_layers=0, hidden_size=32)
    transformers.Wav2Vec2BertModel(config).save_pretrained(tmp_path / "w2v")
    with pytest.raises(CheckpointError, match="position_embeddings_type 'rotary'; known is 'relative_key'"):
        FrozenEncoder(local_source(tmp_path / "w2v"), tmp_path / "graph", 1)
