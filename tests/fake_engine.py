"""A scripted engine: it answers after a delay, fails, or never answers, and remembers what it was asked."""

import threading
from collections.abc import Callable

from server.errors import NotReady, Overloaded, ServeError
from server.request import Delta, Done, EngineStats, Event, Failed, InstructRequest, StageTimes, Usage

USAGE = Usage(audio_frames=20, text_tokens=12, output_tokens=2)


class FakeEngine:
    """`Engine` without models. Set the attributes to script it; read `submitted`, `aborted` and `drained` afterwards."""

    def __init__(self, *, sample_rate_hz: int = 16_000, max_audio_s: float = 30.0) -> None:
        self.sample_rate_hz = sample_rate_hz
        self.max_audio_s = max_audio_s
        self.text = "hello world"
        self.delay_s = 0.0
        self.answers = True
        self.failure: ServeError | None = None
        self.refusal: Exception | None = None
        self.start_error: Exception | None = None
        self.may_start = threading.Event()
        self.may_start.set()
        self.slots = 4
        self.queue_limit = 16
        self.submitted: list[InstructRequest] = []
        self.aborted: list[str] = []
        self.drained = False
        self._ready = False
        self._pending: dict[str, threading.Timer | None] = {}
        self._lock = threading.Lock()

    @property
    def pending(self) -> int:
        """Requests that were neither answered nor aborted."""
        with self._lock:
            return len(self._pending)

    def start(self) -> None:
        self.may_start.wait()
        if self.start_error is not None:
            raise self.start_error
        self._ready = True

    def submit(self, request: InstructRequest, deliver: Callable[[Event], None]) -> None:
        if not self._ready:
            raise NotReady("The fake engine is not ready.", retry_after_s=1)
        if self.refusal is not None:
            raise self.refusal
        with self._lock:
            if len(self._pending) >= self.slots + self.queue_limit:
                raise Overloaded("The fake engine is full.", retry_after_s=1)
            self.submitted.append(request)
            timer = threading.Timer(self.delay_s, self._finish, (request.id, deliver)) if self.answers else None
            self._pending[request.id] = timer
        if timer is not None and self.delay_s == 0:
            self._finish(request.id, deliver)
        elif timer is not None:
            timer.start()

    def abort(self, request_id: str) -> None:
        with self._lock:
            self.aborted.append(request_id)
            timer = self._pending.pop(request_id, None)
        if timer is not None:
            timer.cancel()

    def stats(self) -> EngineStats:
        with self._lock:
            running = min(len(self._pending), self.slots)
            return EngineStats(
                self._ready, len(self._pending) - running, running, self.slots, self.queue_limit, steps=len(self.submitted)
            )

    def drain(self, timeout_s: float) -> None:
        self._ready = False
        self.drained = True
        with self._lock:
            timers = [timer for timer in self._pending.values() if timer is not None]
        for timer in timers:
            timer.join(timeout_s)

    def _finish(self, request_id: str, deliver: Callable[[Event], None]) -> None:
        with self._lock:
            if request_id not in self._pending:
                return
            del self._pending[request_id]
        if self.failure is not None:
            deliver(Failed(request_id, self.failure))
            return
        deliver(Delta(request_id, self.text))
        deliver(Done(request_id, self.text, "stop", USAGE, StageTimes(encode_s=0.01, decode_s=0.02)))
