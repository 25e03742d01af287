"""A transcription session of OpenAI's Realtime API over a real WebSocket; every event is valid by OpenAI's models."""

import base64
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import InvalidStatus

from server.engine.types.events import Failed, Problem, SpeechStarted
from server.engine.types.options import VoiceOptions
from server.engine.types.requests import Audio, Flush, LiveInput, LiveRequest
from server.errors import EngineFailed, InvalidRequest, Overloaded, PromptTooLong
from tests.support.clients.live_server import LiveServer, audio_file, live_server, tone, wait_until
from tests.support.clients.realtime_client import AUDIO, ITEM, TRANSCRIPTION, RealtimeClient, realtime, types
from tests.support.clients.stream_client import only_session, pcm
from tests.support.fakes.fake_engine import FakeEngine
from tests.support.fakes.fake_live import FakeSession

TEXT = "Transcribe the speech to text. {}"
COMMITTED = [f"{AUDIO}.committed", f"{ITEM}.added", f"{ITEM}.done"]


def heard_s(session: FakeSession) -> float:
    return sum(len(item.samples) for item in session.inputs if isinstance(item, Audio)) / 16_000


def test_a_session_begins_with_its_options_and_no_place_in_the_engine(server: LiveServer, engine: FakeEngine) -> None:
    with realtime(server) as client:
        session = client.event()["session"]
        assert engine.sessions == {}
    assert session["id"].startswith("sess_")
    assert session["expires_at"] > time.time()
    assert session["audio"]["input"] == {
        "format": {"type": "audio/pcm", "rate": 24_000},
        "noise_reduction": None,
        "transcription": {"model": engine.model_name, "language": None, "prompt": None},
        "turn_detection": {
            "type": "server_vad",
            "threshold": 0.5,
            "prefix_padding_ms": 300,
            "silence_duration_ms": 500,
            "idle_timeout_ms": None,
        },
    }


def test_the_events_of_an_utterance(server: LiveServer) -> None:
    with realtime(server) as client:
        client.event()
        client.append(pcm(0.5, 24_000))
        client.append(pcm(0.6, 24_000))
        events = client.until(f"{TRANSCRIPTION}.completed")
        completed = events[-1]
        started, first = events[:2]
        second = client.event()
    item_id = started["item_id"]
    assert types(events) == [
        *(f"{AUDIO}.speech_started", f"{TRANSCRIPTION}.delta", f"{AUDIO}.speech_stopped"),
        *(*COMMITTED, f"{TRANSCRIPTION}.completed"),
    ]
    assert {event.get("item_id", event.get("item", {}).get("id")) for event in events} == {item_id}
    assert (started["audio_start_ms"], first["delta"]) == (0, "so far")
    assert completed["transcript"] == TEXT.format(0)
    assert completed["usage"] == {
        "type": "tokens",
        "total_tokens": 24 + 6,
        "input_tokens": 24,
        "output_tokens": 6,
        "input_token_details": {"text_tokens": 12, "audio_tokens": 12},
    }
    assert second["type"] == f"{AUDIO}.speech_started"
    assert second["item_id"] != item_id


def test_speech_stops_before_the_next_begins_though_its_answer_is_late(server: LiveServer, engine: FakeEngine) -> None:
    with realtime(server) as client:
        client.event()
        client.append(pcm(0.5, 24_000))
        first = client.event()
        session = only_session(engine)
        session.deliver(SpeechStarted(session.request.id, 1, 2.0))
        events = [event for event in (client.event() for _ in range(3)) if not event["type"].endswith("delta")]
        assert types(events) == [f"{AUDIO}.speech_stopped", f"{AUDIO}.speech_started"]
        assert (events[0]["item_id"], events[0]["audio_end_ms"]) == (first["item_id"], 2000)
        client.append(pcm(0.6, 24_000))
        completed = client.until(f"{TRANSCRIPTION}.completed")
    assert completed[-1]["item_id"] == first["item_id"]
    assert f"{AUDIO}.speech_stopped" not in types(completed)


def test_items_are_in_order(server: LiveServer) -> None:
    with realtime(server) as client:
        client.append(pcm(3.0, 24_000))
        events = [event for _ in range(3) for event in client.until(f"{TRANSCRIPTION}.completed")]
    committed = [event for event in events if event["type"] == f"{AUDIO}.committed"]
    ids = [event["item_id"] for event in committed]
    assert [event["previous_item_id"] for event in committed] == [None, *ids[:2]]
    completed = [event for event in events if event["type"].endswith("completed")]
    assert [event["item_id"] for event in completed] == ids
    assert [event["transcript"] for event in completed] == [TEXT.format(number) for number in range(3)]


def test_deltas_that_the_answer_takes_back_stay(server: LiveServer) -> None:
    """The transcript does not begin with the text so far, so nothing is added to it."""
    with realtime(server) as client:
        for _ in range(3):
            client.append(pcm(0.4, 24_000))
        events = client.until(f"{TRANSCRIPTION}.completed")
    assert [event["delta"] for event in events if event["type"].endswith("delta")] == ["so far"]


FORMATS: list[tuple[dict[str, Any], bytes]] = [
    ({"type": "audio/pcm"}, pcm(1.5, 24_000)),
    ({"type": "audio/pcm", "rate": 16_000}, pcm(1.5, 16_000)),
    ({"type": "audio/pcm", "rate": 48_000}, pcm(1.5, 48_000)),
    ({"type": "audio/pcmu"}, audio_file(tone(1.5, 8000), 8000, "RAW", "ULAW")),
    ({"type": "audio/pcma"}, audio_file(tone(1.5, 8000), 8000, "RAW", "ALAW")),
    ({"type": "audio/pcm"}, audio_file(tone(1.5, 16_000), 16_000, "WAV")),
]


@pytest.mark.parametrize(("format", "audio"), FORMATS)
def test_formats(server: LiveServer, engine: FakeEngine, format: dict[str, Any], audio: bytes) -> None:
    with realtime(server) as client:
        client.socket.recv()
        client.tell("session.update", session={"type": "transcription", "audio": {"input": {"format": format}}})
        client.socket.recv()
        client.append(audio)
        client.until(f"{TRANSCRIPTION}.completed")
        session = only_session(engine)
        wait_until(lambda: heard_s(session) == pytest.approx(1.5, abs=0.05))
        samples = np.concatenate([item.samples for item in session.inputs if isinstance(item, Audio)])
    expected = tone(1.5, 16_000)[: len(samples)]
    assert np.corrcoef(samples[:8000], expected[:8000])[0, 1] > 0.99


@pytest.mark.parametrize("wrap", ["lines", "data URL", "alphabet of addresses", "no padding"])
def test_base64_is_read_however_it_is_written(server: LiveServer, engine: FakeEngine, wrap: str) -> None:
    audio = pcm(1.0, 24_000) + b"\xfb\xff"
    text = {
        "lines": base64.encodebytes(audio).decode(),
        "data URL": "data:audio/pcm;base64," + base64.b64encode(audio).decode(),
        "alphabet of addresses": base64.urlsafe_b64encode(audio).decode(),
        "no padding": base64.b64encode(audio).decode().rstrip("="),
    }[wrap]
    with realtime(server) as client:
        client.event()
        client.tell(f"{AUDIO}.append", audio=text)
        client.until(f"{TRANSCRIPTION}.completed")
        assert heard_s(only_session(engine)) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(("language", "code"), [("en-US", "en"), ("German", "de"), ("auto", None), ("pt_BR", "pt")])
def test_languages_have_regions_and_names(server: LiveServer, engine: FakeEngine, language: str, code: str | None) -> None:
    with realtime(server) as client:
        shown = client.update(transcription={"language": language})
        client.append(pcm(0.1, 24_000))
        assert only_session(engine).request.task.language == code
    assert shown["audio"]["input"]["transcription"]["language"] == language


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"format": "pcm16"}, "format has to be a JSON object or null."),
        ({"format": {"type": "audio/pcm", "rate": 44_100}}, "format.rate has to be one of 8000, 16000, 24000, 48000 or null."),
        ({"turn_detection": {"threshold": 2}}, "turn_detection.threshold has to be a number from 0.05 to 0.95."),
        ({"turn_detection": {"type": "vad"}}, "turn_detection.type has to be one of server_vad, semantic_vad."),
        ({"transcription": {"languages": ["en", 3]}}, "transcription.languages.1 has to be text."),
    ],
)
def test_an_error_says_what_a_field_has_to_be(server: LiveServer, given: dict[str, Any], message: str) -> None:
    with realtime(server) as client:
        client.event()
        client.tell("session.update", session={"type": "transcription", "audio": {"input": given}})
        assert client.event()["error"]["message"] == f"session.audio.input.{message}"


def test_options_reach_the_engine(server: LiveServer, engine: FakeEngine) -> None:
    with realtime(server) as client:
        shown = client.update(
            transcription={"model": "whisper-1", "language": "de", "prompt": "Hallo.", "keywords": ["Thinbridge"]},
            turn_detection={"type": "server_vad", "threshold": 0.7, "prefix_padding_ms": 200, "silence_duration_ms": 350},
            noise_reduction={"type": "near_field"},
        )
        client.tell("session.update", session={"type": "transcription", "include": ["item.input_audio_transcription.logprobs"]})
        client.append(pcm(0.1, 24_000))
        request = only_session(engine).request
    assert shown["audio"]["input"]["noise_reduction"] is None
    assert shown["audio"]["input"]["transcription"]["language"] == "de"
    assert (request.task.language, request.task.prompt, request.task.keywords) == ("de", "Hallo.", ("Thinbridge",))
    assert request.voice == VoiceOptions(0.7, 0.2, 0.35)
    assert request.task.sampling.logprobs == 0
    assert request.task.instruction == "Transcribe the speech to text."


@pytest.mark.parametrize(("eagerness", "silence_s"), [("low", 1.2), ("medium", 0.8), ("auto", 0.8), ("high", 0.5)])
def test_semantic_voice_detection_is_mapped(server: LiveServer, engine: FakeEngine, eagerness: str, silence_s: float) -> None:
    with realtime(server) as client:
        shown = client.update(turn_detection={"type": "semantic_vad", "eagerness": eagerness})
        assert shown["audio"]["input"]["turn_detection"] == {"type": "semantic_vad", "eagerness": eagerness}
        client.append(pcm(0.1, 24_000))
        assert only_session(engine).request.voice.silence_s == silence_s


def test_an_update_in_mid_session_answers_first(server: LiveServer, engine: FakeEngine) -> None:
    """Times and items go on, and the next audio is served with the new options."""
    with realtime(server) as client:
        client.append(pcm(1.5, 24_000))
        client.update(transcription={"language": "de"})
        client.append(pcm(1.0, 24_000))
        events = client.until(f"{AUDIO}.speech_started")
        assert only_session(engine).request.task.language == "de"
        (past,) = engine.past_sessions
    assert past.request.task.language is None
    assert events[-1]["audio_start_ms"] == pytest.approx(1500, abs=1)


def manual(client: RealtimeClient) -> None:
    assert client.update(turn_detection=None)["audio"]["input"]["turn_detection"] is None


def test_without_voice_detection_a_commit_ends_an_item(server: LiveServer) -> None:
    with realtime(server) as client:
        manual(client)
        client.append(pcm(2.5, 24_000))
        client.tell(f"{AUDIO}.commit")
        first = client.until(f"{TRANSCRIPTION}.completed")
        client.append(pcm(1.0, 24_000))
        client.tell(f"{AUDIO}.commit")
        second = client.until(f"{TRANSCRIPTION}.completed")
    assert f"{AUDIO}.speech_started" not in types(first)
    assert first[-1]["transcript"] == " ".join(TEXT.format(number) for number in range(3))
    assert second[-1]["transcript"] == TEXT.format(3)
    (committed,) = [event for event in second if event["type"] == f"{AUDIO}.committed"]
    assert committed["previous_item_id"] == first[-1]["item_id"]
    assert first[-1]["usage"]["output_tokens"] == 18


def test_without_voice_detection_the_clock_ends_nothing(server: LiveServer, engine: FakeEngine) -> None:
    with realtime(server) as client:
        manual(client)
        client.append(pcm(0.5, 24_000))
        session = only_session(engine)
        time.sleep(1.5)
        assert not any(isinstance(item, Flush) for item in session.inputs)


def test_a_microphone_that_stops_ends_its_utterance(server: LiveServer) -> None:
    with realtime(server) as client:
        client.append(pcm(0.4, 24_000))
        events = client.until(f"{TRANSCRIPTION}.completed")
    assert events[-1]["transcript"] == TEXT.format(0)


def test_a_place_in_the_engine_is_given_back() -> None:
    engine = FakeEngine()
    with live_server(engine, live_idle_timeout_s=0.3) as server, realtime(server) as client:
        client.append(pcm(0.4, 24_000))
        client.until(f"{TRANSCRIPTION}.completed")
        wait_until(lambda: not engine.sessions)
        client.append(pcm(1.0, 24_000))
        events = client.until(f"{AUDIO}.speech_started")
        assert events[-1]["audio_start_ms"] == pytest.approx(400, abs=50)


def test_a_commit_without_speech_is_an_error_that_names_the_event(server: LiveServer) -> None:
    with realtime(server) as client:
        client.event()
        for detects in (True, False):
            if not detects:
                manual(client)
            client.tell(f"{AUDIO}.commit", event_id="mine")
            error = client.event()["error"]
            assert (error["code"], error["event_id"]) == ("input_audio_buffer_commit_empty", "mine")


def test_a_commit_under_voice_detection_ends_the_utterance_and_a_clear_is_answered_after_it(server: LiveServer) -> None:
    """The end of a session of openai-agents: commit, clear, and all transcripts."""
    with realtime(server) as client:
        client.append(pcm(1.5, 24_000))
        client.tell(f"{AUDIO}.commit", event_id="last")
        client.tell(f"{AUDIO}.clear")
        events = client.until(f"{AUDIO}.cleared")
        client.tell(f"{AUDIO}.commit", event_id="again")
        error = client.event()["error"]
    assert [event["transcript"] for event in events if event["type"].endswith("completed")] == [TEXT.format(0), TEXT.format(1)]
    assert not any(event["type"] == "error" for event in events)
    assert error["code"] == "input_audio_buffer_commit_empty"


@pytest.mark.parametrize("detects", [True, False])
def test_a_clear_forgets_what_was_not_committed(server: LiveServer, detects: bool) -> None:
    with realtime(server) as client:
        if not detects:
            manual(client)
        client.append(pcm(0.4, 24_000))
        client.tell(f"{AUDIO}.clear")
        cleared = client.until(f"{AUDIO}.cleared")
        client.append(pcm(0.7, 24_000))
        client.tell(f"{AUDIO}.commit")
        events = client.until(f"{TRANSCRIPTION}.completed")
    assert not any(event["type"].endswith(("completed", "committed")) for event in cleared)
    assert [event["transcript"] for event in events if event["type"].endswith("completed")] == [TEXT.format(1)]


@pytest.fixture
def busy_engine(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """An engine that takes inputs of sessions late: call this once it may go on."""
    late: list[tuple[str, LiveInput]] = []
    push = engine.push
    monkeypatch.setattr(engine, "push", lambda *item: late.append(item))

    def go_on() -> None:
        wait_until(lambda: sum(isinstance(item, Flush) for _, item in late) == 3)
        for id, item in late:
            push(id, item)

    return go_on


def test_a_commit_is_told_after_the_clear_before_it(server: LiveServer, busy_engine: Callable[[], None]) -> None:
    with realtime(server) as client:
        manual(client)
        for kind in ("commit", "clear", "commit"):
            client.append(pcm(0.4, 24_000))
            client.tell(f"{AUDIO}.{kind}")
        busy_engine()
        events = [event for _ in range(2) for event in client.until(f"{TRANSCRIPTION}.completed")]
    told = [event for event in events if not event["type"].endswith("delta")]
    assert types(told) == [*COMMITTED, f"{TRANSCRIPTION}.completed", f"{AUDIO}.cleared", *COMMITTED, f"{TRANSCRIPTION}.completed"]
    assert [event["transcript"] for event in told if "transcript" in event] == [TEXT.format(0), TEXT.format(1)]
    assert told[5]["previous_item_id"] == told[0]["item_id"]


def append_to_ended_session(client: RealtimeClient, engine: FakeEngine) -> FakeSession:
    """Append audio without voice detection to a session that the engine has ended, but has not refused yet."""
    manual(client)
    client.append(pcm(0.5, 24_000))
    session = only_session(engine)
    engine.end_session(session.request.id)
    return session


def refuse_late(session: FakeSession) -> None:
    session.deliver(Failed(session.request.id, PromptTooLong("It is too long.", param="keywords")))


def test_a_commit_behind_a_clear_fails_with_the_engine_and_is_told_first(server: LiveServer, engine: FakeEngine) -> None:
    with realtime(server) as client:
        session = append_to_ended_session(client, engine)
        client.tell(f"{AUDIO}.clear")
        client.append(pcm(0.5, 24_000))
        client.tell(f"{AUDIO}.commit")
        # Answered at once, so that what came before it was read.
        client.tell(f"{AUDIO}.commit")
        client.until("error")
        refuse_late(session)
        events = client.until(f"{TRANSCRIPTION}.failed")
    assert types(events) == ["error", f"{AUDIO}.cleared", *COMMITTED, f"{TRANSCRIPTION}.failed"]


BAD_MESSAGES: dict[str, tuple[dict[str, Any], str | None]] = {
    "unknown type": ({"type": "response.create"}, "type"),
    "conversation": ({"type": "session.update", "session": {"type": "realtime"}}, "session.type"),
    "no base64": ({"type": f"{AUDIO}.append", "audio": "%"}, "audio"),
    "no audio": ({"type": f"{AUDIO}.append"}, "audio"),
    "include": ({"type": "session.update", "session": {"include": ["nonsense"]}}, "session.include"),
    **{
        name: ({"type": "session.update", "session": {"audio": {"input": given}}}, f"session.audio.input.{param}")
        for name, given, param in [
            ("rate", {"format": {"type": "audio/pcm", "rate": 11_025}}, "format.rate"),
            ("format", {"format": {"type": "audio/opus"}}, "format.type"),
            ("threshold", {"turn_detection": {"type": "server_vad", "threshold": 2}}, "turn_detection.threshold"),
            ("delay", {"transcription": {"delay": "low"}}, "transcription.delay"),
            ("languages", {"transcription": {"languages": ["en"] * 9}}, "transcription.languages"),
            ("language", {"transcription": {"language": "xx"}}, "transcription.language"),
            ("one of the languages", {"transcription": {"languages": ["en", "klingon"]}}, "transcription.languages"),
            ("timeout", {"turn_detection": {"type": "server_vad", "idle_timeout_ms": 5000}}, "turn_detection.idle_timeout_ms"),
        ]
    },
}


@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_errors_keep_the_session(server: LiveServer, name: str) -> None:
    message, param = BAD_MESSAGES[name]
    with realtime(server) as client:
        client.event()
        client.tell(**message, event_id="mine")
        event = client.event()
        assert event["error"].pop("message").endswith(".")
        assert event["error"] == {"type": "invalid_request_error", "code": "invalid_request", "param": param, "event_id": "mine"}
        client.append(pcm(1.0, 24_000))
        client.until(f"{TRANSCRIPTION}.completed")


@pytest.mark.parametrize("frame", ["{", "[]", "1", '{"type":1}', b"\0\0"])
def test_frames_that_are_no_messages_keep_the_session(server: LiveServer, frame: str | bytes) -> None:
    with realtime(server) as client:
        client.event()
        client.socket.send(frame)
        assert client.event()["type"] == "error"
        client.tell(f"{AUDIO}.clear")
        assert client.event()["type"] == f"{AUDIO}.cleared"


def test_a_language_that_the_model_refuses_is_one_error(server: LiveServer, engine: FakeEngine) -> None:
    engine.live_refusal = InvalidRequest("The model does not know the language 'xx'.", param="language")
    with realtime(server) as client:
        client.event()
        for _ in range(3):
            client.append(pcm(0.5, 24_000))
        assert client.event()["error"]["param"] == "language"
        engine.live_refusal = None
        client.update(transcription={"language": "en"})
        client.append(pcm(1.0, 24_000))
        client.until(f"{TRANSCRIPTION}.completed")


def test_a_refusal_that_comes_late_fails_what_was_committed(server: LiveServer, engine: FakeEngine) -> None:
    with realtime(server) as client:
        session = append_to_ended_session(client, engine)
        client.tell(f"{AUDIO}.commit")
        client.until(f"{ITEM}.done")
        refuse_late(session)
        error, failed = client.until(f"{TRANSCRIPTION}.failed")[-2:]
        assert (error["error"]["code"], failed["error"]["code"]) == ("prompt_too_long", "prompt_too_long")
        client.update(transcription={"keywords": []})
        client.append(pcm(0.5, 24_000))
        client.tell(f"{AUDIO}.commit")
        client.until(f"{TRANSCRIPTION}.completed")


def test_an_utterance_that_cannot_be_answered_has_failed(server: LiveServer, engine: FakeEngine) -> None:
    engine.problems[0] = EngineFailed("It broke.")
    with realtime(server) as client:
        client.append(pcm(1.0, 24_000))
        failed = client.until(f"{TRANSCRIPTION}.failed")[-1]
        assert failed["error"] == {"type": "transcription_error", "code": "engine_failed", "message": "It broke.", "param": None}
        client.append(pcm(1.0, 24_000))
        client.until(f"{TRANSCRIPTION}.completed")


def test_a_problem_of_no_utterance_is_an_error(server: LiveServer, engine: FakeEngine) -> None:
    with realtime(server) as client:
        client.append(pcm(0.2, 24_000))
        session = only_session(engine)
        session.deliver(Problem(session.request.id, InvalidRequest("No."), None))
        assert client.until("error")[-1]["error"]["message"] == "No."


def test_no_place_in_the_engine_ends_the_session(server: LiveServer, engine: FakeEngine) -> None:
    engine.live_refusal = Overloaded("All live sessions are taken.", retry_after_s=1)
    with realtime(server) as client:
        client.append(pcm(0.5, 24_000))
        events, close = client.events()
        engine.live_refusal = None
    assert (events[-1]["error"]["code"], close.code) == ("overloaded", 1013)


def test_a_large_message_is_taken(server: LiveServer, engine: FakeEngine) -> None:
    with realtime(server) as client:
        client.append(pcm(100.0, 24_000))
        for _ in range(100):
            client.until(f"{TRANSCRIPTION}.completed")
        assert heard_s(only_session(engine)) == pytest.approx(100, abs=0.1)


def test_the_beta_shape(server: LiveServer, engine: FakeEngine) -> None:
    headers = {"OpenAI-Beta": "realtime=v1"}
    with realtime(server, additional_headers=headers) as client:

        def event() -> dict[str, Any]:
            content: dict[str, Any] = json.loads(client.socket.recv(20))
            return content

        created = event()
        options = {
            "input_audio_format": "g711_ulaw",
            "input_audio_transcription": {"model": "whisper-1", "language": "en"},
            "turn_detection": None,
            "input_audio_noise_reduction": {"type": "near_field"},
        }
        client.tell("transcription_session.update", session=options)
        updated = event()
        client.tell(f"{AUDIO}.append", audio=base64.b64encode(audio_file(tone(0.5, 8000), 8000, "RAW", "ULAW")).decode())
        client.tell(f"{AUDIO}.commit")
        events = [event()]
        while not events[-1]["type"].endswith("completed"):
            events.append(event())
        request: LiveRequest = only_session(engine).request
    assert (created["type"], created["session"]["input_audio_format"]) == ("transcription_session.created", "pcm16")
    assert updated["type"] == "transcription_session.updated"
    assert updated["session"]["input_audio_format"] == "g711_ulaw"
    assert updated["session"]["turn_detection"] is None
    assert request.task.language == "en"
    assert f"{ITEM}.created" in types(events)
    assert events[-1]["transcript"] == TEXT.format(0)


def test_models_that_are_not_served(server: LiveServer) -> None:
    with pytest.raises(InvalidStatus, match="404"), realtime(server, "?model=other"):
        pass
    with realtime(server, "?model=whisper-1") as client:
        assert client.event()["session"]["audio"]["input"]["transcription"]["model"] == "whisper-1"
        client.tell("session.update", session={"audio": {"input": {"transcription": {"model": "other"}}}})
        assert client.event()["error"]["code"] == "model_not_found"


def test_the_subprotocol_is_agreed_on(server: LiveServer) -> None:
    with realtime(server, subprotocols=["realtime", "openai-insecure-api-key.none"]) as client:
        assert client.socket.subprotocol == "realtime"
