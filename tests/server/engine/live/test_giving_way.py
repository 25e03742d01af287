"""The encoder gives way: with a hypothesis to an answer, and with cancelled work to anything. No text changes."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest

from models.protocols import EncodingInterrupted, Float32
from server.engine.engine import LocalEngine
from server.engine.types.events import Ended, Partial, UtteranceDone
from server.engine.types.options import Priority
from tests.support.clients.engine_call import TIMEOUT_S, wait_until
from tests.support.clients.engine_client import Client, instruct
from tests.support.clients.live_client import LiveClient
from tests.support.fakes.fake_models import FakeEncoder, FakeLLM, fake_models, silence, speech
from tests.support.fakes.live_engine import live, serving

PAUSE_S = 0.1
"""Long enough for an answer to be begun, and too short to end an utterance."""


class InterruptibleEncoder(FakeEncoder):
    """While `gate` is closed, it encodes until it is interrupted."""

    def __init__(self) -> None:
        super().__init__()
        self.interruptions = 0
        self._changed = threading.Condition()
        self._interrupted = False

    def encode(self, features: Sequence[Float32]) -> list[Float32]:
        with self._changed:
            self._interrupted = False
            if not self.gate.is_set():
                self.batches.append(len(features))
                assert self._changed.wait_for(lambda: self._interrupted or self.gate.is_set(), TIMEOUT_S)
            if self._interrupted:
                self.interruptions += 1
                raise EncodingInterrupted("interrupted")
        return super().encode(features)

    def interrupt(self) -> None:
        with self._changed:
            self._interrupted = True
            self._changed.notify_all()

    def open_gate(self) -> None:
        with self._changed:
            self.gate.set()
            self._changed.notify_all()

    def close_gate(self) -> None:
        """Have the next batch wait; returns while none is being encoded."""
        with self._changed:
            self.batches.clear()
            self.gate.clear()


@contextmanager
def interruptible() -> Iterator[tuple[LocalEngine, InterruptibleEncoder]]:
    encoder = InterruptibleEncoder()
    models = replace(fake_models(FakeLLM(), encoder), interrupt_encoder=encoder.interrupt)
    with serving(models) as engine:
        try:
            yield engine, encoder
        finally:
            encoder.open_gate()


def answer_alone(*audio: Float32) -> list[str]:
    """Return the answers about a session's audio when nothing else runs and no hypothesis is made."""
    with serving() as engine:
        client = LiveClient(engine, live(partials=False, priority=Priority.BATCH))
        for each in audio:
            client.say(each)
        assert isinstance(client.end(), Ended)
        return client.texts()


def test_a_hypothesis_gives_way_to_the_answer_of_another_speaker() -> None:
    with interruptible() as (engine, encoder):
        talking, waiting = LiveClient(engine, live("talking")), LiveClient(engine, live("waiting", partials=False))
        encoder.close_gate()
        talking.say(speech(1, 0.8))
        wait_until(lambda: len(encoder.batches) == 1)
        waiting.say(speech(2, 0.8))
        waiting.say(silence(0.6))
        wait_until(lambda: len(encoder.batches) == 2)
        assert encoder.interruptions == 1
        encoder.open_gate()
        waiting.wait_for(lambda: bool(waiting.of(UtteranceDone)))
        # The hypothesis is made again, with what is said next.
        talking.say(speech(3, 0.2))
        wait_until(lambda: engine.stats().counters.partials > 0)
        talking.say(silence(0.6))
        assert isinstance(talking.end(), Ended)
        assert isinstance(waiting.end(), Ended)
    assert talking.texts() == answer_alone(speech(1, 0.8), speech(3, 0.2), silence(0.6))
    assert waiting.texts() == answer_alone(speech(2, 0.8), silence(0.6))


def test_a_hypothesis_gives_way_to_the_answer_about_its_own_utterance() -> None:
    with interruptible() as (engine, encoder):
        client = LiveClient(engine, live())
        encoder.close_gate()
        client.say(speech(1, 0.8))
        wait_until(lambda: len(encoder.batches) == 1)
        client.say(silence(PAUSE_S))
        wait_until(lambda: len(encoder.batches) == 2)
        assert encoder.interruptions == 1
        encoder.open_gate()
        client.say(silence(0.6))
        assert isinstance(client.end(), Ended)
        assert client.of(Partial) == []
    assert client.texts() == answer_alone(speech(1, 0.8), silence(0.7))


def test_an_answer_stops_being_encoded_when_its_speaker_goes_on() -> None:
    with interruptible() as (engine, encoder):
        client = LiveClient(engine, live(partials=False))
        encoder.close_gate()
        client.say(speech(1, 0.5))
        client.say(silence(PAUSE_S))
        wait_until(lambda: len(encoder.batches) == 1)
        client.say(speech(2, 0.5))
        wait_until(lambda: encoder.interruptions == 1)
        encoder.open_gate()
        client.say(silence(0.6))
        assert isinstance(client.end(), Ended)
    assert client.texts() == answer_alone(speech(1, 0.5), silence(PAUSE_S), speech(2, 0.5), silence(0.6))
    assert len(client.texts()) == 1


@pytest.mark.parametrize("partials", [False, True])
def test_a_request_that_is_being_encoded_gives_way_to_nothing(partials: bool) -> None:
    with interruptible() as (engine, encoder):
        encoder.close_gate()
        request = Client(engine, instruct("request", speech(3)))
        wait_until(lambda: len(encoder.batches) == 1)
        client = LiveClient(engine, live(partials=partials))
        client.say(speech(1, 0.8))
        client.say(silence(0.6))
        # It has been heard while the request is still being encoded.
        wait_until(lambda: engine.stats().counters.utterances == 1)
        encoder.open_gate()
        request.done()
        assert isinstance(client.end(), Ended)
        assert encoder.interruptions == 0
    assert client.texts() == answer_alone(speech(1, 0.8), silence(0.6))


def test_a_request_whose_client_left_is_not_encoded_to_its_end() -> None:
    with interruptible() as (engine, encoder):
        encoder.close_gate()
        gone = Client(engine, instruct("gone", speech(3)))
        wait_until(lambda: len(encoder.batches) == 1)
        engine.abort("gone")
        wait_until(lambda: encoder.interruptions == 1)
        encoder.open_gate()
        Client(engine, instruct("next", speech(1))).done()
        assert gone.events == []
