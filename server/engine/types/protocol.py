"""The `Engine` protocol: the only door to the models."""

from collections.abc import Callable
from typing import Protocol

from server.engine.types.events import Event, LiveEvent
from server.engine.types.requests import InstructRequest, LiveInput, LiveRequest
from server.engine.types.stats import EngineStats


class Engine(Protocol):
    """The only door to the models. Thread-safe; `deliver` is called on the engine's thread and must not block.

    A request's audio may last `max_audio_s`, that of a session for ever.
    """

    sample_rate_hz: int
    max_audio_s: float

    def start(self) -> None:
        """Load, warm up, and begin to serve; returns when ready."""
        ...

    def transcribes(self, instruction: str) -> bool:
        """Whether the instruction is known to ask for a transcript, which is that of each utterance. It needs no start."""
        ...

    def submit(self, request: InstructRequest, deliver: Callable[[Event], None]) -> None:
        """Queue a request. Where it cannot be taken (queue full, prompt too long, draining), raises a `ServeError` at once, or
        delivers it as the request's `Failed`."""
        ...

    def open_live(self, request: LiveRequest, deliver: Callable[[LiveEvent], None]) -> None:
        """Begin a live session, which lasts until its `Ended`, its `Failed` or `abort`. Refuses as `submit` does."""
        ...

    def push(self, request_id: str, item: LiveInput) -> None:
        """Give a live session more audio, or something to do when it is through with all that was pushed before.

        Never blocks: who pushes keeps an eye on `Listened`. Does nothing for a session that is over.
        """
        ...

    def abort(self, request_id: str) -> None:
        """Forget a request or a session whose client left: it frees everything within a step and gets no further event."""
        ...

    def stats(self) -> EngineStats: ...

    def drain(self, timeout_s: float) -> None:
        """Take nothing new, finish what runs (or fail it at the timeout), stop."""
        ...
