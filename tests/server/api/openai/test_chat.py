"""`/v1/chat/completions` by OpenAI's own client: messages with audio, answers whole and in chunks."""

import base64
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from server.engine.types.options import Constraint, Priority
from server.errors import EngineFailed, InvalidInstruction
from tests.server.api.openai.conftest import TEXT
from tests.support.clients.live_server import LiveServer, audio_file, error_code, tone
from tests.support.clients.openai_client import event_contents, strictly
from tests.support.fakes.fake_engine import FakeEngine

CLIP = base64.b64encode(audio_file(tone(1.5, 16_000), 16_000, "WAV")).decode()
AUDIO = {"type": "input_audio", "input_audio": {"data": CLIP, "format": "wav"}}
QUESTION = {"type": "text", "text": "Which drink?"}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def ask(server: LiveServer, *messages: Any, **fields: Any) -> Any:
    return server.client.post("/v1/chat/completions", json={"messages": messages or [user(QUESTION, AUDIO)], **fields})


def test_a_completion(client: OpenAI, server: LiveServer, engine: FakeEngine) -> None:
    messages: Any = [user(QUESTION, AUDIO)]
    reply = client.chat.completions.create(model="whisper-1", messages=messages, logprobs=True, top_logprobs=2)
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason, reply.model) == (TEXT, "stop", "fake-model")
    (request,) = engine.submitted
    assert (request.task.instruction, len(request.audio), request.task.sampling.logprobs) == ("Which drink?", 24_000, 2)
    assert request.task.sampling.max_tokens == 256
    body = ask(server, logprobs=True).json()
    strictly(ChatCompletion, body)
    assert [token["token"] for token in body["choices"][0]["logprobs"]["content"]] == ["Well,", " hello.", " World!"]
    assert body["usage"]["prompt_tokens_details"] == {"audio_tokens": 20, "text_tokens": 12, "cached_tokens": 0}
    assert body["usage"]["total_tokens"] == 35
    assert ask(server).json()["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("include_usage", [False, True])
def test_chunks_join_to_the_answer(client: OpenAI, server: LiveServer, include_usage: bool) -> None:
    messages: Any = [user(QUESTION, AUDIO)]
    chunks = list(client.chat.completions.create(model="fake-model", messages=messages, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    options = {"stream_options": {"include_usage": include_usage}}
    contents = event_contents(ask(server, stream=True, logprobs=True, **options))
    for content in contents:
        strictly(ChatCompletionChunk, content)
    if include_usage:
        last = contents.pop()
        assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 3)
        assert all(content["usage"] is None for content in contents)
    else:
        assert all("usage" not in content for content in contents)
    first, *middle, end = (content["choices"][0] for content in contents)
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert (end["delta"], end["finish_reason"]) == ({}, "stop")
    assert sum(len(choice["logprobs"]["content"]) for choice in middle) == 3


def test_usage_in_each_chunk(server: LiveServer) -> None:
    chunks = event_contents(ask(server, stream=True, stream_options={"continuous_usage_stats": True}))
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks][0::99] == [0]
    assert chunks[-1]["usage"]["completion_tokens"] == 3


def test_a_stream_that_fails_raises(client: OpenAI, engine: FakeEngine) -> None:
    engine.failure = EngineFailed("The engine failed.")
    messages: Any = [user(AUDIO)]
    with pytest.raises(openai.InternalServerError):
        list(client.chat.completions.create(model="fake-model", messages=messages, stream=True))


@pytest.mark.parametrize(
    ("messages", "instruction"),
    [
        ([user(AUDIO, QUESTION)], "Which drink?"),
        ([user(AUDIO)], "Answer the speaker."),
        ([user(QUESTION, AUDIO, {"type": "text", "text": "One word."})], "Which drink?\nOne word."),
        ([{"role": "system", "content": "Be kind."}, user(QUESTION, AUDIO)], "Be kind.\n\nWhich drink?"),
        ([{"role": "developer", "content": [{"type": "text", "text": "Be kind."}]}, user(AUDIO)], "Be kind."),
        (
            [
                {"role": "system", "content": "Be kind."},
                user(AUDIO, QUESTION),
                {"role": "assistant", "content": "Tea."},
                {"role": "user", "content": "How many?"},
            ],
            "Be kind.\n\nUser: [the speech] Which drink?\nAssistant: Tea.\nUser: How many?",
        ),
        ([user({"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{CLIP}"}}, QUESTION)], "Which drink?"),
    ],
)
def test_messages_become_an_instruction(server: LiveServer, engine: FakeEngine, messages: list[Any], instruction: str) -> None:
    assert ask(server, *messages).status_code == 200
    assert engine.submitted[0].task.instruction == instruction


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (["hello"], "messages[0]"),
        ([user(QUESTION)], "messages"),
        ([user(AUDIO, AUDIO)], "messages"),
        ([user(AUDIO), {"role": "assistant", "content": "Tea."}], "messages[1].role"),
        ([{"role": "tool", "content": "x"}], "messages[0].role"),
        ([user(AUDIO, {"type": "image_url", "image_url": {"url": "data:,"}})], "messages[0].content[1].type"),
        ([user({"type": "input_audio"})], "messages[0].content[0]"),
        ([user({"type": "input_audio", "input_audio": {"data": "?"}})], "messages[0].content[0].input_audio.data"),
        ([user({"type": "audio_url", "audio_url": {"url": "http://169.254.169.254/"}})], "messages[0].content[0].audio_url.url"),
        ([{"role": "user", "content": 7}], "messages[0].content"),
        ([{"role": "assistant", "content": None, "tool_calls": [{}]}, user(AUDIO)], "messages[0].tool_calls"),
        ([user(AUDIO, {"type": "text", "text": "a" * 2001})], "messages"),
        ([user(AUDIO, {"type": "text", "text": "a\0"})], "messages"),
        ([user({"type": "input_audio", "input_audio": {"data": "bm8gYXVkaW8=", "format": "wav"}})], "messages"),
    ],
)
def test_a_message_that_does_not_fit_is_named(server: LiveServer, engine: FakeEngine, messages: list[Any], param: str) -> None:
    response = ask(server, *messages)
    assert response.status_code in (400, 415)
    assert response.json()["error"]["param"] == param
    assert engine.submitted == []


def test_a_refusal_of_the_engine_is_about_the_messages(server: LiveServer, engine: FakeEngine) -> None:
    engine.refusal = InvalidInstruction("Not this one.", param="instruction")
    assert ask(server).json()["error"]["param"] == "messages"


SCHEMA = {"type": "object", "properties": {"drink": {"type": "string"}}}


@pytest.mark.parametrize(
    ("fields", "attribute", "value"),
    [
        ({"max_tokens": 9}, "max_tokens", 9),
        ({"max_tokens": 9, "max_completion_tokens": 8}, "max_tokens", 8),
        ({"temperature": 2}, "temperature", 2),
        ({"top_p": 0.5}, "top_p", 0.5),
        ({"seed": 5}, "seed", 5),
        ({"seed": -5}, "seed", 2**63 - 5),
        ({"stop": "###"}, "stop", ("###",)),
        ({"stop": ["a", "b"]}, "stop", ("a", "b")),
        ({"stop": None}, "stop", ()),
        ({"presence_penalty": -1}, "presence_penalty", -1),
        ({"top_k": 5}, "top_k", 5),
        ({"repetition_penalty": 1.1}, "repetition_penalty", 1.1),
        ({"response_format": {"type": "text"}}, "constraint", None),
        ({"response_format": {"type": "json_object"}}, "constraint", Constraint("json_schema", '{"type": "object"}')),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}},
            "constraint",
            Constraint("json_schema", '{"type": "object", "properties": {"drink": {"type": "string"}}}'),
        ),
        ({"n": 1, "tools": [], "modalities": ["text"], "logit_bias": {}, "store": False}, "max_tokens", 256),
    ],
)
def test_a_field_has_its_effect(server: LiveServer, engine: FakeEngine, fields: Any, attribute: str, value: object) -> None:
    response = ask(server, **fields)
    assert response.status_code == 200, response.text
    assert getattr(engine.submitted[0].task.sampling, attribute) == value
    assert "warnings" not in response.json()


def test_flex_waits_for_other_work(server: LiveServer, engine: FakeEngine) -> None:
    assert ask(server, service_tier="flex").json()["service_tier"] == "flex"
    assert engine.submitted[0].priority == Priority.BATCH


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"n": 2}, "n", "unsupported_option"),
        ({"tools": [{}]}, "tools", "unsupported_option"),
        ({"functions": [{}]}, "functions", "unsupported_option"),
        ({"tool_choice": "required"}, "tool_choice", "unsupported_option"),
        ({"modalities": ["text", "audio"]}, "modalities", "unsupported_option"),
        ({"audio": {"voice": "alloy"}}, "audio", "unsupported_option"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_option"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "unsupported_option"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "unsupported_option"),
        ({"prediction": {}}, "prediction", "unsupported_option"),
        ({"store": True}, "store", "unsupported_option"),
        ({"verbosity": "low"}, "verbosity", "unsupported_option"),
        ({"web_search_options": {}}, "web_search_options", "unsupported_option"),
        ({"service_tier": "priority"}, "service_tier", "invalid_request"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_request"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_request"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_request"),
        ({"stop": ["a"] * 5}, "stop", "invalid_request"),
        ({"stop": ""}, "stop", "invalid_request"),
        ({"temperature": 2.1}, "temperature", "invalid_request"),
        ({"temperature": "1"}, "temperature", "invalid_request"),
        ({"max_tokens": 0}, "max_tokens", "invalid_request"),
        ({"response_format": {"type": "xml"}}, "response_format", "invalid_request"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", "invalid_constraint"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "text"}}}},
            "response_format",
            "invalid_constraint",
        ),
        ({"model": "gpt-9"}, "model", "model_not_found"),
        ({"messages": []}, "messages", "invalid_request"),
    ],
)
def test_an_option_that_cannot_be_honoured_is_named(
    server: LiveServer, engine: FakeEngine, fields: Any, param: str, code: str
) -> None:
    response = ask(server, **fields)
    assert (error_code(response), response.json()["error"]["param"]) == (code, param)
    assert engine.submitted == []


def test_fields_without_effect_are_named(server: LiveServer) -> None:
    body = ask(server, user="me", metadata={"a": "b"}, max_tokens=4096).json()
    assert body["warnings"] == [
        "The field user has no effect here.",
        "The field metadata has no effect here.",
        "The answer has at most 512 tokens.",
    ]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"messages": "x"}', b'{"messages": null}', b"[" * 100_000])
def test_a_malformed_body_is_refused(server: LiveServer, body: bytes) -> None:
    response = server.client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert error_code(response) == "invalid_request"


def test_a_chat_without_messages_is_told_how_many_there_may_be(server: LiveServer) -> None:
    response = server.client.post("/v1/chat/completions", json={"messages": []})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "messages has to be a list of 1 to 256 items."
