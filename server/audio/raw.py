"""Samples without a header, as telephones and browsers send them: their format is that of the content type."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from server.errors import InvalidRequest

Encoding = Literal["s16le", "s16be", "f32le", "mulaw", "alaw"]
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)
TELEPHONE_RATE_HZ = 8_000
DIGITS = re.compile("[0-9]{1,9}")
SAMPLE_BYTES: dict[Encoding, int] = {"s16le": 2, "s16be": 2, "f32le": 4, "mulaw": 1, "alaw": 1}


@dataclass(frozen=True)
class RawFormat:
    """How samples without a header are to be read. `encoding` is also the name of FFmpeg's demuxer."""

    encoding: Encoding
    sample_rate_hz: int
    channels: int = 1

    @property
    def frame_bytes(self) -> int:
        return SAMPLE_BYTES[self.encoding] * self.channels


# The encoding, and the rate where the type names none: RFC 3551 and RFC 2586. PCM has no usual rate.
TYPES: dict[str, tuple[Encoding, int | None]] = {
    "audio/basic": ("mulaw", TELEPHONE_RATE_HZ),
    "audio/pcmu": ("mulaw", TELEPHONE_RATE_HZ),
    "audio/x-mulaw": ("mulaw", TELEPHONE_RATE_HZ),
    "audio/pcma": ("alaw", TELEPHONE_RATE_HZ),
    "audio/x-alaw": ("alaw", TELEPHONE_RATE_HZ),
    "audio/l16": ("s16be", None),
    "audio/pcm": ("s16le", None),
    "audio/x-pcm": ("s16le", None),
    "audio/x-raw": ("s16le", None),
}


def parse_raw_type(content_type: str, param: str = "audio") -> RawFormat | None:
    """Return the format of headerless samples that a content type names, such as `audio/pcm;rate=16000;channels=1`.

    Returns None for every other type: the bytes then show the format. Raises `InvalidRequest` for a rate or a number of channels
    that is missing or is no number; it names the field `param`.
    """
    name, *parameters = (part.strip() for part in content_type.lower().split(";"))
    if name not in TYPES:
        return None
    encoding, usual_rate_hz = TYPES[name]
    values = {key.strip(): value.strip(' "') for key, _, value in (parameter.partition("=") for parameter in parameters)}
    rate, channels = values.get("rate", str(usual_rate_hz or "")), values.get("channels", "1")
    if not (DIGITS.fullmatch(rate) and DIGITS.fullmatch(channels)):
        message = f"The content type of samples without a header has to name their rate, as in {name};rate=16000;channels=1."
        raise InvalidRequest(message, param=param)
    return RawFormat(encoding, int(rate), int(channels))
