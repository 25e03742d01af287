"""A server over a scripted engine, and OpenAI's own client for it."""

from collections.abc import Iterator

import pytest
from openai import OpenAI

from tests.support.clients.live_server import LiveServer, scripted_engine_server
from tests.support.clients.openai_client import openai_client
from tests.support.fakes.fake_engine import FakeEngine

TEXT = "Well, hello. World!"


@pytest.fixture(scope="package")
def running() -> Iterator[tuple[FakeEngine, LiveServer]]:
    with scripted_engine_server() as running:
        yield running


@pytest.fixture
def engine(engine: FakeEngine) -> FakeEngine:
    engine.text = TEXT
    return engine


@pytest.fixture(scope="package")
def client(running: tuple[FakeEngine, LiveServer]) -> Iterator[OpenAI]:
    with openai_client(running[1].url) as client:
        yield client
