"""The scheduler's promises under any order of arrivals, ends and aborts."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from server.scheduler import Move, Scheduler, Step


class SchedulerMachine(RuleBasedStateMachine):
    """Plays the engine: adds, runs steps, and ends requests wherever they are, keeping its own book of who is where."""

    live = Bundle("live")

    @initialize(slots=st.integers(1, 4), queue_limit=st.integers(0, 3), budget=st.integers(1, 300))
    def build(self, slots: int, queue_limit: int, budget: int) -> None:
        self.scheduler = Scheduler(slots, queue_limit, budget)
        self.mel_frames: dict[str, int] = {}
        self.arrivals: list[str] = []
        self.slot_content: list[str] = []
        self.encoded: list[str] = []
        self.submitted = 0
        self.ended = 0

    @rule(target=live, mel_frames=st.integers(1, 200))
    def add(self, mel_frames: int) -> str:
        id = f"request-{self.submitted}"
        self.submitted += 1
        scheduler = self.scheduler
        if len(self.mel_frames) == scheduler.slots + scheduler.queue_limit:
            assert scheduler.full
            with pytest.raises(ValueError, match="cannot be queued"):
                scheduler.add(id, mel_frames)
            self.ended += 1
        else:
            scheduler.add(id, mel_frames)
            self.mel_frames[id] = mel_frames
            self.arrivals.append(id)
        return id

    @rule()
    def step(self) -> None:
        step = self.scheduler.schedule()
        assert list(step.decode) == self.slot_content
        assert list(step.prefill) == self.encoded
        assert list(step.encode) == self.arrivals[: len(step.encode)]
        costs = [self.mel_frames[id] for id in step.encode]
        assert len(costs) <= 1 or max(costs) * len(costs) <= self.scheduler.encode_budget_mel_frames
        self.slot_content += step.prefill
        self.encoded = [*step.encode]
        self.arrivals = self.arrivals[len(step.encode) :]
        assert step.encode or not self.arrivals or len(self.slot_content) == self.scheduler.slots

    @rule(id=consumes(live))
    def end(self, id: str) -> None:
        if id not in self.mel_frames:
            return
        del self.mel_frames[id]
        self.ended += 1
        move = self.scheduler.finish(id)
        if id not in self.slot_content:
            assert move is None
            (self.encoded if id in self.encoded else self.arrivals).remove(id)
            return
        hole, last = self.slot_content.index(id), len(self.slot_content) - 1
        assert move == (None if hole == last else Move(self.slot_content[last], source=last, target=hole))
        self.slot_content[hole] = self.slot_content[last]
        self.slot_content.pop()

    @invariant()
    def every_request_is_in_one_place_and_slots_are_packed(self) -> None:
        scheduler = self.scheduler
        assert list(scheduler.waiting) == self.arrivals
        assert scheduler.encoded == self.encoded
        assert scheduler.running == self.slot_content
        assert len(self.encoded) + len(self.slot_content) <= scheduler.slots
        assert sorted([*self.arrivals, *self.encoded, *self.slot_content]) == sorted(self.mel_frames)
        assert self.submitted == self.ended + len(self.mel_frames)

    def teardown(self) -> None:
        """Whatever is left runs to its end."""
        for _ in range(3 * len(getattr(self, "mel_frames", {}))):
            for id in self.slot_content[:]:
                self.end(id)
            self.step()
        if hasattr(self, "scheduler"):
            for id in self.slot_content[:]:
                self.end(id)
            assert self.submitted == self.ended
            assert self.scheduler.schedule() == Step((), (), ())


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_request_goes_through_the_stages_one_step_each() -> None:
    scheduler = Scheduler(slots=2, queue_limit=4, encode_budget_mel_frames=1000)
    scheduler.add("a", 100)
    assert scheduler.schedule() == Step(decode=(), prefill=(), encode=("a",))
    scheduler.add("b", 100)
    assert scheduler.schedule() == Step(decode=(), prefill=("a",), encode=("b",))
    assert scheduler.schedule() == Step(decode=("a",), prefill=("b",), encode=())
    assert scheduler.schedule() == Step(decode=("a", "b"), prefill=(), encode=())


def test_an_encode_batch_is_cut_by_its_padded_size() -> None:
    scheduler = Scheduler(slots=8, queue_limit=8, encode_budget_mel_frames=1000)
    for id, mel_frames in {"a": 100, "b": 300, "c": 300, "d": 400, "e": 5000}.items():
        scheduler.add(id, mel_frames)
    assert [scheduler.schedule().encode for _ in range(3)] == [("a", "b", "c"), ("d",), ("e",)]


def test_the_same_id_is_refused_twice() -> None:
    scheduler = Scheduler(slots=8, queue_limit=8, encode_budget_mel_frames=1000)
    scheduler.add("a", 100)
    with pytest.raises(ValueError, match="cannot be queued"):
        scheduler.add("a", 100)
