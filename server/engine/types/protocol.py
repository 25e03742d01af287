"""The `Engine` protocol: the only door to the models."""

from collections.abc import Callable
from typing import Protocol

from server.engine.types.events import Event, LiveEvent
from server.engine.types.options import Priority
from server.engine.types.requests import InstructRequest, LiveInput, LiveRequest
from server.engine.types.stats import EngineStats


class Engine(Protocol):
    """Serves requests and live sessions. Thread-safe; `deliver` is called on the engine's thread and must not block.

    The audio of a request may last `max_audio_s`; that of a session has no limit. `model_name` is the name in the bundle.
    """

    model_name: str
    sample_rate_hz: int
    max_audio_s: float

    def start(self) -> None:
        """Load the models, warm them up, and begin to serve; returns when ready."""
        ...

    def transcribes(self, instruction: str) -> bool:
        """Return whether the instruction is known to ask for a transcript. May be called before `start`."""
        ...

    def check_room(self, client: str, priority: Priority) -> None:
        """Raise the `ServeError` that `submit` would raise or deliver for any request of this client, whatever its audio, as far
        as that is known at once. Audio of a request that is certain to be refused need not be decoded.

        The priority is that of a file: interactive or batch.
        """
        ...

    def submit(self, request: InstructRequest, deliver: Callable[[Event], None]) -> None:
        """Queue a request. If that is not possible (queue full, prompt too long, draining), raise a `ServeError` at once, or
        deliver it as the request's `Failed`."""
        ...

    def open_live(self, request: LiveRequest, deliver: Callable[[LiveEvent], None]) -> None:
        """Begin a live session, which lasts until its `Ended`, its `Failed` or `abort`. Refuses as `submit` does."""
        ...

    def push(self, request_id: str, item: LiveInput) -> None:
        """Give a live session more audio, or a command to be followed after everything that was pushed before.

        Never blocks: the caller watches `Listened` to limit its lead. Does nothing for a session that has ended.
        """
        ...

    def abort(self, request_id: str) -> None:
        """Forget a request or a session whose client left. All its resources are free within a step; no further event comes."""
        ...

    def stats(self) -> EngineStats:
        """Return a snapshot."""
        ...

    def drain(self, timeout_s: float) -> None:
        """Refuse new requests, finish those that run (or fail them at the timeout), and stop."""
        ...
