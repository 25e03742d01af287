"""Every promised format decodes to the right sound at the model's rate, and nothing else decodes."""

import io
import struct
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from server.audio.decode import decode_audio
from server.audio.reader import AudioReader, Sound
from server.audio.types import AudioLimits
from server.errors import AudioTooLong, AudioTooShort, InvalidAudio, UndecodableAudio
from tests.support.clients.live_server import audio_file, tone

LIMITS = AudioLimits(sample_rate_hz=16_000, min_audio_s=0.08, max_audio_s=4.0)
FREQUENCY_HZ = 440.0
LOSSLESS = [("WAV", s) for s in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")] + [
    ("FLAC", "PCM_16"),
    ("FLAC", "PCM_24"),
]
LOSSY: list[tuple[str, str | None]] = [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)]


def strongest_frequency_hz(samples: npt.NDArray[np.float32]) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum)) * LIMITS.sample_rate_hz / len(samples)


def assert_is_tone(samples: npt.NDArray[np.float32], seconds: float, amplitude: float = 0.3, slack_s: float = 1e-4) -> None:
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert len(samples) == pytest.approx(seconds * LIMITS.sample_rate_hz, abs=2 + slack_s * LIMITS.sample_rate_hz)
    assert strongest_frequency_hz(samples) == pytest.approx(FREQUENCY_HZ, abs=2)
    middle = samples[len(samples) // 4 : -len(samples) // 4]
    assert float(np.sqrt(2 * np.mean(middle**2))) == pytest.approx(amplitude, rel=0.1)


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 24_000, 48_000])
@pytest.mark.parametrize(("container", "subtype"), [*LOSSLESS, *LOSSY])
def test_every_format_at_every_rate(container: str, subtype: str | None, rate_hz: int) -> None:
    decoded = decode_audio(audio_file(tone(1.5, rate_hz), rate_hz, container, subtype), LIMITS)
    # FFmpeg does not cut off the padding of Vorbis.
    assert_is_tone(decoded, 1.5, slack_s=0.06 if subtype == "VORBIS" else 1e-4)


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 6, 7, 8])
@pytest.mark.parametrize(("container", "subtype"), [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS")])
def test_one_channel_of_many_keeps_its_level(container: str, subtype: str, channels: int) -> None:
    silence_but_one = np.zeros((24_000, channels), np.float32)
    silence_but_one[:, -1] = tone(1.5, 16_000)
    decoded = decode_audio(audio_file(silence_but_one, 16_000, container, subtype), LIMITS)
    assert_is_tone(decoded, 1.5, slack_s=0.06)


@pytest.mark.parametrize(("container", "subtype"), LOSSLESS)
def test_lossless_formats_give_the_same_samples(container: str, subtype: str) -> None:
    samples = tone(1.0, 16_000)
    decoded = decode_audio(audio_file(samples, 16_000, container, subtype), LIMITS)
    np.testing.assert_allclose(decoded, samples, atol=1 / 127 if subtype == "PCM_U8" else 1 / 32_767)


@settings(max_examples=60, deadline=None)
@given(
    rate_hz=st.integers(4_000, 192_000),
    seconds=st.floats(0.3, 2.0),
    channels=st.integers(1, 4),
    subtype=st.sampled_from(["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"]),
)
def test_length_and_pitch_survive_any_rate(rate_hz: int, seconds: float, channels: int, subtype: str) -> None:
    samples = np.repeat(tone(seconds, rate_hz, FREQUENCY_HZ)[:, None], channels, axis=1)
    decoded = decode_audio(audio_file(samples, rate_hz, "WAV", subtype), LIMITS)
    assert len(decoded) == pytest.approx(seconds * LIMITS.sample_rate_hz, abs=6)
    assert strongest_frequency_hz(decoded) == pytest.approx(FREQUENCY_HZ, abs=1 / seconds + 1)


@settings(max_examples=30, deadline=None)
@given(payload=st.binary(min_size=3 * 1_300, max_size=3 * 1_300))
def test_24_bit_pcm_is_read_to_the_bit(payload: bytes) -> None:
    codes = [int.from_bytes(payload[at : at + 3], "little", signed=True) for at in range(0, len(payload), 3)]
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 0, b"WAVE", b"fmt ", 16, 1, 1, 16_000, 48_000, 3, 24, b"data", len(payload)
    )
    decoded = decode_audio(header + payload, LIMITS)
    np.testing.assert_array_equal(decoded, np.array(codes, np.float32) / 2**23)


def test_extra_chunks_and_an_extensible_header_are_read() -> None:
    samples = tone(0.5, 16_000)
    plain = audio_file(samples, 16_000, "WAV", "PCM_16")
    extensible = audio_file(samples, 16_000, "WAVEX", "PCM_16")
    listed = plain[:12] + b"LIST" + struct.pack("<I", 5) + b"INFOx" + b"\0" + plain[12:] + b"junk at the end"
    for data in (plain, extensible, listed):
        np.testing.assert_allclose(decode_audio(data, LIMITS), samples, atol=1e-4)


@pytest.mark.parametrize("size", [0x7FFFF000, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_wav_written_to_a_pipe_runs_to_its_end(size: int) -> None:
    samples = tone(0.5, 16_000)
    data = bytearray(audio_file(samples, 16_000, "WAV", "PCM_16"))
    data[4:8] = struct.pack("<I", 0xFFFFFFFF)
    data[40:44] = struct.pack("<I", size)
    np.testing.assert_allclose(decode_audio(bytes(data), LIMITS), samples, atol=1e-4)


def test_a_flac_of_unknown_length_is_read() -> None:
    samples = tone(0.5, 16_000)
    data = bytearray(audio_file(samples, 16_000, "FLAC", "PCM_16"))
    # The low 36 bits of STREAMINFO's ten packed bytes are the count of samples; 0 means unknown.
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    np.testing.assert_allclose(decode_audio(bytes(data), LIMITS), samples, atol=1e-4)


def test_an_id3_tag_is_skipped() -> None:
    tag = b"ID3\x04\x00\x00\x00\x00\x01\x00" + bytes(128)
    assert_is_tone(decode_audio(tag + audio_file(tone(1.0, 16_000), 16_000, "MP3"), LIMITS), 1.0)


@pytest.mark.parametrize(("container", "subtype"), [*LOSSLESS, ("OGG", "OPUS"), ("MP3", None)])
def test_the_cap_on_seconds_holds_to_the_sample(container: str, subtype: str | None) -> None:
    longest = audio_file(tone(4.0, 16_000), 16_000, container, subtype)
    assert len(decode_audio(longest, LIMITS)) == 64_000
    with pytest.raises(AudioTooLong):
        decode_audio(audio_file(tone(4.1, 16_000), 16_000, container, subtype), LIMITS)


@pytest.mark.parametrize(("container", "subtype"), LOSSLESS)
def test_too_short_audio_is_refused(container: str, subtype: str) -> None:
    decode_audio(audio_file(tone(0.08, 16_000), 16_000, container, subtype), LIMITS)
    with pytest.raises(AudioTooShort):
        decode_audio(audio_file(tone(0.079, 16_000), 16_000, container, subtype), LIMITS)


def test_audio_that_is_a_sample_too_short_does_not_seem_long_enough() -> None:
    with pytest.raises(AudioTooShort, match=r"lasts 0\.079 s; at least 0\.08 s"):
        decode_audio(audio_file(tone(0.08, 16_000)[:-1], 16_000, "WAV", "PCM_16"), LIMITS)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1001.0, -1e38])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("place", [0, 7_999, 15_999])
def test_samples_that_cannot_be_sound_are_refused(subtype: str, bad: float, place: int) -> None:
    samples = tone(1.0, 16_000)
    samples[place] = bad
    with pytest.raises(InvalidAudio):
        decode_audio(audio_file(samples, 16_000, "WAV", subtype), LIMITS)


def test_infinities_that_cancel_between_channels_are_refused() -> None:
    samples = np.zeros((16_000, 2), np.float32)
    samples[5] = np.inf, -np.inf
    with pytest.raises(InvalidAudio):
        decode_audio(audio_file(samples, 16_000, "WAV", "FLOAT"), LIMITS)


@pytest.mark.parametrize("rate_hz", [0, 1, 3_999, 192_001, 2**31, 2**32 - 1])
def test_absurd_rates_are_refused(rate_hz: int) -> None:
    data = bytearray(audio_file(tone(1.0, 16_000), 16_000, "WAV", "PCM_16"))
    data[24:28] = struct.pack("<I", rate_hz)
    with pytest.raises(UndecodableAudio):
        decode_audio(bytes(data), LIMITS)


@pytest.mark.parametrize(("container", "subtype"), [("FLAC", "PCM_16"), *LOSSY])
def test_a_bomb_is_refused_after_little_work(container: str, subtype: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    data = audio_file(np.zeros(16_000 * 40, np.float32), 16_000, container, subtype)
    decoded_s = 0.0
    read = AudioReader.read

    def counting_read(reader: AudioReader) -> Iterator[Sound]:
        nonlocal decoded_s
        for sound in read(reader):
            decoded_s += len(sound.frames) / sound.sample_rate_hz
            yield sound

    monkeypatch.setattr(AudioReader, "read", counting_read)
    # A header that claims to hold little is not believed either.
    monkeypatch.setattr(AudioReader, "declared_s", 0.1)
    with pytest.raises(AudioTooLong):
        decode_audio(data, LIMITS)
    assert decoded_s < 5


def test_many_channels_at_a_high_rate_may_last_less() -> None:
    """The cap on seconds is one on samples of stereo at the highest rate."""
    limits = AudioLimits(16_000, 0.0, 1.0)
    narrow = audio_file(np.zeros((192_000, 2), np.float32), 192_000, "FLAC", "PCM_16")
    assert len(decode_audio(narrow, limits)) == 16_000
    wide = audio_file(np.zeros((60_000, 8), np.float32), 192_000, "FLAC", "PCM_16")
    with pytest.raises(AudioTooLong, match="8 channels"):
        decode_audio(wide, limits)


def test_a_wav_of_many_chunks_is_refused() -> None:
    with pytest.raises(UndecodableAudio):
        decode_audio(b"RIFF\0\0\0\0WAVE" + b"LIST\0\0\0\0" * 1_000_000, LIMITS)


@settings(max_examples=100, deadline=None)
@given(
    data=st.binary(max_size=400),
    magic=st.sampled_from([b"", b"RIFF\0\0\0\0WAVE", b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0", b"OggS", b"fLaC", b"ID3", b"\xff\xfb"]),
)
def test_no_bytes_raise_anything_but_the_four_refusals(magic: bytes, data: bytes) -> None:
    try:
        decoded = decode_audio(magic + data, LIMITS)
    except (UndecodableAudio, AudioTooShort, AudioTooLong, InvalidAudio):
        return
    assert np.isfinite(decoded).all()


def test_the_length_of_a_decoded_file_is_that_of_its_header() -> None:
    data = audio_file(tone(1.0, 44_100), 44_100, "MP3")
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        expected_s = file.frames / file.samplerate
    assert len(decode_audio(data, LIMITS)) / LIMITS.sample_rate_hz == pytest.approx(expected_s, abs=1e-3)
