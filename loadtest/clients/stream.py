"""A client of `/v1/stream` that sends audio as a microphone would, and writes down every event with the moment of its arrival.

The audio's own clock is the time base: second 0 is when its first sample is spoken, and a piece is sent when its last sample has
been, whatever the server does meanwhile. So an event's time less a moment of the audio is a latency as the speaker sees it.
Works in threads, and in greenlets where gevent has patched the standard library.
"""

import contextlib
import json
import select
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from loadtest.support.instructions import TRANSCRIBE

PIECE_S = 0.04
BYTES_PER_SAMPLE = 2
PATIENCE_S = 60.0
"""How long a session may say nothing at all before the client gives it up."""
MAX_EVENT_BYTES = 2**24


class Refused(RuntimeError):
    """No session: the upgrade was answered with an HTTP status, or (status 0) not at all."""

    def __init__(self, status: int, code: str, retry_after_s: float) -> None:
        super().__init__(f"status {status}: {code}")
        self.status, self.code, self.retry_after_s = status, code, retry_after_s


@dataclass(frozen=True)
class Script:
    """The messages of one session.

    `pcm` is mono 16-bit PCM. `options` are added to the start message. A speed of 0 sends as fast as the server takes it.
    `messages` are sent on the way: each once all audio before its second has been. `headers` go with the upgrade.
    """

    pcm: bytes
    rate_hz: int = 16_000
    options: Mapping[str, Any] = field(default_factory=dict)
    speed: float = 1.0
    messages: Sequence[tuple[float, Mapping[str, Any]]] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def audio_s(self) -> float:
        return len(self.pcm) / (BYTES_PER_SAMPLE * self.rate_hz)


@dataclass(frozen=True)
class Arrival:
    """An event, `at_s` seconds after the audio's beginning."""

    at_s: float
    event: Mapping[str, Any]

    @property
    def type(self) -> str:
        return str(self.event.get("type"))


@dataclass
class StreamRun:
    """All that a session gave. `origin_s` is when its audio began, by the monotonic clock. `sent` is how many seconds of audio
    had been sent when, `slips_s` how late each piece was sent; `messages` as in the script, as far as they were sent. No
    `close_code` means that the server did not close in time."""

    script: Script
    origin_s: float = 0.0
    arrivals: list[Arrival] = field(default_factory=list)
    sent: list[tuple[float, float]] = field(default_factory=list)
    slips_s: list[float] = field(default_factory=list)
    messages: list[tuple[float, Mapping[str, Any]]] = field(default_factory=list)
    close_code: int | None = None

    def of_type(self, *types: str) -> list[Arrival]:
        return [arrival for arrival in self.arrivals if arrival.type in types]


def stream_url(url: str) -> str:
    """Return the address of `/v1/stream` at a server whose address is `url`."""
    parts = urlsplit(url)
    scheme = "wss" if parts.scheme == "https" else "ws"
    return parts._replace(scheme=scheme, path=parts.path.rstrip("/") + "/v1/stream").geturl()


def open_stream(url: str, headers: Mapping[str, str] | None = None) -> ClientConnection:
    """Return a connection on which nothing has been said yet. Raises `Refused`."""
    try:
        # No pings: behind minutes of audio that the server has yet to take they would seem to get no answer.
        return connect(
            stream_url(url),
            additional_headers=headers,
            compression=None,
            proxy=None,
            max_size=MAX_EVENT_BYTES,
            ping_interval=None,
        )
    except InvalidStatus as error:
        response = error.response
        raise Refused(
            response.status_code, _code_of(bytes(response.body or b"")), float(response.headers.get("Retry-After", 1))
        ) from None
    except (InvalidHandshake, OSError) as error:
        raise Refused(0, repr(error), 1.0) from None


def start_message(script: Script) -> str:
    """Return the first message of a session."""
    start = {"type": "start", "instruction": TRANSCRIBE, "sample_rate_hz": script.rate_hz, **script.options}
    return json.dumps(start)


def run_stream(url: str, script: Script) -> StreamRun:
    """Run one whole session, until the server closes it. Raises `Refused` where there is none."""
    with open_stream(url, script.headers) as connection:
        return _Session(connection, script).run()


class _Session:
    def __init__(self, connection: ClientConnection, script: Script) -> None:
        self._connection, self._script = connection, script
        self._run = StreamRun(script)
        self._run.origin_s = time.monotonic()

    def run(self) -> StreamRun:
        sender = threading.Thread(target=self._send, daemon=True)
        try:
            self._connection.send(start_message(self._script))
            self._receive()
            self._run.origin_s = time.monotonic()
            sender.start()
            while True:
                self._receive()
        except ConnectionClosed as closed:
            self._run.close_code = closed.rcvd.code if closed.rcvd else None
        except TimeoutError:
            # The sender may be waiting for room that never comes.
            self._connection.socket.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        if sender.ident is not None:
            sender.join()
        return self._run

    def _now_s(self) -> float:
        return time.monotonic() - self._run.origin_s

    def _receive(self) -> None:
        text = self._connection.recv(timeout=PATIENCE_S)
        self._run.arrivals.append(Arrival(self._now_s(), json.loads(text)))

    def _send(self) -> None:
        script, waiting = self._script, sorted(self._script.messages, key=lambda message: message[0])
        piece_bytes = BYTES_PER_SAMPLE * round(PIECE_S * script.rate_hz)
        try:
            for start in range(0, len(script.pcm), piece_bytes):
                piece = script.pcm[start : start + piece_bytes]
                end_s = (start + len(piece)) / (BYTES_PER_SAMPLE * script.rate_hz)
                self._wait_until_spoken(end_s)
                self._wait_for_room()
                # Before it goes out, for an event may come back before `send` does.
                self._run.sent.append((self._now_s(), end_s))
                self._connection.send(piece)
                while waiting and waiting[0][0] <= end_s:
                    self._say(end_s, waiting.pop(0)[1])
            self._say(script.audio_s, {"type": "end"})
        except ConnectionClosed:
            return

    def _wait_until_spoken(self, end_s: float) -> None:
        if not self._script.speed:
            return
        due_s = end_s / self._script.speed
        if (wait_s := due_s - self._now_s()) > 0:
            time.sleep(wait_s)
        self._run.slips_s.append(self._now_s() - due_s)

    def _wait_for_room(self) -> None:
        # A `send` that has to wait for the server holds a lock that the receiver needs. A closed socket is for it to report.
        with contextlib.suppress(ValueError, OSError):
            select.select([], [self._connection.socket], [])

    def _say(self, audio_s: float, message: Mapping[str, Any]) -> None:
        self._run.messages.append((audio_s, message))
        self._connection.send(json.dumps(message))


def _code_of(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return "a reply in no known shape"
