"""Live sessions leave nothing behind that has to wait for Python's cyclic garbage collector."""

import gc
from collections.abc import Iterator

import pytest

from server.engine.live.session import LiveSession
from server.engine.live.utterance import Utterance
from server.engine.runner.sequence import SequenceState
from server.engine.types.events import Ended
from tests.support.clients.engine_call import wait_until
from tests.support.clients.live_client import LiveClient
from tests.support.fakes.live_engine import conversation, live, serving


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def alive() -> int:
    # Their types only: objects of other libraries warn when they are asked more.
    return sum(type(each) in (LiveSession, Utterance, SequenceState) for each in gc.get_objects())


@pytest.mark.usefixtures("uncollected")
def test_sessions_that_end_or_are_left_leave_nothing() -> None:
    with serving() as engine:
        before = alive()
        for index in range(3):
            ends, leaves = LiveClient(engine, live(f"ends {index}")), LiveClient(engine, live(f"leaves {index}"))
            for client in (ends, leaves):
                client.say(conversation(range(4)), 300)
            engine.abort(leaves.request.id)
            assert isinstance(ends.end(), Ended)
        wait_until(lambda: engine.stats().live_jobs == 0)
        # The engine's thread may still hold the last step's.
        LiveClient(engine, live("last")).end()
        wait_until(lambda: alive() - before <= 1)


@pytest.mark.usefixtures("uncollected")
def test_a_long_session_keeps_only_what_goes_on() -> None:
    with serving() as engine:
        client = LiveClient(engine, live())
        client.say(conversation(range(30)), 300)
        client.wait_for(lambda: len(client.texts()) == 30)
        assert alive() < 12
        client.end()
