"""`channels=separate` and Deepgram's `multichannel`: an answer for each channel."""

import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from deepgram.types.listen_v1response import ListenV1Response
from websockets.exceptions import InvalidStatus

from server.errors import EngineFailed
from tests.support.clients.listen_client import LINEAR16, listening
from tests.support.clients.live_server import (
    LiveServer,
    audio_file,
    error_code,
    instruct,
    scripted_engine_server,
    tone,
    wait_until,
)
from tests.support.fakes.fake_engine import FakeEngine

RATE_HZ = 16_000
LEFT, RIGHT = tone(1.5, RATE_HZ), tone(1.5, RATE_HZ, 1000.0)
STEREO = audio_file(np.stack([LEFT, RIGHT], axis=1), RATE_HZ, "WAV", "FLOAT")
SEPARATE = {"channels": "separate"}


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[FakeEngine, LiveServer]]:
    with scripted_engine_server(max_audio_s=80.0) as running:
        yield running


def test_each_channel_has_a_reply_of_its_own(server: LiveServer, engine: FakeEngine) -> None:
    response = instruct(server, STEREO, **SEPARATE, timestamps="words")
    reply = response.json()
    assert response.status_code == 200, reply
    assert "total;dur=" in response.headers["server-timing"]
    assert (reply["audio_s"], [each["text"] for each in reply["channels"]]) == (1.5, ["hello world"] * 2)
    assert [each["id"] for each in reply["channels"]] == [f"{reply['id']}-0", f"{reply['id']}-1"]
    assert [len(each["words"]) for each in reply["channels"]] == [2, 2]
    assert reply["usage"]["total_tokens"] == sum(each["usage"]["total_tokens"] for each in reply["channels"])
    heard = {request.id: request.audio for request in engine.submitted}
    for number, expected in enumerate((LEFT, RIGHT)):
        np.testing.assert_array_equal(heard[f"{reply['id']}-{number}"], expected)


def test_one_channel_is_a_list_of_one(server: LiveServer) -> None:
    assert len(instruct(server, audio_file(LEFT, RATE_HZ, "FLAC"), **SEPARATE).json()["channels"]) == 1


def test_long_channels_are_cut_at_their_pauses(server: LiveServer, engine: FakeEngine) -> None:
    long = audio_file(np.stack([tone(31.0, RATE_HZ), tone(31.0, RATE_HZ, 1000.0)], axis=1), RATE_HZ, "FLAC")
    reply = instruct(server, long, "Transcribe.", **SEPARATE).json()
    assert [each["basis"] for each in reply["channels"]] == ["utterances"] * 2
    assert [session.audio_s for session in engine.past_sessions] == [31.0] * 2


def test_all_channels_together_may_last_as_long_as_audio_may(server: LiveServer) -> None:
    long = audio_file(np.zeros((41 * RATE_HZ, 2), np.float32), RATE_HZ, "WAV")
    response = instruct(server, long, **SEPARATE)
    assert (response.status_code, error_code(response)) == (413, "audio_too_long")
    assert "2 channels" in response.json()["error"]["message"]


@pytest.mark.parametrize("fields", [{"stream": "true"}, {"format": "srt"}, {"channels": "both"}])
def test_what_does_not_go_together_is_refused(server: LiveServer, engine: FakeEngine, fields: dict[str, str]) -> None:
    response = instruct(server, STEREO, **{**SEPARATE, **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "channels")
    assert engine.submitted == []


def test_a_failure_fails_the_request(server: LiveServer, engine: FakeEngine) -> None:
    engine.failure = EngineFailed("The engine failed.")
    assert error_code(instruct(server, STEREO, **SEPARATE)) == "engine_failed"


def test_a_client_that_leaves_ends_the_work_on_all_channels(server: LiveServer, engine: FakeEngine) -> None:
    engine.answers = False
    form: dict[str, Any] = {"files": {"audio": ("clip", STEREO)}, "data": {"instruction": "Transcribe.", **SEPARATE}}
    request = server.client.build_request("POST", "/v1/instruct", **form)
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    with socket.create_connection(("127.0.0.1", server.port)) as peer:
        peer.sendall(f"POST /v1/instruct HTTP/1.1\r\n{head}\r\n".encode() + request.read())
        wait_until(lambda: engine.pending == 2)
    wait_until(lambda: engine.pending == 0)


def test_deepgrams_reply_lists_the_channels(server: LiveServer, engine: FakeEngine) -> None:
    body = server.client.post("/v1/listen?multichannel=true&utterances=true", content=STEREO).json()
    ListenV1Response.model_validate(body)
    assert (body["metadata"]["channels"], body["metadata"]["duration"]) == (2, 1.5)
    assert [each["alternatives"][0]["transcript"] for each in body["results"]["channels"]] == ["hello world"] * 2
    assert [each["channel"] for each in body["results"]["utterances"]] == [0, 1]
    samples = np.rint(np.stack([LEFT, RIGHT], axis=1) * 2**15).astype("<i2").tobytes()
    query = f"multichannel=true&encoding=linear16&channels=2&sample_rate={RATE_HZ}"
    body = server.client.post(f"/v1/listen?{query}", content=samples).json()
    assert len(body["results"]["channels"]) == 2
    assert len(engine.submitted) == 4


def test_live_channels_are_mixed(server: LiveServer) -> None:
    with pytest.raises(InvalidStatus) as refusal, listening(server, {"multichannel": "true", **LINEAR16}):
        pass
    assert refusal.value.response.status_code == 400
    assert b"multichannel" in (refusal.value.response.body or b"")
