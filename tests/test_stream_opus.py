"""Ogg Opus over the live WebSocket: the samples are those of the file, however its bytes come; other bytes end the session."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
import soundfile

from server.audio import AudioLimits, decode_audio
from server.live import Audio
from tests.fake_engine import FakeEngine
from tests.live_server import LiveServer, live_server, wait_until
from tests.stream_client import streaming

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="module")
def server(engine: FakeEngine) -> Iterator[LiveServer]:
    with live_server(engine) as live:
        wait_until(lambda: engine.stats().ready)
        yield live


def opus(duration_s: float) -> bytes:
    file = io.BytesIO()
    audio = np.random.default_rng(0).normal(0, 0.1, int(duration_s * RATE_HZ))
    soundfile.write(file, audio, RATE_HZ, format="OGG", subtype="OPUS")
    return file.getvalue()


@pytest.mark.parametrize("piece_bytes", [100, 4096, 10**6])
def test_samples_are_those_of_the_file(server: LiveServer, engine: FakeEngine, piece_bytes: int) -> None:
    data = opus(2.5)
    sessions = len(engine.past_sessions)
    with streaming(server) as client:
        client.start(encoding="ogg_opus")
        for start in range(0, len(data), piece_bytes):
            client.say(data[start : start + piece_bytes])
        client.tell("end")
        events, close = client.events()
    assert (events[-1]["type"], close.code) == ("ended", 1000)
    wait_until(lambda: len(engine.past_sessions) > sessions)
    heard = np.concatenate([item.samples for item in engine.past_sessions[-1].inputs if isinstance(item, Audio)])
    np.testing.assert_allclose(heard, decode_audio(data, AudioLimits(RATE_HZ, 0.08, 30.0)), atol=1e-6)


def test_text_comes_before_the_stream_ends(server: LiveServer) -> None:
    with streaming(server) as client:
        client.start(encoding="ogg_opus")
        client.say(opus(5.0))
        client.until("final")
        client.tell("end")
        client.until("ended")


@pytest.mark.parametrize("data", [b"RIFF" + bytes(200), bytes(200), opus(1.0)[:200] + bytes(4000)], ids=["wav", "zeros", "torn"])
def test_what_is_no_opus_ends_the_session(server: LiveServer, data: bytes) -> None:
    with streaming(server) as client:
        client.start(encoding="ogg_opus")
        client.say(data)
        client.tell("end")
        code, close = client.fatal()
    assert (code, close) == ("undecodable_audio", 1008)


def test_children_come_back(server: LiveServer) -> None:
    """More sessions than there are children, one after the other and left in the middle."""
    for _ in range(6):
        with streaming(server) as client:
            client.start(encoding="ogg_opus")
            client.say(opus(1.0)[:1000])
