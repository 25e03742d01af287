"""The requests that the engine serves, and the scheduler that decides about them."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager

from server.engine.runner.sequence import SequenceState
from server.engine.scheduler.admission import Admission, Ratio, overloaded
from server.engine.scheduler.queues import Backlog, SchedulerEntry
from server.engine.scheduler.scheduler import ENCODE_BUDGET_AUDIO_S, Scheduler
from server.engine.types.events import Delta, Done, Event, Failed
from server.engine.types.options import Priority
from server.engine.types.requests import InstructRequest
from server.errors import InvalidRequest, Overloaded, RequestTimedOut, ServeError

logger = logging.getLogger(__name__)


class RequestTable:
    """Sequences by id: those that the scheduler holds, and those that are answered and whose words are being timed.

    `changed` is the engine's lock. Every method takes it, so that any thread may call them, and under it events are delivered:
    none follows a terminal event, nor a call of `cancel_request`.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        admission: Admission,
        sample_rate_hz: int,
        changed: threading.Condition,
        start_timing_words: Callable[[SequenceState], Future[None]],
    ) -> None:
        """`start_timing_words` has another thread do this."""
        self.scheduler = scheduler
        self.admission = admission
        self.sequences: dict[str, SequenceState] = {}
        self._sample_rate_hz = sample_rate_hz
        self._changed = changed
        self._start_timing_words = start_timing_words
        self._timing: set[SequenceState] = set()

    @property
    def have_work(self) -> bool:
        """Whether there is something for a step to do; the caller holds the lock."""
        return len(self.sequences) > len(self._timing)

    @property
    def is_overloaded(self) -> bool:
        """Whether even the shortest request of a new client would wait too long."""
        with self._changed:
            return self.admission.exceeds_limits(self.scheduler.measure_backlog("", Priority.INTERACTIVE, 0.0), audio_s=0.0)

    def check_room(self, client: str, priority: Priority) -> None:
        """Raise the `Overloaded` of a client's request, if there is no place or no time for any."""
        with self._changed:
            backlog = self._check_wait(client, priority, 0.0, None)
            has_room = self.scheduler.has_place(client, priority) or self.scheduler.find_displaced(client, priority) is not None
            if not has_room:
                raise overloaded(self.admission.predict_wait_s(backlog))

    def submit_request(self, sequence: SequenceState) -> None:
        """Queue a client's request. Raises the `ServeError` of a request that has no place, or no time."""
        request = sequence.request
        with self._changed:
            if request.id in self.sequences:
                raise InvalidRequest("A request with this id is being served.")
            backlog = self._check_wait(request.client, request.priority, self.audio_s(sequence), request.deadline_s)
            if self.scheduler.has_place(request.client, request.priority):
                self._add_sequence(sequence)
                return
            busy = overloaded(self.admission.predict_wait_s(backlog))
            displaced = self._make_room(request, busy)
            self._add_sequence(sequence)
            self.deliver_event(displaced, Failed(displaced.request.id, busy))

    def submit_internal(self, sequence: SequenceState) -> None:
        """Queue work of a session, which always has a place."""
        with self._changed:
            self._add_sequence(sequence)

    def cancel_request(self, id: str) -> None:
        """Forget a request, if it is still there, as soon as no stage works on it."""
        with self._changed:
            if sequence := self.sequences.get(id):
                sequence.ended = True
                if self.scheduler.is_queued(id) or sequence in self._timing:
                    self._forget(sequence)
                self._changed.notify_all()

    def expire_requests(self) -> list[SequenceState]:
        """Fail the requests whose deadline has passed; return them and those that were cancelled since the last step."""
        with self._changed:
            for id in self.scheduler.list_expired(time.perf_counter()):
                self.sequences[id].fail(_timed_out())
            sequences = (sequence for sequence in self.sequences.values() if sequence not in self._timing)
            return [sequence for sequence in sequences if sequence.ended or sequence.finished]

    def preempt_requests(self) -> list[SequenceState]:
        """Return the sequences that lose their slot now."""
        with self._changed:
            return [self.sequences[id] for id in self.scheduler.preempt_requests(time.perf_counter())]

    def schedule_step(self) -> tuple[list[SequenceState], list[tuple[SequenceState, int]], list[SequenceState]]:
        """Return the sequences to decode, to prefill (each with how many positions) and to encode."""
        with self._changed:
            sequences = self.sequences
            step = self.scheduler.schedule_step()
            prefill = [(sequences[id], positions) for id, positions in step.prefill]
            return [sequences[id] for id in step.decode], prefill, [sequences[id] for id in step.encode]

    def should_interrupt(self, batch: Sequence[SequenceState]) -> bool:
        """Return whether to stop encoding a batch (see `Scheduler.should_interrupt`). The caller holds the lock."""
        return self.scheduler.should_interrupt([sequence.entry for sequence in batch if not sequence.ended])

    def list_in_slots(self) -> list[tuple[int, SequenceState]]:
        """Return the sequences in slots, decoder by decoder, each with the slot where the scheduler has it, lower ones first."""
        with self._changed:
            slots = map(self.scheduler.in_slots, range(self.scheduler.decoders))
            return [(slot, self.sequences[id]) for ids in slots for slot, id in enumerate(ids)]

    @contextmanager
    def measure_cost(self, cost: Ratio, units: float) -> Iterator[None]:
        """Add the time that the block takes for `units` units to a cost."""
        started_s = time.perf_counter()
        yield
        if units:
            with self._changed:
                cost.add_measurement(time.perf_counter() - started_s, units)

    def publish_events(self, sequences: Sequence[SequenceState]) -> None:
        """Deliver what a stage brought, and forget the requests that ended."""
        with self._changed:
            for sequence in sequences:
                self._publish(sequence)

    def deliver_event(self, sequence: SequenceState, event: Event) -> None:
        """Deliver one event, unless the request has ended. A client that cannot take it is given up."""
        with self._changed:
            if sequence.ended:
                return
            sequence.ended = not isinstance(event, Delta)
            try:
                sequence.deliver(event)
            except Exception:
                logger.exception("request %s: an event cannot be delivered; giving the client up", sequence.request.id)
                sequence.ended = True

    def fail_all(self, error: ServeError) -> None:
        """Deliver a failure of every request; nothing is forgotten."""
        with self._changed:
            for sequence in list(self.sequences.values()):
                self.deliver_event(sequence, Failed(sequence.request.id, error))

    def clear(self) -> None:
        """Forget every request."""
        with self._changed:
            self.sequences.clear()
            self._timing.clear()
            self.scheduler.clear()

    def predict_wait_s(self) -> float:
        """Return how long a common request of a new client would wait if it came now."""
        with self._changed:
            backlog = self.scheduler.measure_backlog("", Priority.INTERACTIVE, ENCODE_BUDGET_AUDIO_S)
            return self.admission.predict_wait_s(backlog)

    def audio_s(self, sequence: SequenceState) -> float:
        """Return how long a request's audio lasts."""
        return len(sequence.request.audio) / self._sample_rate_hz

    def _check_wait(self, client: str, priority: Priority, audio_s: float, deadline_s: float | None) -> Backlog:
        """Return the work that comes before a new request. Raises the `Overloaded` of one that would be answered too late."""
        with self._changed:
            backlog = self.scheduler.measure_backlog(client, priority, audio_s)
            self.admission.check_request(backlog, audio_s, deadline_s, time.perf_counter())
            return backlog

    def _add_sequence(self, sequence: SequenceState) -> None:
        request, submitted_s = sequence.request, sequence.submitted_at_s
        sequence.entry = SchedulerEntry(
            request.id,
            request.client,
            request.priority,
            self.audio_s(sequence),
            waiting_since_s=submitted_s,
            deadline_s=math.inf if request.deadline_s is None else submitted_s + request.deadline_s,
            of_session=sequence.of_session,
            gives_way=sequence.gives_way,
            decoders=sequence.decoders,
        )
        self.scheduler.add_request(sequence.entry)
        self.sequences[request.id] = sequence
        self._changed.notify_all()

    def _publish(self, sequence: SequenceState) -> None:
        if sequence.finish_reason is not None and sequence.entry.deadline_s <= time.perf_counter():
            sequence.fail(_timed_out())
        if sequence.passes_on:
            self._pass_on(sequence)
            return
        if delta := sequence.take_delta():
            self.deliver_event(sequence, delta)
        if sequence.lacks_words and not sequence.ended:
            self._time_words(sequence)
            return
        if terminal := sequence.terminal_event():
            if isinstance(terminal, Done) and sequence.llm_passes:
                self.admission.record_answer(len(sequence.prompt) - sequence.cached_tokens, sequence.llm_passes - 1)
            self.deliver_event(sequence, terminal)
        if sequence.ended:
            self._forget(sequence)

    def _pass_on(self, sequence: SequenceState) -> None:
        """Have the scheduler hold a sequence for its next decoder."""
        sequence.passes_on, sequence.decoders = False, sequence.decoders[1:]
        if sequence.ended:
            self._forget(sequence)
        else:
            self.scheduler.advance_request(sequence.request.id, sequence.decoders)

    def _time_words(self, sequence: SequenceState) -> None:
        """Free the slot, and have the words timed on another thread; a later step publishes the end."""

        def note_end(_done: Future[None]) -> None:
            with self._changed:
                self._timing.discard(sequence)
                self._changed.notify_all()

        self.scheduler.finish_request(sequence.request.id)
        self._timing.add(sequence)
        self._start_timing_words(sequence).add_done_callback(note_end)

    def _forget(self, sequence: SequenceState) -> None:
        """Free all that a request holds, unless it was cancelled and has been forgotten already."""
        id = sequence.request.id
        if self.sequences.get(id) is sequence:
            del self.sequences[id]
            self._timing.discard(sequence)
            if self.scheduler.has_request(id):
                self.scheduler.finish_request(id)
            self._changed.notify_all()

    def _make_room(self, request: InstructRequest, busy: Overloaded) -> SequenceState:
        """Take the place in the queue of a request that has less of a right to it, and return that. Raises `busy`."""
        id = self.scheduler.find_displaced(request.client, request.priority)
        if id is None:
            raise busy
        displaced = self.sequences[id]
        self._forget(displaced)
        return displaced


def _timed_out() -> RequestTimedOut:
    return RequestTimedOut("The request's deadline has passed.")
