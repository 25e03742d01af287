"""Who the engine serves: the sequences, and the scheduler that decides about them."""

import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from server.engine.runner.sequence import SequenceState
from server.engine.scheduler.admission import Admission, Ratio, overloaded
from server.engine.scheduler.jobs import Backlog
from server.engine.scheduler.scheduler import ENCODE_BUDGET_MEL_FRAMES, Scheduler
from server.engine.types.events import Delta, Done, Event, Failed
from server.engine.types.options import Priority
from server.engine.types.requests import InstructRequest
from server.errors import InvalidRequest, Overloaded, RequestTimedOut, ServeError

logger = logging.getLogger(__name__)

MEL_FRAMES_PER_SECOND = 100


class RequestTable:
    """Generations by id, exactly those that the scheduler holds.

    `changed` is the engine's lock. Every method takes it, so that any thread may call them, and under it events are delivered:
    none follows a terminal event, nor a call of `drop`.
    """

    def __init__(self, scheduler: Scheduler, admission: Admission, sample_rate_hz: int, changed: threading.Condition) -> None:
        self.scheduler = scheduler
        self.admission = admission
        self.sequences: dict[str, SequenceState] = {}
        self._sample_rate_hz = sample_rate_hz
        self._changed = changed

    def submit(self, sequence: SequenceState) -> None:
        """Take up a client's request. Raises the `ServeError` of one that has no place, or no time."""
        request = sequence.request
        mel_frames = self.mel_frames(request)
        submitted_s, deadline_s = sequence.submitted_at_s, request.deadline_s
        with self._changed:
            if request.id in self.sequences:
                raise InvalidRequest("A request with this id is being served.")
            backlog = self.scheduler.ahead_of(request.client, request.priority, mel_frames)
            self.admission.check(backlog, mel_frames, deadline_s)
            busy = overloaded(self.admission.wait_s(backlog))
            displaced = self._make_room(request, busy) if self.scheduler.full else None
            expires_s = math.inf if deadline_s is None else submitted_s + deadline_s
            self.scheduler.add(request.id, mel_frames, submitted_s, request.client, request.priority, expires_s)
            self.sequences[request.id] = sequence
            if displaced is not None:
                self.deliver(displaced, Failed(displaced.request.id, busy))
            self._changed.notify_all()

    def begin(self, sequence: SequenceState) -> None:
        """Take up work of a session, which always has a place."""
        request = sequence.request
        with self._changed:
            self.scheduler.add(
                request.id,
                self.mel_frames(request),
                sequence.submitted_at_s,
                request.client,
                request.priority,
                of_session=True,
                encode_only=sequence.drafts_only,
            )
            self.sequences[request.id] = sequence
            self._changed.notify_all()

    def drop(self, id: str) -> None:
        """Forget a sequence, if it is still there, as soon as no stage works on it."""
        with self._changed:
            if sequence := self.sequences.get(id):
                sequence.ended = True
                if self.scheduler.is_queued(id):
                    self._forget(sequence)

    def over(self) -> list[SequenceState]:
        """Those that were dropped since the last step, or whose deadline has passed."""
        with self._changed:
            for id in self.scheduler.expired(time.perf_counter()):
                self.sequences[id].fail(RequestTimedOut("The request's deadline has passed."))
            return [sequence for sequence in self.sequences.values() if sequence.ended or sequence.finished]

    def preempt(self) -> list[SequenceState]:
        """Those that lose their slot now."""
        with self._changed:
            return [self.sequences[id] for id in self.scheduler.preempt(time.perf_counter())]

    def schedule(self) -> tuple[list[SequenceState], list[tuple[SequenceState, int]], list[SequenceState]]:
        """The sequences to decode, to prefill (with how many positions) and to encode, those in slots with their slot."""
        with self._changed:
            sequences, scheduler = self.sequences, self.scheduler
            step = scheduler.schedule(time.perf_counter())
            for id in step.started:
                sequences[id].slot = scheduler.running.index(id)
            prefill = [(sequences[id], positions) for id, positions in step.prefill]
            return [sequences[id] for id in step.decode], prefill, [sequences[id] for id in step.encode]

    def in_slots(self) -> list[SequenceState]:
        """Those in slots, where the scheduler has them: the first belongs in slot 0."""
        with self._changed:
            return [self.sequences[id] for id in self.scheduler.running]

    def note_prefill(self, sequences: Sequence[SequenceState]) -> None:
        """Take note of what is left to prefill."""
        with self._changed:
            for sequence in sequences:
                self.scheduler.set_to_prefill(sequence.request.id, sequence.to_prefill)

    @contextmanager
    def measuring(self, cost: Ratio, units: int) -> Iterator[None]:
        """Note what the block takes for so many units."""
        started_s = time.perf_counter()
        yield
        if units:
            with self._changed:
                cost.add(time.perf_counter() - started_s, units)

    def tell(self, sequences: Sequence[SequenceState]) -> None:
        """Tell the clients what a stage brought, and forget the requests that ended."""
        with self._changed:
            for sequence in sequences:
                self._tell(sequence)

    def deliver(self, sequence: SequenceState, event: Event) -> None:
        with self._changed:
            if sequence.ended:
                return
            sequence.ended = not isinstance(event, Delta)
            try:
                sequence.deliver(event)
            except Exception:
                logger.exception("request %s: its client cannot be told; giving it up", sequence.request.id)
                sequence.ended = True

    def fail_all(self, error: ServeError) -> None:
        """Tell everybody; nothing is forgotten."""
        with self._changed:
            for sequence in list(self.sequences.values()):
                self.deliver(sequence, Failed(sequence.request.id, error))

    def clear(self) -> None:
        with self._changed:
            self.sequences.clear()
            self.scheduler.clear()

    def predicted_wait_s(self) -> float:
        """How long a common request that came now would wait."""
        with self._changed:
            backlog: Backlog = self.scheduler.ahead_of("", Priority.INTERACTIVE, ENCODE_BUDGET_MEL_FRAMES)
            return self.admission.wait_s(backlog)

    def mel_frames(self, request: InstructRequest) -> int:
        return len(request.audio) * MEL_FRAMES_PER_SECOND // self._sample_rate_hz

    def _tell(self, sequence: SequenceState) -> None:
        if delta := sequence.take_delta():
            self.deliver(sequence, delta)
        if terminal := sequence.terminal_event():
            if isinstance(terminal, Done) and sequence.llm_passes:
                self.admission.answered(len(sequence.prompt) - sequence.cached_tokens, sequence.llm_passes - 1)
            self.deliver(sequence, terminal)
        if sequence.ended:
            self._forget(sequence)

    def _forget(self, sequence: SequenceState) -> None:
        """Free all that a request holds, unless its client's leaving has done so already."""
        id = sequence.request.id
        if self.sequences.get(id) is sequence:
            del self.sequences[id]
            self.scheduler.finish(id)
            self._changed.notify_all()

    def _make_room(self, request: InstructRequest, busy: Overloaded) -> SequenceState:
        """Take the place in the queue of a request with less of a right to it, which is to be told; raises `busy`."""
        id = self.scheduler.displaced_by(request.client, request.priority)
        if id is None:
            raise busy
        displaced = self.sequences[id]
        self._forget(displaced)
        return displaced
