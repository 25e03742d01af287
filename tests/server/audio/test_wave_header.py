"""A whole WAV file sent as live PCM is read as a file, however its bytes are cut; G.711 bytes have the values of the standard."""

import asyncio
import io
import struct
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from server.audio.pcm import PcmStream
from server.audio.wave_header import ALAW, MULAW, PcmFormat
from server.errors import InvalidAudio, ServeError, UndecodableAudio

RATE_HZ = 16_000
SOUND = (0.3 * np.sin(np.arange(800) / 9)).astype(np.float32)


PLAIN = PcmFormat(RATE_HZ)


def heard(pieces: list[bytes], format: PcmFormat = PLAIN) -> npt.NDArray[np.float32]:
    async def decode() -> npt.NDArray[np.float32]:
        stream = PcmStream(format, RATE_HZ)
        blocks = [np.empty(0, np.float32)]
        for piece in pieces:
            blocks += [samples async for samples in stream.decode(piece)]
        blocks += [samples async for samples in stream.finish()]
        return np.concatenate(blocks)

    return asyncio.run(decode())


def wave(subtype: str, channels: int = 1, rate_hz: int = RATE_HZ, format: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.repeat(SOUND[:, None], channels, axis=1), rate_hz, format=format, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "PCM_U8", "FLOAT", "ULAW", "ALAW"])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_samples_of_a_file(subtype: str, channels: int) -> None:
    assert heard([wave(subtype, channels)]) == pytest.approx(SOUND, abs=0.02)


@pytest.mark.parametrize("code", [MULAW, ALAW])
def test_telephony_without_a_header(code: int) -> None:
    data = wave("ULAW" if code == MULAW else "ALAW")[-len(SOUND) :]
    expected, _ = soundfile.read(io.BytesIO(wave("ULAW" if code == MULAW else "ALAW")), dtype="float32")
    assert heard([data], PcmFormat(RATE_HZ, code, 8)) == pytest.approx(expected, abs=1e-6)


def test_the_rate_is_that_of_the_file() -> None:
    assert len(heard([wave("PCM_16", rate_hz=8000)], PcmFormat(24_000))) == 1600


@given(st.lists(st.integers(0, len(SOUND) * 2 + 44), max_size=5))
def test_cuts_change_nothing(cuts: list[int]) -> None:
    file = wave("PCM_16") + b"LIST\x04\0\0\0tags"
    bounds = [0, *sorted(cuts), len(file)]
    pieces = [file[start:end] for start, end in pairwise(bounds)]
    assert np.array_equal(heard(pieces), heard([wave("PCM_16")]))


def test_a_second_file_begins_where_the_first_ends() -> None:
    assert len(heard([wave("PCM_16"), wave("PCM_16")])) == 2 * len(SOUND)


@pytest.mark.parametrize("size", [0, 0x7FFF0000, 0xFFFFFFFF])
def test_a_size_that_is_not_known(size: int) -> None:
    file = wave("PCM_16")
    assert len(heard([file[:40] + struct.pack("<I", size) + file[44:]])) == len(SOUND)


def test_samples_that_only_begin_like_a_file() -> None:
    data = b"RIFF" + bytes(20)
    assert len(heard([data])) == len(data) // 2
    assert len(heard([b"RI"])) == 1


@pytest.mark.parametrize(
    ("file", "error"),
    [
        (wave("PCM_16")[:20] + b"\x11" + wave("PCM_16")[21:], UndecodableAudio),
        (b"RIFF\0\0\0\0WAVEdata\0\0\0\0", UndecodableAudio),
        (b"RIFF\0\0\0\0WAVELIST\xff\xff\xff\x7f", UndecodableAudio),
        (b"RIFF\0\0\0\0WAVEfmt \x04\0\0\0abcd", UndecodableAudio),
        (wave("PCM_16")[:24] + bytes(4) + wave("PCM_16")[28:], UndecodableAudio),
        (wave("FLOAT")[:-4] + struct.pack("<f", float("nan")), InvalidAudio),
    ],
)
def test_files_that_cannot_be_read(file: bytes, error: type[ServeError]) -> None:
    with pytest.raises(error):
        heard([file])
