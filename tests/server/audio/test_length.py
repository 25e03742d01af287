"""The most seconds of a file are known from its header only where they follow from its bytes."""

import io
import math

import numpy as np
import pytest
import soundfile

from server.audio.length import longest_s
from server.audio.raw import ENCODINGS, RawFormat

SOUND = np.zeros((800, 2), np.float32)


def file(container: str, subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, SOUND, 8_000, format=container, subtype=subtype)
    return buffer.getvalue()


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "ULAW", "ALAW"])
def test_plain_wave_lasts_as_long_as_its_bytes(subtype: str) -> None:
    assert longest_s(file("WAV", subtype), None) == pytest.approx(0.1, rel=0.1)
    assert longest_s(file("WAV", subtype), None) >= 0.1


@pytest.mark.parametrize(
    "data", [b"", b"RIFF", file("WAV", "IMA_ADPCM"), file("WAV", "DOUBLE"), file("FLAC"), file("OGG"), file("MP3"), file("RF64")]
)
def test_of_other_files_only_decoding_tells(data: bytes) -> None:
    assert longest_s(data, None) == math.inf


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_samples_without_a_header_last_as_long_as_their_bytes(encoding: str) -> None:
    width = {"f32le": 4, "mulaw": 1, "alaw": 1}.get(encoding, 2)
    assert longest_s(bytes(2 * 8_000 * width), RawFormat(encoding, 8_000, 2)) == 1.0  # type: ignore[arg-type]


def test_a_rate_of_zero_tells_nothing() -> None:
    assert longest_s(b"1234", RawFormat("s16le", 0)) == math.inf
