"""The door to the models, and what can be seen of what goes on behind it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, Self

from server.live import LiveEvent, LiveInput, LiveRequest
from server.request import Event, InstructRequest

DRAFT_POSITIONS = 16


@dataclass(frozen=True)
class EngineCounters:
    """Totals since the engine started.

    A request has one of the `llm_passes` for each prefill chunk and each decode step, however many requests share the step.
    `utterances` are those of live sessions; in the `silent_utterances` of them the voice detector heard speech and the models
    no text. `drafted` and `accepted` count draft tokens by their place in a proposal, the last entry all places from there on.
    """

    steps: int = 0
    llm_passes: int = 0
    generated_tokens: int = 0
    drafted: tuple[int, ...] = (0,) * DRAFT_POSITIONS
    accepted: tuple[int, ...] = (0,) * DRAFT_POSITIONS
    prefix_hits: int = 0
    prefix_misses: int = 0
    encoder_cache_hits: int = 0
    encoder_cache_misses: int = 0
    preemptions: int = 0
    utterances: int = 0
    silent_utterances: int = 0
    partials: int = 0
    restarts: int = 0

    def __add__(self, other: Self) -> Self:
        return type(self)(**{each.name: _add(getattr(self, each.name), getattr(other, each.name)) for each in fields(self)})


@dataclass(frozen=True)
class EngineStats:
    """A snapshot for metrics and readiness. `step_age_s` is how long the step in progress has run, 0 between steps.

    Live sessions are not among those waiting and running; `live_jobs` is the work that they have for the models right now.
    """

    ready: bool
    waiting: int
    running: int
    slots: int
    queue_limit: int
    step_age_s: float = 0.0
    predicted_wait_s: float = 0.0
    prefix_cache_bytes: int = 0
    encoder_cache_bytes: int = 0
    live_sessions: int = 0
    live_limit: int = 0
    live_jobs: int = 0
    counters: EngineCounters = EngineCounters()


def _add(left: Any, right: Any) -> Any:
    return tuple(map(_add, left, right)) if isinstance(left, tuple) else left + right


@dataclass(frozen=True)
class FleetStats(EngineStats):
    """Of several engines that are one to the outside: the `members` by name, and above all of them together."""

    members: Mapping[str, EngineStats] = field(default_factory=dict)


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
