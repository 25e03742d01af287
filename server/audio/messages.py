"""The messages between `server.audio.sandbox` and its child, `server.audio.worker`: a fixed header and raw bytes.

Neither side unpickles anything. After its start the child sends one PROTECTION. The parent then opens a file or a stream, may
write to a stream, and gets one reply for every READ. After CLOSE, END or ERROR nothing is open; a CLOSE where nothing is open
does nothing.
"""

import struct

from server.audio.raw import ENCODINGS, RawFormat
from server.audio.types import AudioLimits

# Kind, and the number of bytes that follow; for READ the number of wanted samples, at least one.
REQUEST = struct.Struct("<BQ")
# FILE: the opening and a whole file. STREAM: the opening. WRITE: more of a stream; no bytes end it.
FILE, STREAM, WRITE, READ, CLOSE = range(5)
# Sample rate, shortest and longest audio. Of a file without a header: the place of its encoding in `ENCODINGS`, counted from 1,
# its sample rate and its channels; zeros for any other. The channel that is wanted, counted from 1, or 0 for all in one.
OPENING = struct.Struct("<IddBIIB")
# Status and payload bytes. The payload is float32 samples; for ERROR "code\nmessage" in UTF-8; text for the last two.
REPLY = struct.Struct("<BQ")
# MORE: as many samples as are wanted. DRY: all that there are before the next WRITE. END: the last. WARNING comes before END, and
# CHANNELS, the number of a file's channels, before its first samples; neither is a reply of its own. PROTECTION: the names of the
# protections that this kernel does not give.
MORE, DRY, END, ERROR, WARNING, PROTECTION, CHANNELS = range(7)
TEXTS = frozenset([ERROR, WARNING, PROTECTION, CHANNELS])


def pack_opening(limits: AudioLimits, raw: RawFormat | None, channel: int | None = None) -> bytes:
    """Return the opening of a file or stream; channels count from 0."""
    shape = (0, 0, 0) if raw is None else (ENCODINGS.index(raw.encoding) + 1, raw.sample_rate_hz, raw.channels)
    return OPENING.pack(
        limits.sample_rate_hz, limits.min_audio_s, limits.max_audio_s, *shape, 0 if channel is None else channel + 1
    )


def unpack_opening(packed: bytes) -> tuple[AudioLimits, RawFormat | None, int | None]:
    """Return what `pack_opening` packed."""
    sample_rate_hz, min_audio_s, max_audio_s, encoding, raw_rate_hz, channels, place = OPENING.unpack(packed)
    raw = RawFormat(ENCODINGS[encoding - 1], raw_rate_hz, channels) if encoding else None
    return AudioLimits(sample_rate_hz, min_audio_s, max_audio_s), raw, place - 1 if place else None
