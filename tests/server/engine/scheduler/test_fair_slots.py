"""How clients of one priority share the slots: no client keeps the others out, and no request is thrown about."""

import math
from collections import Counter
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.scheduler.queues import Backlog
from server.engine.scheduler.scheduler import Scheduler
from server.engine.types.options import Priority
from tests.support.schedules.scheduler_play import Played, Player

LIVE, _, INTERACTIVE, BATCH = Priority
STEP_S = 0.02


def player(slots: int = 4, turn_steps: int = 5, ageing_s: float = math.inf) -> Player:
    scheduler = Scheduler(slots, 1000, step_tokens=1000, ageing_s=ageing_s, turn_steps=turn_steps)
    return Player(scheduler, 1000, 30.0, turn_steps)


def after(steps: int) -> Callable[[Played, str], bool]:
    """Answers end after so many decode steps."""
    return lambda played, stage: stage == "decode" and played.decoded >= steps


def steps_until_ended(play: Player, id: str, ends: Callable[[Played, str], bool]) -> int:
    for step in range(10_000):
        if id in play.ended:
            return step
        play.step(ends)
        play.now_s += STEP_S
    raise AssertionError(f"{id} never ended")


def clients_in_slots(play: Player) -> Counter[str]:
    return Counter(play.live[id].client for id in play.scheduler.running)


def test_a_client_with_nothing_running_takes_a_slot_of_one_that_holds_several() -> None:
    play = player()
    hogs = [play.add(client="hog", positions=10) for _ in range(18)]
    for _ in range(20):
        play.step()
    assert clients_in_slots(play) == {"hog": 4}
    short = play.add(client="other")
    steps = steps_until_ended(play, short.id, lambda played, _stage: played is short and played.decoded >= 3)
    assert steps <= 7
    assert [played.preemptions for played in hogs[:4]] == [0, 0, 0, 1]
    play.step()
    assert clients_in_slots(play) == {"hog": 4}


def test_the_slot_of_a_request_is_safe_from_its_equals_for_a_turn() -> None:
    play = player(turn_steps=8)
    hogs = [play.add(client="hog") for _ in range(4)]
    while hogs[-1].decoded < 2:
        play.step()
    play.add(client="other")
    while not hogs[-1].preemptions:
        play.step()
    assert hogs[-1].decoded == 8


def test_slots_are_shared_evenly_and_then_left_alone() -> None:
    play = player(slots=4)
    for _ in range(8):
        play.add(client="a")
    for _ in range(30):
        play.step()
    for _ in range(8):
        play.add(client="b")
    for _ in range(30):
        play.step()
    assert clients_in_slots(play) == {"a": 2, "b": 2}
    preemptions = sum(played.preemptions for played in play.live.values())
    for _ in range(200):
        play.step()
    assert sum(played.preemptions for played in play.live.values()) == preemptions == 2


def test_live_clients_share_among_themselves() -> None:
    play = player()
    for _ in range(4):
        play.add(client="hog", priority=LIVE)
    for _ in range(10):
        play.step()
    other = play.add(client="other", priority=LIVE)
    assert steps_until_ended(play, other.id, lambda played, _stage: played is other and played.decoded >= 3) <= 7


def test_aged_batch_work_gives_its_slot_back_after_its_turn() -> None:
    play = player(ageing_s=1.0)
    for _ in range(40):
        play.add(client="batch", priority=BATCH)
    for _ in range(int(20 / STEP_S)):
        play.step()
        play.now_s += STEP_S
    promoted_at_once = 1
    for _ in range(8):
        short = play.add(client="other")
        assert steps_until_ended(play, short.id, lambda played, _stage: played.client == "other" and played.decoded >= 3) <= 7
        assert sum(play.live[id].entry.promoted for id in play.scheduler.running) <= promoted_at_once
        for _ in range(20):
            play.step()
            play.now_s += STEP_S


def test_a_new_client_is_not_predicted_to_wait_for_another_ones_answers() -> None:
    play = player(slots=2)
    for _ in range(12):
        play.add(client="hog")
    for _ in range(10):
        play.step()
    assert play.scheduler.measure_backlog("other", INTERACTIVE, 1.0) == Backlog(audio_s=1.0, unencoded=1, answers=1)
    assert play.scheduler.measure_backlog("hog", INTERACTIVE, 1.0).answers == 11


@settings(max_examples=12, deadline=None)
@given(
    slots=st.integers(1, 3),
    turn_steps=st.integers(1, 6),
    tokens=st.integers(1, 40),
    arrivals=st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([LIVE, INTERACTIVE]), st.integers(1, 12)), max_size=12),
    priority=st.sampled_from([INTERACTIVE, BATCH]),
)
def test_no_request_starves_and_none_is_preempted_by_equals_more_than_its_turns_allow(
    slots: int, turn_steps: int, tokens: int, arrivals: list[tuple[str, Priority, int]], priority: Priority
) -> None:
    """One client's patient request against others who come for ever, in whatever pattern hypothesis finds."""
    play = player(slots, turn_steps, ageing_s=1.0)
    patient = play.add(client="patient", priority=priority)
    lengths: dict[str, int] = {patient.id: tokens}
    # Each turn of the patient one may have to wait for a promotion of each request that waits with it.
    peers = 2 * slots + 2
    most_s = (tokens / turn_steps + 2) * (peers + 1) * (1.0 + 20 * turn_steps * STEP_S)
    step = 0
    while patient.id in play.live:
        for client, level, length in arrivals:
            if sum(played.priority == level for played in play.live.values()) < peers:
                lengths[play.add(client=client, priority=level).id] = length
        play.step(lambda played, stage: stage == "decode" and played.decoded >= lengths[played.id])
        play.now_s += STEP_S
        step += 1
        assert play.now_s < most_s
        for played in play.live.values():
            if played.priority == LIVE:
                # Nothing but equals and the promoted, of whom there are few, goes before live work.
                assert played.preemptions <= played.decoded / turn_steps + 2 * (play.now_s + 1)
