"""Latencies of live sessions, and words that were taken back."""

import pytest
from prometheus_client import CollectorRegistry

from server.engine.types.events import Partial, SpeechStarted, UtteranceDone
from server.observability.live import MAX_ARRIVALS, LiveMetrics, SessionTimer, words_taken_back
from tests.support.fakes.fake_live import fake_done


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def timer(registry: CollectorRegistry) -> SessionTimer:
    return SessionTimer(LiveMetrics(registry, (1.0, 10.0)), "one")


def value(registry: CollectorRegistry, name: str, model: str = "one") -> float | None:
    return registry.get_sample_value(f"thinbridge_{name}", {"model": model})


def done(utterance: int, end_s: float) -> UtteranceDone:
    return UtteranceDone("s", utterance, 0.0, end_s, fake_done("s", "text", None))


def partial(utterance: int, stable: str, tail: str = "") -> Partial:
    return Partial("s", utterance, stable, tail, 0.0, 0.0, 1.0)


def test_an_answer_is_timed_from_the_arrival_of_its_last_audio(registry: CollectorRegistry, timer: SessionTimer) -> None:
    for second in range(1, 11):
        timer.audio_came(1.0, second, now_s=100 + second)
    timer.event_sent(done(0, end_s=3.5), now_s=104.25)
    assert value(registry, "final_latency_seconds_sum") == 0.25
    timer.event_sent(done(1, end_s=9.0), now_s=110.0)
    assert value(registry, "final_latency_seconds_sum") == 1.25
    # The end is a little beyond that of the audio.
    timer.event_sent(done(2, end_s=10.01), now_s=110.5)
    assert value(registry, "final_latency_seconds_sum") == 1.75
    assert value(registry, "stream_audio_seconds_total") == 10


def test_what_is_too_long_ago_is_not_timed(registry: CollectorRegistry, timer: SessionTimer) -> None:
    for index in range(1, MAX_ARRIVALS + 11):
        timer.audio_came(1.0, index, now_s=index)
    timer.event_sent(done(0, end_s=10.0), now_s=10_000.0)
    assert value(registry, "final_latency_seconds_count") is None
    timer.event_sent(done(1, end_s=12.0), now_s=12.5)
    assert value(registry, "final_latency_seconds_sum") == 0.5


def test_the_first_partial_alone_is_timed(registry: CollectorRegistry, timer: SessionTimer) -> None:
    timer.event_came(SpeechStarted("s", 0, 0.0), now_s=1.0)
    for now_s in (1.5, 2.0):
        timer.event_came(partial(0, "a"), now_s)
    timer.event_came(SpeechStarted("s", 1, 2.0), now_s=3.0)
    timer.event_came(partial(1, "b"), now_s=3.25)
    assert value(registry, "first_partial_latency_seconds_sum") == 0.75
    assert value(registry, "first_partial_latency_seconds_count") == 2


def test_revisions_are_counted_within_an_utterance(registry: CollectorRegistry, timer: SessionTimer) -> None:
    for event in (
        *(SpeechStarted("s", 0, 0.0), partial(0, "", "what"), partial(0, "what", " a spy"), partial(0, "what", " a spite")),
        *(partial(0, "what", " a spider fell"), SpeechStarted("s", 1, 3.0), partial(1, "", "then")),
    ):
        timer.event_sent(event, now_s=1.0)
    assert value(registry, "stream_partials_total") == 5
    assert value(registry, "stream_revised_words_total") == 2


def test_each_model_has_its_own_numbers(registry: CollectorRegistry, timer: SessionTimer) -> None:
    timer.audio_came(1.0, 1.0, now_s=1)
    timer.model = "other"
    timer.audio_came(2.0, 3.0, now_s=3)
    assert (value(registry, "stream_audio_seconds_total"), value(registry, "stream_audio_seconds_total", "other")) == (1, 2)


@pytest.mark.parametrize(
    ("before", "after", "taken_back"),
    [
        *(("", "a", 0), ("a b", "a b c", 0), ("a spi", "a spite", 0), ("a b", "a", 1), ("a b c", "a x c", 2)),
        *(("a b", "", 2), ("a b", "x", 2), ("a bc", "a bd e", 1), ("a b ", "a b", 0)),
    ],
)
def test_words_taken_back(before: str, after: str, taken_back: int) -> None:
    assert words_taken_back(before, after) == taken_back
