"""The messages of a live session: the limits of the form, in JSON's types."""

import json
from typing import Any

import pytest

from server.api.native.messages import MessageReader, StartMessage
from server.api.options import SAMPLING_FIELDS, InstructOptions, parse_form, with_limits
from server.engine.types.options import Constraint
from server.engine.types.requests import ChangeInstruction, EndOfAudio, Flush, LiveRequest, SpeechTask
from server.errors import InvalidRequest, UnknownField
from server.settings import Settings

SETTINGS = Settings()
READER = MessageReader(SETTINGS, lambda _name: 30.0)


def read(message: dict[str, Any]) -> Flush | ChangeInstruction | EndOfAudio:
    return READER.read(json.dumps(message))


def start(**fields: Any) -> StartMessage:
    return READER.read_start(json.dumps({"type": "start", "instruction": "Transcribe.", **fields}))


def test_the_least_that_each_message_needs() -> None:
    assert (start().encoding, start().sample_rate_hz) == ("pcm16", None)
    assert start().live_request("stream-1", "client") == LiveRequest("stream-1", SpeechTask("Transcribe."), client="client")
    assert read({"type": "flush", "id": "é" * 64}) == Flush("é" * 64)
    assert read({"type": "update", "instruction": "x"}) == ChangeInstruction("x")
    assert read({"type": "end"}) == EndOfAudio()


def test_null_is_no_value() -> None:
    with pytest.raises(InvalidRequest):
        start(seed=None)


GOOD: dict[str, list[Any]] = {
    "max_tokens": [1, 512],
    "temperature": [0, 0.7, 2, 1e-7],
    "top_k": [0, 1000],
    "top_p": [1, 0.001],
    "repetition_penalty": [0.5, 2],
    "presence_penalty": [-2, 2.0],
    "seed": [0, 2**63 - 1],
    "stop": [[], ["a"] * 4, ["é" * 64]],
    "draft": ["exact", "relaxed", "off"],
    "sample_rate_hz": [8000, 48_000],
    "encoding": ["pcm16", "ogg_opus"],
    "scope": ["utterance", "recording"],
    "partials": [True, False],
    "words": [True, False],
    "voice": [{}, {"threshold": 0.05}, {"max_utterance_ms": 30_000}, {"prefix_padding_ms": 0, "silence_duration_ms": 100}],
    "json_schema": [{}, {"type": "object"}],
    "regex": ["a"],
    "choice": [["a"]],
}
BAD: dict[str, list[Any]] = {
    "instruction": ["", " \n", "a" * 2001, "a\0b", 1, None, ["a"], True],
    "max_tokens": [0, 513, 1.0, "1", True, None, [1], 10**400],
    "temperature": [-0.1, 2.1, "0", True, None, 10**400],
    "top_k": [-1, 1001, 1.5],
    "top_p": [0, 1.01, False],
    "repetition_penalty": [0.4, 2.1],
    "presence_penalty": [-2.1, 2.1],
    "seed": [-1, 2**63, 1.0],
    "stop": ["a", ["a"] * 5, [""], [1], ["a" * 65], {"a": 1}],
    "draft": ["", "fast", None, 1, ["exact"]],
    "sample_rate_hz": [7999, 48_001, 16_000.0, "16000", None],
    "encoding": ["opus", "pcm", None],
    "scope": ["all", 0],
    "partials": [0, "true", None],
    "words": [1, "false"],
    "voice": [
        *([], None, "loud", {"threshold": 0}, {"threshold": 1}, {"prefix_padding_ms": -1}, {"prefix_padding_ms": 1001}),
        *({"silence_duration_ms": 99}, {"silence_duration_ms": 5001}, {"max_utterance_ms": 1999}, {"max_utterance_ms": 30_001}),
        {"threshold": None},
    ],
    "json_schema": [None],
    "regex": ["", 1, None],
    "choice": [None],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in GOOD.items() for value in values])
def test_good_values(name: str, value: object) -> None:
    start(**{name: value})


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_bad_values_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as refused:
        start(**{name: value})
    assert refused.value.param in {name, *(f"{name}.{key}" for key in (value if isinstance(value, dict) else ()))}
    assert refused.value.message.endswith(".")


@pytest.mark.parametrize("where", ["start", "voice"])
def test_unknown_fields(where: str) -> None:
    for name, shown in (("nonsense", "nonsense"), ("\n<script>", None)):
        with pytest.raises(UnknownField) as refused:
            start(**({name: 1} if where == "start" else {"voice": {name: 1}}))
        assert refused.value.param == (f"voice.{shown}" if shown and where == "voice" else shown)


def test_one_constraint_at_most() -> None:
    with pytest.raises(InvalidRequest, match="more than one"):
        start(regex="a", choice=["a"])
    assert start(json_schema={"const": "é"}).sampling.constraint == Constraint("json_schema", '{"const": "é"}')


def test_opus_says_its_rate_itself() -> None:
    with pytest.raises(InvalidRequest) as refused:
        start(encoding="ogg_opus", sample_rate_hz=48_000)
    assert refused.value.param == "sample_rate_hz"


def test_defaults_are_those_of_the_form() -> None:
    form = parse_form(with_limits(InstructOptions, SETTINGS), {"instruction": "Transcribe."})
    assert start().sampling == form.sampling
    assert start().draft == form.draft
    assert set(SAMPLING_FIELDS) - set(StartMessage.model_fields) == {"logprobs"}


def test_an_utterance_is_never_longer_than_the_engine_takes() -> None:
    message = json.dumps({"type": "start", "instruction": "a", "voice": {"max_utterance_ms": 20_001}})
    with pytest.raises(InvalidRequest, match="20000"):
        MessageReader(SETTINGS, lambda _name: 20.0).read_start(message)
