"""A request that is answered by a job, as a dialect and `server.api.exchange` know it: the call, its answer, and the writers of
that.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from starlette.responses import Response

from server.api.formats import answer_segments
from server.audio.raw import RawFormat
from server.engine.types.events import Basis, Done, Segment, TokenLogprob
from server.engine.types.options import Scope, VoiceOptions
from server.engine.types.requests import InstructRequest
from server.errors import ServeError
from server.registry.registry import ServedModel


@dataclass(frozen=True)
class Answer:
    """An answer with the times of all stages, and what is known of its audio.

    `basis`, `sections` and `utterances` are those of long audio. `warnings` says in sentences what of the audio was missing.
    """

    done: Done
    audio_s: float
    basis: Basis | None = None
    sections: int | None = None
    utterances: tuple[Segment, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The text as subtitles show it, as `answer_segments` has it."""
        return answer_segments(self.done, self.audio_s, self.utterances)


class ReplyWriter(Protocol):
    """Writes the answer to one request in a dialect."""

    def reply(self, answer: Answer) -> Response:
        """Return the whole reply."""
        ...


class ChannelsWriter(Protocol):
    """Writes the answers to one request whose channels are answered one by one."""

    def reply_channels(self, answers: Sequence[Answer]) -> Response:
        """Return the whole reply; the answers are in the order of the channels."""
        ...


class StreamWriter(Protocol):
    """Writes the answer to one request in server-sent events. The content of an event is what stands behind `data: `."""

    def first_events(self) -> Iterable[str]:
        """Return the contents of events before any text."""
        return ()

    def text_event(self, text: str, logprobs: Sequence[TokenLogprob]) -> str:
        """Return the content of the event for a further piece of text."""
        ...

    def last_events(self, answer: Answer) -> Iterable[str]:
        """Return the contents of the events that end a stream."""
        ...

    def error_event(self, error: ServeError) -> str:
        """Return the content of the event that ends a stream which failed after its beginning."""
        ...


@dataclass(frozen=True)
class Call:
    """A request in the engine's terms, without its audio, which is that of the file in `audio`; and how it is answered.

    `request.deadline_s` counts from the request's start. Without a `model` the default answers. With `cut_at_pauses` audio of any
    length is cut as long audio is, by `voice`, and answered by `scope`. `raw` is the format of a file without a header. `params`
    are the dialect's names for our fields, for errors.

    With a `stream_writer` the answer is streamed. With a `channels_writer` each channel has an answer of its own, which that
    writes; there are no streams of these.
    """

    audio: bytes
    request: InstructRequest
    writer: ReplyWriter
    stream_writer: StreamWriter | None = None
    channels_writer: ChannelsWriter | None = None
    model: ServedModel | None = None
    raw: RawFormat | None = None
    cut_at_pauses: bool = False
    voice: VoiceOptions = field(default_factory=VoiceOptions)
    scope: Scope | None = None
    params: Mapping[str, str] = field(default_factory=dict)
