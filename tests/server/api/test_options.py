"""The options of a form reach the engine as they were meant; `hostile_inputs` has the values that are refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.options import InstructOptions, parse_form, with_limits
from server.engine.types.options import Constraint, ConstraintKind, Priority, SamplingOptions
from server.settings import Settings
from tests.support.clients.live_server import LiveServer, audio_file, error_code, instruct, tone
from tests.support.fakes.fake_engine import FakeEngine

CLIP = audio_file(tone(1.25, 16_000), 16_000, "FLAC", "PCM_16")


OPTIONS = with_limits(InstructOptions, Settings())


def read(**texts: str) -> InstructOptions:
    return parse_form(OPTIONS, {"instruction": "Transcribe.", **texts})


def test_options_have_defaults(server: LiveServer, engine: FakeEngine) -> None:
    instruct(server, CLIP)
    (submitted,) = engine.submitted
    assert submitted.task.sampling == SamplingOptions()
    assert (submitted.priority, submitted.deadline_s, submitted.task.draft) == (Priority.INTERACTIVE, None, "exact")


def test_every_option_arrives(server: LiveServer, engine: FakeEngine) -> None:
    sampling = {"max_tokens": "9", "temperature": "0.25", "top_k": "1000", "top_p": "0.5", "seed": "0", "logprobs": "0"}
    penalties = {"repetition_penalty": "0.5", "presence_penalty": "-2"}
    stop = ["\n", "日本", '"', "🎧" * 64]
    rest = {"stop": json.dumps(stop), "priority": "batch", "draft": "relaxed"}
    assert instruct(server, CLIP, **sampling, **penalties, **rest).status_code == 200
    (submitted,) = engine.submitted
    assert submitted.task.sampling == SamplingOptions(
        max_tokens=9,
        repetition_penalty=0.5,
        presence_penalty=-2,
        temperature=0.25,
        top_k=1000,
        top_p=0.5,
        stop=tuple(stop),
        logprobs=0,
        seed=0,
    )
    assert (submitted.priority, submitted.task.draft) == (Priority.BATCH, "relaxed")


def test_a_deadline_counts_from_the_start_of_the_request(server: LiveServer, engine: FakeEngine) -> None:
    reply = instruct(server, CLIP, deadline_ms="60000").json()
    deadline_s = engine.submitted[0].deadline_s
    assert deadline_s is not None
    assert 0 < deadline_s <= 60 - reply["times_ms"]["audio_decode_ms"] / 1000
    instruct(server, CLIP, deadline_ms="1")
    second = engine.submitted[1].deadline_s
    assert second is not None
    assert 0 <= second < 0.001


def test_the_share_of_a_client_is_that_of_its_address(server: LiveServer, engine: FakeEngine) -> None:
    instruct(server, CLIP)
    assert engine.submitted[0].client == "127.0.0.1"


def test_logprobs_are_in_the_reply_where_asked_for(server: LiveServer) -> None:
    reply = instruct(server, CLIP, logprobs="0").json()
    assert [token["token"] for token in reply["logprobs"]] == ["hello", " world"]
    assert reply["logprobs"][0] == {"token": "hello", "bytes": list(b"hello"), "logprob": -0.5, "top": []}


@pytest.mark.parametrize(
    ("kind", "text"), [("json_schema", '{"type": "object"}'), ("regex", "(a|b) c"), ("choice", '["a", "b"]')]
)
def test_a_constraint_arrives_as_it_was_sent(server: LiveServer, engine: FakeEngine, kind: ConstraintKind, text: str) -> None:
    assert instruct(server, CLIP, **{kind: text}).status_code == 200
    assert engine.submitted[0].task.sampling.constraint == Constraint(kind, text)


def test_a_constraint_that_means_nothing_is_refused_before_the_engine_knows(server: LiveServer, engine: FakeEngine) -> None:
    response = instruct(server, CLIP, json_schema='{"properties": {"size": {"type": "text"}}}')
    assert (response.status_code, error_code(response)) == (400, "invalid_constraint")
    assert response.json()["error"]["param"] == "json_schema"
    assert response.json()["error"]["message"].endswith("Invalid type: text, at /properties/size.")
    assert engine.submitted == []


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64), max_size=4), st.booleans())
def test_any_stop_strings_within_the_limits_are_taken(stop: list[str], escaped: bool) -> None:
    assert read(stop=json.dumps(stop, ensure_ascii=escaped)).sampling.stop == tuple(stop)


@given(st.floats(-2, 2))
def test_any_plainly_written_number_within_the_limits_is_taken(value: float) -> None:
    text = f"{value:.17f}"
    assert read(presence_penalty=text).sampling.presence_penalty == float(text)


@pytest.mark.parametrize(("text", "streams"), [("true", True), ("false", False)])
def test_streaming_is_asked_for_in_one_way(text: str, streams: bool) -> None:
    assert read(stream=text).stream is streams
