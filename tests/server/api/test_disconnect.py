"""A client that leaves, at any time, frees everything that it held."""

import socket
import struct
import time

import pytest

from tests.support.clients.live_server import (
    LiveServer,
    audio_file,
    instruct,
    scripted_engine_server,
    tone,
    wait_until,
)
from tests.support.fakes.fake_engine import FakeEngine

CLIP = audio_file(tone(1.0, 16_000), 16_000, "FLAC", "PCM_16")
BODY = (
    b'--b\r\nContent-Disposition: form-data; name="instruction"\r\n\r\nTranscribe.\r\n'
    b'--b\r\nContent-Disposition: form-data; name="audio"; filename="a"\r\n\r\n' + CLIP + b"\r\n--b--\r\n"
)
REQUEST = (
    b"POST /v1/instruct HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    b"Content-Length: " + str(len(BODY)).encode() + b"\r\n\r\n" + BODY
)


def in_flight(server: LiveServer) -> str:
    lines = server.client.get("/metrics").text.splitlines()
    return next(line for line in lines if line.startswith("thinbridge_instruct_in_flight "))


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
def test_leaving_while_the_engine_works_aborts_the_request(reset: bool) -> None:
    with scripted_engine_server() as (engine, server):
        engine.answers = False
        with socket.create_connection(("127.0.0.1", server.port)) as peer:
            peer.sendall(REQUEST)
            wait_until(lambda: engine.pending == 1)
            assert engine.aborted == []
            if reset:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wait_until(lambda: engine.aborted == [engine.submitted[0].id])
        wait_until(lambda: in_flight(server) == "thinbridge_instruct_in_flight 0.0")
        assert 'route="/v1/instruct",status="499"} 1.0' in server.client.get("/metrics").text


@pytest.mark.parametrize("sent", [10, 150, 400, len(REQUEST) - 1])
def test_leaving_during_the_upload_never_reaches_the_engine(server: LiveServer, engine: FakeEngine, sent: int) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as peer:
        peer.sendall(REQUEST[:sent])
        time.sleep(0.05)
    wait_until(lambda: in_flight(server) == "thinbridge_instruct_in_flight 0.0")
    assert engine.submitted == []
    assert instruct(server, CLIP).status_code == 200


def test_those_who_stay_are_answered(server: LiveServer, engine: FakeEngine) -> None:
    engine.answers = False
    peers = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(6)]
    for peer in peers:
        peer.sendall(REQUEST)
    wait_until(lambda: engine.pending == 6)
    engine.answers = True
    for peer in peers:
        peer.close()
    assert instruct(server, CLIP).status_code == 200
    wait_until(lambda: engine.pending == 0)
    assert len(engine.aborted) == 6


def test_an_answered_request_is_not_aborted() -> None:
    with scripted_engine_server() as (engine, server):
        assert instruct(server, CLIP).status_code == 200
        server.client.close()
        time.sleep(0.05)
        assert engine.aborted == []
