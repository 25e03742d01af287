"""A session of `thinbridge mic`: audio into a running server at real-time pace, and what it makes of it on the screen.

Two threads share the connection: one sends, paced by the audio's own clock, the caller's receives. Latencies count from the
speech that was sent, as its loudness shows it, and not from where the server says that it was.
"""

import contextlib
import json
import select
import signal
import statistics
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import ClientConnection, connect

from server.client.mic_source import PIECE_S, SAMPLE_BYTES, Source
from server.client.mic_view import View, Waits

LEVEL_S = 0.01
# Softer than the loudest part of an utterance by so much (30 dB) is not its speech.
SPEECH_SHARE = 0.03
MAX_EVENT_BYTES = 2**24
CLOSE_TIMEOUT_S = 2.0


class MicError(RuntimeError):
    """There is no session; the message is for the operator."""


@dataclass
class Summary:
    """What a session came to. `failures` are the messages of errors, `ended` is whether everything was answered."""

    audio_s: float = 0.0
    waits: list[Waits] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    ended: bool = False

    def lines(self) -> Iterator[str]:
        """For the operator."""
        count = len(self.waits)
        yield f"{count} utterance{'' if count == 1 else 's'} in {self.audio_s:.1f} s of audio"
        waited = {
            "end of speech to answer": [waits.final_s for waits in self.waits],
            "onset of speech to first text": [waits.first_text_s for waits in self.waits if waits.first_text_s is not None],
        }
        for name, seconds in waited.items():
            if seconds:
                yield f"{name}: median {1000 * statistics.median(seconds):.0f} ms, longest {1000 * max(seconds):.0f} ms"


def open_session(url: str) -> ClientConnection:
    """A connection to `/v1/stream` of the server at `url`, on which nothing has been said. Raises `MicError`."""
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    address = parts._replace(scheme=scheme, path=parts.path.rstrip("/") + "/v1/stream").geturl()
    try:
        # No pings: behind minutes of audio that the server has yet to take they would seem to get no answer.
        return connect(
            address,
            compression=None,
            proxy=None,
            max_size=MAX_EVENT_BYTES,
            close_timeout=CLOSE_TIMEOUT_S,
            ping_interval=None,
        )
    except InvalidStatus as error:
        raise MicError(_refusal(error.response.status_code, bytes(error.response.body or b""))) from None
    except (InvalidURI, InvalidHandshake, OSError) as error:
        raise MicError(f"No server answers at {url} ({error}); `thinbridge serve` starts one, --url names another.") from None


def _refusal(status: int, body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"The server has no live audio: it answered {status}."


class Sent:
    """The audio that has been sent: how loud it was where, and when."""

    def __init__(self, rate_hz: int, speed: float) -> None:
        self._rate_hz, self._speed = rate_hz, speed
        self._levels, self._moments_s = array("f"), array("d")
        self.samples = 0

    @property
    def seconds(self) -> float:
        return self.samples / self._rate_hz

    def add(self, piece: bytes, moment_s: float) -> None:
        """A piece that is sent at a moment of the monotonic clock."""
        samples = np.frombuffer(piece, "<i2").astype(np.float32)
        parts = np.array_split(samples, round(PIECE_S / LEVEL_S))
        self._levels.extend(float(np.sqrt(np.mean(part**2))) if len(part) else 0.0 for part in parts)
        self._moments_s.append(moment_s)
        self.samples += len(samples)

    def speech_within(self, start_s: float, end_s: float) -> tuple[float, float]:
        """The onset and the end of what is loud in a stretch of the audio."""
        first = round(start_s / LEVEL_S)
        levels = self._levels[first : round(end_s / LEVEL_S)]
        threshold = SPEECH_SHARE * max(levels, default=0.0)
        loud = [place for place, level in enumerate(levels, first) if level >= threshold]
        return (loud[0] * LEVEL_S, (loud[-1] + 1) * LEVEL_S) if loud else (start_s, end_s)

    def moment_s(self, audio_s: float) -> float:
        """When a moment of the audio was spoken, by the clock: as much before its piece was sent as is left of the piece."""
        piece = min(int(audio_s / PIECE_S), len(self._moments_s) - 1)
        left_s = max(0.0, (piece + 1) * PIECE_S - audio_s)
        return self._moments_s[piece] - (left_s / self._speed if self._speed else 0.0)


@contextlib.contextmanager
def _at_interrupt(action: Callable[[], None]) -> Iterator[None]:
    """Within it the first Ctrl-C has something done beside, and interrupts nothing: an event would be lost half shown.

    The next is a `KeyboardInterrupt`, also where the shell has told the process to ignore them, as it does in the background.
    """

    def interrupted(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Thread(target=action, daemon=True).start()

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Session:
    """One session on a connection. A speed of 0 sends as fast as the server takes it."""

    def __init__(self, connection: ClientConnection, source: Source, speed: float, view: View) -> None:
        self._connection, self._source, self._speed, self._view = connection, source, speed, view
        self._sent = Sent(source.rate_hz, speed)
        self._summary = Summary()
        self._first_texts_s: dict[int, float] = {}
        self._origin_s = time.monotonic()
        self._saying = threading.Lock()
        self._said_all = False

    def run(self, start: Mapping[str, Any]) -> Summary:
        """Play the source to its end, or until Ctrl-C, and return when the server has answered everything.

        `start` holds what goes into the first message besides the rate. A second Ctrl-C is a `KeyboardInterrupt`. For the main
        thread, to which signals go.
        """
        self._connection.send(json.dumps({"type": "start", "sample_rate_hz": self._source.rate_hz, **start}))
        sender = threading.Thread(target=self._play, daemon=True)
        try:
            self._take(self._connection.recv())
            self._origin_s = time.monotonic()
            sender.start()
            with _at_interrupt(self._say_all):
                while True:
                    self._take(self._connection.recv())
        except ConnectionClosed as closed:
            if not self._summary.ended and not self._summary.failures:
                self._summary.failures.append(f"The server closed the session: {closed}.")
        self._summary.audio_s = self._sent.seconds
        return self._summary

    def _play(self) -> None:
        clock_s = 0.0
        with contextlib.suppress(ConnectionClosed):
            for piece in self._source.pieces:
                clock_s += len(piece) / (SAMPLE_BYTES * self._source.rate_hz)
                if self._speed:
                    time.sleep(max(0.0, self._origin_s + (clock_s - self._source.lead_s) / self._speed - time.monotonic()))
                self._wait_for_room()
                with self._saying:
                    if self._said_all:
                        return
                    self._sent.add(piece, time.monotonic())
                    self._connection.send(piece)
            self._say_all()

    def _wait_for_room(self) -> None:
        # A `send` that has to wait for the server holds a lock that the receiver needs. A closed socket is for it to report.
        with contextlib.suppress(ValueError, OSError):
            select.select([], [self._connection.socket], [])

    def _say_all(self) -> None:
        with self._saying, contextlib.suppress(ConnectionClosed):
            if not self._said_all:
                self._said_all = True
                self._connection.send(json.dumps({"type": "end"}))

    def _take(self, message: str | bytes) -> None:
        now_s = time.monotonic()
        event = json.loads(message)
        waits = None
        match event["type"]:
            case "partial" if (event["stable"] + event["tail"]).strip():
                self._first_texts_s.setdefault(event["utterance"], now_s)
            case "final":
                waits = self._waits(event, now_s)
                self._summary.waits.append(waits)
            case "error":
                self._summary.failures.append(event["error"]["message"])
            case "ended":
                self._summary.ended = True
        self._view.show(event, now_s - self._origin_s, waits)

    def _waits(self, event: Mapping[str, Any], now_s: float) -> Waits:
        onset_s, end_s = self._sent.speech_within(event["start_s"], event["end_s"])
        first_text_s = self._first_texts_s.pop(event["utterance"], None)
        return Waits(
            now_s - self._sent.moment_s(end_s), None if first_text_s is None else first_text_s - self._sent.moment_s(onset_s)
        )
