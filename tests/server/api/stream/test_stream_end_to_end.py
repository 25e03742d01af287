"""Options and streams through the server and the real engine, on fake models: one answer, however it is asked for."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from server.engine.engine import LocalEngine
from tests.support.clients.engine_client import serving
from tests.support.clients.live_server import LiveServer, audio_file, instruct, live_server, tone, wait_until

CLIP = audio_file(tone(2.0, 8000, 100.0), 8000, "WAV")
SAMPLED = {"temperature": "1", "seed": "7", "max_tokens": "40"}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with serving() as engine, live_server(Started(engine)) as live:
        wait_until(lambda: live.client.get("/ready").status_code == 200)
        yield live


class Started:
    """An engine that `serving` starts and drains."""

    def __init__(self, engine: LocalEngine) -> None:
        self.sample_rate_hz, self.max_audio_s = engine.sample_rate_hz, engine.max_audio_s
        self.model_name = engine.model_name
        self.check_room, self.submit, self.abort, self.stats = engine.check_room, engine.submit, engine.abort, engine.stats
        self.open_live, self.push, self.transcribes = engine.open_live, engine.push, engine.transcribes

    def start(self) -> None: ...

    def drain(self, timeout_s: float) -> None: ...


def reply(server: LiveServer, **fields: str) -> dict[str, Any]:
    response = instruct(server, CLIP, **fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def events(server: LiveServer, **fields: str) -> list[dict[str, Any]]:
    response = instruct(server, CLIP, stream="true", **fields)
    assert response.status_code == 200, response.text
    return [json.loads(line.removeprefix("data: ")) for line in response.text.splitlines() if line.startswith("data: ")]


@pytest.mark.parametrize("fields", [{}, SAMPLED, {**SAMPLED, "logprobs": "3"}, {**SAMPLED, "stop": '["e"]', "logprobs": "0"}])
def test_a_stream_is_the_same_answer_in_pieces(server: LiveServer, fields: dict[str, str]) -> None:
    whole = reply(server, **fields)
    *deltas, done = events(server, **fields)
    assert "".join(event["delta"] for event in deltas) == done["text"] == whole["text"] != ""
    assert deltas
    assert done["usage"] | {"cached_tokens": 0} == whole["usage"] | {"cached_tokens": 0}
    if "logprobs" in fields:
        logprobs = [token for event in deltas for token in event.get("logprobs", [])]
        assert logprobs == done["logprobs"] == whole["logprobs"]
        assert len(logprobs) == done["usage"]["output_tokens"]
        assert all(len(token["top"]) == int(fields["logprobs"]) for token in logprobs)


def test_a_stop_string_cuts_the_same_answer(server: LiveServer) -> None:
    whole = reply(server, **SAMPLED)["text"]
    stop = whole[len(whole) // 2 :][:2]
    cut = reply(server, **SAMPLED, stop=json.dumps([stop]))
    assert cut["text"] == whole.partition(stop)[0].strip()
    assert cut["finish_reason"] == "stop"


def test_a_seed_repeats_an_answer_and_another_does_not(server: LiveServer) -> None:
    assert reply(server, **SAMPLED)["text"] == reply(server, **SAMPLED)["text"]
    assert reply(server, **SAMPLED)["text"] != reply(server, **{**SAMPLED, "seed": "8"})["text"]


@pytest.mark.parametrize("option", [{"top_k": "1"}, {"top_p": "0.00000001"}])
def test_the_narrowest_sampling_is_the_greedy_answer(server: LiveServer, option: dict[str, str]) -> None:
    greedy = reply(server, max_tokens="20")
    assert reply(server, max_tokens="20", temperature="1.5", **option)["text"] == greedy["text"]


@pytest.mark.parametrize("option", [{"repetition_penalty": "2"}, {"presence_penalty": "2"}])
def test_penalties_change_the_answer(server: LiveServer, option: dict[str, str]) -> None:
    assert reply(server, **SAMPLED, **option)["text"] != reply(server, **SAMPLED)["text"]
