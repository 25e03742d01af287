"""vLLM's realtime dialect: a first event with a model tells it from OpenAI's."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.clients.live_server import LiveServer, scripted_engine_server
from tests.support.clients.realtime_client import AUDIO, RealtimeClient, realtime
from tests.support.clients.stream_client import pcm

TEXT = "Transcribe the speech to text. {}"


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with scripted_engine_server() as (_, live):
        yield live


def event(client: RealtimeClient) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(client.socket.recv(20))
    return content


def transcript(client: RealtimeClient, seconds: float) -> tuple[str, dict[str, Any]]:
    """Send audio as guidellm does; return the deltas joined, and the last event."""
    client.tell(f"{AUDIO}.commit", final=False)
    audio = pcm(seconds)
    for start in range(0, len(audio), 6400):
        client.tell(f"{AUDIO}.append", audio=base64.b64encode(audio[start : start + 6400]).decode())
    client.tell(f"{AUDIO}.commit", final=True)
    deltas = ""
    while (content := event(client))["type"] == "transcription.delta":
        deltas += content["delta"]
    return deltas, content


def test_transcripts_between_commits(server: LiveServer) -> None:
    with realtime(server, "") as client:
        created = event(client)
        assert created["type"] == "session.created"
        assert created["id"].startswith("sess_")
        client.tell("session.update", model="whisper-1")
        deltas, done = transcript(client, 1.5)
        _, again = transcript(client, 1.0)
        _, empty = transcript(client, 0.0)
    assert done["type"] == "transcription.done"
    assert done["text"] == f"{TEXT.format(0)} {TEXT.format(1)}"
    assert done["usage"] == {"prompt_tokens": 48, "completion_tokens": 12, "total_tokens": 60}
    assert deltas.startswith("so far")
    assert again["text"] == TEXT.format(2)
    assert empty["text"] == ""


def test_errors_are_plain_and_keep_the_session(server: LiveServer) -> None:
    with realtime(server, "") as client:
        event(client)
        client.tell("session.update", model="whisper-1")
        client.tell("session.update", model="other")
        assert event(client)["code"] == "model_not_found"
        client.tell("nonsense")
        assert event(client) == {"type": "error", "error": "There is no event 'nonsense'.", "code": "invalid_request"}
        assert transcript(client, 0.5)[1]["text"] == TEXT.format(0)
