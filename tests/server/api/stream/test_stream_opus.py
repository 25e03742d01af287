"""Ogg Opus over the WebSocket: decoded page by page, refused at the first byte that is not Opus, and nothing is left behind."""

import numpy as np
import pytest

from server.audio.decode import decode_audio
from server.audio.types import AudioLimits
from tests.server.api.stream.test_stream import heard, past_session, types
from tests.server.audio.test_audio_arriving import pages_of
from tests.support.clients.live_server import (
    LiveServer,
    audio_file,
    instruct,
    scripted_engine_server,
    tone,
    wait_until,
)
from tests.support.clients.stream_client import StreamClient, metric, streaming
from tests.support.fakes.fake_engine import FakeEngine

OPUS = audio_file(tone(3.5, 48_000), 48_000, "OGG", "OPUS")
LIMITS = AudioLimits(sample_rate_hz=16_000, min_audio_s=0.0, max_audio_s=3_600.0)


def start(client: StreamClient) -> None:
    ready = client.start(encoding="ogg_opus", partials=False)
    assert (ready["type"], ready["encoding"]) == ("ready", "ogg_opus")


@pytest.mark.parametrize("size", [100, 4_001, len(OPUS)])
def test_the_engine_hears_the_samples_of_the_file(server: LiveServer, engine: FakeEngine, size: int) -> None:
    with streaming(server) as client:
        start(client)
        for at in range(0, len(OPUS), size):
            client.say(OPUS[at : at + size])
        client.tell("end")
        events, close = client.events()
    assert types(events) == [*["speech_started", "final"] * 4, "ended"]
    assert (events[-1]["audio_s"], close.code) == (3.5, 1000)
    np.testing.assert_array_equal(heard(past_session(engine)), decode_audio(OPUS, LIMITS))


def test_an_utterance_is_answered_while_the_next_is_spoken(server: LiveServer) -> None:
    with streaming(server) as client:
        start(client)
        pages = [page for page, _ in pages_of(OPUS)]
        for page in pages[:4]:
            client.say(page)
        assert client.until("final")[-1]["text"] == "Transcribe. 0"
        client.say(pages[4])
        assert client.until("final")[-1]["text"] == "Transcribe. 1"


@pytest.mark.parametrize("said", [b"RIFF\0\0\0\0WAVEfmt ", b"\x1aE\xdf\xa3" + bytes(100), OPUS[:60] + bytes(1_000)])
def test_what_is_no_opus_ends_the_session(server: LiveServer, engine: FakeEngine, said: bytes) -> None:
    with streaming(server) as client:
        start(client)
        client.say(said)
        client.tell("end")
        assert client.fatal() == ("undecodable_audio", 1008)
    assert engine.aborted == [past_session(engine).request.id]


def test_three_minutes_in_a_moment_are_listened_to_bit_by_bit() -> None:
    """Opus silence is so small that all of the stream is in one message."""
    silence = audio_file(np.zeros(8_000 * 180, np.float32), 8_000, "OGG", "OPUS")
    assert len(silence) < 262_144
    with scripted_engine_server(live_backlog_s=5.0) as (engine, server), streaming(server) as client:
        engine.listens = False
        start(client)
        client.say(silence)
        (session,) = engine.sessions.values()
        wait_until(lambda: session.audio_s > 5)
        client.tell("end")
        assert session.audio_s < 7
        engine.go_on_listening()
        events, _ = client.events()
        assert events[-1]["audio_s"] == 180.0
        assert [event["utterance"] for event in events if event["type"] == "final"] == list(range(180))


def test_sessions_beyond_the_decoders_are_refused_and_those_that_left_are_not_counted() -> None:
    with scripted_engine_server(decode_streams=1) as (_, server):
        for _ in range(3):
            with streaming(server) as first:
                start(first)
                first.say(OPUS[:2_000])
                with streaming(server) as second:
                    second.tell("start", instruction="Transcribe.", encoding="ogg_opus")
                    assert second.fatal() == ("overloaded", 1013)
                with streaming(server) as other:
                    assert other.start()["encoding"] == "pcm16"
            wait_until(lambda: metric(server, "stream_sockets") == 0)
        assert instruct(server, OPUS).status_code == 200
        assert metric(server, "decode_worker_restarts_total") == 0
