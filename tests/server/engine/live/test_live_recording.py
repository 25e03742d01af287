"""Answers about all of a session: from the speech, from its transcript, or from sections of that."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from models.protocols import BackendError, Float32, PrefillRow
from server.engine.types.events import Delta, Done, Ended, Failed, UtteranceDone
from tests.support.clients.live_client import LiveClient
from tests.support.fakes.fake_models import FakeLLM, silence
from tests.support.fakes.live_engine import conversation, live, serving, two_tasks


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
    """The prefill that fails is that of frames of an utterance that was answered before."""
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
