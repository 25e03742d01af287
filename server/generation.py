"""One request inside the engine: all that is known of it from `submit` to its terminal event."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from models.backends import Float32
from models.prompt import PromptIds
from server.detokenise import Detokeniser
from server.errors import EngineFailed, ServeError
from server.request import Done, Event, Failed, FinishReason, InstructRequest, StageTimes, Usage
from server.sampling import Sampler


@dataclass(eq=False)
class Generation:
    """A request and its answer so far.

    `prompt` [positions, embedding_size] is laid out once the speech is encoded. `slot` is its slot from the prefill on;
    `position` counts what its K/V holds, so it is where the next token's goes. A stage that ends the request sets
    `finish_reason` or `error`; `ended` is set with its terminal event, or when the client left.
    """

    request: InstructRequest
    deliver: Callable[[Event], None]
    prompt_ids: PromptIds
    detokeniser: Detokeniser
    sampler: Sampler
    max_tokens: int
    submitted_at_s: float = field(default_factory=time.perf_counter)
    times: StageTimes = field(default_factory=StageTimes)
    prompt: Float32 = field(default_factory=lambda: np.empty((0, 0), np.float32))
    audio_frames: int = 0
    slot: int = 0
    position: int = 0
    tokens: list[int] = field(default_factory=list)
    delta: str = ""
    finish_reason: FinishReason | None = None
    error: ServeError | None = None
    ended: bool = False

    def append(self, token: int) -> None:
        """Add a token of the answer; the last one that `max_tokens` allows finishes it."""
        started_s = time.perf_counter()
        self.tokens.append(token)
        self.delta += self.detokeniser.push(token)
        self.times.detokenise_s += time.perf_counter() - started_s
        if len(self.tokens) == self.max_tokens:
            self.finish("length")

    def finish(self, reason: FinishReason) -> None:
        self.delta += self.detokeniser.finish()
        self.finish_reason = reason

    def fail(self, error: Exception) -> None:
        """End it with an error; what is not meant for clients reaches them as `EngineFailed`."""
        if isinstance(error, ServeError):
            self.error = error
        else:
            self.error = EngineFailed("The engine failed on this request.")
            self.error.__cause__ = error

    @property
    def finished(self) -> bool:
        """True once a stage has ended it."""
        return self.error is not None or self.finish_reason is not None

    def take_delta(self) -> str:
        """The text since the last call."""
        delta, self.delta = self.delta, ""
        return delta

    def terminal_event(self) -> Done | Failed | None:
        """The event that ends this request, once a stage has ended it."""
        if self.error is not None:
            return Failed(self.request.id, self.error)
        if self.finish_reason is None:
            return None
        text_tokens = len(self.prompt_ids) if self.audio_frames else 0
        usage = Usage(self.audio_frames, text_tokens, len(self.tokens))
        return Done(self.request.id, self.detokeniser.text, self.finish_reason, usage, self._final_times())

    def _final_times(self) -> StageTimes:
        """The times with the total, and as queue time whatever part of it no stage took."""
        total_s = time.perf_counter() - self.submitted_at_s
        stages_s = sum(dataclasses.astuple(self.times))
        return dataclasses.replace(self.times, total_s=total_s, queue_s=max(0.0, total_s - stages_s))
