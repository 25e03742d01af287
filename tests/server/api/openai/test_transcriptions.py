"""`/v1/audio/transcriptions` and `/v1/audio/translations` by OpenAI's own client, and every body judged by its models."""

import base64
import socket
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types.audio import (
    Transcription,
    TranscriptionTextDeltaEvent,
    TranscriptionTextDoneEvent,
    TranscriptionVerbose,
    Translation,
    TranslationVerbose,
)

from server.api.openai.transcription_replies import mean_logprobs
from server.engine.types.events import TokenLogprob
from server.errors import EngineFailed, Overloaded
from tests.server.api.openai.conftest import TEXT
from tests.support.clients.live_server import LiveServer, audio_file, tone, wait_until
from tests.support.clients.openai_client import event_contents, strictly
from tests.support.fakes.fake_engine import FakeEngine

CLIP = audio_file(tone(1.5, 16_000), 16_000, "WAV")
FILE = ("speech.wav", CLIP)
USAGE = {
    "type": "tokens",
    "input_tokens": 32,
    "input_token_details": {"text_tokens": 12, "audio_tokens": 20},
    "output_tokens": 3,
    "total_tokens": 35,
}
VTT = "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nWell, hello.\n\n00:00:01.000 --> 00:00:01.500\nWorld!\n\n"


def post(server: LiveServer, path: str = "transcriptions", **fields: Any) -> httpx.Response:
    return server.client.post(f"/v1/audio/{path}", files={"file": FILE}, data=fields)


def test_json_has_the_text_and_the_usage(client: OpenAI, server: LiveServer, engine: FakeEngine) -> None:
    assert client.audio.transcriptions.create(file=FILE, model="whisper-1").text == TEXT
    body = post(server).json()
    assert body == {"text": TEXT, "languages": [], "usage": USAGE}
    strictly(Transcription, body)
    assert [request.task.instruction for request in engine.submitted] == ["Transcribe the speech to text."] * 2
    assert engine.submitted[0].task.sampling.max_tokens == 512


@pytest.mark.parametrize(("format", "text"), [("text", TEXT), ("vtt", VTT), ("srt", "1\n00:00:00,000 --> 00:00:01,000\nWell")])
def test_plain_formats_are_strings(client: OpenAI, server: LiveServer, engine: FakeEngine, format: Any, text: str) -> None:
    reply = client.audio.transcriptions.create(file=FILE, model="whisper-1", response_format=format)
    assert str(reply).startswith(text)
    assert post(server, response_format=format).headers["content-type"] == "text/plain; charset=utf-8"
    assert engine.submitted[0].task.word_times == ("none" if format == "text" else "if_known")


@pytest.mark.parametrize(
    ("granularities", "parts"),
    [([], {"segments"}), (["segment"], {"segments"}), (["word"], {"words"}), (["word", "segment"], {"words", "segments"})],
)
def test_verbose_json_has_the_times_that_are_asked_for(
    client: OpenAI, server: LiveServer, granularities: list[Any], parts: set[str]
) -> None:
    reply = client.audio.transcriptions.create(
        file=FILE, model="whisper-1", response_format="verbose_json", timestamp_granularities=granularities
    )
    assert isinstance(reply, TranscriptionVerbose)
    fields: dict[str, Any] = {"response_format": "verbose_json", "timestamp_granularities[]": granularities}
    body = post(server, **fields).json()
    strictly(TranscriptionVerbose, body)
    assert {name for name in ("words", "segments") if name in body} == parts
    assert (body["task"], body["language"], body["duration"]) == ("transcribe", "unknown", 1.5)
    assert body["usage"] == {"type": "duration", "seconds": 2}
    if reply.words:
        assert [(word.word, word.start, word.end) for word in reply.words][1] == ("hello.", 0.5, 1.0)
    if reply.segments:
        first, second = reply.segments
        assert (first.text, first.start, first.end, first.avg_logprob) == (" Well, hello.", 0, 1, -0.5)
        assert (second.id, second.seek) == (1, 100)
        assert second.compression_ratio == pytest.approx(6 / 14, abs=1e-4)


def test_without_the_times_of_words_the_text_is_one_segment(client: OpenAI, server: LiveServer, engine: FakeEngine) -> None:
    engine.tells_word_times = False
    reply = client.audio.transcriptions.create(file=FILE, model="whisper-1", response_format="verbose_json")
    assert reply.words is None
    assert [(each.text, each.start, each.end) for each in reply.segments or []] == [(f" {TEXT}", 0.0, 1.5)]
    assert post(server, response_format="vtt").text == f"WEBVTT\n\n00:00:00.000 --> 00:00:01.500\n{TEXT}\n\n"
    with pytest.raises(openai.BadRequestError) as error:
        client.audio.transcriptions.create(
            file=FILE, model="whisper-1", response_format="verbose_json", timestamp_granularities=["word"]
        )
    assert error.value.param == "timestamp_granularities"


def test_without_the_times_of_words_long_audio_has_a_segment_for_each_utterance(server: LiveServer, engine: FakeEngine) -> None:
    engine.tells_word_times = False
    body = post(server, response_format="verbose_json", chunking_strategy='{"type": "server_vad"}').json()
    assert [(each["start"], each["end"]) for each in body["segments"]] == [(0, 1), (1, 1.5)]
    assert " ".join(each["text"].strip() for each in body["segments"]) == body["text"]


def test_silence_has_no_segments(server: LiveServer, engine: FakeEngine) -> None:
    engine.text = ""
    body = post(server, response_format="verbose_json").json()
    assert (body["text"], body["segments"]) == ("", [])


def test_events_join_to_the_text(client: OpenAI, server: LiveServer) -> None:
    *deltas, done = client.audio.transcriptions.create(file=FILE, model="gpt-transcribe", stream=True, include=["logprobs"])
    assert isinstance(done, TranscriptionTextDoneEvent)
    assert "".join(event.delta for event in deltas if isinstance(event, TranscriptionTextDeltaEvent)) == done.text == TEXT
    *contents, last = event_contents(post(server, stream="true", **{"include[]": "logprobs"}))
    for content in contents:
        strictly(TranscriptionTextDeltaEvent, content)
    strictly(TranscriptionTextDoneEvent, last)
    assert [token for content in contents for token in content["logprobs"]] == last["logprobs"]
    assert last["usage"] == USAGE


def test_a_stream_of_verbose_json_ends_with_the_times(server: LiveServer) -> None:
    *_, done = event_contents(post(server, stream="True", response_format="verbose_json"))
    assert (done["type"], done["duration"], len(done["segments"])) == ("transcript.text.done", 1.5, 2)
    strictly(TranscriptionTextDoneEvent, done)


@pytest.mark.parametrize(
    ("fields", "last_usage", "each_has_usage"),
    [
        ({"stream_include_usage": "true"}, 35, False),
        ({"stream_include_usage": "true", "stream_continuous_usage_stats": "true"}, 35, True),
        ({"stream_include_usage": "false"}, None, False),
    ],
)
def test_vllm_clients_get_chunks(
    server: LiveServer, fields: dict[str, str], last_usage: int | None, each_has_usage: bool
) -> None:
    chunks = event_contents(post(server, stream="true", **fields))
    if last_usage is not None:
        assert (chunks[-1]["choices"], chunks[-1]["usage"]["total_tokens"]) == ([], last_usage)
        chunks.pop()
    assert {chunk["object"] for chunk in chunks} == {"transcription.chunk"}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == TEXT
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [*[None] * (len(chunks) - 1), "stop"]
    assert all(("usage" in chunk) is each_has_usage for chunk in chunks)
    if each_has_usage:
        assert chunks[-1]["usage"]["completion_tokens"] == 3


def test_a_failure_of_a_stream_is_an_error_of_the_client(client: OpenAI, engine: FakeEngine) -> None:
    engine.failure = EngineFailed("The engine failed.")
    with pytest.raises(openai.InternalServerError) as error:
        client.audio.transcriptions.create(file=FILE, model="whisper-1", stream=True)
    assert error.value.code == "engine_failed"


def test_a_full_server_is_a_rate_limit(client: OpenAI, engine: FakeEngine) -> None:
    engine.refusal = Overloaded("Busy.", retry_after_s=3)
    with pytest.raises(openai.RateLimitError) as error:
        client.audio.transcriptions.create(file=FILE, model="whisper-1")
    assert error.value.response.headers["retry-after"] == "3"


def test_audio_that_cannot_be_read_names_the_file(client: OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as error:
        client.audio.transcriptions.create(file=("a.wav", b"no audio at all"), model="whisper-1")
    assert (error.value.status_code, error.value.code, error.value.param) == (415, "undecodable_audio", "file")


@pytest.mark.filterwarnings("ignore:deprecated")
def test_translations(client: OpenAI, server: LiveServer, engine: FakeEngine) -> None:
    assert client.audio.translations.create(file=FILE, model="whisper-1", prompt="Names: Åse.").text == TEXT
    task = engine.submitted[0].task
    assert (task.instruction, task.prompt) == ("Translate the speech into English.", "Names: Åse.")
    assert post(server, "translations").json() == {"text": TEXT, "usage": USAGE}
    strictly(Translation, post(server, "translations").json())
    verbose = post(server, "translations", response_format="verbose_json").json()
    strictly(TranslationVerbose, verbose)
    assert (verbose["task"], verbose["language"], verbose["segments"][0]["end"]) == ("translate", "english", 1.5)
    cue = f"1\n00:00:00,000 --> 00:00:01,500\n{TEXT}\n\n"
    assert post(server, "translations", response_format="srt").text == cue
    assert {request.task.word_times for request in engine.submitted} == {"none"}


def test_long_audio_is_translated_utterance_by_utterance(server: LiveServer, engine: FakeEngine) -> None:
    long = {"file": ("long.flac", audio_file(tone(31.0, 16_000), 16_000, "FLAC"))}
    server.client.post("/v1/audio/translations", files=long).raise_for_status()
    (session,) = engine.past_sessions
    assert (session.request.scope, session.request.task.instruction) == ("utterance", "Translate the speech into English.")


@pytest.mark.parametrize("path", ["audio/transcriptions", "chat/completions"])
@pytest.mark.parametrize("stream", ["false", "true"])
def test_a_client_that_leaves_ends_the_work(server: LiveServer, engine: FakeEngine, path: str, stream: str) -> None:
    engine.answers = False
    if path == "audio/transcriptions":
        request = server.client.build_request("POST", f"/v1/{path}", files={"file": FILE}, data={"stream": stream})
    else:
        audio = {"type": "input_audio", "input_audio": {"data": base64.b64encode(CLIP).decode(), "format": "wav"}}
        body = {"messages": [{"role": "user", "content": [audio]}], "stream": stream == "true"}
        request = server.client.build_request("POST", f"/v1/{path}", json=body)
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    with socket.create_connection(("127.0.0.1", server.port)) as peer:
        peer.sendall(f"POST /v1/{path} HTTP/1.1\r\n{head}\r\n".encode() + request.read())
        wait_until(lambda: engine.pending == 1)
    wait_until(lambda: engine.pending == 0)
    assert engine.aborted[-1] == engine.submitted[0].id


@pytest.mark.parametrize("wrap", ["{}", "data:audio/wav;base64,{}"])
def test_a_json_body_holds_the_audio_as_base64(server: LiveServer, engine: FakeEngine, wrap: str) -> None:
    data = wrap.format(base64.b64encode(CLIP).decode())
    body = {"model": "whisper-1", "language": "de", "prompt": None, "input_audio": {"data": data, "format": "wav"}}
    response = server.client.post("/v1/audio/transcriptions", json=body)
    assert response.json()["text"] == TEXT
    assert (engine.submitted[0].task.language, len(engine.submitted[0].audio)) == ("de", 24_000)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input_audio"),
        ({"input_audio": {"data": "%%%"}}, "input_audio.data"),
        ({"input_audio": {}}, "input_audio.data"),
        ({"input_audio": {"data": ""}}, "input_audio.data"),
        ({"input_audio": {"data": "AAAA"}, "file": "AAAA"}, "input_audio"),
        ([], None),
    ],
)
def test_a_json_body_without_audio_is_refused(server: LiveServer, body: Any, param: str | None) -> None:
    response = server.client.post("/v1/audio/transcriptions", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_tokens_belong_to_the_segment_in_which_they_begin() -> None:
    pieces = [(b"One", -1.0), (b" two", -2.0), (b".", -3.0), (b" Three ", -4.0), (b"\xe2\x98", -5.0), (b"\x83", -7.0)]
    tokens = [TokenLogprob(content, logprob) for content, logprob in pieces]
    assert mean_logprobs(["One two.", "Three ☃"], tokens) == [-2.0, pytest.approx(-16 / 3, abs=1e-5)]
    assert mean_logprobs(["One"], []) == [0.0]
    assert mean_logprobs([], tokens) == []
