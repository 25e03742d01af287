"""Audio beyond the model's own limit: cut at its pauses, listened to as it is decoded, answered as one."""

import json

import numpy as np
import pytest

from server.audio.decode import decode_audio
from server.audio.types import AudioLimits
from server.engine.types.options import Priority, SamplingOptions
from server.engine.types.requests import Audio, EndOfAudio
from tests.support.clients.live_server import (
    LiveServer,
    audio_file,
    error_code,
    instruct,
    scripted_engine_server,
)
from tests.support.fakes.fake_engine import FakeEngine
from tests.support.inputs.recorded import RATE_HZ, Ledger, events_of, heard, recording, streaming, transcript

MINUTE = recording(60)


def test_a_minute_is_one_answer(server: LiveServer, engine: FakeEngine) -> None:
    response = instruct(server, MINUTE)
    reply = response.json()
    assert (response.status_code, reply["text"], reply["finish_reason"]) == (200, transcript(60), "stop")
    assert (reply["audio_s"], reply["basis"], reply["sections"]) == (60.0, "utterances", 1)
    assert reply["usage"]["audio_frames"] == 60 * 12
    assert reply["usage"]["output_tokens"] == 60 * 2
    assert reply["times_ms"]["encode_ms"] == pytest.approx(600)
    assert reply["times_ms"]["total_ms"] > reply["times_ms"]["audio_decode_ms"] > 0
    assert "encode;dur=" in response.headers["server-timing"]
    (session,) = engine.past_sessions
    assert session.request.id == reply["id"]
    assert engine.submitted == []
    assert engine.aborted == []


def test_the_engine_hears_every_sample_in_small_pieces(server: LiveServer, engine: FakeEngine) -> None:
    data = audio_file(np.random.default_rng(1).normal(0, 0.1, 44_100 * 45).astype(np.float32), 44_100, "MP3")
    assert instruct(server, data).status_code == 200
    (session,) = engine.past_sessions
    np.testing.assert_array_equal(heard(session), decode_audio(data, AudioLimits(RATE_HZ, 0.08, 600.0)))
    *audio, end = session.inputs
    assert end == EndOfAudio()
    assert max(len(item.samples) for item in audio if isinstance(item, Audio)) <= RATE_HZ


def test_twenty_minutes_are_never_in_memory_together() -> None:
    with scripted_engine_server(max_audio_s=1_200.0) as (engine, server), Ledger(engine).kept() as ledger:
        reply = instruct(server, recording(1_200)).json()
    assert (reply["audio_s"], reply["text"]) == (1_200.0, transcript(1_200))
    assert ledger.decoded_s == 1_200
    # Audio is known to be long once the model's own limit is decoded.
    assert ledger.most_s <= 30.001


@pytest.mark.parametrize(("samples", "in_pieces"), [(30 * RATE_HZ, False), (30 * RATE_HZ + 1, True)])
def test_what_the_model_takes_in_one_piece_is_not_cut(
    server: LiveServer, engine: FakeEngine, samples: int, in_pieces: bool
) -> None:
    reply = instruct(server, audio_file(np.zeros(samples, np.float32), RATE_HZ, "WAV")).json()
    assert len(engine.past_sessions) == in_pieces
    assert len(engine.submitted) == (not in_pieces)
    assert ("basis" in reply, "sections" in reply) == (in_pieces, in_pieces)


def test_voice_cuts_short_audio_too(server: LiveServer) -> None:
    reply = instruct(server, recording(2.5), chunking="voice").json()
    assert (reply["text"], reply["audio_s"], reply["basis"]) == (transcript(3), 2.5, "utterances")
    assert instruct(server, recording(2.5), chunking="auto").json()["text"] == "hello world"


def test_an_instruction_about_all_gets_the_answer_about_all(server: LiveServer, engine: FakeEngine) -> None:
    reply = instruct(server, MINUTE, "Summarise it.").json()
    assert (reply["text"], reply["basis"], reply["sections"]) == ("about all", "transcript", 1)
    assert reply["usage"]["audio_frames"] == 61 * 12
    assert engine.past_sessions[0].request.scope == "recording"


def test_what_the_client_wishes_reaches_the_engine(server: LiveServer, engine: FakeEngine) -> None:
    fields = {"priority": "batch", "draft": "off", "max_tokens": "7", "temperature": "0.5", "seed": "3", "stop": '["#"]'}
    instruct(server, MINUTE, "Transcribe this.", regex="a+", timestamps="words", **fields)
    request = engine.past_sessions[0].request
    assert (request.task.instruction, request.client, request.priority) == ("Transcribe this.", "127.0.0.1", Priority.BATCH)
    assert (request.task.draft, request.task.word_times) == ("off", "required")
    assert (request.scope, request.partials) == ("utterance", False)
    sampling = request.task.sampling
    assert sampling.constraint is not None
    assert sampling == SamplingOptions(max_tokens=7, temperature=0.5, seed=3, stop=("#",), constraint=sampling.constraint)


def test_words_have_the_times_of_the_recording(server: LiveServer) -> None:
    reply = instruct(server, MINUTE, timestamps="words").json()
    assert [word["start_s"] for word in reply["words"]] == [number / 2 for number in range(120)]
    assert reply["words"][-1] == {"word": "59", "start_s": 59.5, "end_s": 60.0}
    assert " ".join(segment["text"] for segment in reply["segments"]) == reply["text"]
    subtitles = instruct(server, MINUTE, format="srt").text
    assert subtitles.startswith("1\n00:00:00,000 --> ")
    assert subtitles.endswith(" --> 00:01:00,000\n59\n\n")


def test_times_of_what_was_not_said_are_refused(server: LiveServer, engine: FakeEngine) -> None:
    response = instruct(server, MINUTE, "Summarise it.", format="vtt")
    assert (response.status_code, error_code(response)) == (400, "invalid_request")
    assert engine.sessions == {}
    assert engine.past_sessions == []


def test_a_stream_has_a_delta_for_every_utterance(server: LiveServer, engine: FakeEngine) -> None:
    with streaming(server, MINUTE) as response:
        *deltas, done = events_of(response)
    assert response.status_code == 200
    assert "".join(event["delta"] for event in deltas) == done["text"] == transcript(60)
    assert (done["type"], done["basis"], done["audio_s"]) == ("instruct.text.done", "utterances", 60.0)
    whole = instruct(server, MINUTE).json()
    assert {*whole, "type"} == set(done)
    assert engine.aborted == []
    assert 'thinbridge_streams_total{model="fake-model",outcome="done"} 1.0' in server.client.get("/metrics").text


def test_utterances_are_streamed_while_the_rest_is_listened_to() -> None:
    with scripted_engine_server(stream_heartbeat_s=0.05) as (engine, server):
        engine.listens_until_s = 3.0
        with streaming(server, MINUTE) as response:
            lines = (line for line in response.iter_lines() if line)
            text = ""
            while len(text) < len(transcript(3)):
                line = next(lines)
                text += "" if line.startswith(":") else json.loads(line.removeprefix("data: "))["delta"]
            assert text == transcript(3)
            assert next(lines).startswith(":")
            engine.go_on_listening()
            *_, done = (json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: "))
        assert done["text"] == transcript(60)


def test_a_stream_about_all_begins_before_its_answer() -> None:
    """Heartbeats are sent while the audio is transcribed."""
    with scripted_engine_server(stream_heartbeat_s=0.05) as (engine, server):
        engine.listens_until_s = 3.0
        with streaming(server, MINUTE, "Summarise it.") as response:
            lines = (line for line in response.iter_lines() if line)
            assert next(lines).startswith(":")
            engine.go_on_listening()
            delta, done = (json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: "))
        assert (delta["delta"], done["text"], done["basis"]) == ("about all", "about all", "transcript")
