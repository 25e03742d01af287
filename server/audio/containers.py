"""Recognition of audio files by their first bytes, and the allowlist of containers and codecs that are decoded.

A name or a content type never decides. FFmpeg knows several hundred formats, among them playlists that name other files; it is
told which demuxer to use and never guesses.
"""

import re
import string
from dataclasses import dataclass

from server.errors import UndecodableAudio

FORMATS = "WAV, MP3, M4A or MP4, AAC, WebM or Matroska, Ogg, FLAC, AIFF, CAF, AMR or WMA"
FORMAT_MESSAGE = f"The audio is in no format that is read; send {FORMATS}, or name the format of samples that have no header."
TEXT_MESSAGE = "The audio is text, not the content of an audio file; curl sends the content where an @ stands before the name."
PRINTABLE = string.printable.encode()

CODECS = frozenset(
    [
        *(
            "pcm_u8",
            "pcm_s8",
            "pcm_alaw",
            "pcm_mulaw",
            "pcm_s16le",
            "pcm_s16be",
            "pcm_s24le",
            "pcm_s24be",
            "pcm_s32le",
            "pcm_s32be",
        ),
        *("pcm_s64le", "pcm_s64be", "pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_f64be", "pcm_bluray", "pcm_dvd"),
        *("adpcm_ms", "adpcm_ima_wav", "adpcm_ima_qt", "adpcm_yamaha", "adpcm_swf", "g722", "g726", "g726le", "gsm", "gsm_ms"),
        *("mp1", "mp1float", "mp2", "mp2float", "mp3", "mp3float", "aac", "aac_latm", "alac", "ac3", "eac3"),
        *("opus", "libopus", "vorbis", "flac", "speex", "amrnb", "amrwb", "libopencore_amrnb", "libopencore_amrwb"),
        *("wmav1", "wmav2", "wmapro", "wmalossless", "wmavoice"),
    ]
)
"""FFmpeg's names of the decoders that may run."""

# Padding and damage before the first frame of an MPEG stream that has no header of its own.
MPEG_SEARCH_BYTES = 65_536
ID3_MAGIC, ID3_BYTES = b"ID3", 10
ASF_MAGIC = bytes.fromhex("3026b2758e66cf11")
W64_MAGIC = b"riff\x2e\x91\xcf\x11"
MPEG_TS_PACKET_BYTES = 188
# Of version 1, 2 and 2.5, by layer, in kbit/s; of MPEG 2 the layers II and III share one table.
MPEG_RATES_KBPS = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
MPEG_SAMPLE_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
MPEG_SYNC = re.compile(rb"\xff[\xe0-\xff]")


@dataclass(frozen=True)
class Container:
    """A kind of file: its name for people, FFmpeg's demuxer for it, and whether its header has the true length."""

    name: str
    demuxer: str
    tells_length: bool = False


WAV = Container("WAV", "wav", True)
OGG = Container("Ogg", "ogg")
MP3 = Container("MP3", "mp3")
ADTS = Container("AAC", "aac")
FLAC = Container("FLAC", "flac", True)
MP4 = Container("MP4 or QuickTime", "mov", True)

MAGIC: tuple[tuple[int, bytes, Container], ...] = (
    (0, b"OggS", OGG),
    (0, b"fLaC", FLAC),
    (0, b"\x1aE\xdf\xa3", Container("WebM or Matroska", "matroska", True)),
    (4, b"ftyp", MP4),
    (4, b"moov", MP4),
    (4, b"mdat", MP4),
    (4, b"wide", MP4),
    (0, b"caff", Container("CAF", "caf", True)),
    (0, b"#!AMR", Container("AMR", "amr")),
    (0, ASF_MAGIC, Container("WMA", "asf")),
    (0, W64_MAGIC, Container("W64", "w64", True)),
    (0, b".snd", Container("AU", "au")),
    (0, b"NIST_1A", Container("NIST SPHERE", "nistsphere", True)),
    (0, b"FLV\x01", Container("FLV", "flv")),
    (0, b"\0\0\x01\xba", Container("MPEG", "mpeg")),
)
"""Offset, bytes in that place, and the container that they stand for."""

RIFF_KINDS = {
    (b"RIFF", b"WAVE"): WAV,
    (b"RIFX", b"WAVE"): WAV,
    (b"RF64", b"WAVE"): WAV,
    (b"BW64", b"WAVE"): WAV,
    (b"RIFF", b"AVI "): Container("AVI", "avi"),
    (b"FORM", b"AIFF"): Container("AIFF", "aiff", True),
    (b"FORM", b"AIFC"): Container("AIFF", "aiff", True),
}


def detect_container(data: bytes) -> tuple[Container, int]:
    """Return the container of a file and the offset at which it begins, after tags and padding. Raises `UndecodableAudio`."""
    start = _skip_tags(data)
    container = detect_header(data, start)
    if container is not None:
        return container, start
    found = _find_mpeg_audio(data, start)
    if found is not None:
        return found
    raise UndecodableAudio(TEXT_MESSAGE if _is_text(data) else FORMAT_MESSAGE, param="audio")


def detect_header(data: bytes, start: int = 0) -> Container | None:
    """Return the container whose header stands at `start`; None where there is none, as in headerless samples."""
    container = RIFF_KINDS.get((data[start : start + 4], data[start + 8 : start + 12]))
    if container is not None:
        return container
    for offset, magic, container in MAGIC:
        if data.startswith(magic, start + offset):
            return container
    if len(data) > start + 2 * MPEG_TS_PACKET_BYTES and all(data[start + n * MPEG_TS_PACKET_BYTES] == 0x47 for n in range(3)):
        return Container("MPEG-TS", "mpegts")
    return None


def _is_text(data: bytes) -> bool:
    """Return whether all bytes are printable ASCII, as those of a name, an address, base64 or a page of an error are."""
    return data.isascii() and not data.translate(None, PRINTABLE)


def _skip_tags(data: bytes) -> int:
    """Return the offset after any ID3 tags, and after the zeros that some writers put behind them."""
    start = 0
    while data.startswith(ID3_MAGIC, start) and len(data) >= start + ID3_BYTES:
        size = 0
        for byte in data[start + 6 : start + ID3_BYTES]:
            size = size << 7 | byte & 0x7F
        start += ID3_BYTES + size + (ID3_BYTES if data[start + 5] & 0x10 else 0)
    if start:
        while data.startswith(b"\0", start):
            start += 1
    return start


def _find_mpeg_audio(data: bytes, start: int) -> tuple[Container, int] | None:
    """Return MP3 or AAC, and the place of the first frame that another frame of its kind follows, or the end of the file."""
    for sync in MPEG_SYNC.finditer(data, start, start + MPEG_SEARCH_BYTES):
        at = sync.start()
        for container, frame_bytes in ((MP3, _mp3_frame_bytes), (ADTS, _adts_frame_bytes)):
            size = frame_bytes(data[at : at + 6])
            if size and (at + size == len(data) or frame_bytes(data[at + size : at + size + 6])):
                return container, at
    return None


def _mp3_frame_bytes(header: bytes) -> int:
    """Return the length of the frame of MPEG audio, of any layer, that begins with this header; 0 for anything else."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return 0
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    rate, sample_rate, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or layer == 4 or rate in (0, 15) or sample_rate == 3:
        return 0
    bit_rate = 1000 * MPEG_RATES_KBPS[1 if version == 3 else 2, layer][rate - 1]
    sample_rate_hz = MPEG_SAMPLE_RATES_HZ[version][sample_rate]
    if layer == 1:
        return (12 * bit_rate // sample_rate_hz + padding) * 4
    return (72 if layer == 3 and version != 3 else 144) * bit_rate // sample_rate_hz + padding


def _adts_frame_bytes(header: bytes) -> int:
    """Return the length of the ADTS frame that begins with this header; 0 for anything else."""
    if len(header) < 6 or header[0] != 0xFF or header[1] & 0xF6 != 0xF0 or header[2] >> 2 & 15 > 12:
        return 0
    size = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
    return size if size > 7 else 0
