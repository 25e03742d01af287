"""Several channels become one without losing any: by their correlation and their energy."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.audio.mixing import mix_to_mono

RATE_HZ = 16_000
DICE = np.random.default_rng(0)
SPEECH = (DICE.normal(0, 0.1, 3 * RATE_HZ) * (0.5 + 0.5 * np.sin(np.arange(3 * RATE_HZ) / 3_000))).astype(np.float32)
OTHER = DICE.normal(0, 0.1, 3 * RATE_HZ).astype(np.float32)
SILENCE = np.zeros_like(SPEECH)
STEREO = ("FL", "FR")
SURROUND = ("FL", "FR", "FC", "LFE", "BL", "BR")
Sound = npt.NDArray[np.float32]


def mix(*channels: Sound, names: tuple[str, ...] = STEREO, block: int = RATE_HZ) -> Sound:
    frames = np.stack(channels, axis=1)
    return np.concatenate(list(mix_to_mono((frames[at : at + block] for at in range(0, len(frames), block)), RATE_HZ, names)))


def level(samples: Sound) -> float:
    return float(np.sqrt(np.mean(samples.astype(np.float64) ** 2)))


def likeness(left: Sound, right: Sound) -> float:
    return float(abs(np.corrcoef(left, right)[0, 1]))


@pytest.mark.parametrize("factor", [1.0, -1.0, -0.9, 0.5, -0.1, 0.0])
def test_two_channels_of_one_sound_give_that_sound(factor: float) -> None:
    for channels in ((SPEECH, factor * SPEECH), (factor * SPEECH, SPEECH)):
        mixed = mix(*channels)
        assert likeness(mixed, SPEECH) > 0.999
        assert level(mixed) == pytest.approx(level(SPEECH), rel=0.01)


def test_two_talkers_are_both_heard() -> None:
    mixed = mix(SPEECH, OTHER)
    assert likeness(mixed, SPEECH) > 0.4
    assert likeness(mixed, OTHER) > 0.4
    # Their levels keep their proportion.
    assert level(mixed) == pytest.approx(max(level(SPEECH), level(OTHER)), rel=0.05)


def test_talkers_in_turn_keep_their_levels() -> None:
    half = len(SPEECH) // 2
    left = np.concatenate([SPEECH[:half], SILENCE[half:]])
    right = np.concatenate([SILENCE[:half], OTHER[half:]])
    mixed = mix(left, right)
    # The memory of the other channel fades within a second.
    assert level(mixed[:half]) == pytest.approx(level(left[:half]), rel=0.01)
    assert level(mixed[-half // 2 :]) == pytest.approx(level(right[-half // 2 :]), rel=0.1)


def test_speech_in_the_centre_stands_before_what_is_around_it() -> None:
    around = [0.5 * DICE.normal(0, 0.1, len(SPEECH)).astype(np.float32) for _ in range(4)]
    mixed = mix(around[0], around[1], SPEECH, OTHER, around[2], around[3], names=SURROUND)
    assert likeness(mixed, SPEECH) > likeness(np.mean([*around, SPEECH, OTHER], axis=0), SPEECH) + 0.1
    assert likeness(mixed, OTHER) < 0.05, "the channel for bass is left out"


@pytest.mark.parametrize("place", range(6))
def test_one_channel_that_sounds_keeps_its_level(place: int) -> None:
    channels = [SILENCE] * 6
    channels[place] = SPEECH
    assert level(mix(*channels, names=SURROUND)) == pytest.approx(level(SPEECH), rel=0.01)


@settings(max_examples=25, deadline=None)
@given(block=st.integers(1, 9_000), count=st.integers(1, 5), seed=st.integers(0, 99))
def test_the_samples_do_not_depend_on_how_the_audio_is_cut(block: int, count: int, seed: int) -> None:
    channels = np.random.default_rng(seed).normal(0, 0.1, (count, 9_001)).astype(np.float32)
    names = SURROUND[:count]
    np.testing.assert_array_equal(mix(*channels, names=names, block=block), mix(*channels, names=names, block=9_001))


def test_nothing_clicks_where_the_weights_change() -> None:
    """A tone moves from one channel to the other, in the opposite phase."""
    times = np.arange(len(SPEECH)) / RATE_HZ
    tone = (0.3 * np.sin(2 * np.pi * 200 * times)).astype(np.float32)
    left = tone * (times < 1.5)
    right = -tone * (times >= 1.2)
    steps = np.abs(np.diff(mix(left.astype(np.float32), right.astype(np.float32))))
    # The tone itself moves by 0.024 from sample to sample.
    assert steps.max() < 0.1


def test_silence_stays_silence() -> None:
    assert not mix(SILENCE, SILENCE).any()
