"""PCM in pieces gives the samples of PCM in one piece, at any rate that a client may send."""

import asyncio

import numpy as np
import pytest
import soxr
from hypothesis import given
from hypothesis import strategies as st

from server.audio.pcm import PcmStream
from server.audio.types import Samples
from server.audio.wave_header import PcmFormat
from server.errors import UndecodableAudio

RATES_HZ = [8000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000]
MODEL_RATE_HZ = 16_000


def noise(samples: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).integers(-(2**15), 2**15, samples, dtype=np.int16).astype("<i2").tobytes()


def decoded(pieces: list[bytes], rate_hz: int) -> Samples:
    async def decode() -> Samples:
        stream = PcmStream(PcmFormat(rate_hz), MODEL_RATE_HZ)
        samples = [block for piece in pieces async for block in stream.decode(piece)]
        samples += [block async for block in stream.finish()]
        stream.close()
        return np.concatenate(samples)

    return asyncio.run(decode())


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_it_is_what_resampling_the_whole_gives(rate_hz: int) -> None:
    audio = noise(2 * rate_hz)
    samples = np.frombuffer(audio, "<i2").astype(np.float32) / 32768
    whole = samples if rate_hz == MODEL_RATE_HZ else soxr.resample(samples, rate_hz, MODEL_RATE_HZ, quality="HQ")
    streamed = decoded([audio], rate_hz)
    assert streamed.dtype == np.float32
    assert len(streamed) == 2 * MODEL_RATE_HZ
    assert np.array_equal(streamed, whole)


@given(st.sampled_from(RATES_HZ), st.integers(0, 9000), st.lists(st.integers(0, 18_001), max_size=20))
def test_how_it_is_cut_changes_nothing(rate_hz: int, length: int, cuts: list[int]) -> None:
    audio = noise(length)
    edges = sorted(min(cut, len(audio)) for cut in cuts)
    pieces = [audio[start:end] for start, end in zip([0, *edges], [*edges, len(audio)], strict=True)]
    assert np.array_equal(decoded(pieces, rate_hz), decoded([audio], rate_hz))


def test_the_whole_range() -> None:
    assert decoded([np.array([-(2**15), 0, 2**15 - 1], "<i2").tobytes()], MODEL_RATE_HZ).tolist() == [-1.0, 0.0, 1 - 2**-15]


def test_half_a_sample_at_the_end_is_dropped() -> None:
    assert len(decoded([noise(10)[:-1]], MODEL_RATE_HZ)) == 9


@pytest.mark.parametrize(
    ("magic", "name"),
    [
        (b"fLaC\0\0\0\x22", "FLAC"),
        (b"OggS\0\x02", "Ogg"),
        (b"\x1aE\xdf\xa3\x9f", "WebM"),
        (b"ID3\x04\0", "MP3"),
        (b"\0\0\0\x20ftypM4A ", "MP4"),
    ],
)
def test_a_file_in_place_of_samples_is_refused(magic: bytes, name: str) -> None:
    """A browser's recorder sends WebM, which as samples would be noise without any text."""
    with pytest.raises(UndecodableAudio, match=name):
        decoded([magic + noise(1000)], MODEL_RATE_HZ)
    # In the middle of a stream the same bytes are samples.
    assert len(decoded([noise(10), magic + noise(1000)], MODEL_RATE_HZ)) == 10 + (len(magic) + 2000) // 2


def test_no_audio_is_no_samples() -> None:
    assert len(decoded([], 48_000)) == 0
