"""Which requests run next, and in which slots: decisions only, with no clock, thread, model library or I/O."""

import itertools
import math

from server.engine.scheduler.fair_queue import FairQueue
from server.engine.scheduler.jobs import PROMOTED, Backlog, SchedulerEntry, Step
from server.engine.types.options import Priority

# One of the longest utterances, or several common ones: running answers wait while a batch is encoded.
ENCODE_BUDGET_MEL_FRAMES = 3000
# Two prompts of common utterances: running answers wait for them about as long as for one utterance to be encoded.
STEP_TOKENS = 128
# As many as a plan prefills in one run (`export.tensorrt_profiles`): a GPU takes about as long for few. Not measured on one.
GPU_STEP_TOKENS = 512
AGEING_S = 5.0
# Requests that are encoded before a slot is free for them, so that it is filled in the step after it became free. One is
# enough: on a CPU encoding ahead adds no throughput, and whoever is encoded holds memory and may be overtaken.
ENCODE_AHEAD = 1


class Scheduler:
    """wait -> encode -> hold (where no slot is free) -> prefill -> decode until `finish`.

    Order: by priority, then as `FairQueue` has it, then first come, first served. Once per `ageing_s` and priority, the request
    that has waited longest, and at least that long, is promoted: it goes before all others and cannot be preempted, so that
    nothing starves.

    Requests in slots keep to the first ones: `running[i]` belongs in slot i. At most one of them is partly prefilled, the last.
    Holes are filled from the back; the caller copies K/V of those whose place changed, lower slots first.

    The caller asks for `expired`, `preempt` and `schedule`, and runs the whole of a step before it does so again, but for what
    is to be encoded, which may take it several: no other batch is begun meanwhile. It calls `set_to_prefill` for what was
    preempted, prefilled and encoded, and `finish` as soon as a request has ended. Times are seconds of any one clock.
    """

    def __init__(
        self,
        slots: int,
        queue_limit: int,
        encode_budget_mel_frames: int = ENCODE_BUDGET_MEL_FRAMES,
        step_tokens: int = STEP_TOKENS,
        gather_s: float = 0.0,
        ageing_s: float = AGEING_S,
        encode_ahead: int = ENCODE_AHEAD,
    ) -> None:
        """`encode_budget_mel_frames` bounds an encoder batch by its padded size; one request is always taken.

        `step_tokens` bounds the positions that a step prefills and decodes (one per running request); one is always prefilled.
        `gather_s` is how long a batch that is not full may wait for more, while answers are running: worth it where a larger
        batch is cheaper per utterance. It is not on a CPU, whose cores one utterance fills, hence the default.
        """
        self.slots = slots
        self.queue_limit = queue_limit
        self.running: list[str] = []
        self._encode_budget_mel_frames = encode_budget_mel_frames
        self._step_tokens = step_tokens
        self._gather_s = gather_s
        self._ageing_s = ageing_s
        self._encode_ahead = encode_ahead
        self._jobs: dict[str, SchedulerEntry] = {}
        # To be encoded, in order of arrival, and in their turn by level.
        self._queued: dict[str, SchedulerEntry] = {}
        self._queues = {level: FairQueue() for level in (PROMOTED, *Priority)}
        # Encoded (or being encoded) or preempted, without a slot.
        self._held: dict[str, SchedulerEntry] = {}
        self._promoted_at_s = dict.fromkeys(Priority, -math.inf)
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def queued(self) -> int:
        """How many requests are still to be encoded."""
        return len(self._queued)

    @property
    def full(self) -> bool:
        """True where every slot is spoken for and `queue_limit` more requests wait; work of sessions aside."""
        return sum(not job.of_session for job in self._jobs.values()) >= self.slots + self.queue_limit

    def is_queued(self, id: str) -> bool:
        """Whether a request still waits to be encoded, so that it may be finished within a step."""
        return id in self._queued

    def add(
        self,
        id: str,
        mel_frames: int,
        now_s: float,
        client: str = "",
        priority: Priority = Priority.INTERACTIVE,
        deadline_s: float = math.inf,
        *,
        of_session: bool = False,
        encode_only: bool = False,
    ) -> None:
        """Queue a new request. Raises `ValueError` when the queue is full or the id is here already."""
        if (self.full and not of_session) or id in self._jobs:
            raise ValueError(f"request {id} cannot be queued")
        job = SchedulerEntry(id, client, priority, mel_frames, now_s, deadline_s, next(self._numbers), of_session, encode_only)
        self._jobs[id] = self._queued[id] = job
        self._queues[priority].add(job)

    def displaced_by(self, client: str, priority: Priority) -> str | None:
        """Who should give up a place in a full queue to a newcomer: the latest of a lower priority, or else of the client that
        takes up most of the queue, where that is more than the newcomer's."""
        for lower in reversed(Priority):
            if lower > priority and (job := self._queues[lower].latest()):
                return job.id
        job = self._queues[priority].surplus(client)
        return job.id if job else None

    def expired(self, now_s: float) -> list[str]:
        """Whose deadline has passed; the caller finishes them."""
        return [id for id, job in self._jobs.items() if job.deadline_s <= now_s]

    def ahead_of(self, client: str, priority: Priority, mel_frames: int) -> Backlog:
        """What would come before a request that were added now; promotions are left out."""
        mel_frames, queued = self._queues[priority].ahead_of(client, mel_frames)
        held = [job for job in self._held.values() if job.level <= priority]
        running = [job for job in map(self._jobs.__getitem__, self.running) if job.level <= priority]
        before = [job for job in self._queued.values() if job.level < priority]
        encoding = [job for job in self._encoding if job.level <= priority]
        return Backlog(
            mel_frames=mel_frames + sum(job.mel_frames for job in (*before, *encoding)),
            unencoded=queued + len(before) + len(encoding),
            to_prefill=sum(job.to_prefill for job in (*held, *running)),
            answers=max(0, queued + len(before) + len(held) + len(running) + 1 - self.slots),
        )

    def preempt(self, now_s: float) -> list[str]:
        """Promote who waited too long, and take slots away where higher priorities will start in them: call it before `schedule`.

        Who lost a slot is held until there is one again, and has to be prefilled from the beginning.
        """
        self._promote(now_s)
        preempted = []
        free = self.slots - len(self.running)
        budget = self._prefill_budget - sum(self._jobs[id].to_prefill for id in self.running)
        for job in self._wanting_slots():
            if budget <= 0:
                break
            budget -= job.to_prefill
            free -= 1
            if free < 0:
                victim = self._victim(job.priority)
                if victim is None:
                    break
                self._free_slot(victim.id)
                self._held[victim.id] = victim
                preempted.append(victim.id)
        return preempted

    def schedule(self, now_s: float) -> Step:
        """The next step; its requests are then held to be where the step takes them."""
        budget = self._prefill_budget
        decode = self.running[: self._decodable]
        started = []
        prefill = []
        for id in self.running[self._decodable :]:
            prefill.append((id, self._prefill(self._jobs[id], budget)))
            budget -= prefill[-1][1]
        for job in self._wanting_slots():
            if budget == 0 or len(self.running) == self.slots:
                break
            self.running.append(job.id)
            del self._held[job.id]
            started.append(job.id)
            prefill.append((job.id, self._prefill(job, budget)))
            budget -= prefill[-1][1]
        return Step(started, decode, prefill, self._next_encode_batch(now_s))

    def set_to_prefill(self, id: str, positions: int) -> None:
        """Say how many positions are left to prefill before a request can be decoded."""
        self._jobs[id].to_prefill = positions

    def finish(self, id: str) -> None:
        """Forget a request wherever it is."""
        if job := self._queued.pop(id, None):
            self._queues[job.level].remove(job)
        elif id in self._held:
            del self._held[id]
        else:
            self._free_slot(id)
        del self._jobs[id]

    def clear(self) -> None:
        """Forget every request."""
        for id in list(self._jobs):
            self.finish(id)

    @property
    def _decodable(self) -> int:
        """How many in slots have nothing left to prefill: all but the last, perhaps."""
        return len(self.running) - (bool(self.running) and self._jobs[self.running[-1]].to_prefill > 0)

    @property
    def _prefill_budget(self) -> int:
        return max(1, self._step_tokens - self._decodable)

    @property
    def _encoding(self) -> list[SchedulerEntry]:
        """Those whose prompt is not known yet, although they were taken to be encoded."""
        return [job for job in self._held.values() if not job.to_prefill]

    def _wanting_slots(self) -> list[SchedulerEntry]:
        return sorted((job for job in self._held.values() if job.to_prefill), key=lambda job: (job.level, job.taken))

    def _promote(self, now_s: float) -> None:
        for priority, promoted_at_s in self._promoted_at_s.items():
            latest_s = now_s - self._ageing_s
            if promoted_at_s > latest_s:
                continue
            waiting = (job for id, job in self._jobs.items() if id in self._queued or id in self._held)
            oldest = next((job for job in waiting if job.priority == priority and not job.promoted), None)
            if oldest is None or oldest.arrived_s > latest_s:
                continue
            self._promoted_at_s[priority] = now_s
            if oldest.id in self._queued:
                self._queues[priority].take(oldest)
                self._queues[PROMOTED].add(oldest)
            oldest.promoted = True

    def _prefill(self, job: SchedulerEntry, budget: int) -> int:
        """Count as done what the budget allows to prefill of a job, and say how much that is."""
        positions = min(job.to_prefill, budget)
        job.to_prefill -= positions
        return positions

    def _victim(self, priority: Priority) -> SchedulerEntry | None:
        """Who gives up a slot to a request of this priority: the lowest, and of those the latest."""
        decodable = map(self._jobs.__getitem__, self.running[: self._decodable])
        return max((job for job in decodable if job.level > priority), key=lambda job: (job.level, job.taken), default=None)

    def _free_slot(self, id: str) -> None:
        """Fill the hole that a request leaves with the last that can be decoded; one behind it moves up."""
        packed = self._decodable
        self.running[self.running.index(id)] = self.running[packed - 1]
        del self.running[packed - 1]

    def _next_encode_batch(self, now_s: float) -> list[str]:
        """Those next in turn, as far as slots and the padded cost (longest times count) allow; one is always taken.

        Whoever somebody waits for live is encoded without the others: his prefill is only in the next step.
        """
        batch: list[str] = []
        longest = 0
        urgent = False
        if self._encoding or self._is_gathering(now_s):
            return batch
        while (job := self._next_to_encode()) and self._has_room(job):
            longest = max(longest, job.mel_frames)
            if batch and longest * (len(batch) + 1) > self._encode_budget_mel_frames:
                break
            if urgent and job.priority > Priority.LIVE:
                break
            urgent = urgent or job.priority == Priority.LIVE
            del self._queued[job.id]
            self._queues[job.level].take(job)
            job.taken = next(self._numbers)
            self._held[job.id] = job
            batch.append(job.id)
        return batch

    def _is_gathering(self, now_s: float) -> bool:
        """Whether to wait for a larger batch: only while answers run, which make use of the time."""
        if not (self._gather_s and self.running and self._queued):
            return False
        jobs = list(self._queued.values())
        is_full = max(job.mel_frames for job in jobs) * (len(jobs) + 1) > self._encode_budget_mel_frames
        return not is_full and len(self._jobs) < self.slots and jobs[0].arrived_s > now_s - self._gather_s

    def _next_to_encode(self) -> SchedulerEntry | None:
        return next((job for queue in self._queues.values() if (job := queue.next())), None)

    def _has_room(self, job: SchedulerEntry) -> bool:
        """Whether a job needs no slot, one is free for it, or will be, or it may be encoded ahead."""
        if job.encode_only:
            return True
        before = sum(held.level <= job.level and not held.encode_only for held in self._held.values())
        running = map(self._jobs.__getitem__, self.running)
        fixed = sum(other.level <= job.priority for other in running)
        return before + fixed < self.slots + self._encode_ahead
