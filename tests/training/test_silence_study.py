"""The study of silence: its torch encoder and decoder hear what the served graphs hear."""

from pathlib import Path

import numpy as np
import torch

from models.encoders.whisper import build_encoder
from models.graph.silent_rest import SilentRest
from models.runtimes.onnx.encoder import OnnxEncoder
from tests.support.tiny.tiny_whisper import MEL_BINS, arrays_of, random_encoder, write_ctranslate2
from training.whisper_encoder import WhisperEncoder


def test_states_at_places_are_those_of_the_served_graph(tmp_path: Path) -> None:
    arrays, rest, own = arrays_of(random_encoder(0)), SilentRest(60), 14
    write_ctranslate2(tmp_path / "model.bin", arrays)
    build_encoder(arrays, dropped=1, rest=rest).save(tmp_path / "encoder.onnx")
    speech = np.random.default_rng(0).standard_normal((MEL_BINS, 20)).astype(np.float32)
    features = np.concatenate([speech, np.full((MEL_BINS, 2 * own + 2 - 20), -1.5, np.float32)], axis=1)
    groups = rest.groups_behind(own)
    places = torch.tensor([*range(own), *(own + group[len(group) // 2] for group in groups)])
    bias = torch.tensor([0.0] * own + [float(np.log(len(group))) for group in groups])
    states = WhisperEncoder(tmp_path / "model.bin").at_places(torch.from_numpy(features), places, bias)
    (served,) = OnnxEncoder(tmp_path / "encoder.onnx", threads=1).encode([features])
    np.testing.assert_allclose(states.numpy()[:own], served[:own], atol=1e-4)
