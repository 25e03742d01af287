"""Sessions at `/v1/stream` that are begun and dropped at any point, in every way in which a client can go."""

import io
import json
import random
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

import numpy as np
import soundfile
from websockets.client import ClientProtocol
from websockets.exceptions import WebSocketException
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

from loadtest.clients.stream import stream_url
from loadtest.live.audio import StreamAudio
from loadtest.support.instructions import TRANSCRIBE
from loadtest.support.recordings import RATE_HZ

FIRST_PAGE_BYTES = 8192
PIECE_BYTES = 3200
FAST = 8.0
"""How many times faster than real time the audio is sent."""
TIMEOUT_S = 30.0
RECEIVE_BYTES = 65536


class Leaving(StrEnum):
    """How a client leaves."""

    END = "says that it is through, and waits for the end"
    CLOSE = "closes the WebSocket"
    RESET = "resets the connection (RST)"
    SILENCE = "falls silent until the server ends it"


LAST_EVENTS = {Leaving.END: "ended", Leaving.SILENCE: "error session_idle"}


class Point(StrEnum):
    """When a client leaves."""

    CONNECTED = "before its first message"
    READY = "before any audio"
    AUDIO = "within its audio"
    FLUSH = "right after a flush"


@dataclass(frozen=True)
class Drop:
    """One session, whose client sends `share` of the audio unless it leaves before."""

    leaving: Leaving
    point: Point
    share: float
    encoding: str


def choose_drop(seed: int, opus_share: float) -> Drop:
    """Return one of all drops, by the seed alone. A client that leaves before its first message cannot say that it is through."""
    chance = random.Random(seed)
    leaving = chance.choice(list(Leaving))
    point = chance.choice([each for each in Point if leaving != Leaving.END or each != Point.CONNECTED])
    return Drop(leaving, point, chance.random(), "ogg_opus" if chance.random() < opus_share else "pcm16")


def as_opus(audio: StreamAudio) -> bytes:
    """Return audio as an Ogg Opus file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, audio.samples.astype(np.float32) / 32768, RATE_HZ, format="OGG", subtype="OPUS")
    return buffer.getvalue()


class DropClient:
    """One connection, all of it in one thread, so that it can be reset at once. A context manager."""

    def __init__(self, url: str) -> None:
        """Connect and upgrade. Raises `OSError`; where the server refuses, it is a `ConnectionError`."""
        address = urlsplit(url)
        self._socket = socket.create_connection((address.hostname, address.port), TIMEOUT_S)
        self._protocol = ClientProtocol(parse_uri(stream_url(url)), max_size=None)
        self.events: list[str] = []
        self.is_over = False
        try:
            self._upgrade()
        except BaseException:
            self._socket.close()
            raise

    def _upgrade(self) -> None:
        self._protocol.send_request(self._protocol.connect())
        self._flush()
        while not self._take():
            pass

    def say(self, **message: object) -> None:
        self._protocol.send_text(json.dumps(message).encode())
        self._flush()

    def send(self, piece: bytes) -> None:
        self._protocol.send_binary(piece)
        self._flush()

    def wait_for(self, *types: str) -> None:
        """Until such an event, or the end of the session, has come. Raises `TimeoutError`."""
        while not self.is_over and not set(types) & set(self.events):
            self._take()

    def wait_for_end(self) -> None:
        """Until the server has closed the connection. Raises `TimeoutError`."""
        while not self.is_over:
            self._take()

    def close(self) -> None:
        """Close the connection in an orderly way."""
        self._protocol.send_close(CloseCode.NORMAL_CLOSURE)
        self._flush()
        self.wait_for_end()

    def reset(self) -> None:
        """Send RST and forget the connection."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._socket.sendall(data)

    def _take(self) -> bool:
        """Take what has come; return whether it belonged to the WebSocket."""
        data = self._socket.recv(RECEIVE_BYTES)
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
            self.is_over = True
        found = self._protocol.events_received()
        for event in found:
            if isinstance(event, Response) and event.status_code != 101:
                raise ConnectionError(f"status {event.status_code}")
            if isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                told = json.loads(bytes(event.data))
                self.events.append(f"error {told['error']['code']}" if told["type"] == "error" else told["type"])
        self._flush()
        return bool(found) or self.is_over

    def __enter__(self) -> "DropClient":
        return self

    def __exit__(self, *_error: object) -> None:
        self._socket.close()


def run_drop(url: str, drop: Drop, pcm: bytes, opus: bytes) -> str:
    """Have one session; an empty string, or what the server did wrong."""
    name = f"{drop.leaving.name} {drop.point.name} {drop.encoding}"
    try:
        with DropClient(url) as client:
            try:
                _speak(client, drop, opus if drop.encoding == "ogg_opus" else pcm)
                last = _leave(client, drop.leaving)
            except (OSError, WebSocketException) as error:
                return f"{name}: {error!r} after {client.events[-3:]}"
    except OSError as error:
        return f"{name}: {error!r}"
    expected = LAST_EVENTS.get(drop.leaving, last)
    return "" if last == expected else f"{name}: the last event is {last!r}, not {expected!r}"


def _speak(client: DropClient, drop: Drop, data: bytes) -> None:
    if drop.point == Point.CONNECTED:
        return
    client.say(type="start", instruction=TRANSCRIBE, encoding=drop.encoding, voice={"silence_duration_ms": 200})
    client.wait_for("ready")
    if drop.point == Point.READY:
        return
    # Of Opus at least the first page of audio: what is cut off before that is no stream.
    least = FIRST_PAGE_BYTES if drop.encoding == "ogg_opus" else 0
    for piece in _pieces(data[: max(least, int(drop.share * len(data)))]):
        client.send(piece)
        time.sleep(PIECE_BYTES / (2 * RATE_HZ) / FAST)
    if drop.point == Point.FLUSH:
        client.say(type="flush", id="drop")


def _pieces(data: bytes) -> Iterator[bytes]:
    return (data[start : start + PIECE_BYTES] for start in range(0, len(data), PIECE_BYTES))


def _leave(client: DropClient, leaving: Leaving) -> str:
    """Return the last event before the server closed, where it did."""
    match leaving:
        case Leaving.CLOSE:
            client.close()
        case Leaving.RESET:
            client.reset()
        case Leaving.END:
            client.say(type="end")
            client.wait_for_end()
        case Leaving.SILENCE:
            client.wait_for_end()
    return client.events[-1] if client.events else ""
