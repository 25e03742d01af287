"""A server around a scripted engine for the tests of a live dialect."""

from collections.abc import Iterator

import pytest

from tests.support.clients.live_server import LiveServer, live_server, wait_until
from tests.support.clients.stream_client import metric
from tests.support.fakes.fake_engine import FakeEngine


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[LiveServer, FakeEngine]]:
    engine = FakeEngine()
    with live_server(engine) as live:
        wait_until(lambda: engine.stats().ready)
        yield live, engine


@pytest.fixture
def engine(shared: tuple[LiveServer, FakeEngine]) -> Iterator[FakeEngine]:
    """The engine of the server; no session may be left behind."""
    server, engine = shared
    yield engine
    wait_until(lambda: metric(server, "stream_sockets") == 0)
    assert engine.sessions == {}
    engine.past_sessions.clear()
    engine.problems.clear()


@pytest.fixture
def server(shared: tuple[LiveServer, FakeEngine], engine: FakeEngine) -> LiveServer:  # noqa: ARG001
    return shared[0]
