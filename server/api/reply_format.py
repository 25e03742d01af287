"""What a reply that comes at once is written as: JSON, or the text or its subtitles alone."""

from collections.abc import Sequence
from typing import Literal

from server.api.native.schema import InstructReply
from server.api.segments import segments
from server.api.subtitles import srt, vtt
from server.engine.types.events import Word

ReplyFormat = Literal["json", "text", "srt", "vtt"]

SUBTITLES: tuple[ReplyFormat, ...] = ("srt", "vtt")
MEDIA_TYPES: dict[ReplyFormat, str] = {
    "json": "application/json",
    "text": "text/plain",
    "srt": "application/x-subrip",
    "vtt": "text/vtt",
}


def written(reply: InstructReply, words: Sequence[Word], format: ReplyFormat) -> str:
    """The body of a reply; `words` are those of its text, for subtitles."""
    match format:
        case "json":
            return reply.model_dump_json(exclude_none=True)
        case "text":
            return reply.text
        case "srt":
            return srt(segments(words))
        case "vtt":
            return vtt(segments(words))
