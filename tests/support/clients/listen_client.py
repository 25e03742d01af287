"""A raw client of `/v1/listen` for tests, which checks every message by the models of Deepgram's SDK."""

import contextlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pydantic
from deepgram.listen.v1.types.listen_v1error import ListenV1Error
from deepgram.listen.v1.types.listen_v1metadata import ListenV1Metadata
from deepgram.listen.v1.types.listen_v1results import ListenV1Results
from deepgram.listen.v1.types.listen_v1speech_started import ListenV1SpeechStarted
from deepgram.listen.v1.types.listen_v1utterance_end import ListenV1UtteranceEnd
from websockets.sync.client import connect

from tests.support.clients.event_socket import TIMEOUT_S, EventSocket
from tests.support.clients.live_server import LiveServer

MODELS: dict[str, type[pydantic.BaseModel]] = {
    "Results": ListenV1Results,
    "Metadata": ListenV1Metadata,
    "SpeechStarted": ListenV1SpeechStarted,
    "UtteranceEnd": ListenV1UtteranceEnd,
    "Error": ListenV1Error,
}


class ListenClient(EventSocket):
    """One WebSocket to the server."""

    def check(self, event: dict[str, Any]) -> None:
        MODELS[event["type"]].model_validate(event)

    def finals(self, count: int) -> list[dict[str, Any]]:
        """Return the messages up to so many final results."""
        messages: list[dict[str, Any]] = []
        while sum(message.get("is_final", False) for message in messages) < count:
            messages.append(self.event())
        return messages


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
