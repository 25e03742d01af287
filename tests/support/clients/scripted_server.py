"""Fixtures: a server around a scripted engine, which the tests of a module share. A room's `conftest.py` imports them."""

from collections.abc import Iterator

import pytest

from tests.support.clients.live_server import LiveServer, scripted_engine_server, wait_until
from tests.support.clients.stream_client import metric
from tests.support.fakes.fake_engine import FakeEngine


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[FakeEngine, LiveServer]]:
    with scripted_engine_server() as running:
        yield running


@pytest.fixture
def engine(running: tuple[FakeEngine, LiveServer]) -> Iterator[FakeEngine]:
    """The engine of the server, as at the beginning; no session may be left behind."""
    engine, server = running
    engine.reset()
    yield engine
    wait_until(lambda: metric(server, "stream_sockets") == engine.pending == 0)
    assert engine.sessions == {}


@pytest.fixture
def server(running: tuple[FakeEngine, LiveServer], engine: FakeEngine) -> LiveServer:  # noqa: ARG001
    return running[1]
