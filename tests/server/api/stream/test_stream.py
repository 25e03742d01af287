"""A live session over a real WebSocket: speech comes out as events, in order, and the client's options reach the engine."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from server.engine.types.events import Problem
from server.engine.types.options import Constraint, Priority, SamplingOptions, VoiceOptions
from server.engine.types.requests import Audio, LiveRequest, SpeechTask
from server.errors import PromptTooLong
from tests.support.clients.live_server import LiveServer, scripted_engine_server, wait_until
from tests.support.clients.stream_client import StreamClient, metric, pcm, samples_of, streaming
from tests.support.fakes.fake_engine import FakeEngine
from tests.support.fakes.fake_live import FakeSession

EVENTS = ("speech_started", "partial", "final")


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def heard(session: FakeSession) -> npt.NDArray[np.float32]:
    """Return all samples that were pushed."""
    return np.concatenate([item.samples for item in session.inputs if isinstance(item, Audio)])


def past_session(engine: FakeEngine) -> FakeSession:
    wait_until(lambda: bool(engine.past_sessions))
    return engine.past_sessions[-1]


def test_events_of_a_session(server: LiveServer, engine: FakeEngine) -> None:
    with streaming(server) as client:
        ready = client.start("Transcribe.")
        limits = {"idle_timeout_s": 10.0, "max_session_s": 7200.0, "max_frame_bytes": 262_144}
        session_id = ready.pop("session_id")
        assert ready == {"type": "ready", "sample_rate_hz": 16_000, "encoding": "pcm16", "limits": limits}
        client.say(pcm(0.5))
        assert client.event() == {"type": "speech_started", "utterance": 0, "start_s": 0.0}
        times = {"start_s": 0.0, "stable_end_s": 0.0, "end_s": 0.5}
        assert client.event() == {"type": "partial", "utterance": 0, "stable": "so far", "tail": " and on", **times}
        client.say(pcm(0.5))
        final = client.event()
        client.tell("end")
        events, close = client.events()
    assert (final["type"], final["utterance"], final["text"], final["finish_reason"]) == ("final", 0, "Transcribe. 0", "stop")
    assert (final["start_s"], final["end_s"]) == (0.0, 1.0)
    first, second = final["words"]
    assert first == {"word": "Transcribe.", "start_s": 0.0, "end_s": 0.5}
    assert second == {"word": "0", "start_s": 0.5, "end_s": 1.0}
    assert final["usage"]["total_tokens"] == 26
    assert final["times_ms"]["encode_ms"] == 10
    assert set(final["speculation"]) == {"drafted", "accepted", "llm_passes"}
    assert events == [{"type": "ended", "audio_s": 1.0, "basis": "utterances", "sections": 1}]
    assert close.code == 1000
    assert past_session(engine).request.id == session_id
    assert engine.aborted == []


def test_the_rest_is_answered_at_the_end(server: LiveServer) -> None:
    with streaming(server) as client:
        client.start()
        client.say(pcm(2.25))
        client.tell("end")
        events, close = client.events()
    assert [event["text"] for event in events if event["type"] == "final"] == ["Transcribe. 0", "Transcribe. 1", "Transcribe. 2"]
    assert events[-1]["audio_s"] == 2.25
    assert close.code == 1000


def test_an_instruction_about_the_whole(server: LiveServer) -> None:
    with streaming(server) as client:
        client.start("Summarise.", scope="recording")
        client.say(pcm(1.0))
        client.tell("end")
        events, close = client.events()
    delta, ended = events[-2:]
    assert delta == {"type": "delta", "delta": "about all"}
    assert (ended["type"], ended["basis"], ended["answer"]["text"], ended["answer"]["audio_s"]) == (
        *("ended", "transcript", "about all", 1.0),
    )
    assert close.code == 1000


@pytest.mark.parametrize("rate_hz", [8000, 16_000, 44_100, 48_000])
def test_neither_cuts_nor_the_rate_change_what_is_heard(server: LiveServer, engine: FakeEngine, rate_hz: int) -> None:
    """Pieces of odd length, some of them empty, carry the same sound as one."""
    audio = pcm(1.3, rate_hz)
    sounds = []
    for cuts in ([len(audio)], [1, 0, 7, 1000, 3, 50_001]):
        with streaming(server) as client:
            client.start(sample_rate_hz=rate_hz)
            start = 0
            for size in [*cuts, len(audio)]:
                client.say(audio[start : start + size])
                start += size
            client.tell("end")
            events, _ = client.events()
        assert events[-1]["audio_s"] == pytest.approx(1.3, abs=0.001)
        sounds.append(heard(past_session(engine)))
    assert np.array_equal(sounds[0], sounds[1])
    if rate_hz == engine.sample_rate_hz:
        assert np.array_equal(sounds[0], samples_of(audio))


def test_a_flush_comes_back_after_all_that_was_said_before(server: LiveServer) -> None:
    with streaming(server) as client:
        client.start(partials=False)
        for marker in ("first", "second"):
            client.say(pcm(1.5))
            client.tell("flush", id=marker)
        client.tell("end")
        events, _ = client.events()
    told = [event.get("text", event.get("id")) for event in events if event["type"] in ("final", "flushed")]
    expected = ["Transcribe. 0", "Transcribe. 1", "first", "Transcribe. 2", "second"]
    assert told == expected
    assert types(events)[-1] == "ended"


def test_partials_can_be_left_out(server: LiveServer) -> None:
    with streaming(server) as client:
        client.start(partials=False)
        client.say(pcm(1.5))
        client.tell("end")
        events, _ = client.events()
    assert "partial" not in types(events)


def test_the_instruction_changes_between_utterances(server: LiveServer) -> None:
    with streaming(server) as client:
        client.start("Transcribe.")
        client.say(pcm(1.0))
        client.tell("update", instruction="Translate.")
        client.say(pcm(1.0))
        client.tell("end")
        events, _ = client.events()
    assert [event["text"] for event in events if event["type"] == "final"] == ["Transcribe. 0", "Translate. 1"]


@pytest.mark.parametrize("utterance", [None, 3])
def test_a_problem_is_told_and_the_session_goes_on(server: LiveServer, engine: FakeEngine, utterance: int | None) -> None:
    with streaming(server) as client:
        client.start()
        (session,) = engine.sessions.values()
        session.deliver(Problem(session.request.id, PromptTooLong("It is too long.", param="instruction"), utterance))
        event = client.event()
        client.say(pcm(1.0))
        assert client.until("final")[-1]["text"] == "Transcribe. 0"
    request_id = event.pop("request_id")
    error = {"message": "It is too long.", "type": "invalid_request_error", "param": "instruction", "code": "prompt_too_long"}
    about = {} if utterance is None else {"utterance": utterance}
    assert event == {"type": "error", "error": error, "fatal": False, **about}
    assert client.socket.response is not None
    assert client.socket.response.headers["x-request-id"] == request_id


def request_of(server: LiveServer, engine: FakeEngine, **start: object) -> LiveRequest:
    with streaming(server) as client:
        assert client.start(**start)["type"] == "ready"  # type: ignore[arg-type]
        (session,) = engine.sessions.values()
    wait_until(lambda: not engine.sessions)
    return session.request


def test_the_defaults_are_those_of_the_form(server: LiveServer, engine: FakeEngine) -> None:
    request = request_of(server, engine)
    assert request == LiveRequest(request.id, SpeechTask("Transcribe."), client="127.0.0.1")
    assert request.priority is Priority.LIVE


def test_every_wish_reaches_the_engine(server: LiveServer, engine: FakeEngine) -> None:
    sampling = {
        "max_tokens": 32,
        "temperature": 0.7,
        "top_k": 5,
        "top_p": 0.9,
        "repetition_penalty": 1.5,
        "presence_penalty": -1,
        "seed": 7,
        "stop": ["###", "\n"],
    }
    voice = {"threshold": 0.3, "prefix_padding_ms": 200, "silence_duration_ms": 700, "max_utterance_ms": 9000}
    request = request_of(
        server, engine, instruction="Où ?", draft="off", partials=False, words=True, scope="recording", voice=voice, **sampling
    )
    assert request == LiveRequest(
        request.id,
        SpeechTask(
            "Où ?", SamplingOptions(32, 1.5, -1.0, 0.7, 5, 0.9, ("###", "\n"), None, 7), draft="off", word_times="required"
        ),
        client="127.0.0.1",
        voice=VoiceOptions(0.3, 0.2, 0.7, 9.0),
        scope="recording",
        partials=False,
    )


@pytest.mark.parametrize(
    ("option", "constraint"),
    [
        ({"json_schema": {"type": "object"}}, Constraint("json_schema", '{"type": "object"}')),
        ({"json_schema": {}}, Constraint("json_schema", "{}")),
        ({"regex": "[0-9]+"}, Constraint("regex", "[0-9]+")),
        ({"choice": ["oui", "né"]}, Constraint("choice", '["oui", "né"]')),
    ],
)
def test_what_answers_have_to_match(
    server: LiveServer, engine: FakeEngine, option: dict[str, object], constraint: Constraint
) -> None:
    assert request_of(server, engine, **option).task.sampling.constraint == constraint


def test_a_browser_on_our_own_page_may_come_and_ids_are_kept(server: LiveServer) -> None:
    headers = {"Origin": f"http://127.0.0.1:{server.port}", "x-request-id": "mine-1"}
    with streaming(server, additional_headers=headers) as client:
        assert client.start()["type"] == "ready"
        client.tell("nonsense")
        event = client.event()
        assert client.socket.response is not None
        assert client.socket.response.headers["x-request-id"] == event["request_id"] == "mine-1"


def test_sessions_are_counted() -> None:
    with scripted_engine_server() as (_, server):
        with streaming(server) as client:
            client.start()
            assert metric(server, "stream_sockets") == metric(server, 'live_sessions{model="fake-model"}') == 1
            for _ in range(3):
                client.say(pcm(0.5))
                client.event()
            say_all(client)
        wait_until(lambda: metric(server, "stream_sockets") == metric(server, 'live_sessions{model="fake-model"}') == 0)
        assert metric(server, 'stream_sessions_total{model="fake-model",outcome="ended"}') == 1
        assert metric(server, 'stream_audio_seconds_total{model="fake-model"}') == 1.5
        for latency in ("first_partial", "final"):
            assert metric(server, f'{latency}_latency_seconds_count{{model="fake-model"}}') == 2
        assert metric(server, 'http_requests_total{route="/v1/stream",status="101"}') == 1


def say_all(client: StreamClient) -> None:
    client.tell("end")
    client.events()
