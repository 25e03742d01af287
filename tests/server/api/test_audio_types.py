"""Audio over HTTP: samples without a header by the part's content type, and warnings about files that are damaged."""

import numpy as np
import pytest

from tests.support.clients.live_server import LiveServer, audio_file, error_code, instruct, tone
from tests.support.fakes.fake_engine import FakeEngine

SAMPLES = tone(1.0, 8_000)
RAW = (SAMPLES * 32767).astype("<i2").tobytes()


def test_the_content_type_tells_how_samples_are_read(server: LiveServer, engine: FakeEngine) -> None:
    for content_type, seconds in (("audio/pcm;rate=8000", 1.0), ("audio/pcm;rate=16000", 0.5), ("audio/pcmu", 2.0)):
        files = {"audio": ("clip.wav", RAW, content_type)}
        reply = server.client.post("/v1/instruct", files=files, data={"instruction": "Transcribe."})
        assert reply.json()["audio_s"] == pytest.approx(seconds, abs=0.01)
        assert np.abs(engine.submitted[-1].audio).max() > 0.1


def test_samples_without_a_rate_are_refused(server: LiveServer) -> None:
    reply = server.client.post("/v1/instruct", files={"audio": ("x", RAW, "audio/pcm")}, data={"instruction": "Transcribe."})
    assert (reply.status_code, error_code(reply)) == (400, "invalid_request")
    assert "rate" in reply.json()["error"]["message"]


def test_warnings_stand_in_the_reply_where_there_are_any(server: LiveServer) -> None:
    whole = audio_file(tone(2.0, 16_000), 16_000, "WAV", "PCM_16")
    assert "warnings" not in instruct(server, whole).json()
    reply = instruct(server, whole[:-16_000]).json()
    assert reply["audio_s"] == 1.5
    assert reply["warnings"] == ["The file is cut off: 16000 bytes of its samples are missing."]


def test_openai_transcriptions_read_and_warn_alike(server: LiveServer) -> None:
    answered = server.client.post("/v1/audio/transcriptions", files={"file": ("x", RAW, "audio/pcm;rate=8000")})
    assert answered.status_code == 200
    whole = audio_file(tone(2.0, 16_000), 16_000, "WAV", "PCM_16")
    reply = server.client.post("/v1/audio/transcriptions", files={"file": ("x", whole[:-16_000])}).json()
    assert "The file is cut off: 16000 bytes of its samples are missing." in reply["warnings"]
