"""A server over a scripted engine, and OpenAI's own client for it."""

from collections.abc import Iterator

import pytest
from openai import OpenAI

from tests.support.clients.live_server import LiveServer, live_server, wait_until
from tests.support.clients.openai_client import openai_client
from tests.support.fakes.fake_engine import FakeEngine

TEXT = "Well, hello. World!"


@pytest.fixture(scope="package")
def running() -> Iterator[tuple[FakeEngine, LiveServer]]:
    engine = FakeEngine()
    with live_server(engine) as server:
        wait_until(lambda: engine.stats().ready)
        yield engine, server


@pytest.fixture
def engine(running: tuple[FakeEngine, LiveServer]) -> FakeEngine:
    engine = running[0]
    engine.text, engine.failure, engine.refusal, engine.answers = TEXT, None, None, True
    engine.tells_word_times = True
    engine.submitted.clear()
    engine.past_sessions.clear()
    return engine


@pytest.fixture
def server(running: tuple[FakeEngine, LiveServer], engine: FakeEngine) -> LiveServer:
    """Return the server, whose `engine` is as at the beginning."""
    live = running[1]
    wait_until(lambda: engine.pending == 0)
    return live


@pytest.fixture(scope="package")
def client(running: tuple[FakeEngine, LiveServer]) -> Iterator[OpenAI]:
    with openai_client(running[1].url) as client:
        yield client
