"""Which requests run next, and in which slots: decisions only, with no clock, thread, model library or I/O."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """The ids to run in each stage of one step, every id in one stage at most.

    `decode` is in slot order from slot 0 on; the ids of `prefill` are given the slots after it, in order.
    """

    decode: Sequence[str]
    prefill: Sequence[str]
    encode: Sequence[str]


@dataclass(frozen=True)
class Move:
    """`id`, which held the last slot, now holds `target`: its K/V must be copied there before it runs again."""

    id: str
    source: int
    target: int


class Scheduler:
    """First come, first served: wait -> encode -> prefill -> decode until `finish`.

    A request is encoded only when a slot is free for it. `encode_budget_mel_frames` bounds an encoder batch by its padded size.
    Requests in slots keep to the first ones: slot i belongs to `running[i]`.
    The caller runs the whole of a step before it asks for the next, and calls `finish` as soon as a request has ended.
    """

    def __init__(self, slots: int, queue_limit: int, encode_budget_mel_frames: int) -> None:
        self.slots = slots
        self.queue_limit = queue_limit
        self.encode_budget_mel_frames = encode_budget_mel_frames
        self.waiting: deque[str] = deque()
        self.encoded: list[str] = []
        self.running: list[str] = []
        self._mel_frames: dict[str, int] = {}

    @property
    def full(self) -> bool:
        """True where every slot is spoken for and `queue_limit` more requests wait."""
        return len(self._mel_frames) >= self.slots + self.queue_limit

    def add(self, id: str, mel_frames: int) -> None:
        """Queue a new request. Raises `ValueError` when the queue is full or the id is here already."""
        if self.full or id in self._mel_frames:
            raise ValueError(f"request {id} cannot be queued")
        self._mel_frames[id] = mel_frames
        self.waiting.append(id)

    def schedule(self) -> Step:
        """The next step; its requests are then held to be where the step takes them."""
        decode, prefill = tuple(self.running), tuple(self.encoded)
        self.running += prefill
        encode = self._next_encode_batch()
        self.encoded = [*encode]
        return Step(decode, prefill, encode)

    def finish(self, id: str) -> Move | None:
        """Forget a request wherever it is; the last slot's request moves into the hole that it may leave."""
        del self._mel_frames[id]
        if id not in self.running:
            (self.encoded if id in self.encoded else self.waiting).remove(id)
            return None
        target, source = self.running.index(id), len(self.running) - 1
        last = self.running.pop()
        if target == source:
            return None
        self.running[target] = last
        return Move(last, source, target)

    def clear(self) -> None:
        """Forget every request."""
        self.waiting.clear()
        self.encoded.clear()
        self.running.clear()
        self._mel_frames.clear()

    def _next_encode_batch(self) -> tuple[str, ...]:
        """The head of the queue, as far as slots and the padded cost (longest times count) allow; one is always taken."""
        batch: list[str] = []
        longest = 0
        free_slots = self.slots - len(self.running)
        while self.waiting and len(batch) < free_slots:
            longest = max(longest, self._mel_frames[self.waiting[0]])
            if batch and longest * (len(batch) + 1) > self.encode_budget_mel_frames:
                break
            batch.append(self.waiting.popleft())
        return tuple(batch)
