"""Plays the engine for the scheduler, with tables of its own: which request is in which slot, and what is left to prefill."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from server.engine.scheduler.queues import SchedulerEntry, Step
from server.engine.scheduler.scheduler import TURN_STEPS, Scheduler
from server.engine.types.options import Priority


@dataclass
class Played:
    """A request: what was asked, and where the engine has got with it. `positions` are those of its prompt.

    `turn_decoded` counts the decode steps since it was given its slot.
    """

    entry: SchedulerEntry
    positions: int
    number: int
    slot: int | None = None
    is_encoded: bool = False
    decoded: int = 0
    turn_decoded: int = 0
    preemptions: int = 0

    @property
    def id(self) -> str:
        return self.entry.id

    @property
    def client(self) -> str:
        return self.entry.client

    @property
    def priority(self) -> Priority:
        return self.entry.priority

    @property
    def audio_s(self) -> float:
        return self.entry.audio_s

    @property
    def deadline_s(self) -> float:
        return self.entry.deadline_s


class Player:
    """Runs the scheduler's steps and holds them to what it promises. `ended` maps ids to the time at which they ended."""

    def __init__(
        self, scheduler: Scheduler, step_tokens: int, encode_budget_audio_s: float, turn_steps: int = TURN_STEPS
    ) -> None:
        self.scheduler = scheduler
        self.now_s = 0.0
        self.live: dict[str, Played] = {}
        self.ended: dict[str, float] = {}
        self.submitted = 0
        self._step_tokens = step_tokens
        self._encode_budget_audio_s = encode_budget_audio_s
        self._turn_steps = turn_steps

    def add(
        self,
        audio_s: float = 1.0,
        positions: int = 10,
        client: str = "",
        priority: Priority = Priority.INTERACTIVE,
        deadline_s: float = math.inf,
    ) -> Played:
        self.submitted += 1
        entry = SchedulerEntry(f"r{self.submitted}", client, priority, audio_s, self.now_s, deadline_s)
        self.scheduler.add_request(entry)
        played = self.live[entry.id] = Played(entry, positions, self.submitted)
        return played

    def end(self, id: str) -> None:
        """As when its answer is complete, it failed, or its client left."""
        self.scheduler.finish_request(id)
        del self.live[id]
        self.ended[id] = self.now_s
        self.pack()

    def pack(self) -> None:
        """Move K/V to where the scheduler has it, lower slots first: never over what is still needed."""
        for slot, id in enumerate(self.scheduler.running):
            played = self.live[id]
            if played.slot != slot:
                assert played.slot is not None
                assert played.slot > slot
                assert slot not in [other.slot for other in self.live.values()]
                played.slot = slot

    def step(self, ends: Callable[[Played, str], bool] = lambda _played, _stage: False) -> Step:
        """One step of the engine. `ends` is asked after each stage about each request that was in it."""
        for id in self.scheduler.list_expired(self.now_s):
            assert self.live[id].deadline_s <= self.now_s
            self.end(id)
        assert all(played.deadline_s > self.now_s for played in self.live.values())
        preempted = self._preempt()
        queued = self._queued()
        step = self.scheduler.schedule_step()
        self._check_budgets(step)
        assert list(step.decode) == [id for id in self.scheduler.running if self.live[id].entry.to_prefill == 0]
        for id in step.started:
            self._start(id)
        self._check_preemptions(preempted, step)
        assert step != Step() or not self.live
        assert set(step.encode) <= set(queued)
        for id in step.decode:
            self.live[id].decoded += 1
            self.live[id].turn_decoded += 1
        self._settle(step.decode, "decode", ends)
        for id, positions in step.prefill:
            self._prefill(id, positions)
        assert sum(bool(self.live[id].entry.to_prefill) for id in self.scheduler.running) <= 1
        self._settle([id for id, _ in step.prefill], "prefill", ends)
        for id in step.encode:
            self.live[id].is_encoded = True
            self.live[id].entry.to_prefill = self.live[id].positions
        self._settle(step.encode, "encode", ends)
        return step

    def _preempt(self) -> list[Played]:
        preempted = [self.live[id] for id in self.scheduler.preempt_requests(self.now_s)]
        for played in preempted:
            assert played.slot is not None
            assert played.entry.to_prefill == 0
            played.slot, played.entry.to_prefill = None, played.positions + played.decoded
            played.preemptions += 1
        self.pack()
        return preempted

    def _check_preemptions(self, preempted: list[Played], step: Step) -> None:
        """Every slot that was taken goes to a request of a lower level, or to one of the same level after a whole turn."""
        started = [self.scheduler.level_of(self.live[id].entry) for id in step.started]
        assert len(preempted) <= len(started)
        for played in preempted:
            level = self.scheduler.level_of(played.entry)
            assert min(started) <= level
            assert min(started) < level or played.turn_decoded >= self._turn_steps

    def _queued(self) -> list[str]:
        return [id for id, played in self.live.items() if not played.is_encoded]

    def _start(self, id: str) -> None:
        played = self.live[id]
        assert played.slot is None
        played.slot = self.scheduler.running.index(id)
        played.turn_decoded = 0

    def _prefill(self, id: str, positions: int) -> None:
        played = self.live.get(id)
        if played is not None:
            assert 0 < positions <= played.entry.to_prefill
            played.entry.to_prefill -= positions

    def _settle(self, ids: list[str], stage: str, ends: Callable[[Played, str], bool]) -> None:
        for id in ids:
            if id in self.live and ends(self.live[id], stage):
                self.end(id)

    def _check_budgets(self, step: Step) -> None:
        decoding = len(step.decode)
        assert decoding + sum(positions for _, positions in step.prefill) <= max(self._step_tokens, decoding + 1)
        costs = [self.live[id].audio_s for id in step.encode]
        assert len(costs) <= 1 or sum(costs) <= self._encode_budget_audio_s
        ids = [*step.decode, *(id for id, _ in step.prefill), *step.encode]
        assert len(ids) == len(set(ids))
