"""Utterances follow the probabilities of speech, never overlap, are never too long, and lose no speech.

A window is one sample here, and a second ten, so that positions are windows.
"""

from collections.abc import Sequence
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.live.endpointing import Endpointer, EndpointEvent, SpeechBegan, SpeechOver, SpeechPaused, SpeechResumed, Tuning
from server.engine.types.options import VoiceOptions

WINDOWS_PER_S = 10
TUNING = Tuning(onset_s=0.2, hysteresis=0.2, pause_s=0.3, pause_width_s=0.2)
OPTIONS = VoiceOptions(threshold=0.6, prefix_padding_s=0.2, silence_s=0.6, max_utterance_s=4.0)
SPEECH, UNSURE, SILENCE = 0.9, 0.5, 0.1


def endpointer(options: VoiceOptions = OPTIONS) -> Endpointer:
    return Endpointer(options, window_samples=1, sample_rate_hz=WINDOWS_PER_S, tuning=TUNING)


def probabilities(script: str) -> list[float]:
    """Return one window per character."""
    return [{"#": SPEECH, "~": UNSURE, ".": SILENCE}[each] for each in script]


def events_of(script: str, options: VoiceOptions = OPTIONS) -> list[EndpointEvent]:
    return endpointer(options).push(probabilities(script))


@st.composite
def sessions(draw: st.DrawFn) -> list[float]:
    """Draw runs of speech, silence and values between them, some longer than an utterance may be."""
    level = st.sampled_from([SPEECH, UNSURE, SILENCE]) | st.floats(0, 1, width=32)
    runs = draw(st.lists(st.tuples(level, st.integers(1, 60)), max_size=20))
    return [value for value, length in runs for _ in range(length)]


voices = st.builds(
    VoiceOptions,
    threshold=st.floats(0.05, 1.0),
    prefix_padding_s=st.floats(0, 1),
    silence_s=st.floats(0.05, 2),
    max_utterance_s=st.floats(1.5, 8),
)


def utterances(events: Sequence[EndpointEvent]) -> list[tuple[int, int]]:
    return [(event.start, event.end) for event in events if isinstance(event, SpeechOver)]


def test_one_utterance() -> None:
    assert events_of(".....####........") == [SpeechBegan(3), SpeechPaused(3, 12), SpeechOver(3, 12)]


def test_nothing_is_known_before_its_window() -> None:
    follow = endpointer()
    assert follow.push(probabilities(".....#")) == []
    assert follow.push(probabilities("#")) == [SpeechBegan(3)]
    assert follow.push(probabilities("##..")) == []
    assert follow.push(probabilities(".")) == [SpeechPaused(3, 12)]
    assert follow.push(probabilities("..")) == []
    assert follow.push(probabilities(".")) == [SpeechOver(3, 12)]


def test_speech_resumes() -> None:
    paused = [SpeechBegan(0), SpeechPaused(0, 5)]
    assert events_of("##...#...###......") == [
        *paused,
        SpeechResumed(),
        SpeechPaused(0, 9),
        SpeechResumed(),
        *events_of_end(0, 15),
    ]


def events_of_end(start: int, end: int) -> list[EndpointEvent]:
    return [SpeechPaused(start, end), SpeechOver(start, end)]


def test_unsure_windows_neither_begin_nor_end_an_utterance() -> None:
    assert events_of("~~~~~~~~~~") == []
    assert events_of("##~~~~~~~~~~") == [SpeechBegan(0)]
    assert events_of("##..~~") == [SpeechBegan(0), SpeechPaused(0, 5)]


def test_one_window_of_noise_is_no_utterance() -> None:
    assert events_of("...#....#....#...") == []
    assert events_of("##......#......") == [SpeechBegan(0), SpeechPaused(0, 5), SpeechOver(0, 5)]


def test_padding_never_reaches_into_the_last_utterance() -> None:
    options = VoiceOptions(threshold=0.6, prefix_padding_s=1.0, silence_s=0.2, max_utterance_s=4.0)
    assert utterances(events_of("......####..##..##..", options)) == [(0, 12), (12, 16), (16, 20)]


def test_silence_shorter_than_a_pause_ends_an_utterance_without_one() -> None:
    options = VoiceOptions(threshold=0.6, prefix_padding_s=0.2, silence_s=0.2, max_utterance_s=4.0)
    assert events_of("####...", options) == [SpeechBegan(0), SpeechOver(0, 6)]


def test_too_long_is_cut_where_speech_is_least_likely_and_goes_on_there() -> None:
    events = events_of("#" * 10 + "~~" + "#" * 15 + "~~" + "#" * 20)
    assert events == [SpeechBegan(0), SpeechOver(0, 28), SpeechBegan(28)]


@pytest.mark.parametrize("short_dip", [20, 32])
def test_a_pause_is_more_than_one_unlikely_window(short_dip: int) -> None:
    """20 is the first window at which it may be cut."""
    session = [SPEECH] * 50
    session[short_dip] = 0.3
    session[28:30] = [UNSURE, UNSURE]
    assert utterances(endpointer().push(session)) == [(0, 29)]


def test_silence_that_began_before_a_cut_goes_on_after_it() -> None:
    events = events_of("#" * 28 + ".." + "#" * 8 + "...")
    assert events == [SpeechBegan(0), SpeechOver(0, 29), SpeechBegan(29), SpeechPaused(29, 41)]


def test_too_long_without_any_pause_is_cut_late() -> None:
    assert events_of("#" * 50) == [SpeechBegan(0), SpeechOver(0, 38), SpeechBegan(38)]


def test_too_long_in_a_pause_is_over() -> None:
    assert events_of("#" * 36 + "....##") == [SpeechBegan(0), SpeechPaused(0, 39), SpeechOver(0, 39), SpeechBegan(39)]


def test_flush_ends_the_utterance_with_the_audio_so_far() -> None:
    follow = endpointer()
    follow.push(probabilities("..####."))
    assert follow.flush() == [SpeechOver(0, 7)]
    assert follow.flush() == []
    assert follow.push(probabilities("##")) == [SpeechBegan(7)]


def test_flush_in_a_pause_ends_there() -> None:
    follow = endpointer()
    assert follow.push(probabilities("####.....")) == [SpeechBegan(0), SpeechPaused(0, 7)]
    assert follow.flush() == [SpeechOver(0, 7)]
    assert follow.needed_from == 9


def test_no_room_for_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="no room"):
        endpointer(VoiceOptions(prefix_padding_s=1.0, max_utterance_s=1.2))


@given(session=sessions(), options=voices, data=st.data())
def test_how_windows_are_cut_into_calls_changes_nothing(session: list[float], options: VoiceOptions, data: st.DataObject) -> None:
    follow, events, done = endpointer(options), list[EndpointEvent](), 0
    while done < len(session):
        count = data.draw(st.integers(1, 50))
        events += follow.push(session[done : done + count])
        done += count
    assert events == endpointer(options).push(session)


@given(session=sessions(), options=voices, flushes=st.sets(st.integers(0, 300)))
def test_promises(session: list[float], options: VoiceOptions, flushes: set[int]) -> None:
    follow = endpointer(options)
    state, start, last_end, needed_from = "idle", -1, 0, 0
    ended: tuple[int, int] | None = None
    for heard, probability in enumerate(session, start=1):
        events = follow.push([probability])
        if heard in flushes:
            events += follow.flush()
        for event in events:
            match event:
                case SpeechBegan():
                    assert state == "idle"
                    assert max(last_end, needed_from) <= event.start < heard
                    state, start = "speech", event.start
                case SpeechPaused():
                    assert state == "speech"
                    assert event.start == start < event.end <= heard
                    state, ended = "paused", (event.start, event.end)
                case SpeechResumed():
                    assert state == "paused"
                    state, ended = "speech", None
                case SpeechOver():
                    assert state != "idle"
                    assert (event.start, event.end) == (ended or (start, event.end))
                    assert start < event.end <= heard
                    assert event.end - event.start <= options.max_utterance_s * WINDOWS_PER_S
                    state, last_end, ended = "idle", event.end, None
        assert needed_from <= follow.needed_from <= heard
        needed_from = follow.needed_from
        if state != "idle":
            assert needed_from == start
            assert heard - start < options.max_utterance_s * WINDOWS_PER_S


@given(session=sessions(), options=voices)
def test_no_speech_is_lost(session: list[float], options: VoiceOptions) -> None:
    follow = endpointer(options)
    covered = {window for start, end in utterances(follow.push(session) + follow.flush()) for window in range(start, end)}
    position = 0
    for is_speech, run in groupby(session, lambda probability: probability >= options.threshold):
        length = len(list(run))
        if is_speech and length >= TUNING.onset_s * WINDOWS_PER_S:
            assert covered.issuperset(range(position, position + length))
        position += length


@given(session=st.lists(st.floats(0, 0.5), max_size=200), options=voices.filter(lambda options: options.threshold > 0.5))
def test_silence_yields_nothing(session: list[float], options: VoiceOptions) -> None:
    follow = endpointer(options)
    assert follow.push(session) + follow.flush() == []
