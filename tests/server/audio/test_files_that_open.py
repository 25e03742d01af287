"""Every container and codec of docs/audio.md gives the sound that went in, and damage costs only what it damages."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import soxr

from server.audio.decode import FileDecoder
from server.audio.raw import RawFormat, parse_raw_type
from server.audio.types import AudioLimits
from server.errors import AudioTooShort, InvalidRequest, UndecodableAudio
from tests.support.inputs.audio_files import encode, riff_wave, wave_format

LIMITS = AudioLimits(16_000, 0.08, 30.0)
Sound = npt.NDArray[np.float32]


def chirp(seconds: float, rate_hz: int) -> Sound:
    """Return a sound that resembles itself nowhere else: a rising tone that gets louder and softer."""
    times = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.3 * np.sin(2 * np.pi * (200 * times + 200 * times**2)) * (0.6 + 0.4 * np.sin(9 * times))).astype(np.float32)


SPOKEN = chirp(2.0, 16_000)


def decode(data: bytes, raw: RawFormat | None = None) -> tuple[Sound, tuple[str, ...]]:
    """Return the samples and the warnings."""
    file = FileDecoder(data, LIMITS, raw)
    samples = np.concatenate([np.zeros(0, np.float32), *file.blocks()])
    return samples, file.warnings


def likeness(samples: Sound, of: Sound = SPOKEN, most_lag: int = 1_600) -> float:
    """Return the correlation with the sound, at the best lag of up to 0.1 s; below 0 for the opposite phase."""
    size = 2 ** int(np.ceil(np.log2(len(samples) + len(of))))
    products = np.fft.irfft(np.conj(np.fft.rfft(of, size)) * np.fft.rfft(samples, size), size)
    near = np.concatenate([products[:most_lag], products[-most_lag:]])
    return float(near[np.argmax(np.abs(near))] / (np.linalg.norm(of) * np.linalg.norm(samples) + 1e-9))


@dataclass(frozen=True)
class Kind:
    """A container and a codec, in FFmpeg's names, and how alike the decoded sound has to be."""

    muxer: str
    codec: str
    rate_hz: int = 44_100
    least: float = 0.97
    options: tuple[tuple[str, str], ...] = ()

    def encode(self, sound: Sound = SPOKEN) -> bytes:
        resampled = soxr.resample(sound, 16_000, self.rate_hz).astype(np.float32)
        return encode(resampled, self.rate_hz, self.muxer, self.codec, **dict(self.options))

    def __str__(self) -> str:
        return "-".join([self.muxer, self.codec, *(name for name, _ in self.options)])


KINDS = [
    Kind("ipod", "aac"),
    Kind("mp4", "aac", 48_000),
    Kind("mp4", "aac", options=(("movflags", "frag_keyframe+empty_moov"),)),
    Kind("mp4", "libopus", 48_000),
    Kind("mov", "alac"),
    Kind("mov", "pcm_mulaw", 8_000),
    Kind("mov", "adpcm_ima_qt", 22_050),
    Kind("3gp", "libopencore_amrnb", 8_000, 0.8),
    Kind("adts", "aac"),
    Kind("webm", "libopus", 48_000),
    Kind("matroska", "flac"),
    Kind("matroska", "ac3", 48_000),
    Kind("matroska", "eac3", 48_000),
    Kind("ogg", "libopus", 48_000),
    Kind("ogg", "flac"),
    Kind("flac", "flac"),
    Kind("aiff", "pcm_s16be"),
    Kind("aiff", "pcm_f32be"),
    Kind("caf", "pcm_s16be"),
    Kind("caf", "alac"),
    Kind("amr", "libopencore_amrnb", 8_000, 0.8),
    Kind("asf", "wmav2"),
    Kind("asf", "wmav1", 22_050),
    Kind("mp3", "libmp3lame"),
    Kind("mp2", "mp2", 48_000),
    Kind("avi", "libmp3lame"),
    Kind("flv", "aac"),
    Kind("mpegts", "aac", 48_000),
    Kind("mpeg", "mp2", 48_000),
    Kind("au", "pcm_s16be"),
    Kind("w64", "pcm_s16le"),
    Kind("wav", "pcm_s16le", options=(("rf64", "always"),)),
    Kind("wav", "pcm_s24le", 48_000),
    Kind("wav", "adpcm_ms", 22_050),
    Kind("wav", "adpcm_ima_wav", 22_050),
    Kind("wav", "pcm_alaw", 8_000),
    Kind("wav", "pcm_mulaw", 8_000),
    Kind("wav", "g722", 16_000),
    Kind("wav", "g726", 8_000, 0.9),
    Kind("wav", "libmp3lame"),
]
# Their index stands at the end.
NEEDS_ITS_END = {"ipod", "mov", "3gp", "caf"}


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_kind_opens(kind: Kind) -> None:
    samples, warnings = decode(kind.encode())
    assert warnings == ()
    assert len(samples) / 16_000 == pytest.approx(2.0, abs=0.1)
    assert likeness(samples) > kind.least
    assert np.linalg.norm(samples) == pytest.approx(np.linalg.norm(SPOKEN), rel=0.3)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_beginning_of_a_file_that_is_cut_off_is_heard(kind: Kind) -> None:
    data = kind.encode()
    try:
        samples, _ = decode(data[: len(data) * 2 // 3])
    except UndecodableAudio:
        assert kind.muxer in NEEDS_ITS_END or (kind.muxer == "mp4" and not kind.options)
        return
    assert 0.9 < len(samples) / 16_000 < 1.6
    assert likeness(samples, SPOKEN[: len(samples)]) > kind.least - 0.05


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_damage_in_the_middle_raises_nothing_but_a_refusal(kind: Kind) -> None:
    data = kind.encode()
    for share in (0.02, 0.5, 0.98):
        place = int(len(data) * share)
        try:
            samples, _ = decode(data[:place] + bytes(200) + data[place + 200 :])
        except (UndecodableAudio, AudioTooShort):
            continue
        assert np.isfinite(samples).all()


SAY_WHAT_IS_MISSING = [
    *(Kind("flac", "flac"), Kind("matroska", "flac"), Kind("aiff", "pcm_s16be"), Kind("wav", "pcm_s16le")),
    *(Kind("ogg", "libopus", 48_000), Kind("mp3", "libmp3lame")),
]


@pytest.mark.parametrize("kind", SAY_WHAT_IS_MISSING, ids=str)
def test_what_is_missing_is_said(kind: Kind) -> None:
    data = kind.encode()
    assert len(decode(data[: len(data) * 2 // 3])[1]) >= 1
    assert decode(data)[1] == ()


PCM = (SPOKEN * 32767).astype("<i2").tobytes()


@pytest.mark.parametrize("size", [0, 0x7FFF0000, 0x7FFFF7FF, 0xFFFFFFFF])
def test_sizes_that_no_writer_filled_in_are_no_damage(size: int) -> None:
    samples, warnings = decode(riff_wave(PCM, wave_format(), size=size, before=b"JUNK\x04\0\0\0abcd"))
    np.testing.assert_allclose(samples, SPOKEN, atol=1e-4)
    assert warnings == ()


def test_an_odd_byte_and_what_follows_the_samples_are_not_heard() -> None:
    for data in (riff_wave(PCM + b"\1", wave_format()), riff_wave(PCM, wave_format(), after=b"LIST\4\0\0\0INFO")):
        assert len(decode(data)[0]) == len(SPOKEN)


def test_floats_that_hold_integers_are_divided() -> None:
    data = riff_wave((SPOKEN * 32767).round().astype("<f4").tobytes(), wave_format(3, bits=32))
    samples, warnings = decode(data)
    np.testing.assert_allclose(samples, SPOKEN, atol=1e-4)
    assert len(warnings) == 1


def test_chained_and_joined_files_are_heard_to_their_end() -> None:
    for kind in (Kind("ogg", "libopus", 48_000), Kind("mp3", "libmp3lame"), Kind("adts", "aac")):
        data = kind.encode()
        assert len(decode(data + data)[0]) / 16_000 == pytest.approx(4.0, abs=0.2)


@pytest.mark.parametrize("size", [0, 100, 900_000])
@pytest.mark.parametrize("padding", [0, 2048])
def test_tags_before_mp3_are_skipped(size: int, padding: int) -> None:
    tag = b"ID3\4\0\0" + bytes([size >> 21 & 127, size >> 14 & 127, size >> 7 & 127, size & 127]) + b"\1" * size + bytes(padding)
    assert likeness(decode(tag + Kind("mp3", "libmp3lame").encode())[0]) > 0.97


@pytest.mark.parametrize(
    ("content_type", "codec", "rate_hz"),
    [
        ("audio/pcmu", "pcm_mulaw", 8_000),
        ("audio/PCMU; rate=16000", "pcm_mulaw", 16_000),
        ("audio/basic", "pcm_mulaw", 8_000),
        ("audio/pcma", "pcm_alaw", 8_000),
        ("audio/pcm;rate=24000", "pcm_s16le", 24_000),
        ('audio/L16; rate="16000"; channels=1', "pcm_s16be", 16_000),
    ],
)
def test_samples_without_a_header_are_read_by_their_content_type(content_type: str, codec: str, rate_hz: int) -> None:
    muxer = {"pcm_mulaw": "mulaw", "pcm_alaw": "alaw", "pcm_s16le": "s16le", "pcm_s16be": "s16be"}[codec]
    samples, _ = decode(Kind(muxer, codec, rate_hz).encode(), parse_raw_type(content_type))
    assert likeness(samples) > 0.97


def test_a_file_with_a_header_is_read_by_that() -> None:
    samples, _ = decode(riff_wave(PCM, wave_format()), parse_raw_type("audio/pcm;rate=8000"))
    np.testing.assert_allclose(samples, SPOKEN, atol=1e-4)


@pytest.mark.parametrize(
    "content_type", ["audio/pcm", "audio/L16;rate=fast", "audio/pcmu;channels=-1", "audio/pcm;rate=9999999999"]
)
def test_samples_without_a_rate_are_refused(content_type: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_raw_type(content_type)


@pytest.mark.parametrize("content_type", ["", "audio/wav", "application/octet-stream", "audio/mpeg;rate=1"])
def test_other_content_types_tell_nothing(content_type: str) -> None:
    assert parse_raw_type(content_type) is None
