"""Deepgram's `POST /v1/listen`: the bytes of a file in, its result JSON out."""

import hashlib

import pytest
from deepgram.types.listen_v1response import ListenV1Response

from server.api.deepgram.replies import word_confidences
from server.engine.types.events import TokenLogprob, Word
from tests.support.clients.live_server import LiveServer, audio_file, tone
from tests.support.fakes.fake_engine import FakeEngine

CLIP = audio_file(tone(1.0, 8000), 8000, "WAV")


def test_the_result_of_a_file(server: LiveServer) -> None:
    response = server.client.post("/v1/listen?model=nova-3&utterances=true", content=CLIP, headers={"content-type": "audio/wav"})
    assert response.status_code == 200, response.text
    body = response.json()
    ListenV1Response.model_validate(body)
    metadata = body["metadata"]
    assert metadata["request_id"] == response.headers["x-request-id"]
    assert (metadata["duration"], metadata["channels"], metadata["sha256"]) == (1.0, 1, hashlib.sha256(CLIP).hexdigest())
    (channel,) = body["results"]["channels"]
    (alternative,) = channel["alternatives"]
    assert alternative["transcript"] == "".join(word["punctuated_word"] + " " for word in alternative["words"]).strip()
    assert body["results"]["utterances"][0]["transcript"]
    assert [word for each in body["results"]["utterances"] for word in each["words"]] == alternative["words"]


def test_a_model_without_the_times_of_words_gives_the_text_as_one_utterance(server: LiveServer, engine: FakeEngine) -> None:
    engine.tells_word_times = False
    body = server.client.post("/v1/listen?utterances=true", content=CLIP).json()
    ListenV1Response.model_validate(body)
    (alternative,) = body["results"]["channels"][0]["alternatives"]
    (utterance,) = body["results"]["utterances"]
    assert (alternative["transcript"], alternative["words"]) == ("hello world", [])
    assert (utterance["transcript"], utterance["start"], utterance["end"], utterance["words"]) == ("hello world", 0, 1.0, [])


@pytest.mark.parametrize(
    ("query", "language", "languages"),
    [
        ("language=en-US", "en", ()),
        ("detect_language=true", None, ()),
        ("detect_language=en&detect_language=es-419", None, ("en", "es")),
        ("detect_language=es", "es", ()),
        ("language=en&detect_language=true", None, ()),
        ("language=en&detect_language=false", "en", ()),
    ],
)
def test_languages(server: LiveServer, engine: FakeEngine, query: str, language: str | None, languages: tuple[str, ...]) -> None:
    server.client.post(f"/v1/listen?{query}", content=CLIP).raise_for_status()
    assert (engine.submitted[-1].task.language, engine.submitted[-1].task.languages) == (language, languages)


@pytest.mark.parametrize(
    ("query", "audio"),
    [
        ("encoding=mulaw", audio_file(tone(1.0, 8000), 8000, "RAW", "ULAW")),
        ("encoding=linear16&sample_rate=8000", audio_file(tone(1.0, 8000), 8000, "RAW", "PCM_16")),
        ("encoding=linear16&sample_rate=8000", CLIP),
    ],
)
def test_samples_without_a_header(server: LiveServer, query: str, audio: bytes) -> None:
    response = server.client.post(f"/v1/listen?{query}", content=audio)
    assert response.status_code == 200, response.text
    assert response.json()["metadata"]["duration"] == 1.0


@pytest.mark.parametrize(
    ("query", "headers", "content", "status", "name"),
    [
        ("", {"content-type": "application/json"}, b'{"url":"http://example.org/a.wav"}', 400, "url"),
        ("diarize=true", {}, CLIP, 400, "diarize"),
        ("", {}, b"", 400, ""),
        ("", {}, b"no audio", 415, ""),
        ("encoding=linear16", {}, b"\0\0", 400, "sample_rate"),
        (f"encoding=linear16&sample_rate={'9' * 5000}", {}, b"\0\0", 400, "sample_rate"),
        (f"endpointing={'9' * 5000}", {}, CLIP, 400, "endpointing"),
    ],
)
def test_refusals(server: LiveServer, query: str, headers: dict[str, str], content: bytes, status: int, name: str) -> None:
    response = server.client.post(f"/v1/listen?{query}", content=content, headers=headers)
    body = response.json()
    assert response.status_code == status
    assert set(body) == {"err_code", "err_msg", "request_id"}
    assert name in body["err_msg"]
    assert response.headers["x-request-id"] == body["request_id"]


def test_confidences_of_words() -> None:
    tokens = [TokenLogprob(b" Hel", -1.0), TokenLogprob(b"lo", -3.0), TokenLogprob(b" you", 0.0), TokenLogprob(b".", -9.0)]
    words = [Word("Hello", 0, 1), Word("you.", 1, 2), Word("gone", 2, 3)]
    assert word_confidences(words, tokens) == [pytest.approx(0.135335), pytest.approx(0.011109), 0.0]


def test_the_description_names_its_options_and_its_errors(server: LiveServer) -> None:
    described = server.client.get("/openapi.json").json()["paths"]["/v1/listen"]["post"]
    assert {"encoding", "sample_rate", "keyterm"} <= {each["name"] for each in described["parameters"]}
    assert set(described["requestBody"]["content"]) == {"audio/*", "application/octet-stream"}
    assert described["responses"]["default"]["content"]["application/json"]["schema"]["$ref"].endswith("ListenError")


def test_an_empty_model_is_the_default(server: LiveServer) -> None:
    body = server.client.post("/v1/listen?model=&language=", content=CLIP).json()
    assert [each["name"] for each in body["metadata"]["model_info"].values()] == ["fake-model"]


def test_a_form_is_refused_by_its_cause(server: LiveServer) -> None:
    response = server.client.post("/v1/listen", files={"file": ("speech.wav", CLIP)})
    assert (response.status_code, response.json()["err_code"]) == (400, "INVALID_REQUEST")
    assert "form" in response.json()["err_msg"]
