"""A server of `/v1/stream` for tests of its clients: loud audio is speech, and a quarter of a second of it is a word.

It keeps the contract to the letter, unless it is told to twist its events. It serves the page at `/` too, as the server does.
"""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import numpy as np
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

from server.api.app import PAGE, PAGE_HEADERS

Event = dict[str, Any]
WINDOW_S = 0.02
LOUD = 0.01
WORD_S = 0.25
PARTIAL_EVERY_S = 0.2
PADDING_AFTER_S = 0.04
WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliet", "kilo", "lima")
START_KEYS = {"type", "instruction", "sample_rate_hz", "encoding", "partials", "words", "scope", "voice", "max_tokens", "draft"}


def unchanged(event: Event) -> list[Event]:
    return [event]


def has_all(_server: "ScriptedServer") -> bool:
    return True


@dataclass
class ScriptedServer:
    """The address, the messages that came, and the way it misbehaves: `twist` makes any number of events of one.

    A session is idle after `idle_timeout_s` in which nothing came, once `may_idle` says so of what came before.
    """

    url: str = ""
    twist: Callable[[Event], list[Event]] = unchanged
    close_code: int = 1000
    refusal: tuple[int, str] | None = None
    idle_timeout_s: float = 10.0
    may_idle: Callable[["ScriptedServer"], bool] = has_all
    starts: list[Event] = field(default_factory=list)
    messages: list[Event] = field(default_factory=list)
    audio: list[bytes] = field(default_factory=list)
    gone: list[int | None] = field(default_factory=list)
    """The close code of each session that is over, None where there was none."""

    def answer_http(self, _connection: ServerConnection, request: Request) -> Response | None:
        """The page, or a refusal of the upgrade; None lets it through."""
        if request.path == "/":
            headers = Headers({**PAGE_HEADERS, "content-type": "text/html; charset=utf-8"})
            return Response(HTTPStatus.OK, "OK", headers, PAGE.read_bytes())
        if request.path != "/v1/stream":
            return Response(HTTPStatus.OK, "OK", Headers(), b"{}")
        if self.refusal is None:
            return None
        status, code = self.refusal
        body = {"error": {"message": "No.", "type": "t", "param": None, "code": code}, "request_id": "r"}
        return Response(status, "Refused", Headers({"Retry-After": "3"}), json.dumps(body).encode())

    def serve_one(self, connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            _Session(self, connection).run()
            # Until the client has answered.
            connection.recv()
        self.gone.append(connection.close_code if connection.close_code != CloseCode.ABNORMAL_CLOSURE else None)


class _Session:
    def __init__(self, server: ScriptedServer, connection: ServerConnection) -> None:
        self._server, self._connection = server, connection
        self._rest = np.zeros(0, np.float32)
        self._rate_hz, self._padding_s, self._silence_s = 16_000, 0.3, 0.5
        self._now_s = self._past_s = 0.0
        self._utterance = 0
        self._start_s: float | None = None
        self._loud_s = self._loud_end_s = self._partial_s = 0.0
        self._wants: Event = {}

    def run(self) -> None:
        first = self._receive()
        if first is None:
            return
        start = json.loads(first)
        if start.get("type") != "start" or set(start) - START_KEYS:
            self._fail("invalid_request", 1008)
            return
        self._server.starts.append(start)
        self._wants = start
        self._rate_hz = start.get("sample_rate_hz", 16_000)
        voice = start.get("voice", {})
        self._padding_s = voice.get("prefix_padding_ms", 300) / 1000
        self._silence_s = voice.get("silence_duration_ms", 500) / 1000
        limits = {"idle_timeout_s": self._server.idle_timeout_s, "max_session_s": 7200, "max_frame_bytes": 262144}
        rates = {"sample_rate_hz": self._rate_hz, "encoding": "pcm16"}
        self._tell({"type": "ready", "session_id": "stream-1", **rates, "limits": limits})
        while self._take():
            pass

    def _receive(self) -> str | bytes | None:
        """The next message; None where there is none in time, which ends the session."""
        try:
            return self._connection.recv(timeout=self._server.idle_timeout_s if self._server.may_idle(self._server) else None)
        except TimeoutError:
            self._fail("session_idle", 1008)
            return None

    def _take(self) -> bool:
        message = self._receive()
        if message is None:
            return False
        if isinstance(message, bytes):
            self._server.audio.append(message)
            self._listen(np.frombuffer(message, "<i2").astype(np.float32) / 32768)
            return True
        asked = json.loads(message)
        self._server.messages.append(asked)
        if asked["type"] == "flush":
            self._finish()
            self._tell({"type": "flushed", "id": asked["id"]})
        elif asked["type"] == "end":
            self._finish()
            audio_s = self._now_s + len(self._rest) / self._rate_hz
            self._tell({"type": "ended", "audio_s": audio_s, "basis": "utterances", "sections": 1})
            self._connection.close(self._server.close_code)
            return False
        return True

    def _listen(self, samples: Any) -> None:
        window = round(WINDOW_S * self._rate_hz)
        audio = np.concatenate((self._rest, samples))
        whole = len(audio) // window * window
        self._rest = audio[whole:]
        for piece in audio[:whole].reshape(-1, window):
            self._now_s += WINDOW_S
            self._hear(float(np.sqrt(np.mean(piece**2))) > LOUD)

    def _hear(self, is_loud: bool) -> None:
        if is_loud:
            if self._start_s is None:
                self._start_s = max(self._past_s, self._now_s - WINDOW_S - self._padding_s)
                self._loud_s = self._partial_s = 0.0
                self._tell({"type": "speech_started", "utterance": self._utterance, "start_s": round(self._start_s, 3)})
            self._loud_s += WINDOW_S
            self._loud_end_s = self._now_s
            if self._loud_s >= self._partial_s + PARTIAL_EVERY_S and self._wants.get("partials", True):
                self._partial_s = self._loud_s
                self._tell_partial()
        elif self._start_s is not None and self._now_s - self._loud_end_s >= self._silence_s - 1e-6:
            self._finish()

    def _words(self) -> list[str]:
        return [WORDS[number % len(WORDS)] for number in range(int(self._loud_s / WORD_S))]

    def _tell_partial(self) -> None:
        words = self._words()
        times = {"start_s": self._start_s, "stable_end_s": max(self._start_s or 0.0, self._now_s - WORD_S), "end_s": self._now_s}
        stable, tail = " ".join(words[:-1]), " ".join(words[-1:])
        text = {"stable": stable, "tail": f" {tail}" if stable else tail}
        self._tell({"type": "partial", "utterance": self._utterance, **text, **{k: round(v or 0.0, 3) for k, v in times.items()}})

    def _finish(self) -> None:
        if self._start_s is None:
            return
        end_s = min(self._now_s, self._loud_end_s + PADDING_AFTER_S)
        times = {"start_s": round(self._start_s, 3), "end_s": round(end_s, 3)}
        final = {"type": "final", "utterance": self._utterance, "text": " ".join(self._words()), "finish_reason": "stop", **times}
        self._tell({**final, "usage": {}, "times_ms": {"total_ms": 1.0}, "speculation": {}})
        self._past_s, self._start_s = end_s, None
        self._utterance += 1

    def _tell(self, event: Event) -> None:
        # A client that has closed hears nothing more; what it sent before is still read.
        with contextlib.suppress(ConnectionClosed):
            for each in self._server.twist(event):
                self._connection.send(json.dumps(each))

    def _fail(self, code: str, close_code: int) -> None:
        error = {"message": "It cannot go on.", "type": "invalid_request_error", "param": None, "code": code}
        self._tell({"type": "error", "error": error, "request_id": "r", "fatal": True})
        self._connection.close(close_code)


@contextlib.contextmanager
def scripted_server(**attributes: Any) -> Iterator[ScriptedServer]:
    """Serve on a free port of the loopback interface until the block ends."""
    scripted = ScriptedServer(**attributes)
    listener: Server = serve(
        scripted.serve_one, "127.0.0.1", 0, process_request=scripted.answer_http, compression=None, close_timeout=1
    )
    scripted.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
    thread = threading.Thread(target=listener.serve_forever)
    thread.start()
    try:
        yield scripted
    finally:
        listener.shutdown()
        thread.join()
