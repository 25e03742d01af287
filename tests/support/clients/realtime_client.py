"""A raw client of `/v1/realtime` for tests, which checks every event by OpenAI's own models."""

import base64
import contextlib
import json
from collections.abc import Iterator
from typing import Any

from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter
from websockets.exceptions import ConnectionClosed
from websockets.frames import Close
from websockets.sync.client import ClientConnection, connect

from tests.support.clients.live_server import LiveServer
from tests.support.clients.stream_client import TIMEOUT_S

EVENT: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)
AUDIO = "input_audio_buffer"
ITEM = "conversation.item"
TRANSCRIPTION = f"{ITEM}.input_audio_transcription"


class RealtimeClient:
    """One WebSocket to the server."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    def tell(self, type: str, **fields: object) -> None:
        self.socket.send(json.dumps({"type": type, **fields}))

    def update(self, **audio_input: object) -> dict[str, Any]:
        """Set options of the session, and return what is in force."""
        self.tell("session.update", session={"type": "transcription", "audio": {"input": audio_input}})
        session: dict[str, Any] = self.until("session.updated")[-1]["session"]
        return session

    def append(self, audio: bytes) -> None:
        self.tell(f"{AUDIO}.append", audio=base64.b64encode(audio).decode())

    def event(self) -> dict[str, Any]:
        """Return the next event. Raises `ConnectionClosed`, or an error of pydantic's."""
        event: dict[str, Any] = json.loads(self.socket.recv(TIMEOUT_S))
        EVENT.validate_python(event)
        return event

    def until(self, type: str) -> list[dict[str, Any]]:
        """Return the events up to the next of this type."""
        events = [self.event()]
        while events[-1]["type"] != type:
            events.append(self.event())
        return events

    def rest(self) -> tuple[list[dict[str, Any]], Close]:
        """Return the events up to the close, and how the server closed."""
        events = []
        try:
            while True:
                events.append(self.event())
        except ConnectionClosed as closed:
            if closed.rcvd is None:
                raise AssertionError("the connection was cut") from None
            return events, closed.rcvd


@contextlib.contextmanager
def realtime(server: LiveServer, query: str = "?intent=transcription", **options: Any) -> Iterator[RealtimeClient]:
    """Connect a client that has sent and read nothing yet."""
    url = f"ws://127.0.0.1:{server.port}/v1/realtime{query}"
    with connect(url, compression=None, proxy=None, close_timeout=TIMEOUT_S, max_size=None, **options) as socket:
        yield RealtimeClient(socket)


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]
