"""The encoder's graph equals transformers' encoder, at any length; CTranslate2 files are read exactly or refused."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.importers.ctranslate2 import WeightFileError, read_ctranslate2
from export.tensorrt_speech import build_by_head_encoder
from models.encoders.whisper import WhisperSection, build_encoder
from models.graph.silent_rest import SilentRest
from models.graph.writer import GraphBuilder
from models.runtimes.onnx.encoder import OnnxEncoder
from tests.support.tiny.tiny_whisper import MEL_BINS, Array, arrays_of, random_encoder, reference_states, write_ctranslate2
from training.whisper_encoder import WhisperEncoder


def features(frames: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((MEL_BINS, frames)).astype(np.float32)


@pytest.fixture(scope="module")
def onnx_encoder(tmp_path_factory: pytest.TempPathFactory) -> OnnxEncoder:
    graph = tmp_path_factory.mktemp("encoder") / "encoder.onnx"
    build_encoder(arrays_of(random_encoder(0))).save(graph)
    return OnnxEncoder(graph, threads=1)


@pytest.mark.parametrize("frames", [2, 8, 64, 120])
def test_graph_equals_transformers_at_the_features_own_length(onnx_encoder: OnnxEncoder, frames: int) -> None:
    mel = features(frames, seed=frames)
    states = onnx_encoder.encode([mel])[0]
    assert states.shape == (frames // 2, 32)
    assert np.abs(states - reference_states(random_encoder(0), mel)).max() < 1e-4


def test_the_graph_for_tensorrt_gives_the_same_states(onnx_encoder: OnnxEncoder, tmp_path: Path) -> None:
    build_by_head_encoder(arrays_of(random_encoder(0)), np.float32).save(tmp_path / "by_head.onnx")
    mel = features(64, seed=2)
    states = OnnxEncoder(tmp_path / "by_head.onnx", threads=1).encode([mel])[0]
    np.testing.assert_allclose(states, onnx_encoder.encode([mel])[0], atol=1e-5)


def test_torch_twin_equals_the_graph(onnx_encoder: OnnxEncoder, tmp_path: Path) -> None:
    write_ctranslate2(tmp_path / "model.bin", arrays_of(random_encoder(0)))
    mel = features(48, seed=1)
    twin = WhisperEncoder(tmp_path / "model.bin")(torch.from_numpy(mel)).numpy()
    assert np.abs(twin - onnx_encoder.encode([mel])[0]).max() < 1e-4


@pytest.mark.parametrize("build", [build_encoder, partial(build_by_head_encoder, float_type=np.float32)])
@pytest.mark.parametrize("own", [4, 16, 24, 27])
def test_with_groups_of_one_the_rest_of_the_window_is_heard_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: Callable[..., GraphBuilder], own: int
) -> None:
    monkeypatch.setattr(SilentRest, "WIDEST", 1)
    rest = SilentRest(28)
    build(arrays_of(random_encoder(0)), dropped=1, rest=rest).save(tmp_path / "encoder.onnx")
    mel, silence = features(2 * own - 6, seed=own), np.full((MEL_BINS, 64), -1.5, np.float32)
    whole = np.concatenate([mel, silence], axis=1)
    (states,) = OnnxEncoder(tmp_path / "encoder.onnx", threads=1).encode([whole[:, : 2 * own + 2]])
    assert len(states) == own + len(rest.groups())
    # The plain graph hears one state more than the window, whose last one meets the edge of the features.
    (plain,) = OnnxEncoder(_write_plain(tmp_path), threads=1).encode([whole[:, : 2 * rest.window + 2]])
    np.testing.assert_allclose(states[: rest.window], plain, atol=1e-4)


def _write_plain(folder: Path) -> Path:
    build_encoder(arrays_of(random_encoder(0)), dropped=1).save(folder / "plain.onnx")
    return folder / "plain.onnx"


def test_a_condensed_window_is_nearer_to_the_whole_one_than_no_silence(onnx_encoder: OnnxEncoder, tmp_path: Path) -> None:
    build_encoder(arrays_of(random_encoder(0)), dropped=1, rest=SilentRest(60)).save(tmp_path / "encoder.onnx")
    whole = np.concatenate([features(20, seed=3), np.full((MEL_BINS, 102), -1.5, np.float32)], axis=1)
    (condensed,) = OnnxEncoder(tmp_path / "encoder.onnx", threads=1).encode([whole[:, :28]])
    (plain,) = OnnxEncoder(_write_plain(tmp_path), threads=1).encode([whole])
    (short,) = onnx_encoder.encode([whole[:, :26]])
    errors = [np.abs(states[:10] - plain[:10]).mean() for states in (condensed, short)]
    assert errors[0] < errors[1] / 3


def test_an_utterance_in_a_batch_has_the_states_it_has_alone(onnx_encoder: OnnxEncoder) -> None:
    batch = [features(frames, seed=frames) for frames in (16, 80, 24)]
    for together, mel in zip(onnx_encoder.encode(batch), batch, strict=True):
        assert np.array_equal(together, onnx_encoder.encode([mel])[0])


def test_file_is_read_exactly_with_its_aliases(tmp_path: Path) -> None:
    arrays: dict[str, Array] = {
        "a": np.arange(6, dtype=np.float16).reshape(2, 3),
        "b": np.array(7, np.int16),
        "c": np.array([-1, 1], np.int8),
    }
    write_ctranslate2(tmp_path / "model.bin", arrays, aliases={"d": "a"})
    read = read_ctranslate2(tmp_path / "model.bin")
    assert read.keys() == {"a", "b", "c", "d"}
    for name, array in {**arrays, "d": arrays["a"]}.items():
        assert read[name].dtype == array.dtype
        assert np.array_equal(read[name], array)


def test_truncated_or_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    write_ctranslate2(path, {"weight": np.ones((4, 4), np.float32)})
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], b"\x09\0\0\0" + whole[4:], whole[:-4]):
        path.write_bytes(data)
        with pytest.raises(WeightFileError):
            read_ctranslate2(path)


def test_a_graph_of_an_older_release_is_opened_and_not_written_again() -> None:
    about: dict[str, Any] = {"architecture": "whisper", "precision": "int8", "graph": "encoder.onnx"}
    about |= {"width": 512, "states_per_s": 50, "mel_bins": 80}
    older = WhisperSection(**about, silent_window_s=30)
    assert older.added_states == 100
    with pytest.raises(ValueError, match="pull the model again"):
        _ = older.rest
    assert WhisperSection(**about, silent_window_s=30, silent_states=98).rest == SilentRest(1500)
    assert WhisperSection(**about).added_states == 0
