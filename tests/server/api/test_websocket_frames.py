"""Every WebSocket answers frames, right and wrong ones, with the pongs and the close code that RFC 6455 wants."""

import socket
import struct
from collections.abc import Iterator

import pytest
from fastapi.routing import APIWebSocketRoute

from server.api.app import create_app
from server.api.deepgram import session as deepgram
from server.api.native import messages as native
from server.api.openai_realtime import session as openai_realtime
from server.settings import Settings
from tests.support.clients.live_server import LiveServer, fixed_source, live_server, wait_until
from tests.support.clients.routes import routes_of
from tests.support.clients.stream_client import CLOSE, metric, raw_socket, read_frames
from tests.support.fakes.fake_engine import FakeEngine
from tests.support.inputs.websocket_frames import NO_CODE, PONG, FrameCase, SocketRoute, frame_cases

CASES = frame_cases()
ROUTES = [
    SocketRoute("/v1/stream", b'{"type":"start","instruction":"Transcribe."}', native.MAX_FRAME_BYTES),
    SocketRoute("/v1/realtime", b'{"type":"input_audio_buffer.clear"}', openai_realtime.MAX_MESSAGE_BYTES),
    SocketRoute("/v1/listen", b'{"type":"KeepAlive"}', deepgram.MAX_MESSAGE_BYTES),
]


def test_there_are_cases_for_every_websocket() -> None:
    app = create_app([fixed_source(FakeEngine())], Settings())
    assert {route.path for route in ROUTES} == {route.path for route in routes_of(app) if isinstance(route, APIWebSocketRoute)}
    assert len({case.name for case in CASES}) == len(CASES) >= 150


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    """Yield the one server of all cases, which leave nothing behind."""
    engine = FakeEngine()
    with live_server(engine) as live:
        wait_until(lambda: engine.stats().ready)
        yield live
        wait_until(lambda: metric(live, "stream_sockets") == 0)
        assert engine.sessions == {}


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_answer_is_the_rfcs(server: LiveServer, case: FrameCase, route: SocketRoute) -> None:
    with raw_socket(server, route.path) as peer:
        peer.sendall(case.build(route))
        assert answer(peer) == (list(case.pongs), case.close_code)


def answer(peer: socket.socket) -> tuple[list[bytes], int]:
    """Return the server's pongs, and the code of the close frame after them."""
    pongs = []
    with peer.makefile("rb") as received:
        for opcode, content in read_frames(received):
            if opcode == PONG:
                pongs.append(content)
            elif opcode == CLOSE:
                return pongs, struct.unpack("!H", content[:2])[0] if content else NO_CODE
    raise AssertionError(f"the connection ended without a close frame, after {len(pongs)} pongs")
