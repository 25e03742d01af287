"""The engine of the simulator: the server's own scheduler and admission, over stages that only take time."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from loadtest.capacity.costs import Phase, StageCosts, WorkProfile
from server.engine.scheduler.admission import Admission, Ratio, retry_after_s
from server.engine.scheduler.queues import SchedulerEntry
from server.engine.scheduler.scheduler import Scheduler
from server.engine.types.options import Priority

# Tokens that a decode pass brings, on average: a preempted request has to prefill them again.
TOKENS_PER_PASS = 2


class Outside(Protocol):
    """The clients and sessions around the engine, which go on while it encodes."""

    @property
    def next_due_s(self) -> float:
        """When something happens next; infinite if nothing will."""

    def take_due(self, now_s: float) -> None:
        """Have happen what is due by now, which may submit and cancel requests."""


class RefusedError(RuntimeError):
    """The engine does not take a request; the client may come again after `retry_after_s`."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"refused; again after {retry_after_s:g} s")
        self.retry_after_s = retry_after_s


@dataclass(eq=False)
class SimulatedRequest:
    """A request in the simulated engine. `end` is called with the time at which it is answered, or None if it is given up."""

    entry: SchedulerEntry
    work: WorkProfile
    end: Callable[[float | None], None]
    phases: list[Phase] = field(default_factory=list)
    passes_left: int = 0
    cancelled: bool = False


class SimulatedEngine:
    """Takes the steps of `LocalEngine`, decided by the server's `Scheduler`; each stage takes as long as the costs say.

    Times are seconds of the simulation's clock. Events within a step happen at the end of the stage that brings them.
    """

    def __init__(self, costs: StageCosts, random: np.random.Generator) -> None:
        self.scheduler = Scheduler(
            costs.slots,
            costs.queue_limit,
            step_tokens=costs.step_tokens,
            decoders=max(1, len(costs.decoders)),
            encodes_beside=costs.encodes_beside,
        )
        self.admission = Admission(costs.slots)
        self._costs = costs
        self._random = random
        self._requests: dict[str, SimulatedRequest] = {}
        self._numbers = 0
        self._encoding: list[SimulatedRequest] = []
        self._encode_s = self._encoded_at_s = 0.0
        self._taken_s = 0.0

    @property
    def has_work(self) -> bool:
        """Whether there is something for a step to do."""
        return bool(self._requests)

    def submit(
        self,
        work: WorkProfile,
        end: Callable[[float | None], None],
        now_s: float,
        *,
        client: str = "",
        priority: Priority = Priority.INTERACTIVE,
        of_session: bool = False,
        gives_way: bool = False,
    ) -> SimulatedRequest:
        """Queue a request as the engine's `RequestTable` does. Raises `RefusedError`."""
        self._numbers += 1
        decoders = tuple(phase.decoder for phase in work.phases)
        entry = SchedulerEntry(
            str(self._numbers),
            client,
            priority,
            work.audio_s,
            now_s,
            math.inf,
            of_session=of_session,
            gives_way=gives_way,
            decoders=decoders,
        )
        if not of_session:
            self._admit(entry)
            if self._requests and not self._costs.encodes_beside:
                # Its way to the engine took processor time from those that were at work.
                self._taken_s += self._costs.door_cpu_s / self._costs.cores
        request = SimulatedRequest(entry, work, end, list(work.phases))
        self.scheduler.add_request(entry)
        self._requests[entry.id] = request
        return request

    def cancel(self, request: SimulatedRequest) -> None:
        """Forget a request as soon as no stage works on it."""
        request.cancelled = True
        if request.entry.id in self._requests and self.scheduler.is_queued(request.entry.id):
            self._forget(request)

    def step(self, now_s: float, outside: Outside | None = None) -> float:
        """Run one step that begins now, and return when it ends. `outside` goes on while the step encodes."""
        for request in [each for each in self._requests.values() if each.cancelled]:
            self._forget(request)
        for id in self.scheduler.preempt_requests(now_s):
            self._replan(self._requests[id])
        step = self.scheduler.schedule_step()
        now_s += self._costs.step_s + self._taken_s
        self._taken_s = 0.0
        if step.encode:
            self._encoding = [self._requests[id] for id in step.encode]
            self._encode_s = self._predict_encode_s()
            self._encoded_at_s = now_s + self._encode_s
        now_s = self._decode([self._requests[id] for id in step.decode], now_s)
        now_s = self._prefill([(self._requests[id], positions) for id, positions in step.prefill], now_s)
        goes_on = self._costs.encodes_beside and (step.decode or step.prefill) and now_s < self._encoded_at_s
        if self._encoding and not goes_on:
            now_s = self._encode(now_s, outside)
        return now_s

    def _admit(self, entry: SchedulerEntry) -> None:
        """Refuse a request as the engine does, or have another one give up its place. Raises `RefusedError`."""
        if self.scheduler.has_place(entry.client, entry.priority):
            return
        displaced = self.scheduler.find_displaced(entry.client, entry.priority)
        if displaced is None:
            backlog = self.scheduler.measure_backlog(entry.client, entry.priority, entry.audio_s)
            raise RefusedError(retry_after_s(self.admission.predict_wait_s(backlog)))
        request = self._requests[displaced]
        self._forget(request)
        request.end(None)

    def _predict_encode_s(self) -> float:
        audio_s = [request.work.audio_s for request in self._encoding]
        return self._costs.encode.predict_s(audio_s) * self._draw(self._costs.spread.encode)

    def _decode(self, batch: Sequence[SimulatedRequest], now_s: float) -> float:
        took_s = self._draw(self._costs.spread.decode) * sum(
            cost.predict_decode_s([request.phases[0].pass_positions for request in batch if request.phases[0].decoder == number])
            for number, cost in enumerate(self._costs.decoders)
        )
        self._measure(self.admission.decode_s, took_s, min(1, len(batch)))
        now_s += took_s
        for request in batch:
            request.passes_left -= 1
            self._settle(request, now_s)
        return now_s

    def _prefill(self, work: Sequence[tuple[SimulatedRequest, int]], now_s: float) -> float:
        took_s = self._draw(self._costs.spread.prefill) * sum(
            cost.predict_prefill_s([positions for request, positions in work if request.phases[0].decoder == number])
            for number, cost in enumerate(self._costs.decoders)
        )
        self._measure(self.admission.prefill_s, took_s, sum(positions for _, positions in work))
        now_s += took_s
        for request, positions in work:
            request.entry.to_prefill -= positions
            if not request.entry.to_prefill:
                self._settle(request, now_s)
        return now_s

    def _encode(self, now_s: float, outside: Outside | None) -> float:
        batch, self._encoding = [request for request in self._encoding if not request.cancelled], []
        took_s = max(0.0, self._encoded_at_s - now_s) if self._costs.encodes_beside else self._encode_s
        end_s = now_s + took_s
        while outside is not None and outside.next_due_s < end_s and not self._should_interrupt(batch):
            now_s = max(now_s, outside.next_due_s)
            outside.take_due(now_s)
        if self._should_interrupt(batch):
            self._give_up(batch)
            return now_s
        now_s = end_s
        self._measure(self.admission.encode_s, took_s, sum(request.work.audio_s for request in batch))
        for request in batch:
            if request.entry.id not in self._requests:
                continue
            if request.phases:
                self._begin_phase(request)
            else:
                self._finish(request, now_s)
        return now_s

    def _should_interrupt(self, batch: Sequence[SimulatedRequest]) -> bool:
        return self.scheduler.should_interrupt([request.entry for request in batch if not request.cancelled])

    def _give_up(self, batch: Sequence[SimulatedRequest]) -> None:
        for request in batch:
            self._forget(request)
            if not request.cancelled:
                request.end(None)

    def _settle(self, request: SimulatedRequest, now_s: float) -> None:
        """Have a request that is through with its phase go on with the next one, or end."""
        if request.passes_left > 0:
            return
        request.phases.pop(0)
        if not request.phases:
            self._finish(request, now_s)
            return
        request.entry.to_prefill = max(1, request.phases[0].positions)
        self.scheduler.advance_request(request.entry.id, tuple(phase.decoder for phase in request.phases))
        request.passes_left = request.phases[0].passes

    def _begin_phase(self, request: SimulatedRequest) -> None:
        request.entry.to_prefill = max(1, request.phases[0].positions)
        request.passes_left = request.phases[0].passes

    def _replan(self, request: SimulatedRequest) -> None:
        """Have a preempted request prefill all that it has again."""
        phase = request.phases[0]
        request.entry.to_prefill = max(1, phase.positions + TOKENS_PER_PASS * (phase.passes - request.passes_left))

    def _finish(self, request: SimulatedRequest, now_s: float) -> None:
        self._forget(request)
        positions = sum(phase.positions for phase in request.work.phases)
        if request.work.phases:
            self.admission.record_answer(positions, sum(phase.passes for phase in request.work.phases))
        if not request.cancelled:
            request.end(now_s + self._words_s(request))

    def _words_s(self, request: SimulatedRequest) -> float:
        """Return how long another thread times the words of an answer, or of a partial that was written."""
        has_words = request.entry.of_session and len(request.work.phases) > 0
        return self._costs.words_s * request.work.audio_s if has_words else 0.0

    def _forget(self, request: SimulatedRequest) -> None:
        if self._requests.pop(request.entry.id, None) is not None:
            self.scheduler.finish_request(request.entry.id)

    def _draw(self, spread: Sequence[float]) -> float:
        return spread[0] if len(spread) == 1 else float(spread[int(self._random.integers(len(spread)))])

    @staticmethod
    def _measure(ratio: Ratio, took_s: float, units: float) -> None:
        if units:
            ratio.add_measurement(took_s, units)
