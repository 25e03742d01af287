"""A session in the engine that is given up: what comes meanwhile is answered, and the next one goes on in time and number."""

import asyncio

import numpy as np
from prometheus_client import CollectorRegistry

from server.api.access.limits import KeyUsage
from server.api.live.engine_session import EngineSession, Position
from server.engine.types.events import Ended, Flushed, LiveEvent, SpeechStarted, UtteranceDone
from server.engine.types.requests import Flush, LiveRequest, SpeechTask
from server.observability.live import LiveMetrics, SessionTimer
from tests.support.fakes.fake_engine import FakeEngine


def events_of(start: Position, *, flushes_late: bool) -> tuple[list[LiveEvent], Position]:
    """Return the events of a session with a second and a half of audio that begins at `start`, and where it ends."""

    async def run() -> tuple[list[LiveEvent], Position]:
        engine = FakeEngine()
        engine.start()
        events: list[LiveEvent] = []
        timer = SessionTimer(LiveMetrics(CollectorRegistry(), [1.0]), "fake-model")
        session = EngineSession(
            engine, LiveRequest("s", SpeechTask("Transcribe."), partials=False), timer, KeyUsage(), start, events.append
        )
        session.add_audio(np.zeros(24_000, np.float32))
        session.push_end()
        if flushes_late:
            session.push_flush(Flush("late"))
        await session.wait_ended()
        return events, session.end

    return asyncio.run(run())


def test_a_flush_behind_the_end_is_answered_before_it() -> None:
    events, _ = events_of(Position(), flushes_late=True)
    assert events[-2:] == [Flushed("s", "late"), Ended("s", 1.5)]


def test_times_and_numbers_go_on() -> None:
    events, end = events_of(Position(10.0, 4), flushes_late=False)
    started = [(event.utterance, event.start_s) for event in events if isinstance(event, SpeechStarted)]
    done = [event for event in events if isinstance(event, UtteranceDone)]
    assert started == [(4, 10.0), (5, 11.0)]
    assert [(event.utterance, event.start_s, event.end_s) for event in done] == [(4, 10.0, 11.0), (5, 11.0, 11.5)]
    assert done[0].done.words is not None
    assert done[0].done.words[0].start_s == 10.0
    assert events[-1] == Ended("s", 11.5)
    assert end == Position(11.5, 6)
