"""The events of a session become one answer: nothing lost, nothing doubled, and the worst finish reason is reported."""

from dataclasses import replace

import pytest

from server.engine.types.events import (
    Delta,
    Done,
    Ended,
    Event,
    Failed,
    Flushed,
    Listened,
    LiveEvent,
    Partial,
    Problem,
    Segment,
    Speculation,
    SpeechStarted,
    StageTimes,
    TokenLogprob,
    Usage,
    UtteranceDone,
    Word,
)
from server.engine.types.options import SamplingOptions
from server.engine.types.requests import LiveRequest, SpeechTask
from server.errors import EngineFailed
from server.jobs.long_audio import LongAudioAggregator
from tests.support.tasks import change_task

REQUEST = LiveRequest("r", SpeechTask("Transcribe."), partials=False)
DONE = Done("r", "", "stop", Usage(10, 20, 3, 5), StageTimes(encode_s=0.5, decode_s=0.25), Speculation(4, 3, 2))


def utterance(number: int, text: str, **fields: object) -> UtteranceDone:
    return UtteranceDone("r", number, number, number + 1, replace(DONE, text=text, **fields))  # type: ignore[arg-type]


def aggregate(request: LiveRequest, *events: LiveEvent) -> tuple[str, Event, LongAudioAggregator]:
    """Return the deltas joined, the last event, and the aggregator."""
    aggregator = LongAudioAggregator(request)
    combined = [each for event in events if (each := aggregator.add_event(event)) is not None]
    deltas, last = combined[:-1], combined[-1]
    assert all(isinstance(event, Delta) for event in deltas)
    return "".join(event.text for event in deltas if isinstance(event, Delta)), last, aggregator


def test_texts_are_joined_with_single_spaces_and_silence_adds_none() -> None:
    texts = ["", "One", "two.", "", "Three."]
    joined, done, made = aggregate(REQUEST, *(utterance(*each) for each in enumerate(texts)), Ended("r", 5.25))
    assert isinstance(done, Done)
    assert joined == done.text == "One two. Three."
    assert (made.audio_s, made.basis, made.sections) == (5.25, "utterances", 1)


def test_what_it_took_is_added_up() -> None:
    _, done, _ = aggregate(REQUEST, utterance(0, "One"), utterance(1, ""), utterance(2, "two"), Ended("r", 3.0))
    assert isinstance(done, Done)
    assert done.usage == Usage(30, 60, 9, 15)
    assert (done.times.encode_s, done.times.decode_s) == (1.5, 0.75)
    assert done.speculation == Speculation(12, 9, 6)


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        (["stop", "stop"], "stop"),
        (["no_speech", "stop", "no_speech"], "stop"),
        (["stop", "length", "stop"], "length"),
        (["no_speech"], "no_speech"),
        ([], "no_speech"),
    ],
)
def test_it_ends_for_the_worst_of_the_reasons(reasons: list[str], expected: str) -> None:
    utterances = [
        utterance(number, "" if reason == "no_speech" else "word", finish_reason=reason) for number, reason in enumerate(reasons)
    ]
    _, done, _ = aggregate(REQUEST, *utterances, Ended("r", 1.0))
    assert isinstance(done, Done)
    assert done.finish_reason == expected


def test_words_and_logprobs_come_where_they_are_asked_for() -> None:
    request = change_task(REQUEST, word_times="required", sampling=SamplingOptions(logprobs=0))
    words = [Word("One", 0.1, 0.4), Word("two", 1.2, 1.5)]
    tokens = [TokenLogprob(b"One", -0.5), TokenLogprob(b"two", -0.25)]
    first, second = (
        utterance(number, words[number].text, words=(words[number],), logprobs=(tokens[number],)) for number in range(2)
    )
    _, done, _ = aggregate(request, first, second, Ended("r", 2.0))
    assert isinstance(done, Done)
    assert (done.words, done.logprobs) == (tuple(words), tuple(tokens))
    _, done, _ = aggregate(REQUEST, first, second, Ended("r", 2.0))
    assert isinstance(done, Done)
    assert (done.words, done.logprobs) == (None, None)
    without_times = replace(first.done, words=None)
    _, done, made = aggregate(
        change_task(request, word_times="if_known"), replace(first, done=without_times), second, Ended("r", 2.0)
    )
    assert isinstance(done, Done)
    assert done.words is None
    assert made.utterances == [Segment("One", 0, 1), Segment("two", 1, 2)]
    _, done, _ = aggregate(request, Ended("r", 2.0))
    assert isinstance(done, Done)
    assert (done.words, done.logprobs) == ((), ())


def test_the_answer_about_all_is_not_what_was_heard_of_the_parts() -> None:
    answer = replace(DONE, text="A summary.", finish_reason="length")
    joined, done, made = aggregate(
        replace(REQUEST, scope="recording"),
        utterance(0, "One"),
        Delta("r", "A summ"),
        Delta("r", "ary."),
        Ended("r", 9.0, "sections", 3, answer),
    )
    assert isinstance(done, Done)
    assert joined == done.text == "A summary."
    assert (done.finish_reason, done.usage) == ("length", Usage(20, 40, 6, 10))
    assert (made.basis, made.sections) == ("sections", 3)


def test_a_problem_is_the_end_of_all() -> None:
    error = EngineFailed("It broke.")
    assert aggregate(REQUEST, utterance(0, "One"), Problem("r", error, 1))[:2] == ("One", Failed("r", error))
    assert aggregate(REQUEST, Failed("r", error))[1] == Failed("r", error)


def test_the_rest_of_the_events_is_not_for_the_client() -> None:
    aggregator = LongAudioAggregator(REQUEST)
    for event in (SpeechStarted("r", 0, 0.0), Partial("r", 0, "a", "b", 0.0, 0.0, 1.0), Flushed("r", ""), Listened("r", 4.5)):
        assert aggregator.add_event(event) is None
    assert aggregator.listened_s == 4.5
