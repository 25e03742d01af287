"""The OpenAPI description of `POST /v1/listen`, whose query and body are read by hand."""

from typing import Any

from pydantic import BaseModel

from server.api.deepgram.options import ENCODINGS, OPUS_ENCODINGS
from server.audio.types import MAX_CHANNELS, MAX_RATE_HZ, MIN_RATE_HZ

FLAG: dict[str, Any] = {"type": "boolean"}
TEXTS: dict[str, Any] = {"type": "array", "items": {"type": "string"}}
QUERY: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"type": "string"}, "Any name, which comes back."),
    "language": ({"type": "string"}, "Such as `en` or `en-US`; `multi` leaves it to the model."),
    "detect_language": (TEXTS, "`true` leaves the language to the model; codes, to be found among these."),
    "encoding": ({"enum": [*ENCODINGS, *OPUS_ENCODINGS]}, "Of samples without a header; a container needs none."),
    "sample_rate": ({"type": "integer", "minimum": MIN_RATE_HZ, "maximum": MAX_RATE_HZ}, "Hz of samples without a header."),
    "channels": ({"type": "integer", "minimum": 1, "maximum": MAX_CHANNELS}, "Of samples without a header; they are mixed."),
    "keyterm": (TEXTS, "Names and terms that may be spoken."),
    "keywords": (TEXTS, "Likewise; a weight behind a colon is ignored."),
    "utterances": (FLAG, "The transcript also in segments."),
    "multichannel": (FLAG, "A transcript of each channel."),
}


class ListenError(BaseModel):
    """Deepgram's shape of an error."""

    err_code: str
    err_msg: str
    request_id: str


def describe_request() -> dict[str, Any]:
    """Return the query and the body in OpenAPI's terms."""
    parameters = [
        {"name": name, "in": "query", "required": False, "schema": schema, "description": text}
        for name, (schema, text) in QUERY.items()
    ]
    audio = {"schema": {"type": "string", "format": "binary", "description": "An audio file, or samples without a header."}}
    body = {"required": True, "content": {"audio/*": audio, "application/octet-stream": audio}}
    return {"parameters": parameters, "requestBody": body}
