"""Features and times of words are computed beside the thread that decodes, and change nothing but that."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from models.protocols import Float32
from models.text.word_times import WordTimer
from server.engine.engine import LocalEngine
from server.engine.types.requests import InstructRequest
from server.errors import EngineFailed, NotReady
from tests.support.clients.engine_call import TIMEOUT_S, wait_until
from tests.support.clients.engine_client import NEVER, Client, instruct, serving_models, wait_until_idle
from tests.support.fakes.fake_models import FakeLLM, fake_features, fake_models, speech, tiny_word_timer
from tests.support.tasks import change_task


class Timer:
    """Times words as the tiny timer does, once `gate` is open, and notes the thread."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.threads: list[str] = []
        self.error: Exception | None = None
        self._timer: WordTimer = tiny_word_timer()

    def times(self, *arguments: Any) -> Any:
        self.threads.append(threading.current_thread().name)
        assert self.gate.wait(TIMEOUT_S)
        if self.error is not None:
            raise self.error
        return self._timer.times(*arguments)


@contextmanager
def serving(timer: Timer, slots: int = 3) -> Iterator[LocalEngine]:
    models = fake_models(FakeLLM(slots, max_positions=5000, mean_tokens=NEVER))
    with serving_models(replace(models, word_timer=timer)) as engine:  # type: ignore[arg-type]
        yield engine


def timed(id: str, **fields: Any) -> InstructRequest:
    return change_task(replace(instruct(id, speech(1), max_tokens=5), **fields), word_times="required")


def test_features_are_computed_beside_the_thread_that_decodes() -> None:
    threads: list[str] = []

    def features(audio: Float32) -> Float32:
        threads.append(threading.current_thread().name)
        return fake_features(audio)

    with serving_models(replace(fake_models(FakeLLM()), features=features)) as engine:
        threads.clear()
        done = Client(engine, instruct("a", speech(1))).done()
    assert threads == ["engine-encode"]
    assert done.times.features_s > 0


def test_other_answers_go_on_while_words_are_timed() -> None:
    timer = Timer()
    with serving(timer, slots=1) as engine:
        client = Client(engine, timed("timed"))
        wait_until(lambda: timer.threads == ["engine-words"])
        # Its slot is free, and its answer is not out.
        Client(engine, instruct("other", speech(2), max_tokens=30)).done()
        text = "".join(event.text for event in client.events)  # type: ignore[union-attr]
        timer.gate.set()
        done = client.done()
    assert done.text == text
    assert done.words
    assert " ".join(word.text for word in done.words) == " ".join(done.text.split())


def test_a_request_aborted_while_its_words_are_timed_gets_no_further_event() -> None:
    timer = Timer()
    with serving(timer) as engine:
        client = Client(engine, timed("gone"))
        wait_until(lambda: bool(timer.threads))
        engine.abort("gone")
        events = len(client.events)
        assert engine.stats().running + engine.stats().waiting == 0
        again = Client(engine, timed("gone"))
        timer.gate.set()
        again.done()
        wait_until_idle(engine)
    assert len(client.events) == events


def test_words_that_cannot_be_timed_fail_their_request_alone() -> None:
    timer = Timer()
    timer.error = ValueError("no alignment")
    timer.gate.set()
    with serving(timer) as engine:
        client = Client(engine, timed("a"))
        assert isinstance(client.error(), EngineFailed)
        Client(engine, instruct("b", speech(1), max_tokens=5)).done()


@pytest.mark.parametrize("opens", [True, False])
def test_a_drain_waits_for_words_that_are_timed(opens: bool) -> None:
    timer = Timer()
    with serving(timer) as engine:
        client = Client(engine, timed("a"))
        wait_until(lambda: bool(timer.threads))
        if opens:
            threading.Timer(0.05, timer.gate.set).start()
            engine.drain(TIMEOUT_S)
            client.done()
        else:
            threading.Timer(0.3, timer.gate.set).start()
            engine.drain(0.01)
            assert isinstance(client.error(), NotReady)
