"""Wyoming's events over a real socket."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from server.api.lifecycle import ListenError, listen
from server.errors import Overloaded
from server.settings import Settings
from tests.support.clients.live_server import live_server, wait_until
from tests.support.fakes.fake_engine import FakeEngine

RATE_HZ = 16_000
FORMAT = {"rate": RATE_HZ, "width": 2, "channels": 1}
START = json.dumps({"type": "audio-start", "data": FORMAT}).encode() + b"\n"
SECOND = bytes(2 * RATE_HZ)
SPOKEN = "Transcribe the speech to text."


class Client:
    """A connection that sends events and reads them."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._file = self._socket.makefile("rb")

    def send(self, type: str, data: dict[str, Any] | None = None, payload: bytes = b"") -> None:
        self.send_bytes(json.dumps({"type": type, "data": data or {}, "payload_length": len(payload)}).encode() + b"\n" + payload)

    def send_bytes(self, content: bytes) -> None:
        self._socket.sendall(content)

    def receive(self) -> tuple[str, dict[str, Any]] | None:
        """Return the type and the content of the next event, or None behind the last."""
        line = self._file.readline()
        if not line:
            return None
        header = json.loads(line)
        return header["type"], json.loads(self._file.read(header["data_length"]))

    def close(self) -> None:
        self._file.close()
        self._socket.close()


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[FakeEngine, int]]:
    engine = FakeEngine()
    with live_server(engine, wyoming_port=0, live_idle_timeout_s=2.0) as server:
        wait_until(lambda: engine.stats().ready)
        yield engine, server.other_ports[0]


@pytest.fixture
def engine(running: tuple[FakeEngine, int]) -> FakeEngine:
    engine = running[0]
    wait_until(lambda: not engine.sessions)
    engine.past_sessions.clear()
    engine.live_refusal = None
    return engine


@pytest.fixture
def client(running: tuple[FakeEngine, int]) -> Iterator[Client]:
    client = Client(running[1])
    yield client
    client.close()


def test_the_description_names_models_and_languages(client: Client) -> None:
    client.send("describe")
    received = client.receive()
    assert received is not None
    kind, data = received
    (program,) = data["asr"]
    assert (kind, program["installed"]) == ("info", True)
    assert program["models"][0]["name"] == "fake-model"
    assert {"en", "de"} <= set(program["models"][0]["languages"])


def test_a_recording_becomes_one_transcript(engine: FakeEngine, client: Client) -> None:
    """The scripted engine makes an utterance of every second."""
    for _ in range(2):
        client.send("transcribe", {"language": "de-DE", "transcript_names": ["Küche"], "transcript_terms": ["Licht", ""]})
        client.send("audio-start", FORMAT)
        for _ in range(2):
            client.send("audio-chunk", FORMAT, SECOND)
        client.send("audio-stop")
        assert client.receive() == ("transcript", {"text": f"{SPOKEN} 0 {SPOKEN} 1", "language": "de"})
    client.send("ping", {"text": "still there"})
    assert client.receive() == ("pong", {"text": "still there"})
    first = engine.past_sessions[0].request
    assert (first.task.language, first.task.keywords, first.client) == ("de", ("Küche", "Licht"), "127.0.0.1")


def test_other_formats_are_resampled_and_mixed(engine: FakeEngine, client: Client) -> None:
    client.send("audio-start", {"rate": 48_000, "width": 4, "channels": 2})
    client.send("audio-chunk", {}, bytes(48_000 * 8 // 2))
    client.send("audio-chunk", {}, bytes(48_000 * 8 // 2))
    client.send("audio-stop")
    assert client.receive() == ("transcript", {"text": f"{SPOKEN} 0"})
    assert engine.past_sessions[0].audio_s == pytest.approx(1.0, abs=0.01)


def test_no_audio_is_an_empty_transcript(engine: FakeEngine, client: Client) -> None:
    client.send("audio-start", FORMAT)
    client.send("audio-stop")
    assert client.receive() == ("transcript", {"text": ""})
    assert engine.past_sessions == []


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"GET / HTTP/1.1\r\n", "invalid_request"),
        (b"[1]\n", "invalid_request"),
        (b"[" * 60_000 + b"\n", "invalid_request"),
        (b'{"type": "ping", "pad": "' + b"x" * 70_000 + b'"}\n', "invalid_request"),
        (b'{"type": "audio-chunk", "payload_length": 99999999999}\n', "invalid_request"),
        (b'{"type": "ping", "data_length": 3}\n[1]', "invalid_request"),
        (b'{"type": "audio-chunk", "payload_length": 2}\n\0\0', "invalid_request"),
        (b'{"type": "audio-stop"}\n', "invalid_request"),
        (b'{"type": "audio-start", "data": {"rate": 1, "width": 2, "channels": 1}}\n', "invalid_request"),
        (b'{"type": "transcribe", "data": {"language": 1}}\n', "invalid_request"),
        (b'{"type": "transcribe", "data": {"name": "none"}}\n' + START, "model_not_found"),
    ],
)
def test_what_cannot_be_followed_is_an_error_and_the_end(client: Client, content: bytes, code: str) -> None:
    client.send_bytes(content)
    received = client.receive()
    assert received is not None
    assert (received[0], received[1]["code"]) == ("error", code)
    assert client.receive() is None


def test_a_client_that_is_idle_or_leaves_holds_nothing(
    engine: FakeEngine, client: Client, running: tuple[FakeEngine, int]
) -> None:
    leaving = Client(running[1])
    leaving.send("audio-start", FORMAT)
    leaving.send("audio-chunk", FORMAT, SECOND)
    wait_until(lambda: len(engine.sessions) == 1)
    leaving.close()
    wait_until(lambda: not engine.sessions)
    received = client.receive()
    assert received is not None
    assert received[1]["code"] == "session_idle"


def test_a_failure_is_told(engine: FakeEngine, client: Client) -> None:
    engine.live_refusal = Overloaded("Full.", retry_after_s=1)
    client.send("audio-start", FORMAT)
    client.send("audio-chunk", FORMAT, SECOND)
    assert client.receive() == ("error", {"text": "Full.", "code": "overloaded"})


def test_a_stopping_server_answers_what_was_said() -> None:
    own = FakeEngine()
    with live_server(own, wyoming_port=0, drain_timeout_s=20) as server:
        wait_until(lambda: own.stats().ready)
        speaking, idle = (Client(server.other_ports[0]) for _ in range(2))
        idle.send("ping")
        assert idle.receive() is not None
        speaking.send("audio-start", FORMAT)
        speaking.send("audio-chunk", FORMAT, SECOND)
        wait_until(lambda: any(session.audio_s for session in own.sessions.values()))
        server.stop()
        assert speaking.receive() == ("transcript", {"text": f"{SPOKEN} 0"})
        for client in (speaking, idle):
            assert client.receive() == ("error", {"text": "The server is stopping.", "code": "not_ready"})
            assert client.receive() is None
            client.close()


def test_the_port_is_closed_by_default_and_needs_consent_on_a_public_host() -> None:
    assert Settings().wyoming_port is None
    with pytest.raises(ValidationError, match="Wyoming"):
        Settings(host="0.0.0.0", api_keys=SecretStr("a-key-of-the-tests-0123456789"), wyoming_port=10300)
    Settings(host="0.0.0.0", insecure=True, wyoming_port=10300)


def test_a_port_that_is_taken_is_told_before_the_start() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ListenError, match=rf"port {port}: .*WYOMING_PORT"):
            listen(Settings(port=0, wyoming_port=port))
