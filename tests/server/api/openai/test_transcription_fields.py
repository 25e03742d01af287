"""Every field of a transcription: its effect on the request, or the error that names it."""

import base64
import json
from typing import Any

import pytest
from openai import OpenAI
from transformers.models.whisper import tokenization_whisper as whisper

from export.checkpoints import canary_qwen, qwen3_asr, voxtral
from server.api.languages import known_code, language_code, language_name
from server.engine.types.options import VoiceOptions
from server.errors import InvalidRequest
from tests.support.clients.live_server import LiveServer, audio_file, error_code, tone
from tests.support.fakes.fake_engine import FakeEngine

CLIP = audio_file(tone(1.5, 16_000), 16_000, "WAV")
FILE = {"file": ("speech.wav", CLIP)}
VAD = {"type": "server_vad", "threshold": 0.25, "prefix_padding_ms": 200, "silence_duration_ms": 900}


def test_options_of_the_client_arrive(client: OpenAI, engine: FakeEngine) -> None:
    client.audio.transcriptions.create(
        file=("a", CLIP),
        model="gpt-transcribe",
        languages=["de"],
        keywords=["Qwen", "Åse, Inc."],
        prompt="Earlier.",
        temperature=0.00001,
        include=["logprobs"],
    )
    (request,) = engine.submitted
    assert (request.task.language, request.task.keywords, request.task.prompt) == ("de", ("Qwen", "Åse, Inc."), "Earlier.")
    assert (request.task.sampling.temperature, request.task.sampling.logprobs) == (0.00001, 0)


@pytest.mark.parametrize("as_json", [False, True])
def test_the_strategy_cuts_the_audio(client: OpenAI, server: LiveServer, engine: FakeEngine, as_json: bool) -> None:
    """The client sends it as parts `chunking_strategy[key]`, others as JSON."""
    if as_json:
        server.client.post("/v1/audio/transcriptions", files=FILE, data={"chunking_strategy": json.dumps(VAD)}).raise_for_status()
    else:
        client.audio.transcriptions.create(file=("a", CLIP), model="whisper-1", chunking_strategy=VAD)  # type: ignore[call-overload]
    (session,) = engine.past_sessions
    assert session.request.voice == VoiceOptions(threshold=0.25, prefix_padding_s=0.2, silence_s=0.9)


@pytest.mark.parametrize(
    ("fields", "attribute", "value"),
    [
        ({"language": "en"}, "language", "en"),
        ({"language": "en-GB"}, "language", "en"),
        ({"language": "German"}, "language", "de"),
        ({"language": ""}, "language", None),
        ({"language": "auto"}, "language", None),
        ({"languages": "fr"}, "language", "fr"),
        ({"languages[]": ["fr", "fr-CA"]}, "language", "fr"),
        ({"language": "fr", "languages[]": ["en", "fr"]}, "language", "fr"),
        ({"languages[]": ["en", "German", "en-GB"]}, "languages", ("en", "de")),
        ({"languages[]": ["en", "de"]}, "language", None),
        ({"keywords[]": ["a", "b"]}, "keywords", ("a", "b")),
        ({"keywords": ["a", "b"]}, "keywords", ("a", "b")),
        ({"keywords": '["a, b"]'}, "keywords", ("a, b",)),
        ({"hotwords": "a, b"}, "keywords", ("a", "b")),
        ({"max_completion_tokens": "7"}, "sampling.max_tokens", 7),
        ({"seed": "-1"}, "sampling.seed", 2**63 - 1),
        ({"top_p": "0.5"}, "sampling.top_p", 0.5),
        ({"top_k": "-1"}, "sampling.top_k", 0),
        ({"temperature": "1e-05"}, "sampling.temperature", 1e-5),
        ({"temperature": ".5"}, "sampling.temperature", 0.5),
        ({"temperature": " 1. "}, "sampling.temperature", 1.0),
        ({"language": "Mandarin"}, "language", "zh"),
        ({"language": "castilian"}, "language", "es"),
        ({"keywords[0]": "a", "keywords[1]": "b"}, "keywords", ("a", "b")),
        ({"repetition_penalty": "1.5"}, "sampling.repetition_penalty", 1.5),
        ({"presence_penalty": "1"}, "sampling.presence_penalty", 1),
        ({"chunking_strategy": "auto"}, "word_times", "none"),
        ({"response_format": "vtt"}, "word_times", "if_known"),
        ({"frequency_penalty": "0"}, "prompt", ""),
        ({"stream": "False"}, "prompt", ""),
    ],
)
def test_a_field_has_its_effect(server: LiveServer, engine: FakeEngine, fields: Any, attribute: str, value: object) -> None:
    response = server.client.post("/v1/audio/transcriptions", files=FILE, data=fields)
    assert response.status_code == 200, response.text
    found: Any = engine.submitted[0].task
    for name in attribute.split("."):
        found = getattr(found, name)
    assert found == value
    assert "x-warnings" not in response.headers
    assert '"warnings"' not in response.text


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"response_format": "diarized_json"}, "response_format", "unsupported_option"),
        ({"response_format": "xml"}, "response_format", "invalid_request"),
        ({"known_speaker_names[]": "A"}, "known_speaker_names", "unsupported_option"),
        ({"known_speaker_references[]": "data:,"}, "known_speaker_references", "unsupported_option"),
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities", "invalid_request"),
        ({"timestamp_granularities[]": "char", "response_format": "verbose_json"}, "timestamp_granularities", "invalid_request"),
        ({"include[]": "logprobs", "response_format": "text"}, "include", "invalid_request"),
        ({"include[]": "words"}, "include", "invalid_request"),
        ({"language": "it", "languages[]": ["en", "de"]}, "language", "invalid_request"),
        ({"temperature": "1.5"}, "temperature", "invalid_request"),
        ({"temperature": "hot"}, "temperature", "invalid_request"),
        ({"temperature": "NaN"}, "temperature", "invalid_request"),
        ({"frequency_penalty": "1"}, "frequency_penalty", "unsupported_option"),
        ({"stream": "true", "response_format": "srt"}, "response_format", "unsupported_option"),
        ({"stream": "maybe"}, "stream", "invalid_request"),
        ({"max_completion_tokens": "0"}, "max_completion_tokens", "invalid_request"),
        ({"chunking_strategy": "never"}, "chunking_strategy", "invalid_request"),
        ({"chunking_strategy": "{"}, "chunking_strategy", "invalid_request"),
        ({"chunking_strategy[type]": "other"}, "chunking_strategy.type", "invalid_request"),
        ({"chunking_strategy": "{}"}, "chunking_strategy.type", "invalid_request"),
        ({"chunking_strategy": '{"type": "server_vad", "threshold": 2}'}, "chunking_strategy.threshold", "invalid_request"),
        ({"chunking_strategy": '{"type": "server_vad", "treshold": 1}'}, "chunking_strategy.treshold", "unknown_field"),
        ({"keywords[]": ["a" * 65]}, "keywords", "invalid_request"),
        ({"keywords[]": ["a"] * 65}, "keywords", "invalid_request"),
        ({"prompt": "a" * 65_537}, "prompt", "invalid_request"),
        ({"prompt": ["a", "b"]}, "prompt", "invalid_request"),
        ({"model": "nope"}, "model", "model_not_found"),
        ({"model": "a\nb"}, "model", "model_not_found"),
    ],
)
def test_an_option_that_cannot_be_honoured_is_named(
    server: LiveServer, engine: FakeEngine, fields: Any, param: str, code: str
) -> None:
    response = server.client.post("/v1/audio/transcriptions", files=FILE, data=fields)
    assert error_code(response) == code
    assert response.status_code == (404 if code == "model_not_found" else 400)
    assert response.json()["error"]["param"] == param
    assert ("speakers" in response.text) == (
        fields.get("response_format") == "diarized_json" or param.startswith("known_speaker")
    )
    assert engine.submitted == []


@pytest.mark.parametrize(
    ("fields", "asked", "named"),
    [
        ({}, "English", "english"),
        ({"to_language": "de-AT"}, "German", "german"),
        ({"to_language": "Chinese"}, "Chinese", "chinese"),
    ],
)
def test_a_translation_is_into_the_language_that_is_named(
    server: LiveServer, engine: FakeEngine, fields: dict[str, str], asked: str, named: str
) -> None:
    response = server.client.post("/v1/audio/translations", files=FILE, data={**fields, "response_format": "verbose_json"})
    assert response.json()["language"] == named
    assert engine.submitted[-1].task.instruction == f"Translate the speech into {asked}."


def test_a_translation_into_no_known_language_is_refused(server: LiveServer) -> None:
    response = server.client.post("/v1/audio/translations", files=FILE, data={"to_language": "tlh"})
    assert (error_code(response), response.json()["error"]["param"]) == ("unsupported_option", "to_language")


def test_a_form_without_audio_names_the_file(server: LiveServer) -> None:
    for files in ({"language": (None, "en")}, {"file": ("a", b"")}):
        assert server.client.post("/v1/audio/transcriptions", files=files).json()["error"]["param"] == "file"


def test_the_error_of_a_form_without_audio_tells_its_other_names(server: LiveServer) -> None:
    response = server.client.post("/v1/audio/transcriptions", files={"files": ("a", CLIP)})
    assert response.json()["error"]["message"] == "The field file is missing, and files has no meaning here."


def test_samples_without_a_rate_name_the_file(server: LiveServer) -> None:
    response = server.client.post("/v1/audio/transcriptions", files={"file": ("a", b"\0" * 32_000, "audio/pcm")})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "file")


def test_a_language_that_the_model_refuses_has_the_name_under_which_it_came(server: LiveServer, engine: FakeEngine) -> None:
    engine.refusal = InvalidRequest("The model does not know the language 'xx'.", param="language")
    for name, param in (("language", "language"), ("languages[]", "languages")):
        response = server.client.post("/v1/audio/transcriptions", files=FILE, data={name: "xx"})
        assert response.json()["error"]["param"] == param


def test_options_in_the_address_are_named(server: LiveServer) -> None:
    warning = "The field language of the address has no effect here."
    response = server.client.post("/v1/audio/transcriptions?language=de", files=FILE)
    assert response.json()["warnings"] == [warning]
    audio = {"type": "input_audio", "input_audio": {"data": base64.b64encode(CLIP).decode(), "format": "wav"}}
    body = {"messages": [{"role": "user", "content": [audio]}]}
    assert server.client.post("/v1/chat/completions?language=de", json=body).json()["warnings"] == [warning]


def test_unknown_fields_are_named_and_do_no_harm(server: LiveServer) -> None:
    fields = {"vad_filter": "true", "ü\u202e": "1"}
    body = server.client.post("/v1/audio/transcriptions", files=FILE, data=fields).json()
    assert body["warnings"] == ["The field vad_filter has no effect here.", "The field with another name has no effect here."]
    response = server.client.post("/v1/audio/transcriptions", files=FILE, data={**fields, "response_format": "text"})
    assert response.headers["x-warnings"].startswith("The field vad_filter has no effect here.")
    many = {f"x{number}": "1" for number in range(100)}
    warnings = server.client.post("/v1/audio/transcriptions", files=FILE, data=many).json()["warnings"]
    assert (len(warnings), warnings[-1]) == (17, "84 more fields have no effect.")


def test_more_tokens_than_the_limit_are_a_warning(server: LiveServer, engine: FakeEngine) -> None:
    body = server.client.post("/v1/audio/transcriptions", files=FILE, data={"max_completion_tokens": "4096"}).json()
    assert body["warnings"] == ["The text has at most 512 tokens."]
    assert engine.submitted[0].task.sampling.max_tokens == 512


def test_languages_have_names_and_codes() -> None:
    assert (language_name("de"), language_name(None), language_name("xx")) == ("german", "unknown", "xx")
    assert language_name("ht") == "haitian creole"
    assert [language_code(text) for text in ("DE", " pt_BR ", "Haitian Creole", "klingon")] == ["de", "pt", "ht", "klingon"]


def test_every_language_of_a_model_is_known() -> None:
    codes = {*whisper.LANGUAGES, *qwen3_asr.LANGUAGES, *voxtral.LANGUAGES, *canary_qwen.LANGUAGES}
    assert codes == {known_code(code, "language") for code in codes}


def test_the_formats_that_are_listed_are_those_that_are_served(server: LiveServer) -> None:
    schema = server.client.get("/openapi.json").json()["paths"]["/v1/audio/transcriptions"]["post"]["requestBody"]
    listed = schema["content"]["multipart/form-data"]["schema"]["properties"]["response_format"]["enum"]
    assert listed == ["json", "text", "srt", "verbose_json", "vtt"]
    for name in listed:
        reply = server.client.post("/v1/audio/transcriptions", files=FILE, data={"response_format": name})
        assert reply.status_code == 200, reply.text


@pytest.mark.parametrize("granularity", ["timestamp_granularities[]", "timestamp_granularities[0]", "timestamp_granularities"])
def test_words_have_times_however_the_list_is_sent(server: LiveServer, granularity: str) -> None:
    data = {"response_format": "verbose_json", granularity: "word"}
    reply = server.client.post("/v1/audio/transcriptions", files=FILE, data=data).json()
    assert (len(reply["words"]), "segments" in reply, "warnings" in reply) == (3, False, False)


def test_the_end_of_a_long_prompt_counts(server: LiveServer, engine: FakeEngine) -> None:
    prompt = "a" * 3000 + "b" * 4000
    reply = server.client.post("/v1/audio/transcriptions", files=FILE, data={"prompt": prompt}).json()
    assert engine.submitted[-1].task.prompt == "b" * 4000
    assert reply["warnings"] == ["Of the prompt only the last 4000 characters count."]


def test_json_may_begin_with_a_byte_order_mark(server: LiveServer) -> None:
    body = json.dumps({"input_audio": {"data": base64.b64encode(CLIP).decode(), "format": "wav"}}).encode("utf-8-sig")
    headers = {"content-type": "Application/JSON; charset=UTF-8"}
    response = server.client.post("/v1/audio/transcriptions", content=body, headers=headers)
    assert (response.status_code, response.json()["text"]) == (200, "Well, hello. World!")
