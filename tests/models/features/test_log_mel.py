"""Log-mel features equal those of Whisper, and cover all of the audio."""

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor

from models.features.log_mel import HOP_SAMPLES, HOPS_OF_A_FRAME, SAMPLE_RATE_HZ, WholeFrames, log_mel
from tests.support.inputs.clip_files import CLIPS, ClipFile, clip_path

PAD_SAMPLES = HOPS_OF_A_FRAME * HOP_SAMPLES


def reference(audio: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    padded = np.pad(audio, (0, -len(audio) % PAD_SAMPLES))
    extractor = WhisperFeatureExtractor()
    features = extractor(padded, sampling_rate=SAMPLE_RATE_HZ, padding="do_not_pad", return_tensors="np").input_features[0]
    return np.asarray(features, np.float32)


@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip.file)
def test_features_of_real_speech_equal_those_of_transformers(clip: ClipFile) -> None:
    audio, rate_hz = soundfile.read(clip_path(clip), dtype="float32")
    assert rate_hz == SAMPLE_RATE_HZ
    assert np.abs(log_mel(audio) - reference(audio)).max() < 1e-4


@given(length=st.integers(1280, 40_000), gain=st.floats(1e-5, 1.0), seed=st.integers(0, 2**31))
def test_features_of_noise_equal_those_of_transformers(length: int, gain: float, seed: int) -> None:
    audio = (np.random.default_rng(seed).standard_normal(length) * gain).astype(np.float32)
    features = log_mel(audio)
    assert features.shape == (80, -(-length // PAD_SAMPLES) * 8)
    assert np.abs(features - reference(audio)).max() < 1e-4


def test_features_of_silence_are_finite() -> None:
    assert np.isfinite(log_mel(np.zeros(16_000, np.float32))).all()


def test_whole_blocks_have_the_same_bits_however_much_audio_follows() -> None:
    audio = np.random.default_rng(5).normal(0, 0.1, 80_000).astype(np.float32)
    audio[3_000:6_000] *= 10
    whole = WholeFrames(mel_bins=128)(audio)
    for samples in (33_000, 48_500, 71_200):
        blocks = samples // 160 // WholeFrames.BLOCK_FRAMES * WholeFrames.BLOCK_FRAMES
        begun = WholeFrames(mel_bins=128)(audio[:samples])
        np.testing.assert_array_equal(begun[:, :blocks], whole[:, :blocks])
