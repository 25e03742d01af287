"""A scripted engine: it answers after a delay, fails, or never answers, and remembers what it was asked."""

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from server.engine.scheduler.admission import overloaded
from server.engine.types.events import Delta, Done, Event, Failed, StageTimes, TokenLogprob, Usage
from server.engine.types.options import Priority
from server.engine.types.requests import InstructRequest
from server.engine.types.stats import EngineCounters, EngineStats
from server.errors import InvalidRequest, NotReady, PromptTooLong, ServeError
from tests.support.fakes.fake_live import FakeLive, even_words

PROMPT_USAGE = Usage(audio_frames=20, text_tokens=12, output_tokens=0)
# Not slept, only reported.
ENCODE_S = 0.01
TEXT = "hello world"
GATE_POLL_S = 0.002


@dataclass
class _Pending:
    request: InstructRequest
    deliver: Callable[[Event], None]
    text: str
    submitted_s: float
    due_s: float


class FakeEngine(FakeLive):
    """`Engine` without models. Set the attributes to script it; read `submitted`, `aborted` and `drained` afterwards.

    Every request gets the `text` of the time when it was submitted, `delay_s` later, one word every `pause_s`; with `answers`
    false, never. While `gate` is cleared nothing is answered. Word times, if it `tells_word_times`, share the audio evenly.
    """

    def __init__(self, *, sample_rate_hz: int = 16_000, max_audio_s: float = 30.0) -> None:
        super().__init__()
        self.sample_rate_hz = sample_rate_hz
        self.max_audio_s = max_audio_s
        self.model_name = "fake-model"
        self.text = TEXT
        self.delay_s = 0.0
        self.pause_s = 0.0
        self.answers = True
        self.failure: ServeError | None = None
        self.refusal: Exception | None = None
        self.start_error: Exception | None = None
        self.may_start = threading.Event()
        self.may_start.set()
        self.gate = threading.Event()
        self.gate.set()
        self.longest_instruction = 10_000
        self.slots = 4
        self.queue_limit = 16
        self.submitted: list[InstructRequest] = []
        self.aborted: list[str] = []
        self.drained = False
        self._ready = False
        self._stopping = False
        self._answered = 0
        self._pending: dict[str, _Pending] = {}
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name="fake-engine", daemon=True)

    @property
    def pending(self) -> int:
        """Requests that were neither answered nor aborted."""
        with self._changed:
            return len(self._pending)

    def reset(self, text: str = TEXT) -> None:
        """Take up the script of the beginning, and forget what was asked."""
        self.text, self.delay_s, self.pause_s = text, 0.0, 0.0
        self.answers, self.failure, self.refusal = True, None, None
        self.submitted.clear()
        self.aborted.clear()
        self.reset_sessions()

    def start(self) -> None:
        self.may_start.wait()
        if self.start_error is not None:
            raise self.start_error
        with self._changed:
            self._ready = not self._stopping
        self._thread.start()

    def check_room(self, client: str, priority: Priority) -> None:  # noqa: ARG002
        with self._changed:
            if not self._ready:
                raise NotReady("The fake engine is not ready.", retry_after_s=1)
            if len(self._pending) >= self.slots + self.queue_limit:
                raise overloaded(0.0)

    def submit(self, request: InstructRequest, deliver: Callable[[Event], None]) -> None:
        with self._changed:
            if not self._ready:
                raise NotReady("The fake engine is not ready.", retry_after_s=1)
            if self.refusal is not None:
                raise self.refusal
            self.check_word_times(request)
            if len(request.task.instruction) > self.longest_instruction:
                raise PromptTooLong("The instruction is too long for the fake engine.", param="instruction")
            if request.id in self._pending:
                raise InvalidRequest("The fake engine has a request with this id.")
            if len(self._pending) >= self.slots + self.queue_limit:
                raise overloaded(0.0)
            self.submitted.append(request)
            now_s = time.monotonic()
            due_s = now_s + self.delay_s if self.answers else float("inf")
            self._pending[request.id] = _Pending(request, deliver, self.text, now_s, due_s)
            self._changed.notify_all()

    def takes_sessions(self) -> bool:
        return self._ready

    def abort(self, request_id: str) -> None:
        self.end_session(request_id)
        with self._changed:
            self.aborted.append(request_id)
            self._pending.pop(request_id, None)
            self._changed.notify_all()

    def stats(self) -> EngineStats:
        with self._changed:
            running = min(len(self._pending), self.slots)
            waiting = len(self._pending) - running
            counters = EngineCounters(steps=self._answered)
            return EngineStats(
                self._ready,
                waiting,
                running,
                self.slots,
                self.queue_limit,
                live_sessions=len(self.sessions),
                live_limit=self.live_limit,
                counters=counters,
            )

    def drain(self, timeout_s: float) -> None:
        self.end_all_audio()
        with self._changed:
            self._ready = False
            self.drained = True
            self._changed.wait_for(lambda: not self._pending, timeout_s)
            for id, pending in list(self._pending.items()):
                self._end(pending, Failed(id, NotReady("The fake engine is shutting down.")))
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _serve(self) -> None:
        while (pending := self._next()) is not None:
            # Other engines may wait at the same gate, so the end does not open it.
            while not self.gate.wait(GATE_POLL_S) and not self._stopping:
                pass
            self._answer(pending)

    def _next(self) -> _Pending | None:
        """The first request, once it is due; None at the end."""
        with self._changed:
            while not self._stopping:
                first = min(self._pending.values(), key=lambda pending: pending.due_s, default=None)
                wait_s = first.due_s - time.monotonic() if first is not None else float("inf")
                if first is not None and wait_s <= 0:
                    return first
                self._changed.wait(None if wait_s == float("inf") else wait_s)
            return None

    def _answer(self, pending: _Pending) -> None:
        request, started_s = pending.request, time.monotonic()
        if self.failure is not None:
            self._end(pending, Failed(request.id, self.failure))
            return
        words = re.findall(r"\s*\S+|\s+$", pending.text)
        wants_logprobs = request.task.sampling.logprobs is not None
        logprobs = tuple(TokenLogprob(word.encode(), -0.5) for word in words) if wants_logprobs else ()
        for index, word in enumerate(words):
            if not self._tell(pending, Delta(request.id, word, logprobs[index : index + 1])):
                return
            time.sleep(self.pause_s)
        now_s = time.monotonic()
        queue_s, total_s = started_s - pending.submitted_s, now_s - pending.submitted_s
        times = StageTimes(queue_s=queue_s, encode_s=ENCODE_S, decode_s=now_s - started_s, total_s=total_s + ENCODE_S)
        usage = Usage(PROMPT_USAGE.audio_frames, PROMPT_USAGE.text_tokens, len(words))
        times_words = self.tells_word_times and request.task.word_times != "none"
        spoken = even_words(pending.text, 0.0, len(request.audio) / self.sample_rate_hz) if times_words else None
        told_logprobs = logprobs if wants_logprobs else None
        self._end(pending, Done(request.id, pending.text, "stop", usage, times, logprobs=told_logprobs, words=spoken))

    def _tell(self, pending: _Pending, event: Event) -> bool:
        """Deliver an event and return true, unless the request has ended."""
        with self._changed:
            waits = self._pending.get(pending.request.id) is pending
            if waits:
                self._deliver(pending, event)
            return waits

    def _end(self, pending: _Pending, event: Event) -> None:
        with self._changed:
            if self._pending.get(pending.request.id) is pending:
                # Free again by the time that its client knows.
                del self._pending[pending.request.id]
                self._answered += 1
                self._changed.notify_all()
                self._deliver(pending, event)

    def _deliver(self, pending: _Pending, event: Event) -> None:
        try:
            pending.deliver(event)
        except Exception:
            self._pending.pop(pending.request.id, None)
