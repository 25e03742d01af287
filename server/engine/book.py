"""Who the engine serves: the generations, and the scheduler that decides about them."""

import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from server.engine.runner.sequence import Generation
from server.engine.scheduler.admission import Admission, Ratio, overloaded
from server.engine.scheduler.jobs import Backlog
from server.engine.scheduler.scheduler import ENCODE_BUDGET_MEL_FRAMES, Scheduler
from server.engine.types.events import Delta, Done, Event, Failed
from server.engine.types.options import Priority
from server.engine.types.requests import InstructRequest
from server.errors import InvalidRequest, Overloaded, RequestTimedOut, ServeError

logger = logging.getLogger(__name__)

MEL_FRAMES_PER_SECOND = 100


class Book:
    """Generations by id, exactly those that the scheduler holds.

    `changed` is the engine's lock. Every method takes it, so that any thread may call them, and under it events are delivered:
    none follows a terminal event, nor a call of `drop`.
    """

    def __init__(self, scheduler: Scheduler, admission: Admission, sample_rate_hz: int, changed: threading.Condition) -> None:
        self.scheduler = scheduler
        self.admission = admission
        self.generations: dict[str, Generation] = {}
        self._sample_rate_hz = sample_rate_hz
        self._changed = changed

    def submit(self, generation: Generation) -> None:
        """Take up a client's request. Raises the `ServeError` of one that has no place, or no time."""
        request = generation.request
        mel_frames = self.mel_frames(request)
        submitted_s, deadline_s = generation.submitted_at_s, request.deadline_s
        with self._changed:
            if request.id in self.generations:
                raise InvalidRequest("A request with this id is being served.")
            backlog = self.scheduler.ahead_of(request.client, request.priority, mel_frames)
            self.admission.check(backlog, mel_frames, deadline_s)
            busy = overloaded(self.admission.wait_s(backlog))
            displaced = self._make_room(request, busy) if self.scheduler.full else None
            expires_s = math.inf if deadline_s is None else submitted_s + deadline_s
            self.scheduler.add(request.id, mel_frames, submitted_s, request.client, request.priority, expires_s)
            self.generations[request.id] = generation
            if displaced is not None:
                self.deliver(displaced, Failed(displaced.request.id, busy))
            self._changed.notify_all()

    def begin(self, generation: Generation) -> None:
        """Take up work of a session, which always has a place."""
        request = generation.request
        with self._changed:
            self.scheduler.add(
                request.id,
                self.mel_frames(request),
                generation.submitted_at_s,
                request.client,
                request.priority,
                of_session=True,
                encode_only=generation.drafts_only,
            )
            self.generations[request.id] = generation
            self._changed.notify_all()

    def drop(self, id: str) -> None:
        """Forget a generation, if it is still there, as soon as no stage works on it."""
        with self._changed:
            if generation := self.generations.get(id):
                generation.ended = True
                if self.scheduler.is_queued(id):
                    self._forget(generation)

    def over(self) -> list[Generation]:
        """Those that were dropped since the last step, or whose deadline has passed."""
        with self._changed:
            for id in self.scheduler.expired(time.perf_counter()):
                self.generations[id].fail(RequestTimedOut("The request's deadline has passed."))
            return [generation for generation in self.generations.values() if generation.ended or generation.finished]

    def preempt(self) -> list[Generation]:
        """Those that lose their slot now."""
        with self._changed:
            return [self.generations[id] for id in self.scheduler.preempt(time.perf_counter())]

    def schedule(self) -> tuple[list[Generation], list[tuple[Generation, int]], list[Generation]]:
        """The generations to decode, to prefill (with how many positions) and to encode, those in slots with their slot."""
        with self._changed:
            generations, scheduler = self.generations, self.scheduler
            step = scheduler.schedule(time.perf_counter())
            for id in step.started:
                generations[id].slot = scheduler.running.index(id)
            prefill = [(generations[id], positions) for id, positions in step.prefill]
            return [generations[id] for id in step.decode], prefill, [generations[id] for id in step.encode]

    def in_slots(self) -> list[Generation]:
        """Those in slots, where the scheduler has them: the first belongs in slot 0."""
        with self._changed:
            return [self.generations[id] for id in self.scheduler.running]

    def note_prefill(self, generations: Sequence[Generation]) -> None:
        """Take note of what is left to prefill."""
        with self._changed:
            for generation in generations:
                self.scheduler.set_to_prefill(generation.request.id, generation.to_prefill)

    @contextmanager
    def measuring(self, cost: Ratio, units: int) -> Iterator[None]:
        """Note what the block takes for so many units."""
        started_s = time.perf_counter()
        yield
        if units:
            with self._changed:
                cost.add(time.perf_counter() - started_s, units)

    def tell(self, generations: Sequence[Generation]) -> None:
        """Tell the clients what a stage brought, and forget the requests that ended."""
        with self._changed:
            for generation in generations:
                self._tell(generation)

    def deliver(self, generation: Generation, event: Event) -> None:
        with self._changed:
            if generation.ended:
                return
            generation.ended = not isinstance(event, Delta)
            try:
                generation.deliver(event)
            except Exception:
                logger.exception("request %s: its client cannot be told; giving it up", generation.request.id)
                generation.ended = True

    def fail_all(self, error: ServeError) -> None:
        """Tell everybody; nothing is forgotten."""
        with self._changed:
            for generation in list(self.generations.values()):
                self.deliver(generation, Failed(generation.request.id, error))

    def clear(self) -> None:
        with self._changed:
            self.generations.clear()
            self.scheduler.clear()

    def predicted_wait_s(self) -> float:
        """How long a common request that came now would wait."""
        with self._changed:
            backlog: Backlog = self.scheduler.ahead_of("", Priority.INTERACTIVE, ENCODE_BUDGET_MEL_FRAMES)
            return self.admission.wait_s(backlog)

    def mel_frames(self, request: InstructRequest) -> int:
        return len(request.audio) * MEL_FRAMES_PER_SECOND // self._sample_rate_hz

    def _tell(self, generation: Generation) -> None:
        if delta := generation.take_delta():
            self.deliver(generation, delta)
        if terminal := generation.terminal_event():
            if isinstance(terminal, Done) and generation.llm_passes:
                self.admission.answered(len(generation.prompt) - generation.cached_tokens, generation.llm_passes - 1)
            self.deliver(generation, terminal)
        if generation.ended:
            self._forget(generation)

    def _forget(self, generation: Generation) -> None:
        """Free all that a request holds, unless its client's leaving has done so already."""
        id = generation.request.id
        if self.generations.get(id) is generation:
            del self.generations[id]
            self.scheduler.finish(id)
            self._changed.notify_all()

    def _make_room(self, request: InstructRequest, busy: Overloaded) -> Generation:
        """Take the place in the queue of a request with less of a right to it, which is to be told; raises `busy`."""
        id = self.scheduler.displaced_by(request.client, request.priority)
        if id is None:
            raise busy
        displaced = self.generations[id]
        self._forget(displaced)
        return displaced
