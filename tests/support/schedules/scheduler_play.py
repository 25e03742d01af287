"""Plays the engine for the scheduler, with a book of its own: who is in which slot, and what is left to prefill."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from server.engine.scheduler.jobs import Step
from server.engine.scheduler.scheduler import Scheduler
from server.engine.types.options import Priority


@dataclass
class Played:
    """A request: what was asked, and where the engine has got with it. `positions` are those of its prompt."""

    id: str
    mel_frames: int
    positions: int
    client: str
    priority: Priority
    deadline_s: float
    number: int
    slot: int | None = None
    to_prefill: int | None = None
    decoded: int = 0
    preemptions: int = 0


class Player:
    """Runs the scheduler's steps and holds them to what it promises. `ended` maps ids to the time at which they ended."""

    def __init__(self, scheduler: Scheduler, step_tokens: int, encode_budget_mel_frames: int) -> None:
        self.scheduler = scheduler
        self.now_s = 0.0
        self.live: dict[str, Played] = {}
        self.ended: dict[str, float] = {}
        self.submitted = 0
        self._step_tokens = step_tokens
        self._encode_budget_mel_frames = encode_budget_mel_frames

    def add(
        self,
        mel_frames: int = 100,
        positions: int = 10,
        client: str = "",
        priority: Priority = Priority.INTERACTIVE,
        deadline_s: float = math.inf,
    ) -> Played:
        self.submitted += 1
        played = Played(f"r{self.submitted}", mel_frames, positions, client, priority, deadline_s, self.submitted)
        self.scheduler.add(played.id, mel_frames, self.now_s, client, priority, deadline_s)
        self.live[played.id] = played
        return played

    def end(self, id: str) -> None:
        """As when its answer is complete, it failed, or its client left."""
        self.scheduler.finish(id)
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
        for id in self.scheduler.expired(self.now_s):
            assert self.live[id].deadline_s <= self.now_s
            self.end(id)
        assert all(played.deadline_s > self.now_s for played in self.live.values())
        preempted = self._preempt()
        queued = self._queued()
        step = self.scheduler.schedule(self.now_s)
        self._check_budgets(step)
        assert list(step.decode) == [id for id in self.scheduler.running if self.live[id].to_prefill == 0]
        for id in step.started:
            self._start(id)
        for played in preempted:
            assert any(self.live[id].priority < played.priority for id in step.started)
        assert step != Step() or not self.live
        assert set(step.encode) <= set(queued)
        for id in step.decode:
            self.live[id].decoded += 1
        self._settle(step.decode, "decode", ends)
        for id, positions in step.prefill:
            self._prefill(id, positions)
        assert sum(bool(self.live[id].to_prefill) for id in self.scheduler.running) <= 1
        self._settle([id for id, _ in step.prefill], "prefill", ends)
        for id in step.encode:
            self.live[id].to_prefill = self.live[id].positions
            self.scheduler.set_to_prefill(id, self.live[id].positions)
        self._settle(step.encode, "encode", ends)
        return step

    def _preempt(self) -> list[Played]:
        preempted = [self.live[id] for id in self.scheduler.preempt(self.now_s)]
        for played in preempted:
            assert played.slot is not None
            assert played.to_prefill == 0
            played.slot, played.to_prefill = None, played.positions + played.decoded
            played.preemptions += 1
            self.scheduler.set_to_prefill(played.id, played.to_prefill)
        self.pack()
        return preempted

    def _queued(self) -> list[str]:
        return [id for id, played in self.live.items() if played.to_prefill is None]

    def _start(self, id: str) -> None:
        played = self.live[id]
        assert played.slot is None
        played.slot = self.scheduler.running.index(id)

    def _prefill(self, id: str, positions: int) -> None:
        played = self.live.get(id)
        if played is not None:
            assert played.to_prefill is not None
            assert 0 < positions <= played.to_prefill
            played.to_prefill -= positions
            self.scheduler.set_to_prefill(id, played.to_prefill)

    def _settle(self, ids: list[str], stage: str, ends: Callable[[Played, str], bool]) -> None:
        for id in ids:
            if id in self.live and ends(self.live[id], stage):
                self.end(id)

    def _check_budgets(self, step: Step) -> None:
        decoding = len(step.decode)
        assert decoding + sum(positions for _, positions in step.prefill) <= max(self._step_tokens, decoding + 1)
        costs = [self.live[id].mel_frames for id in step.encode]
        assert len(costs) <= 1 or max(costs) * len(costs) <= self._encode_budget_mel_frames
        ids = [*step.decode, *(id for id, _ in step.prefill), *step.encode]
        assert len(ids) == len(set(ids))
