"""Live sessions on fake models: neither the pieces in which audio comes nor other work changes an answer."""

import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.live.session import MAX_UNANSWERED
from server.engine.types.events import Ended, Flushed, Partial, Problem, SpeechStarted, UtteranceDone
from server.engine.types.options import Priority, VoiceOptions
from server.engine.types.requests import ChangeInstruction
from server.errors import EngineFailed, InvalidRequest, PromptTooLong
from tests.support.clients.engine_call import wait_until
from tests.support.clients.engine_client import Client, crowd, instruct, without_times
from tests.support.clients.live_client import LiveClient
from tests.support.fakes.fake_models import (
    SAMPLE_RATE_HZ,
    VOICE_TROUBLE,
    FakeEncoder,
    FakeLLM,
    Trouble,
    fake_models,
    silence,
    speech,
)
from tests.support.fakes.live_engine import conversation, live, serving

# How long speech may go on until a partial comes.
SPEAKING_S = 60


def answers(client: LiveClient) -> list[tuple[object, ...]]:
    return [(event.start_s, event.end_s, *without_times(event.done)) for event in client.of(UtteranceDone)]


@pytest.fixture(scope="module")
def alone() -> list[tuple[object, ...]]:
    """The answers of a session that gets its audio at once, without partials and company."""
    with serving() as engine:
        client = LiveClient(engine, live(partials=False, priority=Priority.BATCH))
        client.say(conversation(range(6)))
        assert isinstance(client.end(), Ended)
        return answers(client)


def test_there_is_an_answer_to_every_utterance(alone: list[tuple[object, ...]]) -> None:
    assert len(alone) == 6
    assert len({answer[3] for answer in alone}) == 6


@settings(max_examples=15, deadline=None)
@given(pieces=st.lists(st.integers(1, 900), min_size=1, max_size=4), priority=st.sampled_from(Priority))
def test_neither_pieces_nor_partials_nor_company_change_an_answer(
    alone: list[tuple[object, ...]], pieces: list[int], priority: Priority
) -> None:
    with serving() as engine:
        calls = [Client(engine, request) for request in crowd(4)]
        sessions = [LiveClient(engine, live(f"session {piece}", priority=priority)) for piece in set(pieces)]
        for session, piece in zip(sessions, set(pieces), strict=True):
            session.say(conversation(range(6)), piece)
        for session in sessions:
            assert isinstance(session.end(), Ended)
            assert [answer[:2] + answer[3:] for answer in answers(session)] == [each[:2] + each[3:] for each in alone]
        for call in calls:
            call.done()


def test_an_utterance_is_answered_as_the_same_audio_in_a_request(alone: list[tuple[object, ...]]) -> None:
    audio = conversation(range(6))
    with serving() as engine:
        for index, (start_s, end_s, _id, text, *_) in enumerate(alone):
            assert isinstance(start_s, float)
            assert isinstance(end_s, float)
            cut = audio[round(start_s * SAMPLE_RATE_HZ) : round(end_s * SAMPLE_RATE_HZ)]
            assert Client(engine, instruct(f"r{index}", cut, "Transcribe.", max_tokens=12)).done().text == text


def test_partials_come_while_speech_goes_on_and_never_after_its_answer() -> None:
    with serving() as engine:
        client = LiveClient(engine, live())
        for index in range(3):
            before = len(client.of(Partial))
            # Spoken as fast as a speaker would.
            for piece in range(SPEAKING_S * 10):
                client.say(speech(100 * index + piece, 0.1))
                time.sleep(0.1)
                if len(client.of(Partial)) > before:
                    break
        client.say(silence())
        client.end()
        ends = [event.end_s for event in client.of(Partial)]
        assert len(ends) >= 3
        assert all(earlier < later for earlier, later in pairwise(ends))
        assert engine.stats().counters.partials >= 3


def test_silence_makes_no_text() -> None:
    with serving() as engine:
        client = LiveClient(engine, live())
        client.say(silence(20), 333)
        client.flush("still nothing")
        assert isinstance(client.end(), Ended)
        assert not client.of(SpeechStarted)
        assert not client.of(UtteranceDone)
        assert engine.stats().counters.utterances == 0


def test_speech_without_text_is_counted() -> None:
    """The voice detector hears what the adapter finds blank."""
    models = fake_models(FakeLLM())
    deaf = replace(models, features=lambda audio: models.features(audio * 0))
    with serving(deaf) as engine:
        client = LiveClient(engine, live())
        client.say(conversation(range(2)))
        client.end()
        assert [event.done.finish_reason for event in client.of(UtteranceDone)] == ["no_speech"] * 2
        counters = engine.stats().counters
        assert (counters.utterances, counters.silent_utterances) == (2, 2)


def test_an_instruction_holds_for_utterances_that_begin_after_it() -> None:
    with serving() as engine:
        client = LiveClient(engine, live())
        client.say(speech(1))
        engine.push("session", ChangeInstruction("Translate."))
        client.say(np.concatenate([speech(1), silence(), speech(1), silence()]))
        client.end()
        first, second = (event.done for event in client.of(UtteranceDone))
        assert first.text != second.text
        assert first.usage.text_tokens != second.usage.text_tokens


def test_an_instruction_that_cannot_be_is_a_problem_and_changes_nothing() -> None:
    with serving() as engine:
        client = LiveClient(engine, live())
        engine.push("session", ChangeInstruction("0" * 400))
        client.say(conversation(range(1)))
        client.end()
        (problem,) = client.of(Problem)
        assert isinstance(problem.error, PromptTooLong)
        assert problem.utterance is None
        assert len(client.texts()) == 1


def test_a_session_that_cannot_be_served_is_refused_at_once() -> None:
    with serving() as engine:
        with pytest.raises(PromptTooLong):
            LiveClient(engine, live(instruction="0" * 400))
        with pytest.raises(InvalidRequest):
            LiveClient(engine, live(voice=VoiceOptions(prefix_padding_s=1, max_utterance_s=1)))
        assert engine.stats().live_sessions == 0


@pytest.mark.parametrize("trouble", [each for each in Trouble if each is not Trouble.MOVE_RAISES])
def test_an_utterance_that_fails_fails_alone(trouble: Trouble) -> None:
    troubled = speech(1)
    # As long as what becomes one frame, wherever that begins.
    troubled[:128] = trouble.value
    with serving() as engine:
        client = LiveClient(engine, live(partials=False))
        client.say(np.concatenate([conversation(range(1)), troubled, silence(), conversation(range(1))]))
        assert isinstance(client.end(), Ended)
        (problem,) = client.of(Problem)
        assert isinstance(problem.error, EngineFailed)
        assert problem.utterance == 1
        texts = client.texts()
        assert len(texts) == 2


def test_a_voice_detector_that_fails_ends_its_session_only() -> None:
    with serving() as engine:
        other, client = LiveClient(engine, live("other")), LiveClient(engine, live())
        other.say(conversation(range(2)))
        client.say(np.full(80, VOICE_TROUBLE, np.float32))
        assert isinstance(client.error(), EngineFailed)
        assert isinstance(other.end(), Ended)
        assert len(other.texts()) == 2


def test_audio_waits_while_too_much_is_unanswered() -> None:
    encoder = FakeEncoder()
    with serving(encoder=encoder) as engine:
        encoder.gate.clear()
        client = LiveClient(engine, live(partials=False, priority=Priority.BATCH))
        client.say(conversation(range(40)), 400)
        wait_until(lambda: engine.stats().counters.steps > 0 or engine.stats().step_age_s > 0.05)
        assert len(client.of(SpeechStarted)) <= MAX_UNANSWERED + 8
        encoder.gate.set()
        assert isinstance(client.end(), Ended)
        assert len(client.texts()) == 40
        assert max(encoder.batches) > 1


def test_speech_that_lasts_to_the_end_ends_with_the_audio() -> None:
    """The last samples fill no window of the voice detector."""
    with serving() as engine:
        client = LiveClient(engine, live())
        audio = speech(1, 1.0 + 1 / SAMPLE_RATE_HZ)
        client.say(audio)
        ended = client.end()
        assert isinstance(ended, Ended)
        (answer,) = client.of(UtteranceDone)
        assert answer.end_s == ended.audio_s == len(audio) / SAMPLE_RATE_HZ


def test_a_flush_ends_an_utterance_at_once() -> None:
    with serving() as engine:
        client = LiveClient(engine, live())
        client.say(speech(1))
        client.flush("now")
        client.wait_for(lambda: Flushed("session", "now") in client.events)
        (event,) = client.of(UtteranceDone)
        assert event.end_s == pytest.approx(1.0)
        client.end()
