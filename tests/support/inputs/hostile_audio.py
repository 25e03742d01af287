"""Files that are no audio, or whose headers lie, made from scratch: none of them may be decoded."""

import random
import struct
from collections.abc import Iterator

import numpy as np

from tests.support.clients.live_server import audio_file, tone

GOOD_CLIP = audio_file(tone(0.5, 16_000), 16_000, "WAV", "PCM_16")
PCM_GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")


def wav(
    *,
    code: int = 1,
    channels: int = 1,
    rate_hz: int = 16_000,
    block: int | None = None,
    bits: int = 16,
    extra: bytes = b"",
    data: bytes = bytes(16_000),
    size: int | None = None,
    fmt_size: int | None = None,
) -> bytes:
    """Return a WAV file whose header may lie."""
    block = channels * bits // 8 if block is None else block
    fmt = struct.pack("<HHIIHH", code, channels, rate_hz, (rate_hz * block) % 2**32, block, bits) + extra
    chunk = b"fmt " + struct.pack("<I", len(fmt) if fmt_size is None else fmt_size) + fmt
    body = chunk + b"data" + struct.pack("<I", len(data) if size is None else size) + data
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def wrong_types() -> Iterator[tuple[str, bytes]]:
    magics = {
        "zip": b"PK\x03\x04",
        "png": b"\x89PNG\r\n\x1a\n",
        "gif": b"GIF89a",
        "jpeg": b"\xff\xd8\xff\xe0",
        "elf": b"\x7fELF",
        "pdf": b"%PDF-1.7",
        "gzip": b"\x1f\x8b\x08",
        "html": b"<!doctype html>",
        "svg": b"<svg xmlns=''>",
        "json": b'{"a":1}',
        "mp4": b"\0\0\0\x20ftypisom",
        "iamf": b"\0\0\0\x20ftypiamf",
        "webm": b"\x1aE\xdf\xa3",
        "m3u8": b"#EXTM3U\nfile:///etc/passwd",
        "concat": b"ffconcat version 1.0\nfile '/etc/passwd'",
        "midi": b"MThd",
        "wasm": b"\0asm",
        "pickle": b"\x80\x04cos\nsystem\n",
        "utf-16": b"\xff\xfeR\0I\0F\0F\0",
        "adts aac": b"\xff\xf1\x50\x80",
        "rifx": b"RIFX\0\0\0\0WAVE",
        "avi": b"RIFF\0\0\0\0AVI LIST",
        "mp2": b"\xff\xfd\x84\x00",
        "mp1": b"\xff\xff\x84\x00",
        "wavpack": b"wvpk",
        "ape": b"MAC ",
        "zeros": b"\0\0\0\0",
        "text": b"hello",
        "url": b"https://example.org/a.wav",
    }
    for name, magic in magics.items():
        yield name, magic + bytes(500)
    yield "nothing", b""
    yield "one byte", b"R"
    for container in ("VOC", "IRCAM", "PAF"):
        yield container, audio_file(tone(0.5, 16_000), 16_000, container, "PCM_16")


def odd_wavs() -> Iterator[tuple[str, bytes]]:
    """Yield WAV files whose headers are odd or whose ends are missing, and whose samples are there: players play them."""
    for bits in (1, 12, 20):
        yield f"{bits} bits", wav(bits=bits, block=max(1, bits // 8))
    for block in (0, 1, 3, 65_535):
        yield f"block {block}", wav(block=block)
    yield "a thousand lists", b"RIFF\0\0\0\0WAVE" + b"LIST\x04\0\0\0INFO" * 1000 + GOOD_CLIP[12:]
    yield "odd data", wav(data=bytes(15_999))
    yield "64 bits", wav(bits=64, block=8)
    for size in (16_001, 16_002, 10**9):
        yield f"data of {size}", wav(size=size)


def bad_wavs() -> Iterator[tuple[str, bytes]]:
    for length in range(4, 44, 2):
        yield f"cut at {length}", GOOD_CLIP[:length]
    for code in (0, 2, 0x11, 0x31, 0x50, 0x55, 0x161, 0xFFFF):
        yield f"code {code}", wav(code=code)
    for channels in (0, 9, 255, 65_535):
        yield f"{channels} channels", wav(channels=channels, block=min(2 * channels, 65_535))
    for bits in (0, 48, 65_535):
        yield f"{bits} bits", wav(bits=bits, block=max(1, bits // 8))
    for bits in (8, 16, 24, 128):
        yield f"{bits} bit float", wav(code=3, bits=bits)
    for rate_hz in (0, 1, 3_999, 192_001, 2**31, 2**32 - 1):
        yield f"{rate_hz} Hz", wav(rate_hz=rate_hz)
    for size in (0, 10**6, 2**32 - 1):
        yield f"fmt of {size}", wav(fmt_size=size)
    yield "foreign guid", wav(code=0xFFFE, extra=b"\x16\0\x10\0\x04\0\0\0" + bytes(16))
    yield "adpcm by guid", wav(code=0xFFFE, extra=b"\x16\0\x10\0\x04\0\0\0\x11\0" + PCM_GUID_TAIL)
    yield "short extensible", wav(code=0xFFFE, extra=b"\x16\0")
    yield "data before fmt", b"RIFF\0\0\0\0WAVEdata\x10\0\0\0" + bytes(16) + b"fmt \x10\0\0\0" + bytes(16)
    yield "no chunks", b"RIFF\0\0\0\0WAVE"
    yield "no samples", wav(data=b"")
    yield "79 ms", wav(data=bytes(2 * 1_263))
    yield "31 s", wav(rate_hz=4_000, data=bytes(2 * 4_000 * 31))
    for name, value in {"nan": np.nan, "inf": np.inf, "-inf": -np.inf, "1e38": 1e38, "1001": 1001.0}.items():
        samples = tone(0.5, 16_000)
        samples[100] = value
        yield f"float {name}", audio_file(samples, 16_000, "WAV", "FLOAT")
        yield f"double {name}", audio_file(samples, 16_000, "WAV", "DOUBLE")


def bad_compressed() -> Iterator[tuple[str, bytes]]:
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    dice = random.Random(0)
    flac = audio_file(noise, 16_000, "FLAC", "PCM_16")
    for length in (4, 5, 8, 20, 41, 42, 60):
        yield f"flac cut at {length}", flac[:length]
    for at in (18, 21):
        yield f"flac garbled at {at}", flac[:at] + bytes(8) + flac[at + 8 :]
    yield "flac of endless metadata", b"fLaC" + b"\x04\xff\xff\xff" * 1000
    for seconds in (31, 600, 3600):
        yield f"flac of {seconds} s of silence", audio_file(np.zeros(8_000 * seconds, np.float32), 8_000, "FLAC", "PCM_16")
    for container, subtype in (("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)):
        name = (subtype or container).lower()
        data = audio_file(noise, 16_000, container, subtype)
        yield f"{name} of 60 s of silence", audio_file(np.zeros(8_000 * 60, np.float32), 8_000, container, subtype)
        for length in (4, 10, 27, 40):
            yield f"{name} cut at {length}", data[:length]
    for codec in (b"Speex   ", b"\x80theora", b"\x7fFLAC\x01", b"fishead\0", b"", b"\x01video\0\0\0"):
        yield f"ogg of {codec!r}", b"OggS\0\x02" + bytes(20) + b"\x01" + bytes([len(codec)]) + codec + bytes(200)
    yield "ogg page of 255 segments", b"OggS\0\x02" + bytes(20) + b"\xff" + b"\xff" * 255
    for magic, name in ((b"fLaC", "flac"), (b"OggS", "ogg"), (b"\xff\xfb\x90\x00", "mp3"), (b"ID3\x04\0\0", "id3")):
        for number in range(6):
            yield f"{name} of noise {number}", magic + dice.randbytes(400)
    yield "id3 beyond the end", b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + bytes(100)
    yield "id3 in id3", b"ID3\x04\0\0\0\0\0\0" * 1000
    yield "id3 before a zip", b"ID3\x04\0\0\0\0\0\0PK\x03\x04" + bytes(100)


def hostile_files() -> Iterator[tuple[str, bytes]]:
    """Return all files, each with a name of its own."""
    for kind, source in (("type", wrong_types), ("wav", bad_wavs), ("compressed", bad_compressed)):
        for name, data in source():
            yield f"{kind}: {name}", data
