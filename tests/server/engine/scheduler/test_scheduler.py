"""The scheduler's promises under any order of arrivals, ends, failures, deadlines and preemptions."""

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.engine.scheduler.queues import SchedulerEntry, Step
from server.engine.scheduler.scheduler import Scheduler
from server.engine.types.options import Priority
from tests.support.schedules.scheduler_play import Played, Player

ENDS = st.sets(st.tuples(st.integers(0, 20), st.sampled_from(["decode", "prefill", "encode"])), max_size=3)


class SchedulerMachine(RuleBasedStateMachine):
    """Random requests and steps; `Player` checks every step."""

    @initialize(
        slots=st.integers(1, 4),
        queue_limit=st.integers(0, 6),
        budget_s=st.integers(1, 3),
        step_tokens=st.integers(1, 40),
        ageing_s=st.sampled_from([2.0, math.inf]),
        turn_steps=st.sampled_from([1, 3]),
    )
    def build(self, slots: int, queue_limit: int, budget_s: int, step_tokens: int, ageing_s: float, turn_steps: int) -> None:
        scheduler = Scheduler(slots, queue_limit, budget_s, step_tokens, ageing_s, turn_steps=turn_steps)
        self.player = Player(scheduler, step_tokens, budget_s, turn_steps)
        self.ages = ageing_s < math.inf
        self.refused = 0

    @rule(
        audio_s=st.sampled_from([0.25, 0.5, 1.0, 2.0]),
        positions=st.integers(1, 60),
        client=st.sampled_from("abc"),
        priority=st.sampled_from(Priority),
        wait_s=st.none() | st.floats(0, 5),
    )
    def add(self, audio_s: float, positions: int, client: str, priority: Priority, wait_s: float | None) -> None:
        player, scheduler = self.player, self.player.scheduler
        deadline_s = math.inf if wait_s is None else player.now_s + wait_s
        assert scheduler.full == (len(player.live) >= scheduler.slots + scheduler.queue_limit)
        assert scheduler.full or scheduler.has_place(client, priority)
        if scheduler.has_place(client, priority) or self._make_room(client, priority):
            player.add(audio_s, positions, client, priority, deadline_s)
        else:
            self.refused += 1
        assert len(player.live) <= 2 * scheduler.slots + scheduler.queue_limit
        if len(player.live) == 2 * scheduler.slots + scheduler.queue_limit:
            with pytest.raises(ValueError, match="cannot be queued"):
                scheduler.add_request(SchedulerEntry("one too many", client, priority))

    def _make_room(self, client: str, priority: Priority) -> bool:
        """Return whether a request gave up its place."""
        displaced = self.player.scheduler.find_displaced(client, priority)
        if displaced is None:
            return False
        loser = self.player.live[displaced]
        assert self.player.scheduler.is_queued(displaced)
        assert loser.priority >= priority
        assert loser.priority > priority or loser.client != client
        self.player.end(displaced)
        return True

    @rule(ends=ENDS, passed_s=st.sampled_from([0.0, 0.1, 1.0, 3.0]))
    def step(self, ends: set[tuple[int, str]], passed_s: float) -> None:
        self.player.now_s += passed_s
        queued = {id: played for id, played in self.player.live.items() if not played.is_encoded}
        step = self.player.step(lambda played, stage: (played.number % 20, stage) in ends)
        if not self.ages:
            self._check_turns(step, queued)

    def _check_turns(self, step: Step, queued: dict[str, Played]) -> None:
        """Within a client and priority: the earliest deadline first, then first come, first served."""
        encoded = [queued[id] for id in step.encode]
        for played in encoded:
            queued.pop(played.id)
            for other in queued.values():
                if other.id in self.player.live and (other.client, other.priority) == (played.client, played.priority):
                    assert (played.deadline_s, played.number) < (other.deadline_s, other.number)

    @precondition(lambda self: self.player.live)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.player.end(data.draw(st.sampled_from(sorted(self.player.live))))

    @invariant()
    def every_request_is_in_one_place_and_nothing_is_left_of_those_that_ended(self) -> None:
        player, scheduler = self.player, self.player.scheduler
        running = scheduler.running
        held = [played for played in player.live.values() if played.is_encoded and played.id not in running]
        assert len(scheduler) == len(player.live)
        assert scheduler.queued == len(player.live) - len(running) - len(held)
        assert len(running) == len(set(running)) <= scheduler.slots
        assert [player.live[id].slot for id in running] == list(range(len(running)))
        assert player.submitted == len(player.ended) + len(player.live)
        # Encoded requests hold memory: at every level, each client may fill its share of the slots and have one ready.
        assert len(held) <= (len(Priority) + 1) * 2 * (scheduler.slots + 1)

    def teardown(self) -> None:
        """Requests that are left run to their end, in a bounded number of steps."""
        if not hasattr(self, "player"):
            return
        player = self.player
        steps = sum(2 + played.positions + played.decoded + 4 for played in player.live.values())
        for _ in range(2 * steps):
            player.step(lambda _played, stage: stage == "decode")
            player.now_s += 0.001
        assert player.submitted == len(player.ended)
        assert len(player.scheduler) == player.scheduler.queued == 0
        assert player.step() == Step()


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
