"""What the engine does for one request: a short clip in one piece, or a recording in many (`server.jobs.long_audio`)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from server.engine.types.events import Basis, Event
from server.engine.types.protocol import Engine
from server.engine.types.requests import InstructRequest


class Job(Protocol):
    """Started once; then it has exactly one terminal event, unless it is aborted before that.

    How it was made is known with that event: the length of the audio, the time that its decoding took, and for a recording what
    the answer is based on, in how many sections.
    """

    @property
    def id(self) -> str: ...

    @property
    def audio_s(self) -> float: ...

    @property
    def audio_decode_s(self) -> float: ...

    @property
    def basis(self) -> Basis | None: ...

    @property
    def sections(self) -> int | None: ...

    def start(self, deliver: Callable[[Event], None]) -> None:
        """`deliver` may be called on any thread. Raises a `ServeError` where the engine refuses at once."""
        ...

    def abort(self) -> None:
        """End it, when its client has left: no event comes any more."""
        ...


@dataclass(frozen=True)
class ShortAudioJob:
    """Audio that the engine takes in one piece."""

    engine: Engine
    request: InstructRequest
    audio_decode_s: float
    basis: None = None
    sections: None = None

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def audio_s(self) -> float:
        return len(self.request.audio) / self.engine.sample_rate_hz

    def start(self, deliver: Callable[[Event], None]) -> None:
        self.engine.submit(self.request, deliver)

    def abort(self) -> None:
        self.engine.abort(self.request.id)
