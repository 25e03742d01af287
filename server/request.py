"""What crosses between the edge and the engine: plain data, and exactly one terminal event per request."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from server.errors import ServeError

FinishReason = Literal["stop", "length", "no_speech"]


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are chosen. `temperature` 0 is greedy; `seed` makes sampled text repeatable."""

    max_tokens: int = 256
    temperature: float = 0.0
    seed: int | None = None


@dataclass(frozen=True)
class InstructRequest:
    """Mono float32 audio at the model's sample rate and the instruction about it."""

    id: str
    audio: npt.NDArray[np.float32]
    instruction: str
    sampling: SamplingOptions = field(default_factory=SamplingOptions)


@dataclass
class StageTimes:
    """Seconds spent per stage of one request; `queue_s` is waiting of any kind inside the engine."""

    audio_decode_s: float = 0.0
    features_s: float = 0.0
    queue_s: float = 0.0
    encode_s: float = 0.0
    adapter_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    detokenise_s: float = 0.0
    total_s: float = 0.0

    def as_milliseconds(self) -> dict[str, float]:
        """The same times keyed `<stage>_ms`, rounded to a microsecond."""
        return {name.removesuffix("_s") + "_ms": round(value * 1000, 3) for name, value in dataclasses.asdict(self).items()}


@dataclass(frozen=True)
class Usage:
    """Prompt positions by kind, and generated tokens."""

    audio_frames: int
    text_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Delta:
    """A further piece of text; never splits a character."""

    request_id: str
    text: str


@dataclass(frozen=True)
class Done:
    """Terminal: the whole text. Concatenated deltas equal `text`."""

    request_id: str
    text: str
    finish_reason: FinishReason
    usage: Usage
    times: StageTimes


@dataclass(frozen=True)
class Failed:
    """Terminal: the request ended without an answer."""

    request_id: str
    error: ServeError


Event = Delta | Done | Failed


@dataclass(frozen=True)
class EngineStats:
    """A snapshot for metrics and readiness."""

    ready: bool
    waiting: int
    running: int
    slots: int
    queue_limit: int
    steps: int


class Engine(Protocol):
    """The only door to the models. Thread-safe; `deliver` is called on the engine's thread and must not block."""

    sample_rate_hz: int
    max_audio_s: float

    def start(self) -> None:
        """Load, warm up, and begin to serve; returns when ready."""
        ...

    def submit(self, request: InstructRequest, deliver: Callable[[Event], None]) -> None:
        """Queue a request. Raises `ServeError` at once where it cannot be taken (queue full, prompt too long, draining)."""
        ...

    def abort(self, request_id: str) -> None:
        """Forget a request whose client left: it frees everything within a step and gets no further event."""
        ...

    def stats(self) -> EngineStats: ...

    def drain(self, timeout_s: float) -> None:
        """Take nothing new, finish what runs (or fail it at the timeout), stop."""
        ...
