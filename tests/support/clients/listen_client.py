"""A raw client of `/v1/listen` for tests, which checks every message by the models of Deepgram's SDK."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pydantic
from deepgram.listen.v1.types.listen_v1error import ListenV1Error
from deepgram.listen.v1.types.listen_v1metadata import ListenV1Metadata
from deepgram.listen.v1.types.listen_v1results import ListenV1Results
from deepgram.listen.v1.types.listen_v1speech_started import ListenV1SpeechStarted
from deepgram.listen.v1.types.listen_v1utterance_end import ListenV1UtteranceEnd
from websockets.exceptions import ConnectionClosed
from websockets.frames import Close
from websockets.sync.client import ClientConnection, connect

from tests.support.clients.live_server import LiveServer
from tests.support.clients.stream_client import TIMEOUT_S

MODELS: dict[str, type[pydantic.BaseModel]] = {
    "Results": ListenV1Results,
    "Metadata": ListenV1Metadata,
    "SpeechStarted": ListenV1SpeechStarted,
    "UtteranceEnd": ListenV1UtteranceEnd,
    "Error": ListenV1Error,
}


class ListenClient:
    """One WebSocket to the server."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    def tell(self, type: str) -> None:
        self.socket.send(json.dumps({"type": type}))

    def say(self, audio: bytes) -> None:
        self.socket.send(audio)

    def message(self) -> dict[str, Any]:
        """Return the next message. Raises `ConnectionClosed`, or an error of pydantic's."""
        message: dict[str, Any] = json.loads(self.socket.recv(TIMEOUT_S))
        MODELS[message["type"]].model_validate(message)
        return message

    def until(self, type: str) -> list[dict[str, Any]]:
        """Return the messages up to the next of this type."""
        messages = [self.message()]
        while messages[-1]["type"] != type:
            messages.append(self.message())
        return messages

    def finals(self, count: int) -> list[dict[str, Any]]:
        """Return the messages up to so many final results."""
        messages: list[dict[str, Any]] = []
        while sum(message.get("is_final", False) for message in messages) < count:
            messages.append(self.message())
        return messages

    def rest(self) -> tuple[list[dict[str, Any]], Close]:
        """Return the messages up to the close, and how the server closed."""
        messages = []
        try:
            while True:
                messages.append(self.message())
        except ConnectionClosed as closed:
            if closed.rcvd is None:
                raise AssertionError("the connection was cut") from None
            return messages, closed.rcvd


LINEAR16: dict[str, object] = {"encoding": "linear16", "sample_rate": 16_000}


@contextlib.contextmanager
def listening(server: LiveServer, query: dict[str, object] = LINEAR16, **options: Any) -> Iterator[ListenClient]:
    """Connect a client that has sent nothing yet."""
    url = f"ws://127.0.0.1:{server.port}/v1/listen?{urlencode(query, doseq=True)}"
    with connect(url, compression=None, proxy=None, close_timeout=TIMEOUT_S, **options) as socket:
        yield ListenClient(socket)


def transcript(message: dict[str, Any]) -> str:
    text: str = message["channel"]["alternatives"][0]["transcript"]
    return text
