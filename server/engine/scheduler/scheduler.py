"""Which requests run next, and in which slots: decisions only, with no clock, thread, model library or I/O."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence

from server.engine.scheduler.queues import PROMOTED, Backlog, FairQueue, SchedulerEntry, ServedAudio, Step, has_claim
from server.engine.types.options import Priority

# One of the longest utterances, or several common ones: running answers wait while these are encoded.
ENCODE_BUDGET_AUDIO_S = 30.0
# Two prompts of common utterances: running answers wait for them about as long as for one utterance to be encoded.
STEP_TOKENS = 128
# As many as a plan prefills in one run (`export.tensorrt_profiles`). Fewer should take a GPU about as long; not measured.
GPU_STEP_TOKENS = 512
AGEING_S = 5.0
# Decode steps for which a slot is safe from requests of the same priority: about half a second on a CPU. The prefill that a
# preempted request has to repeat costs less than these.
TURN_STEPS = 32
# Requests that are encoded before a slot is free for them, so that it is filled in the step after it became free. One is
# enough: on a CPU encoding ahead adds no throughput, and encoded requests hold memory and may be overtaken.
ENCODE_AHEAD = 1
# Passes of live work during which nothing else is encoded on the decoders' own processor. A transcript takes fewer.
LIVE_PASSES = 16
# How far a client may be ahead of the least served one, in seconds of audio, before its hypotheses, and its answers, wait like
# files. In simulations of 1 to 16 sessions beside files, hypotheses that give way early cost no final; answers seldom do.
PARTIAL_LEAD_AUDIO_S, LIVE_LEAD_AUDIO_S = 5.0, 60.0
LONGEST_LEADS_S: dict[int, float] = {Priority.PARTIAL: PARTIAL_LEAD_AUDIO_S, Priority.LIVE: LIVE_LEAD_AUDIO_S}


class Scheduler:
    """The order of all work: a request waits, is encoded, is held while no slot is free, prefilled, and decoded to its end.

    There may be several decoders, each with `slots` slots. A request passes those that its entry names, one after the other, and
    is held, prefilled and decoded at each. The rules below hold for each decoder by itself.

    Requests are encoded by priority, then as `FairQueue` has it. Slots go by priority, then by rank, then first come, first
    served. The rank of a request is how many others of its client come before it, so a client with nothing running goes before
    one that holds several slots.

    A request that waits for a slot preempts the last in this order: any request of a lower priority, and one of its own priority
    if that has a higher rank and has been decoded for `turn_steps` since it got its slot. So a request is preempted by its
    equals once in `turn_steps` of its tokens at most, and two clients never take a slot from each other in turns.

    Live work goes before files only while its client was served little more audio than the least served one. Beyond a lead of
    `PARTIAL_LEAD_AUDIO_S` (hypotheses) or `LIVE_LEAD_AUDIO_S` (answers) it has the level of files, behind those of others.

    Once per `ageing_s` and priority, the request that has waited longest, and at least that long, is promoted: it goes before
    all priorities until it has been decoded for `turn_steps`, and then as before. So nothing starves, and promoted work never
    holds more than a few slots.

    Requests fill the first slots without a gap: `in_slots(decoder)[i]` belongs in slot i. At most one of them, the last, is
    partly prefilled. A gap is filled from the back; the caller copies the K/V of requests whose slot changed, lower slots first.

    The caller asks for `list_expired`, `preempt_requests` and `schedule_step`, and runs the whole of a step before it does so
    again. Only encoding may take several steps: no other batch is begun meanwhile. The caller writes `to_prefill` of entries
    that were preempted, prefilled and encoded, and calls `advance_request` as soon as a request is through with a decoder that is
    not its last, and `finish_request` as soon as it has ended. Times are seconds of any one clock.
    """

    def __init__(
        self,
        slots: int,
        queue_limit: int,
        encode_budget_audio_s: float = ENCODE_BUDGET_AUDIO_S,
        step_tokens: int = STEP_TOKENS,
        ageing_s: float = AGEING_S,
        encode_ahead: int = ENCODE_AHEAD,
        turn_steps: int = TURN_STEPS,
        decoders: int = 1,
        *,
        encodes_beside: bool = True,
    ) -> None:
        """`encode_budget_audio_s` limits the audio that a step encodes; one request is always taken.

        `step_tokens` limits the positions that a step prefills and decodes (one per running request) of each decoder; one is
        always prefilled.

        Without `encodes_beside` the encoder delays the decoders. So a step encodes one request of a session, and none while one
        that does not come after it is in its first `LIVE_PASSES` passes at a decoder.
        """
        self.slots = slots
        self.queue_limit = queue_limit
        self.decoders = decoders
        self._in_slots: list[list[str]] = [[] for _ in range(decoders)]
        self._encode_budget_audio_s = encode_budget_audio_s
        self._step_tokens = step_tokens
        self._ageing_s = ageing_s
        self._encode_ahead = encode_ahead
        self._turn_steps = turn_steps
        self._encodes_beside = encodes_beside
        self._entries: dict[str, SchedulerEntry] = {}
        # To be encoded, in order of arrival, and in their turn by level.
        self._queued: dict[str, SchedulerEntry] = {}
        self._queues = {level: FairQueue() for level in (PROMOTED, *Priority)}
        # Encoded (or being encoded) or preempted, without a slot.
        self._held: dict[str, SchedulerEntry] = {}
        self._promoted_at_s = dict.fromkeys(Priority, -math.inf)
        self._numbers = itertools.count(1)
        self._served = ServedAudio()
        # By client; the same for all of a step.
        self._leads_s: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def queued(self) -> int:
        """How many requests are still to be encoded."""
        return len(self._queued)

    @property
    def full(self) -> bool:
        """True where every slot is spoken for and `queue_limit` more requests wait; work of sessions aside."""
        return self._free_places <= 0

    @property
    def _free_places(self) -> int:
        """The places in slots and queue without a request; negative where requests have places beyond the queue."""
        return self.slots + self.queue_limit - sum(not entry.of_session for entry in self._entries.values())

    @property
    def _has_places_left(self) -> bool:
        """Whether a place is free in slots and queue, or among the places beyond a full queue."""
        return self._free_places + self.slots > 0

    @property
    def running(self) -> list[str]:
        """The requests in slots of any decoder."""
        return [id for ids in self._in_slots for id in ids]

    def in_slots(self, decoder: int = 0) -> list[str]:
        """Return the requests in a decoder's slots, the one in slot 0 first."""
        return list(self._in_slots[decoder])

    def has_request(self, id: str) -> bool:
        """Return whether a request is anywhere here."""
        return id in self._entries

    def is_queued(self, id: str) -> bool:
        """Return whether a request still waits to be encoded, so that it may be finished within a step."""
        return id in self._queued

    def level_of(self, entry: SchedulerEntry) -> int:
        """Return the level of an entry; the live work of a client that is far ahead of others has that of files."""
        is_far_ahead = self._leads_s.get(entry.client, 0.0) > LONGEST_LEADS_S.get(entry.level, math.inf)
        return Priority.INTERACTIVE if is_far_ahead else entry.level

    def has_queued_before(self, entry: SchedulerEntry) -> bool:
        """Return whether a request waits to be encoded that goes before an entry by its priority."""
        return any(self.level_of(other) < self.level_of(entry) for other in self._queued.values())

    def should_interrupt(self, batch: Sequence[SchedulerEntry]) -> bool:
        """Return whether to stop encoding a batch: nothing in it is wanted, or only hypotheses that queued requests go before."""
        return all(entry.gives_way and self.has_queued_before(entry) for entry in batch)

    def add_request(self, entry: SchedulerEntry) -> None:
        """Queue a new request. Raises `ValueError` where every place is taken, or when the id is here already.

        `has_place` and `find_displaced` say before whether the request may have one.
        """
        if entry.id in self._entries or not (entry.of_session or self._has_places_left):
            raise ValueError(f"request {entry.id} cannot be queued")
        entry.number = next(self._numbers)
        self._entries[entry.id] = self._queued[entry.id] = entry
        self._queues[entry.level].add_entry(entry)
        if entry.priority != Priority.BATCH:
            self._served.add_entry(entry.client)

    def has_place(self, client: str, priority: Priority) -> bool:
        """Return whether a new request may be queued as it is.

        Beyond a full queue there are as many places as slots, for clients that have a claim to the place of another. Clients
        with equal loads thus seldom take places from each other, and what is refused has seldom waited.
        """
        return not self.full or (self._has_places_left and self._find_claimed(client, priority) is not None)

    def find_displaced(self, client: str, priority: Priority) -> str | None:
        """Return the request that should give up its place to a new one, which has none.

        This is the latest of a lower priority, or else of the client that has most requests, if `client` has a claim to one of
        its places. None where there is no such request.
        """
        if lower := [entry for entry in self._displaceable() if entry.priority > priority]:
            return max(lower, key=lambda entry: (entry.priority, entry.number)).id
        return self._find_claimed(client, priority)

    def _find_claimed(self, client: str, priority: Priority) -> str | None:
        """Return the latest request of the client that has too many beside `client`, of the same priority."""
        counts = Counter(entry.client for entry in self._entries.values() if not entry.of_session)
        equals = [entry for entry in self._displaceable() if entry.priority == priority]
        claimed = [entry for entry in equals if has_claim(client, entry.client, counts)]
        latest = max(claimed, key=lambda entry: (counts[entry.client], entry.number), default=None)
        return latest.id if latest else None

    def _displaceable(self) -> list[SchedulerEntry]:
        """Return the requests that still wait to be encoded, without work of sessions and without promoted ones."""
        return [entry for entry in self._queued.values() if not (entry.of_session or entry.promoted)]

    def list_expired(self, now_s: float) -> list[str]:
        """Return the requests whose deadline has passed; the caller finishes them."""
        return [id for id, entry in self._entries.items() if entry.deadline_s <= now_s]

    def measure_backlog(self, client: str, priority: Priority, audio_s: float) -> Backlog:
        """Return the work that would come before a request that were added now; promotions are left out."""
        queue = self._queues[priority]
        ahead_s, queued = queue.count_ahead(client, audio_s)
        ranks = self._ranks(list(self._in_service()))
        own = sum(entry.client == client and self.level_of(entry) <= priority for entry in self._in_service())
        place = priority, own + queue.count_of_client(client)
        in_service = [entry for entry in self._in_service() if (self.level_of(entry), ranks[entry.id]) <= place]
        before = [entry for entry in self._queued.values() if self.level_of(entry) < priority]
        encoding = [entry for entry in self._held.values() if not entry.to_prefill and self.level_of(entry) <= priority]
        return Backlog(
            audio_s=ahead_s + sum(entry.audio_s for entry in (*before, *encoding)),
            unencoded=queued + len(before) + len(encoding),
            to_prefill=sum(entry.to_prefill for entry in in_service),
            answers=max(0, queued + len(before) + len(in_service) + 1 - self.slots),
        )

    def preempt_requests(self, now_s: float) -> list[str]:
        """Promote requests that have waited too long, and take slots for requests that go before those in them.

        Call it before `schedule_step`. A request that lost its slot is held until there is one again, and has to be prefilled
        from the beginning.
        """
        self._promote(now_s)
        self._leads_s = self._served.leads_s()
        return [id for decoder in range(self.decoders) for id in self._preempt(decoder, now_s)]

    def schedule_step(self) -> Step:
        """Return the next step; its requests are then held to be in the stage that the step names."""
        self._leads_s = self._served.leads_s()
        step = Step()
        for decoder in range(self.decoders):
            self._schedule_decoder(decoder, step)
        step.encode.extend(self._take_encode_batch())
        return step

    def advance_request(self, id: str, decoders: tuple[int, ...]) -> None:
        """Have a request leave its decoder and pass `decoders`; `to_prefill` says how many positions it begins with there."""
        entry = self._entries[id]
        to_prefill, entry.to_prefill = entry.to_prefill, 0
        self._free_slot(entry)
        entry.decoders, entry.to_prefill = decoders, to_prefill
        self._held[id] = entry

    def finish_request(self, id: str) -> None:
        """Forget a request wherever it is."""
        if entry := self._queued.pop(id, None):
            self._queues[entry.level].remove_entry(entry)
        elif id in self._held:
            del self._held[id]
        else:
            self._free_slot(self._entries[id])
        entry = self._entries.pop(id)
        if entry.priority != Priority.BATCH:
            self._served.remove_entry(entry.client)

    def clear(self) -> None:
        """Forget every request."""
        for id in list(self._entries):
            self.finish_request(id)

    def _preempt(self, decoder: int, now_s: float) -> list[str]:
        """Take slots of one decoder for requests that go before those in them."""
        preempted: list[str] = []
        running = self._in_slots[decoder]
        free = self.slots - len(running)
        budget = self._prefill_budget(decoder) - sum(self._entries[id].to_prefill for id in running)
        ranks = self._ranks(self._at_decoder(decoder))
        for entry in self._wanting_slots(decoder, ranks):
            if budget <= 0:
                break
            budget -= entry.to_prefill
            free -= 1
            if free < 0:
                victim = self._find_victim(entry, ranks)
                if victim is None:
                    break
                self._free_slot(victim)
                self._held[victim.id] = victim
                victim.waiting_since_s = now_s
                preempted.append(victim.id)
        return preempted

    def _schedule_decoder(self, decoder: int, step: Step) -> None:
        """Add one decoder's part to a step."""
        running = self._in_slots[decoder]
        budget = self._prefill_budget(decoder)
        decode = running[: self._decodable(decoder)]
        step.decode.extend(decode)
        for id in decode:
            self._count_turn(self._entries[id])
        for id in running[len(decode) :]:
            positions = min(self._entries[id].to_prefill, budget)
            step.prefill.append((id, positions))
            budget -= positions
        for entry in self._wanting_slots(decoder, self._ranks(self._at_decoder(decoder))):
            if budget == 0 or len(running) == self.slots:
                break
            running.append(entry.id)
            del self._held[entry.id]
            entry.turn_steps = 0
            step.started.append(entry.id)
            positions = min(entry.to_prefill, budget)
            step.prefill.append((entry.id, positions))
            budget -= positions

    def _decodable(self, decoder: int) -> int:
        """Return how many in slots have nothing left to prefill; the others are the last ones."""
        running = self._in_slots[decoder]
        waiting = itertools.takewhile(lambda id: self._entries[id].to_prefill > 0, reversed(running))
        return len(running) - sum(1 for _ in waiting)

    def _prefill_budget(self, decoder: int) -> int:
        return max(1, self._step_tokens - self._decodable(decoder))

    def _in_service(self) -> Iterator[SchedulerEntry]:
        """Go through the requests that have a slot or will want one."""
        yield from (self._entries[id] for id in self.running)
        yield from (entry for entry in self._held.values() if not entry.encode_only)

    def _at_decoder(self, decoder: int) -> list[SchedulerEntry]:
        """Return the requests in service whose next or present decoder this is."""
        return [entry for entry in self._in_service() if entry.decoders[0] == decoder]

    def _ranks(self, entries: Sequence[SchedulerEntry]) -> dict[str, int]:
        """Return by id how many of its client's entries are before each of them: by level, those in slots first."""
        running = set(self.running)
        counts: Counter[str] = Counter()
        ranks: dict[str, int] = {}
        for entry in sorted(entries, key=lambda entry: (self.level_of(entry), entry.id not in running, entry.taken)):
            ranks[entry.id] = counts[entry.client]
            counts[entry.client] += 1
        return ranks

    def _wanting_slots(self, decoder: int, ranks: dict[str, int]) -> list[SchedulerEntry]:
        wanting = (entry for entry in self._held.values() if entry.to_prefill and entry.decoders[0] == decoder)
        return sorted(wanting, key=lambda entry: (self.level_of(entry), ranks[entry.id], entry.taken))

    def _promote(self, now_s: float) -> None:
        latest_s = now_s - self._ageing_s
        for priority, promoted_at_s in self._promoted_at_s.items():
            if promoted_at_s > latest_s:
                continue
            waiting = (*self._queued.values(), *self._held.values())
            candidates = (entry for entry in waiting if entry.priority == priority and not entry.promoted)
            oldest = min(candidates, key=lambda entry: (entry.waiting_since_s, entry.number), default=None)
            if oldest is None or oldest.waiting_since_s > latest_s:
                continue
            self._promoted_at_s[priority] = now_s
            if oldest.id in self._queued:
                self._queues[priority].serve_entry(oldest)
                self._queues[PROMOTED].add_entry(oldest)
            oldest.promoted = True

    def _count_turn(self, entry: SchedulerEntry) -> None:
        """Count a decode step of a request; a promotion ends with the turn."""
        entry.turn_steps += 1
        if entry.turn_steps >= self._turn_steps:
            entry.promoted = False

    def _find_victim(self, entry: SchedulerEntry, ranks: dict[str, int]) -> SchedulerEntry | None:
        """Return the request that gives up its slot to `entry`: the last in the order of slots."""

        def yields(other: SchedulerEntry) -> bool:
            if self.level_of(other) == self.level_of(entry):
                return other.turn_steps >= self._turn_steps and ranks[other.id] > ranks[entry.id]
            return self.level_of(other) > self.level_of(entry)

        decoder = entry.decoders[0]
        decodable = map(self._entries.__getitem__, self._in_slots[decoder][: self._decodable(decoder)])
        candidates = (other for other in decodable if yields(other))
        return max(candidates, key=lambda other: (self.level_of(other), ranks[other.id], other.taken), default=None)

    def _free_slot(self, entry: SchedulerEntry) -> None:
        """Fill the hole that a request leaves with the last that can be decoded; those behind it move up."""
        running, packed = self._in_slots[entry.decoders[0]], self._decodable(entry.decoders[0])
        slot = running.index(entry.id)
        if slot < packed:
            running[slot] = running[packed - 1]
            slot = packed - 1
        del running[slot]

    def _take_encode_batch(self) -> list[str]:
        """Take the requests next in turn, as far as slots and the budget allow; one is always taken.

        Live requests are encoded without others, so that these do not delay their prefill, which is only in the next step.
        """
        batch: list[str] = []
        if any(not entry.to_prefill for entry in self._held.values()):
            return batch
        audio_s = 0.0
        is_live = False
        while (entry := self._next_to_encode()) and not self._would_delay_session(entry):
            if batch and not self._encodes_beside and min(entry.priority, self._entries[batch[0]].priority) <= Priority.PARTIAL:
                break
            audio_s += entry.audio_s
            if batch and (audio_s > self._encode_budget_audio_s or (is_live and entry.priority > Priority.LIVE)):
                break
            is_live = is_live or entry.priority == Priority.LIVE
            del self._queued[entry.id]
            self._queues[entry.level].serve_entry(entry)
            if entry.priority != Priority.BATCH:
                self._served.serve_audio(entry.client, entry.audio_s)
            entry.taken = next(self._numbers)
            self._held[entry.id] = entry
            batch.append(entry.id)
        return batch

    def _would_delay_session(self, entry: SchedulerEntry) -> bool:
        """Return whether to encode an entry now would delay a session's work that does not come after it."""
        if self._encodes_beside:
            return False
        decoding = (self._entries[id] for id in self.running)
        return any(
            other.priority <= Priority.PARTIAL
            and self.level_of(other) < Priority.INTERACTIVE
            and self.level_of(other) <= self.level_of(entry)
            and other.turn_steps < LIVE_PASSES
            for other in decoding
        )

    def _next_to_encode(self) -> SchedulerEntry | None:
        in_service = list(self._in_service())
        heading_for = [[entry for entry in in_service if decoder in entry.decoders] for decoder in range(self.decoders)]
        heads = [entry for queue in self._queues.values() for entry in queue.list_heads()]
        # Work that came down to a level goes behind that of the others there.
        for entry in sorted(heads, key=lambda entry: (self.level_of(entry), self.level_of(entry) != entry.level)):
            if all(self._has_room(entry, heading_for[decoder]) for decoder in entry.decoders):
                return entry
        return None

    def _has_room(self, entry: SchedulerEntry, others: Sequence[SchedulerEntry]) -> bool:
        """Return whether an entry can soon have a slot, or may be encoded ahead of one, beside others that want the decoder."""
        ranks = self._ranks(others)
        level = self.level_of(entry)
        rank = sum(other.client == entry.client and self.level_of(other) <= level for other in others)
        before = sum((self.level_of(other), ranks[other.id]) <= (level, rank) for other in others)
        return before < self.slots + self._encode_ahead
