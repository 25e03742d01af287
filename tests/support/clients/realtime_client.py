"""A raw client of `/v1/realtime` for tests, which checks every event by OpenAI's own models."""

import base64
import contextlib
from collections.abc import Iterator
from typing import Any

from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter
from websockets.sync.client import connect

from tests.support.clients.event_socket import TIMEOUT_S, EventSocket
from tests.support.clients.live_server import LiveServer

EVENT: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)
AUDIO = "input_audio_buffer"
ITEM = "conversation.item"
TRANSCRIPTION = f"{ITEM}.input_audio_transcription"


class RealtimeClient(EventSocket):
    """One WebSocket to the server."""

    def update(self, **audio_input: object) -> dict[str, Any]:
        """Set options of the session, and return what is in force."""
        self.tell("session.update", session={"type": "transcription", "audio": {"input": audio_input}})
        session: dict[str, Any] = self.until("session.updated")[-1]["session"]
        return session

    def append(self, audio: bytes) -> None:
        self.tell(f"{AUDIO}.append", audio=base64.b64encode(audio).decode())

    def check(self, event: dict[str, Any]) -> None:
        EVENT.validate_python(event)


@contextlib.contextmanager
def realtime(server: LiveServer, query: str = "?intent=transcription", **options: Any) -> Iterator[RealtimeClient]:
    """Connect a client that has sent and read nothing yet."""
    url = f"ws://127.0.0.1:{server.port}/v1/realtime{query}"
    with connect(url, compression=None, proxy=None, close_timeout=TIMEOUT_S, max_size=None, **options) as socket:
        yield RealtimeClient(socket)


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]
