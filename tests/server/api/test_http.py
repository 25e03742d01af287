"""The additions to uvicorn's HTTP connections: silent, deaf and wasteful peers cost other clients nothing."""

import contextlib
import json
import select
import socket
import ssl
import subprocess
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import httpx
import pytest

from server.api import http as module
from tests.support.clients.live_server import LiveServer, audio_file, instruct, scripted_engine_server, tone, wait_until
from tests.support.clients.stream_client import open_files, raw_socket
from tests.support.fakes.fake_engine import FakeEngine

CLIP = audio_file(tone(0.5, 16_000), 16_000, "FLAC", "PCM_16")
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /v1/instruct HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
GOOD_UPGRADE = UPGRADE + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + b"A" * 22 + b"==\r\n"


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[FakeEngine, LiveServer]]:
    """A server that waits for no peer longer than 0.3 s."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHECK_S", 0.05)
        patch.setattr(module, "LINGER_S", 0.3)
        with scripted_engine_server(header_timeout_s=0.3, write_timeout_s=0.3, body_timeout_s=0.3) as running:
            yield running


def peer_of(server: LiveServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def reply_to(server: LiveServer, sent: bytes) -> tuple[int, str]:
    """Return the status and the error code of the reply, up to the end of the connection; 0 without a reply."""
    with peer_of(server) as peer:
        peer.sendall(sent)
        received = b""
        while piece := peer.recv(65_536):
            received += piece
    if not received:
        return 0, ""
    head, _, body = received.partition(b"\r\n\r\n")
    error = json.loads(body)
    assert set(error) == {"error", "request_id"}
    assert f"x-request-id: {error['request_id']}".encode() in head
    return int(received.split()[1]), error["error"]["code"]


# The first test of the server: connections of others are closed a moment after their tests, and are files too.
def test_a_peer_that_reads_no_answers_is_cut_off(server: LiveServer) -> None:
    files = open_files(server)
    with socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.connect(("127.0.0.1", server.port))
        peer.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200)
        # The server has taken the connection.
        assert peer.recv(1)
        # Only the client's end is still open.
        wait_until(lambda: open_files(server) == files + 1)


@pytest.mark.parametrize(
    ("sent", "reply"),
    [
        (b"", (0, "")),
        (b"G", (408, "head_timed_out")),
        (GET, (408, "head_timed_out")),
        (b"GET /health HTTP/1.1\r\nHost: local", (408, "head_timed_out")),
        (b"\r\n\r\n", (0, "")),
        (POST + b"Content-Length: 100\r\n\r\n--b", (408, "body_timed_out")),
        (POST + CHUNKED + b"9\r\n--b", (408, "body_timed_out")),
        (GOOD_UPGRADE + b"Content-Length: 5\r\n\r\n", (400, "invalid_request")),
        (GOOD_UPGRADE + CHUNKED, (400, "invalid_request")),
        (UPGRADE + b"\r\n", (426, "upgrade_required")),
        (UPGRADE + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: A\r\n\r\n", (400, "invalid_request")),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nx: " + b"a" * 60_000 + b"\r\n\r\n", (431, "head_too_large")),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nx: " + b"a" * 4_000_000, (431, "head_too_large")),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", (400, "invalid_request")),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, "invalid_request")),
        (GET + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", (400, "invalid_request")),
        (GET + b"Content-Length: -1\r\n\r\n", (400, "invalid_request")),
        (POST + CHUNKED + b"zz\r\n", (400, "invalid_request")),
        (POST + CHUNKED + b"1\r\nA\r\n" * 20_000, (400, "invalid_request")),
    ],
)
def test_a_peer_that_breaks_the_protocol_is_told_and_closed(server: LiveServer, sent: bytes, reply: tuple[int, str]) -> None:
    assert reply_to(server, sent) == reply


def test_one_byte_chunks_that_are_not_wanted_end_the_connection(server: LiveServer) -> None:
    """Before, other clients got no answer as long as such a body was sent."""
    with peer_of(server) as peer:
        peer.sendall(GET + CHUNKED)
        sent = 0
        try:
            while sent < 1000:
                peer.sendall(b"1\r\nA\r\n" * 20_000)
                sent += 1
                assert server.client.get("/health").status_code == 200
        except (ConnectionResetError, BrokenPipeError):
            pass
        assert sent < 1000


def test_a_body_that_is_not_wanted_is_taken_if_it_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINGER_S", 30.0)
    with scripted_engine_server() as (_, server), peer_of(server) as peer:
        for _ in range(3):
            peer.sendall(GET + b"Content-Length: 100000\r\n\r\n")
            reply = HTTPResponse(peer)
            reply.begin()
            assert (reply.status, reply.headers["connection"]) == (200, None)
            assert json.loads(reply.read())["status"] == "ok"
            peer.sendall(bytes(100_000))


LARGE = 8 * 2**20


@pytest.mark.parametrize(
    "head",
    [
        f"Content-Length: {LARGE}\r\n\r\n".encode(),
        CHUNKED,
        b"Expect: 100-continue\r\nContent-Length: 100\r\n\r\n",
        b"Connection: close\r\nContent-Length: 100000\r\n\r\n",
    ],
)
def test_a_reply_says_that_the_connection_ends_behind_it(server: LiveServer, head: bytes) -> None:
    with peer_of(server) as peer:
        peer.sendall(b"POST /v1/nothing HTTP/1.1\r\nHost: localhost\r\n" + head)
        reply = HTTPResponse(peer)
        reply.begin()
        assert (reply.status, reply.headers["connection"]) == (404, "close")
        assert json.loads(reply.read())["error"]["code"] == "not_found"
        assert peer.recv(1) == b""


@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_may_ask_again_at_once_after_a_refusal(server: LiveServer, chunked: bool) -> None:
    """Before, the connection looked as if it was kept, and the next request on it found it closed."""
    with httpx.Client(base_url=server.url, timeout=20, trust_env=False) as client:
        for _ in range(5):
            content = iter([bytes(2**20)] * 8) if chunked else bytes(LARGE)
            assert client.post("/v1/nothing", content=content).status_code == 404
            assert client.get("/health").status_code == 200
    connection = HTTPConnection("127.0.0.1", server.port, timeout=20)
    with contextlib.closing(connection):
        for _ in range(5):
            content = iter([bytes(2**20)] * 8) if chunked else bytes(LARGE)
            connection.request("POST", "/v1/nothing", content)
            refused = connection.getresponse()
            assert (refused.status, refused.headers["connection"]) == (404, "close")
            refused.read()
            connection.request("GET", "/health")
            assert json.loads(connection.getresponse().read())["status"] == "ok"


def test_a_client_reads_why_its_large_body_is_refused(server: LiveServer) -> None:
    """The client is still sending then. Its connection is one of its own, as the server closes that behind the reply."""
    response = httpx.post(f"{server.url}/v1/nothing", content=iter([bytes(2**20)] * 8))
    assert response.status_code == 404


def test_requests_behind_one_another_are_answered_in_order(server: LiveServer) -> None:
    with peer_of(server) as peer, peer.makefile("rb") as received:
        peer.sendall((GET + b"\r\n") * 2000 + b"GET /nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        replies = received.read()
    assert (replies.count(b"HTTP/1.1 200 "), replies.count(b"HTTP/1.1 404 ")) == (2000, 1)


def test_who_leaves_with_further_requests_behind_is_noticed(server: LiveServer, engine: FakeEngine) -> None:
    engine.answers = False
    body = b'--b\r\nContent-Disposition: form-data; name="instruction"\r\n\r\na\r\n'
    body += b'--b\r\nContent-Disposition: form-data; name="audio"; filename="a"\r\n\r\n' + CLIP + b"\r\n--b--\r\n"
    with peer_of(server) as peer:
        peer.sendall((POST + f"Content-Length: {len(body)}\r\n\r\n".encode() + body) * 3)
        wait_until(lambda: engine.pending == 1)
    wait_until(lambda: engine.pending == 0)
    assert len(engine.submitted) == 1


def test_connections_of_one_address_leave_room_for_others() -> None:
    with scripted_engine_server(max_connections=20) as (_, server):
        peers = [peer_of(server) for _ in range(12)]
        taken, refused = peers[: 20 // 2], peers[20 // 2 :]
        assert all(peer.recv(12) == b"HTTP/1.1 429" for peer in refused)
        assert not select.select(taken, [], [], 0)[0]
        other = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(transport=other, base_url=server.url) as client:
            assert client.get("/health").status_code == 200
        for peer in peers:
            peer.close()
        wait_until(lambda: instruct(server, CLIP).status_code == 200)


def test_websockets_are_connections_too() -> None:
    with scripted_engine_server(max_connections=8) as (_, server):
        for _ in range(20):
            raw_socket(server).close()
        wait_until(lambda: server.client.get("/health").status_code == 200)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *names]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "certificate.pem", folder / "key.pem"


def test_tls(certificate: tuple[Path, Path]) -> None:
    with scripted_engine_server(tls_certificate=certificate[0], tls_key=certificate[1]) as (_, server):
        trusted = ssl.create_default_context(cafile=certificate[0])
        with httpx.Client(base_url=f"https://127.0.0.1:{server.port}", verify=trusted, trust_env=False) as client:
            files, data = {"audio": ("clip", CLIP)}, {"instruction": "Transcribe."}
            assert client.post("/v1/instruct", files=files, data=data).status_code == 200
            assert client.post("/v1/nothing", content=bytes(4 * 2**20)).status_code == 404
