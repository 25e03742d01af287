"""The tools that measure word times: pieces of speech in known places, right words found, lines fitted in spite of outliers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.features.log_mel import SAMPLE_RATE_HZ
from models.protocols import Float32
from models.text.word_times import TimedWord
from training.timed_speech import Spoken, join, speech_bounds
from training.word_times import line_through, right
from training.word_times_report import Error, figures


def recording(before_s: float, speech_s: float, after_s: float, noise: float) -> Float32:
    """Loud noise between two stretches of faint noise."""
    lengths = [round(each * SAMPLE_RATE_HZ) for each in (before_s, speech_s, after_s)]
    level = np.repeat([noise, 0.1, noise], lengths)
    audio: Float32 = (np.random.default_rng(0).normal(size=len(level)) * level).astype(np.float32)
    return audio


def test_speech_is_found_between_faint_noise() -> None:
    assert speech_bounds(recording(0.5, 1.0, 0.25, noise=1e-4)) == (8000, 24_000)


def test_speech_in_loud_noise_is_not_measured() -> None:
    assert speech_bounds(recording(0.5, 1.0, 0.5, noise=0.01)) is None


def test_joined_recordings_are_where_they_are_said_to_be() -> None:
    first = recording(0.5, 1.0, 0.5, noise=1e-5), "one two three"
    second = recording(0.25, 2.0, 0.5, noise=1e-5), "four"
    noisy = recording(0.5, 1.0, 0.5, noise=0.01), "lost"
    clip, rest = join([first, noisy, second, first], longest_s=6.0, seed=0)
    assert [word.text for word in clip.words] == ["one", "two", "three", "four"]
    assert [word.text for word in rest.words] == ["one", "two", "three"]
    for found in (clip, rest):
        loud = np.abs(found.audio) > 0.01
        for word in found.words:
            if word.start_s is not None:
                start = round(word.start_s * SAMPLE_RATE_HZ)
                assert loud[start : start + 99].any()
                assert not loud[start - 1000 : start].any()
            if word.end_s is not None:
                end = round(word.end_s * SAMPLE_RATE_HZ)
                assert loud[end - 99 : end].any()
                assert not loud[end : end + 1000].any()
    assert [(word.start_s is None, word.end_s is None) for word in clip.words[:3]] == [(False, True), (True, True), (True, False)]


def test_words_are_right_whatever_their_case_and_punctuation() -> None:
    known = [Spoken(text, 0.0, 0.0) for text in ("the", "old", "man's", "boat")]
    heard = [TimedWord(text, 0.0, 0.0) for text in ("The", "cold", "Mans", "uh", "boat.")]
    assert right(known, heard) == {0: 0, 2: 2, 3: 4}


@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(5, 50))
def test_a_line_is_not_drawn_away_by_outliers(fixed: float, slope: float, outlier: float) -> None:
    letters = np.arange(1.0, 21.0)
    values = fixed + slope * letters
    values[[3, 15]] += outlier
    line = line_through(np.stack([letters, values], 1))
    assert (line.fixed_s, line.per_letter_s) == pytest.approx((fixed, slope), abs=0.02)


def test_figures_are_of_the_size_of_errors_and_the_bias_of_their_direction() -> None:
    errors = [Error("kind", "system", "start_s", late_s) for late_s in (-0.03, -0.02, -0.01, 0.02, 0.5)]
    found = figures(errors)
    assert (found["words"], found["median_ms"], found["bias_ms"]) == (5, 20, -10)
    assert 20 < found["p95_ms"] < 500
