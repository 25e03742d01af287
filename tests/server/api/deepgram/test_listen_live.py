"""Deepgram's live `/v1/listen` over a real WebSocket; every message is valid by the models of Deepgram's SDK."""

import hashlib
import json
import time
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import InvalidStatus

from server.engine.types.events import Listened
from server.engine.types.requests import Audio
from server.errors import EngineFailed, Overloaded
from tests.support.clients.listen_client import LINEAR16, listening, transcript
from tests.support.clients.live_server import LiveServer, audio_file, live_server, tone, wait_until
from tests.support.clients.stream_client import only_session, pcm
from tests.support.fakes.fake_engine import FakeEngine

TEXT = "Transcribe the speech to text. {}"


def types(messages: list[dict[str, Any]]) -> list[str]:
    return [message["type"] for message in messages]


def test_the_messages_of_a_stream(server: LiveServer, engine: FakeEngine) -> None:
    query = {**LINEAR16, "interim_results": "true", "vad_events": "true", "model": "nova-3", "language": "en-US"}
    audio = pcm(0.5)
    with listening(server, query) as client:
        assert engine.sessions == {}
        client.say(audio)
        started, interim = client.event(), client.event()
        request = only_session(engine).request
        client.say(audio)
        (final,) = client.finals(1)
        client.tell("CloseStream")
        messages, close = client.events()
        assert client.socket.response is not None
        request_id = client.socket.response.headers["dg-request-id"]
    task = request.task
    assert (task.language, task.word_times, task.sampling.logprobs, request.partials) == ("en", "if_known", 0, True)
    assert request.voice.silence_s == 0.3
    assert started == {"type": "SpeechStarted", "channel": [0], "timestamp": 0.0}
    assert (interim["is_final"], transcript(interim), interim["start"], interim["duration"]) == (False, "so far and on", 0, 0.5)
    assert (final["is_final"], final["speech_final"], final["from_finalize"]) == (True, True, False)
    assert (transcript(final), final["start"], final["duration"]) == (TEXT.format(0), 0.0, 1.0)
    first = final["channel"]["alternatives"][0]["words"][0]
    assert (first["word"], first["punctuated_word"], first["start"]) == ("transcribe", "Transcribe", 0.0)
    assert final["metadata"]["request_id"] == request_id
    assert final["metadata"]["model_info"]["name"] == "nova-3"
    (metadata,) = messages
    assert (metadata["type"], metadata["duration"], metadata["channels"]) == ("Metadata", 1.0, 1)
    assert metadata["sha256"] == hashlib.sha256(audio * 2).hexdigest()
    assert close.code == 1000


SAMPLES = tone(1.5, 8000)
AUDIO: list[tuple[dict[str, object], bytes]] = [
    ({"encoding": "linear16", "sample_rate": 8000}, audio_file(SAMPLES, 8000, "RAW", "PCM_16")),
    ({"encoding": "linear32", "sample_rate": 8000}, audio_file(SAMPLES, 8000, "RAW", "FLOAT")),
    ({"encoding": "linear16", "sample_rate": 8000, "channels": 2}, np.repeat(SAMPLES * 32767, 2).astype("<i2").tobytes()),
    ({"encoding": "mulaw"}, audio_file(SAMPLES, 8000, "RAW", "ULAW")),
    ({"encoding": "alaw", "sample_rate": 8000}, audio_file(SAMPLES, 8000, "RAW", "ALAW")),
    (LINEAR16, audio_file(SAMPLES, 8000, "WAV")),
    ({}, audio_file(SAMPLES, 8000, "WAV")),
    ({}, audio_file(SAMPLES, 8000, "OGG", "OPUS")),
    ({"encoding": "opus"}, audio_file(SAMPLES, 8000, "OGG", "OPUS")),
]


@pytest.mark.parametrize(("query", "audio"), AUDIO)
def test_encodings_and_containers(server: LiveServer, engine: FakeEngine, query: dict[str, object], audio: bytes) -> None:
    with listening(server, query) as client:
        for start in range(0, len(audio), 1000):
            client.say(audio[start : start + 1000])
        client.tell("CloseStream")
        messages, close = client.events()
    assert close.code == 1000
    assert messages[-1]["duration"] == pytest.approx(1.5, abs=0.05)
    assert [transcript(message) for message in messages[:-1]] == [TEXT.format(0), TEXT.format(1)]
    (session,) = engine.past_sessions
    heard = np.concatenate([item.samples for item in session.inputs if isinstance(item, Audio)])
    assert np.corrcoef(heard[2000:8000], tone(1.5, 16_000)[2000:8000])[0, 1] > 0.98


def test_a_finalisation_is_told_with_what_it_ended(server: LiveServer) -> None:
    with listening(server) as client:
        client.tell("Finalize")
        (nothing,) = client.finals(1)
        client.say(pcm(1.5))
        client.tell("Finalize")
        finals = client.finals(2)
        client.tell("Finalize")
        (again,) = client.finals(1)
    assert [(transcript(message), message["from_finalize"]) for message in (nothing, *finals, again)] == [
        ("", True),
        (TEXT.format(0), False),
        (TEXT.format(1), True),
        ("", True),
    ]


def test_the_end_of_an_utterance_is_told_after_its_gap(server: LiveServer, engine: FakeEngine) -> None:
    with listening(server, {**LINEAR16, "utterance_end_ms": 1000}) as client:
        client.say(pcm(1.0))
        client.finals(1)
        session = only_session(engine)
        for audio_s in (1.5, 2.1, 2.2):
            session.deliver(Listened(session.request.id, audio_s))
        assert client.event() == {"type": "UtteranceEnd", "channel": [0, 1], "last_word_end": 1.0}
        client.tell("CloseStream")
        assert types(client.events()[0]) == ["Metadata"]


def test_without_endpointing_no_speech_is_final(server: LiveServer) -> None:
    with listening(server, {**LINEAR16, "endpointing": "false"}) as client:
        client.say(pcm(1.0))
        (final,) = client.finals(1)
    assert (final["is_final"], final["speech_final"]) == (True, False)


def test_a_microphone_that_stops_ends_its_utterance_and_keeps_alive() -> None:
    engine = FakeEngine()
    with live_server(engine, live_idle_timeout_s=1.2) as server, listening(server) as client:
        client.say(pcm(0.4))
        for _ in range(8):
            time.sleep(0.3)
            client.tell("KeepAlive")
        assert transcript(client.finals(1)[0]) == TEXT.format(0)
        # The place was given back, and the connection goes on.
        wait_until(lambda: not engine.sessions)
        client.say(pcm(1.0))
        assert client.finals(1)[0]["start"] == 0.4
        messages, close = client.events()
    assert (messages[-1]["variant"], close.code) == ("SESSION_IDLE", 1008)


def test_pings_keep_a_connection() -> None:
    engine = FakeEngine()
    with live_server(engine, live_idle_timeout_s=1.0) as server, listening(server) as client:
        for _ in range(5):
            client.socket.ping().wait(5)
            time.sleep(0.3)
        client.say(pcm(1.0))
        assert transcript(client.finals(1)[0]) == TEXT.format(0)


def test_an_empty_frame_ends_the_stream(server: LiveServer) -> None:
    with listening(server) as client:
        client.say(pcm(1.0))
        client.say(b"")
        client.tell("KeepAlive")
        messages, close = client.events()
    assert (types(messages), close.code) == (["Results", "Metadata"], 1000)


@pytest.mark.parametrize("frame", ["{", "[]", '{"type":"Configure"}', '{"type":1}', "x" * 70_000])
def test_messages_that_mean_nothing_keep_the_stream(server: LiveServer, frame: str) -> None:
    with listening(server) as client:
        client.socket.send(frame)
        assert client.event()["variant"] == "INVALID_REQUEST"
        client.say(pcm(1.0))
        assert transcript(client.finals(1)[0]) == TEXT.format(0)


def test_a_container_that_is_not_read_live(server: LiveServer) -> None:
    with listening(server, {}) as client:
        client.say(b"\x1aE\xdf\xa3" + bytes(100))
        messages, close = client.events()
    assert (messages[-1]["variant"], close.code) == ("UNDECODABLE_AUDIO", 1008)


def test_an_utterance_that_fails_is_told(server: LiveServer, engine: FakeEngine) -> None:
    engine.problems[0] = EngineFailed("It broke.")
    with listening(server) as client:
        client.say(pcm(2.0))
        assert client.event()["description"] == "It broke."
        assert transcript(client.finals(1)[0]) == TEXT.format(1)


def test_no_place_in_the_engine(server: LiveServer, engine: FakeEngine) -> None:
    engine.live_refusal = Overloaded("All live sessions are taken.", retry_after_s=1)
    with listening(server) as client:
        client.say(pcm(1.0))
        messages, close = client.events()
        engine.live_refusal = None
    assert (messages[-1]["variant"], close.code) == ("OVERLOADED", 1013)


BAD_QUERIES: list[tuple[dict[str, object], str]] = [
    ({**LINEAR16, "diarize": "true"}, "diarize"),
    ({**LINEAR16, "redact": ["pci", "ssn"]}, "redact"),
    ({**LINEAR16, "multichannel": "true", "channels": 2}, "multichannel"),
    ({"encoding": "linear16"}, "sample_rate"),
    ({"encoding": "linear16", "sample_rate": 10}, "sample_rate"),
    ({"encoding": "speex", "sample_rate": 16_000}, "encoding"),
    ({**LINEAR16, "channels": 9}, "channels"),
    ({**LINEAR16, "endpointing": "soon"}, "endpointing"),
    ({**LINEAR16, "endpointing": 6000}, "endpointing"),
    ({**LINEAR16, "utterance_end_ms": 10}, "utterance_end_ms"),
    ({**LINEAR16, "interim_results": "maybe"}, "interim_results"),
    ({**LINEAR16, "language": "xx"}, "'xx' is no language"),
    ({**LINEAR16, "detect_language": ["en", "klingon"]}, "'klingon' is no language"),
]


@pytest.mark.parametrize(("query", "name"), BAD_QUERIES)
def test_options_that_cannot_be_honoured(server: LiveServer, query: dict[str, object], name: str) -> None:
    with pytest.raises(InvalidStatus) as refused, listening(server, query):
        pass
    response = refused.value.response
    body = json.loads(response.body)
    assert response.status_code == 400
    assert set(body) == {"err_code", "err_msg", "request_id"}
    assert name in body["err_msg"]


def test_options_that_clients_send_for_nothing(server: LiveServer) -> None:
    """The query of LiveKit's plugin."""
    query = {
        **LINEAR16,
        "model": "nova-3",
        "punctuate": "true",
        "smart_format": "false",
        "no_delay": "true",
        "interim_results": "True",
        "vad_events": "true",
        "channels": 1,
        "endpointing": 25,
        "filler_words": "true",
        "profanity_filter": "false",
        "numerals": "false",
        "mip_opt_out": "false",
        "keyterm": ["Thinbridge", "adapter"],
        "language": "multi",
        "new": "1",
    }
    with listening(server, query, subprotocols=["token", "secret"]) as client:
        assert client.socket.subprotocol == "token"
        client.say(pcm(1.0))
        client.finals(1)


def test_a_server_that_is_not_ready() -> None:
    engine = FakeEngine()
    engine.may_start.clear()
    with live_server(engine) as server:
        with pytest.raises(InvalidStatus) as refused, listening(server):
            pass
        engine.may_start.set()
    assert refused.value.response.status_code == 503
    assert json.loads(refused.value.response.body)["err_code"] == "NOT_READY"
