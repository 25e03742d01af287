"""The limits of a live session: back-pressure both ways, silence, length, a server that stops, and bugs."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from server.api import websocket as web_socket
from server.api.live.session import MAX_WAITING
from server.api.native.session import NativeDialect
from server.constraints.sandbox import GrammarSandbox
from server.engine.types.events import Flushed, Partial, UtteranceDone
from server.engine.types.options import Constraint
from server.engine.types.requests import Audio, Flush, LiveInput
from tests.support.clients.live_server import LiveServer, live_server, wait_until
from tests.support.clients.stream_client import TEXT, frame, metric, open_files, pcm, raw_socket, reset, streaming
from tests.support.clients.time_limits import watch_sessions_once
from tests.support.fakes.fake_engine import FakeEngine
from tests.support.fakes.fake_live import FakeSession, fake_done

START = frame(TEXT, b'{"type":"start","instruction":"Transcribe."}')


@contextlib.contextmanager
def serving(**settings: float) -> Iterator[tuple[LiveServer, FakeEngine]]:
    """Serve a scripted engine; at the end no socket and no session may be left."""
    engine = FakeEngine()
    with live_server(engine, **settings) as server:
        wait_until(lambda: engine.stats().ready)
        yield server, engine
        wait_until(lambda: metric(server, "stream_sockets") == 0)
        assert engine.sessions == {}


def only_session(engine: FakeEngine) -> FakeSession:
    wait_until(lambda: len(engine.sessions) == 1)
    return next(iter(engine.sessions.values()))


def is_longer(items: list[LiveInput], count: int) -> bool:
    return len(items) > count


def outcomes(server: LiveServer, outcome: str) -> float:
    return metric(server, f'stream_sessions_total{{model="fake-model",outcome="{outcome}"}}')


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def test_a_client_that_is_ahead_is_not_read_until_the_engine_has_listened(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client is not idle meanwhile, and no audio is lost."""
    piece_s, backlog_s, pieces = 0.25, 2.0, 2000
    with serving(live_backlog_s=backlog_s) as (server, engine), streaming(server) as client:
        monkeypatch.setattr(NativeDialect, "idle_timeout_s", property(lambda _: 60.0 if engine.listens else 0.5))
        client.start(partials=False)
        session = only_session(engine)
        engine.listens = False

        def say_all() -> None:
            """Send more than the network between the two can hold."""
            for _ in range(pieces):
                client.say(pcm(piece_s))
            client.tell("end")

        saying = threading.Thread(target=say_all)
        saying.start()
        wait_until(lambda: session.audio_s > backlog_s)
        saying.join(1.0)
        assert saying.is_alive()
        assert backlog_s < session.audio_s <= backlog_s + piece_s
        engine.listens = True
        engine.push(session.request.id, Audio(np.empty(0, np.float32)))
        events, close = client.events()
        saying.join()
    assert close.code == 1000
    assert events[-1]["audio_s"] == pieces * piece_s
    assert [event["utterance"] for event in events if event["type"] == "final"] == list(range(500))


def test_many_flushes_wait_for_their_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    markers = [str(number) for number in range(500)]
    pushed: list[LiveInput] = []
    with serving() as (server, engine), streaming(server) as client:
        client.start()
        session = only_session(engine)
        monkeypatch.setattr(engine, "push", lambda _id, item: pushed.append(item))
        for marker in markers:
            client.tell("flush", id=marker)
        wait_until(lambda: len(pushed) > MAX_WAITING)
        time.sleep(0.1)
        assert len(pushed) == MAX_WAITING + 1
        for index, marker in enumerate(markers):
            wait_until(partial(is_longer, pushed, index))
            session.deliver(Flushed(session.request.id, marker))
            assert client.event()["id"] == marker
    assert pushed == [Flush(marker) for marker in markers]


def test_a_session_is_not_idle_while_its_constraint_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is looked at again and again during the check, which takes longer than the timeout then."""
    is_checking, looks = False, 0

    def idle_timeout_s(_dialect: NativeDialect) -> float:
        nonlocal looks
        looks += is_checking
        return 0.05 if is_checking else 60.0

    async def check_long(_sandbox: GrammarSandbox, _constraint: Constraint, _client: str) -> None:
        nonlocal is_checking
        is_checking = True
        while looks < 4:
            await asyncio.sleep(0.01)
        is_checking = False

    monkeypatch.setattr(NativeDialect, "idle_timeout_s", property(idle_timeout_s))
    monkeypatch.setattr(GrammarSandbox, "check", check_long)
    with serving() as (server, _engine), streaming(server) as client:
        assert client.start(regex="[a-z]+")["type"] == "ready"


def test_a_client_that_does_not_read_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_socket, "CLOSE_S", 0.2)
    with serving(live_send_timeout_s=0.2) as (server, engine):
        files = open_files(server)
        peer = raw_socket(server)
        peer.sendall(START)
        session = only_session(engine)
        done = fake_done(session.request.id, "long " * 20_000, None)
        for number in range(100):
            session.deliver(UtteranceDone(session.request.id, number, number, number + 1, done))
        wait_until(lambda: outcomes(server, "slow_client") == 1)
        assert session.request.id in engine.aborted
        # Unread bytes do not keep the connection: only the client's end is still open.
        wait_until(lambda: open_files(server) == files + 1)
        peer.close()


def test_partials_that_were_not_read_in_time_are_skipped() -> None:
    with serving() as (server, engine), streaming(server) as client:
        client.start()
        session = only_session(engine)
        id, times = session.request.id, (0.0, 0.0, 1.0)
        # Within about one turn of the event loop: the engine is faster than the server sends.
        for number in range(2000):
            session.deliver(Partial(id, 0, str(number), "", *times))
        session.deliver(UtteranceDone(id, 0, 0.0, 1.0, fake_done(id, "final", None)))
        events = client.until("final")
    told = [int(event["stable"]) for event in events[:-1]]
    assert len(told) < 2000
    assert told == sorted(told)


def test_silence_ends_a_session_after_all_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(live_idle_timeout_s=0.3) as (server, engine), contextlib.ExitStack() as clients:
        watch_sessions_once(lambda: any(session.audio_s for session in engine.sessions.values()), monkeypatch)
        client = clients.enter_context(streaming(server))
        client.start()
        client.say(pcm(0.5))
        assert types(client.until("final")) == ["speech_started", "partial", "final"]
        assert client.fatal() == ("session_idle", 1008)
        assert outcomes(server, "idle") == 1


def test_silence_instead_of_a_start() -> None:
    with serving(live_idle_timeout_s=0.2) as (server, _), streaming(server) as client:
        assert client.fatal() == ("session_idle", 1008)


def test_who_waits_for_a_flush_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    late: list[LiveInput] = []
    with serving(live_idle_timeout_s=0.3) as (server, engine), contextlib.ExitStack() as clients:
        watch_sessions_once(lambda: late, monkeypatch)
        client = clients.enter_context(streaming(server))
        client.start()
        session = only_session(engine)
        with monkeypatch.context() as patch:
            patch.setattr(engine, "push", lambda _id, item: late.append(item))
            client.tell("flush", id="a")
            wait_until(lambda: len(late) == 1)
            time.sleep(0.9)
        session.deliver(Flushed(session.request.id, "a"))
        assert client.event() == {"type": "flushed", "id": "a"}
        assert client.fatal() == ("session_idle", 1008)


@pytest.mark.parametrize("scope", ["utterance", "recording"])
def test_a_session_that_lasts_too_long_ends_after_all_is_answered(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer about all audio comes as text; `ended` would mean that the client ended the session."""
    with serving(live_max_session_s=0.5) as (server, engine), contextlib.ExitStack() as clients:
        watch_sessions_once(lambda: any(session.audio_s for session in engine.sessions.values()), monkeypatch)
        client = clients.enter_context(streaming(server))
        client.start(scope=scope)
        client.say(pcm(0.5))
        events, close = client.events()
        assert outcomes(server, "too_long") == 1
    expected = ["speech_started", "partial", "final", *(["delta"] if scope == "recording" else []), "error"]
    assert types(events) == expected
    assert (events[-1]["error"]["code"], events[-1]["fatal"], close.code) == ("session_too_long", True, 1008)


def test_a_server_that_stops_answers_first() -> None:
    with contextlib.ExitStack() as clients:
        with live_server(FakeEngine(), drain_timeout_s=20) as server:
            wait_until(lambda: server.client.get("/ready").status_code == 200)
            begun, silent = (clients.enter_context(streaming(server)) for _ in range(2))
            begun.start()
            begun.say(pcm(0.5))
            begun.until("partial")
        events, close = begun.events()
        assert types(events) == ["final", "error"]
        assert (events[-1]["error"]["code"], events[-1]["fatal"], close.code) == ("not_ready", True, 1012)
        assert silent.fatal() == ("not_ready", 1012)


def test_a_server_that_stops_does_not_wait_for_ever() -> None:
    engine = FakeEngine()
    with contextlib.ExitStack() as clients:
        with live_server(engine, drain_timeout_s=1) as server:
            wait_until(lambda: engine.stats().ready)
            client = clients.enter_context(streaming(server))
            session_id = client.start()["session_id"]
            # The end of this session will never be answered.
            engine.end_session(session_id)
        assert client.fatal() == ("not_ready", 1012)
    assert session_id in engine.aborted


def test_a_bug_is_one_error_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_id: str, _item: LiveInput) -> None:
        raise RuntimeError("secret detail")

    with serving() as (server, engine), streaming(server) as client:
        client.start()
        monkeypatch.setattr(engine, "push", broken)
        client.say(pcm(0.1))
        events, close = client.events()
        assert outcomes(server, "server_error") == 1
    assert [event["error"]["code"] for event in events] == ["internal_error"]
    assert "secret" not in events[0]["error"]["message"]
    assert close.code == 1011


@pytest.mark.parametrize("how", ["close", "fin", "rst"])
@pytest.mark.parametrize("listens", [True, False], ids=["listened to", "held back"])
def test_a_client_that_leaves_is_forgotten(monkeypatch: pytest.MonkeyPatch, how: str, listens: bool) -> None:
    """This holds even for a client that is not being read, because the engine is behind."""
    monkeypatch.setattr(web_socket, "CHECK_S", 0.05)
    with serving(live_backlog_s=1.0) as (server, engine):
        peer = raw_socket(server)
        peer.sendall(START)
        session = only_session(engine)
        engine.listens = listens
        peer.sendall(b"".join(frame(2, pcm(0.5)) for _ in range(20)))
        wait_until(lambda: session.audio_s >= 1.5)
        assert engine.aborted == []
        if how == "rst":
            reset(peer)
        else:
            if how == "close":
                peer.sendall(frame(8, b"\x03\xe8"))
            peer.close()
        wait_until(lambda: engine.aborted == [session.request.id])
        wait_until(lambda: outcomes(server, "client_left") == 1)
