"""Live sessions on fake models: how audio comes, and who else is served, changes no answer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.backends import BackendError, Float32, PrefillRow
from models.chain import Models
from server.engine import LocalEngine
from server.errors import EngineFailed, InvalidRequest, PromptTooLong
from server.live import (
    ChangeInstruction,
    Ended,
    Flushed,
    LiveRequest,
    Partial,
    Problem,
    Scope,
    SpeechStarted,
    UtteranceDone,
    VoiceOptions,
)
from server.live_session import MAX_UNANSWERED
from server.request import Delta, Done, Failed, Priority, SamplingOptions
from tests.engine_client import TIMEOUT_S, Client, crowd, instruct, wait_until, without_times
from tests.fake_models import (
    SAMPLE_RATE_HZ,
    VOICE_TROUBLE,
    FakeEncoder,
    FakeLLM,
    Trouble,
    fake_models,
    silence,
    speech,
)
from tests.live_client import LiveClient

VOICE = VoiceOptions(prefix_padding_s=0.1, silence_s=0.3, max_utterance_s=3.0)


def live(id: str = "session", scope: Scope = "utterance", **fields: object) -> LiveRequest:
    sampling = SamplingOptions(max_tokens=12)
    return replace(LiveRequest(id, "Transcribe.", sampling, voice=VOICE, scope=scope), **fields)  # type: ignore[arg-type]


@contextmanager
def serving(models: Models | None = None, encoder: FakeEncoder | None = None) -> Iterator[LocalEngine]:
    engine = LocalEngine(models or fake_models(FakeLLM(), encoder), SAMPLE_RATE_HZ, 30.0, 64, encode_budget_mel_frames=300)
    engine.start()
    try:
        yield engine
    finally:
        engine.drain(TIMEOUT_S)
        stats = engine.stats()
        assert (stats.ready, stats.waiting, stats.running, stats.live_sessions, stats.live_jobs) == (False, 0, 0, 0, 0)


def two_tasks() -> Models:
    """Models that transcribe under one instruction only, and follow the others."""
    models = fake_models(FakeLLM(max_positions=400, mean_tokens=4))
    return replace(models, boundary_instructions=frozenset({"transcribe"}), transcription_instruction="Transcribe.")


def conversation(seeds: range, pause_s: float = 0.6) -> Float32:
    """Utterances of different lengths and the silence after each."""
    parts = [part for seed in seeds for part in (speech(seed, 0.4 + seed % 3 * 0.5), silence(pause_s))]
    return np.concatenate(parts)


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
        for index in range(6):
            before = len(client.of(Partial))
            client.say(speech(index, 0.4))
            client.wait_for(lambda before=before: len(client.of(Partial)) > before)  # type: ignore[misc]
        client.say(silence())
        client.end()
        ends = [event.end_s for event in client.of(Partial)]
        assert len(ends) >= 6
        assert all(earlier < later for earlier, later in pairwise(ends))
        assert engine.stats().counters.partials >= 6


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


def test_a_flush_ends_an_utterance_at_once() -> None:
    with serving() as engine:
        client = LiveClient(engine, live())
        client.say(speech(1))
        client.flush("now")
        client.wait_for(lambda: Flushed("session", "now") in client.events)
        (event,) = client.of(UtteranceDone)
        assert event.end_s == pytest.approx(1.0)
        client.end()


def test_a_recording_is_answered_from_its_speech_where_that_fits() -> None:
    with serving(two_tasks()) as engine:
        client = LiveClient(engine, live(scope="recording", instruction="What is it about?"))
        client.say(conversation(range(3)))
        end = client.end()
        assert isinstance(end, Ended)
        assert (end.basis, end.sections) == ("audio", 1)
        assert isinstance(end.answer, Done)
        assert end.answer.text == "".join(event.text for event in client.of(Delta)) != ""
        assert end.answer.usage.audio_frames == sum(event.done.usage.audio_frames for event in client.of(UtteranceDone))


@pytest.mark.parametrize(("utterances", "basis"), [(40, "transcript"), (110, "sections")])
def test_a_long_recording_is_answered_from_its_transcript(utterances: int, basis: str) -> None:
    with serving(two_tasks()) as engine:
        client = LiveClient(engine, live(scope="recording", instruction="What is it about?", partials=False))
        client.say(conversation(range(utterances)))
        end = client.end()
        assert isinstance(end, Ended)
        assert end.basis == basis
        assert (end.sections > 1) == (basis == "sections")
        assert isinstance(end.answer, Done)
        assert end.answer.usage.audio_frames == 0
        assert end.answer.text == "".join(event.text for event in client.of(Delta)) != ""
        assert len(client.texts()) == utterances


def test_a_recording_to_be_transcribed_is_its_utterances() -> None:
    with serving(two_tasks()) as engine:
        client = LiveClient(engine, live(scope="recording"))
        client.say(conversation(range(3)))
        end = client.end()
        assert isinstance(end, Ended)
        assert (end.basis, end.answer) == ("utterances", None)
        assert len(client.texts()) == 3


def test_a_silent_recording_has_an_empty_answer() -> None:
    with serving(two_tasks()) as engine:
        client = LiveClient(engine, live(scope="recording", instruction="What is it about?"))
        client.say(silence(3))
        end = client.end()
        assert isinstance(end, Ended)
        assert end.answer is not None
        assert (end.answer.text, end.answer.finish_reason) == ("", "no_speech")


def test_a_recording_whose_answer_fails_fails() -> None:
    """Its prefill meets the frames of an utterance that was answered before."""
    models = two_tasks()
    prefilled: list[int] = []

    class Tired(FakeLLM):
        def prefill(self, rows: Sequence[PrefillRow]) -> list[Float32]:
            prefilled.append(len(rows))
            if len(prefilled) > 2:
                raise BackendError("tired")
            return super().prefill(rows)

    with serving(replace(models, llm=Tired(max_positions=400))) as engine:
        client = LiveClient(engine, live(scope="recording", instruction="What is it about?", draft="off"))
        client.say(conversation(range(1)))
        client.wait_for(lambda: len(client.of(UtteranceDone)) == 1)
        assert isinstance(client.end(), Failed)
