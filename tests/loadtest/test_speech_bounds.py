"""The bounds of speech, found by loudness; and streams that are made of recordings."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.live.audio import MAX_DOUBT_S, StreamAudio, clear_speech, make_stream
from loadtest.support.recordings import RATE_HZ, Recording
from loadtest.support.speech_bounds import find_speech
from tests.support.clients.live_server import tone

Float32 = npt.NDArray[np.float32]


def room(seconds: float, level_db: float, seed: int = 0) -> Float32:
    noise = np.random.default_rng(seed).normal(0, 10 ** (level_db / 20), round(seconds * RATE_HZ))
    return noise.astype(np.float32)


def spoken(before_s: float, speech_s: float, after_s: float, room_db: float = -60.0) -> Float32:
    """A steady voice of -13 dB in a room."""
    samples = room(before_s + speech_s + after_s, room_db)
    start = round(before_s * RATE_HZ)
    samples[start : start + round(speech_s * RATE_HZ)] += tone(speech_s, RATE_HZ)[: round(speech_s * RATE_HZ)]
    return samples


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 2), st.floats(0.3, 3), st.floats(0, 2), st.floats(-90, -40))
def test_bounds_are_those_of_the_voice(before_s: float, speech_s: float, after_s: float, room_db: float) -> None:
    bounds = find_speech(spoken(before_s, speech_s, after_s, room_db), RATE_HZ)
    assert bounds.start_s == pytest.approx(before_s, abs=0.021)
    assert bounds.end_s == pytest.approx(before_s + speech_s, abs=0.021)
    assert bounds.doubt_s <= 0.021


def test_a_click_a_breath_and_a_pause() -> None:
    samples = spoken(0.6, 1.0, 1.5)
    samples[1600:1650] = 0.5
    samples[round(1.9 * RATE_HZ) : round(2.1 * RATE_HZ)] += room(0.2, -40, seed=1)
    assert find_speech(samples, RATE_HZ).start_s == pytest.approx(0.6, abs=0.021)
    assert find_speech(samples, RATE_HZ).end_s == pytest.approx(1.6, abs=0.021)
    samples[round(2.4 * RATE_HZ) : round(2.6 * RATE_HZ)] += tone(0.2, RATE_HZ)
    assert find_speech(samples, RATE_HZ).end_s == pytest.approx(2.6, abs=0.021)


def test_a_voice_that_fades_is_in_doubt() -> None:
    samples = spoken(0.5, 1.0, 1.0)
    fading = tone(0.8, RATE_HZ) * np.geomspace(1, 1e-3, round(0.8 * RATE_HZ), dtype=np.float32)
    samples[round(1.5 * RATE_HZ) : round(2.3 * RATE_HZ)] += fading
    bounds = find_speech(samples, RATE_HZ)
    assert 1.6 < bounds.end_s < 2.3
    assert bounds.doubt_s > MAX_DOUBT_S


@pytest.mark.parametrize("samples", [np.zeros(0, np.float32), np.zeros(RATE_HZ, np.float32), room(1.0, -80)])
def test_silence_has_no_speech(samples: Float32) -> None:
    with pytest.raises(ValueError, match="silent"):
        find_speech(samples, RATE_HZ)


def test_a_click_alone_is_no_speech() -> None:
    samples = np.zeros(RATE_HZ, np.float32)
    samples[100:150] = 0.5
    with pytest.raises(ValueError, match="no sound that lasts"):
        find_speech(samples, RATE_HZ)


RECORDINGS = [
    Recording(name, f"text of {name}", spoken(0.1, seconds, 0.1)) for name, seconds in (("a", 0.5), ("b", 0.8), ("c", 1.1))
]


def gaps_s(audio: StreamAudio) -> list[float]:
    """The silence before, between and after what is spoken."""
    bounds = [
        0.0,
        *itertools.chain.from_iterable((each.start_s, each.end_s) for each in audio.spoken),
        len(audio.samples) / RATE_HZ,
    ]
    return [end_s - start_s for start_s, end_s in zip(bounds[::2], bounds[1::2], strict=True)]


def test_a_stream_says_all_recordings_with_pauses_between_them() -> None:
    speeches = clear_speech(RECORDINGS)
    audio = make_stream(speeches, 20, seed=1)
    assert {each.name for each in audio.spoken[:3]} == {"a", "b", "c"}
    assert all(each.text == f"text of {each.name}" for each in audio.spoken)
    first_s, *between_s = gaps_s(audio)
    assert first_s > 1.0
    assert all(1.5 < gap_s < 2.8 for gap_s in between_s)
    for each in audio.spoken:
        piece = audio.samples[round(each.start_s * RATE_HZ) : round(each.end_s * RATE_HZ)] / 32768
        assert np.sqrt(np.mean(piece**2)) == pytest.approx(0.3 / np.sqrt(2), rel=0.1)


def test_only_its_seed_decides_a_stream() -> None:
    speeches = clear_speech(RECORDINGS)
    first, again, other = (make_stream(speeches, 10, seed) for seed in (1, 1, 2))
    assert first.pcm == again.pcm
    assert first.pcm != other.pcm
    assert first.wav[-len(first.pcm) :] == first.pcm


def test_recordings_without_clear_bounds_are_left_out() -> None:
    silent = Recording("silent", "", np.zeros(RATE_HZ, np.float32))
    assert [speech.recording.name for speech in clear_speech([silent, *RECORDINGS])] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="no recording has clear bounds"):
        clear_speech([silent])
