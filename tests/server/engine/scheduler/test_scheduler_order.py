"""The scheduler's decisions one by one: order, budgets, preemption and displacement."""

import math
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest

from server.engine.scheduler.queues import Backlog, SchedulerEntry, Step
from server.engine.scheduler.scheduler import Scheduler
from server.engine.types.options import Priority
from tests.support.schedules.scheduler_play import Played, Player

LIVE, _, INTERACTIVE, BATCH = Priority


def player(
    slots: int = 1,
    queue_limit: int = 1000,
    budget_s: float = 10.0,
    step_tokens: int = 100,
    ageing_s: float = math.inf,
    encode_ahead: int = 0,
) -> Player:
    return Player(Scheduler(slots, queue_limit, budget_s, step_tokens, ageing_s, encode_ahead), step_tokens, budget_s)


def after(steps: int) -> Callable[[Played, str], bool]:
    """Answers end after so many decode steps."""
    return lambda played, stage: stage == "decode" and played.decoded >= steps


def encode_order(play: Player) -> list[str]:
    """Run everything to its end."""
    order: list[str] = []
    while play.live:
        order += play.step(after(1)).encode
        play.now_s += 0.01
    return order


def test_a_request_goes_through_the_stages_one_step_each() -> None:
    play = player(slots=2)
    a = play.add(positions=10).id
    assert play.step() == Step(encode=[a])
    b = play.add(positions=20).id
    assert play.step() == Step(started=[a], prefill=[(a, 10)], encode=[b])
    assert play.step() == Step(decode=[a], started=[b], prefill=[(b, 20)])
    assert play.step() == Step(decode=[a, b])


def test_a_step_encodes_so_many_seconds_of_audio() -> None:
    play = player(slots=8)
    a, b, c, d, e = (play.add(audio_s).id for audio_s in (1, 3, 6, 4, 50))
    assert [play.step().encode for _ in range(3)] == [[a, b, c], [d], [e]]


def test_a_long_prompt_is_prefilled_in_chunks_beside_running_answers() -> None:
    play = player(slots=3, step_tokens=100)
    play.add(positions=10)
    play.step()
    long = play.add(positions=250).id
    play.step()
    short = play.add(positions=30).id
    assert [play.step().prefill for _ in range(4)] == [[(long, 99)], [(long, 99)], [(long, 52), (short, 30)], []]


def test_one_request_is_encoded_ahead_of_a_free_slot() -> None:
    play = player(slots=1, encode_ahead=1)
    first, second = play.add().id, play.add().id
    play.add()
    assert [play.step().encode for _ in range(4)] == [[first, second], [], [], []]
    play.end(first)
    assert play.step().started == [second]


def test_holes_are_filled_from_the_back_and_a_partial_prefill_stays_last() -> None:
    play = player(slots=4)
    a, b, c = (play.add(positions=10).id for _ in range(3))
    play.step()
    play.step()
    partial = play.add(positions=500).id
    play.step()
    play.step()
    assert play.scheduler.running == [a, b, c, partial]
    play.end(a)
    assert play.scheduler.running == [c, b, partial]
    play.end(partial)
    assert play.scheduler.running == [c, b]


def test_priorities_go_in_their_order() -> None:
    play = player()
    batch, interactive, live = (play.add(priority=priority).id for priority in (BATCH, INTERACTIVE, LIVE))
    assert encode_order(play) == [live, interactive, batch]


def test_the_earliest_deadline_goes_first_within_a_priority() -> None:
    play = player()
    none, late, early = (play.add(client=client, deadline_s=s).id for client, s in (("a", math.inf), ("a", 90), ("b", 80)))
    sooner_but_lower = play.add(priority=BATCH, deadline_s=70).id
    assert encode_order(play) == [early, late, none, sooner_but_lower]


def test_deadlines_do_not_buy_more_than_a_bounded_lead() -> None:
    play = player()
    flood = [play.add(audio_s=5, client="flood", deadline_s=1000).id for _ in range(50)]
    other = play.add(audio_s=5, client="other").id
    order = encode_order(play)
    assert order.index(other) <= 8
    assert [id for id in order if id != other] == flood


@pytest.mark.parametrize("stage", ["queued", "held", "prefilled in part", "decoding"])
def test_a_request_ends_when_its_deadline_passes_wherever_it_is(stage: str) -> None:
    play = player(slots=1, encode_ahead=1)
    if stage in ("queued", "held"):
        play.add()
        play.step()
        play.step()
    late = play.add(positions=500 if stage == "prefilled in part" else 10, deadline_s=5.0)
    for _ in range({"queued": 0, "held": 1, "prefilled in part": 2, "decoding": 3}[stage]):
        play.step()
    play.now_s = 5.0
    play.step()
    assert late.id in play.ended


def test_a_flooding_client_leaves_the_others_their_share() -> None:
    play = player()
    play.add(client="flood")
    play.step()
    for _ in range(60):
        play.add(audio_s=2, client="flood")
    for client in "abc":
        for _ in range(5):
            play.add(audio_s=2, client=client)
    served = Counter(play.live[id].client for _ in range(45) for id in play.step(after(1)).encode)
    assert served["flood"] <= 1 + max(served[client] for client in "abc")


def test_shares_are_counted_in_audio() -> None:
    play = player()
    for _ in range(60):
        play.add(audio_s=3, client="long")
        play.add(audio_s=1, client="short")
    order = encode_order(play)[:40]
    served = Counter("long" if int(id[1:]) % 2 else "short" for id in order)
    assert served == {"long": 10, "short": 30}


def test_idling_saves_nothing_up() -> None:
    play = player()
    for _ in range(40):
        play.add(client="steady")
    for _ in range(30):
        play.step(after(1))
    late = [play.add(client="late").id for _ in range(10)]
    order = encode_order(play)[:10]
    assert 4 <= sum(id in late for id in order) <= 6


def test_new_clients_without_end_do_not_starve_an_old_one() -> None:
    play = player()
    play.add(audio_s=30, client="old")
    old = play.add(audio_s=30, client="old").id
    play.add(client="new")
    for index in range(200):
        play.add(client=f"new {index}")
        for _ in range(3):
            play.step(after(1))
    assert old in play.ended


def test_batch_work_ages_and_is_not_starved_by_live_work() -> None:
    play = player(slots=2, ageing_s=5.0)
    batch = [play.add(priority=BATCH).id for _ in range(4)]
    interactive = play.add().id
    while any(id in play.live for id in [*batch, interactive]):
        while len(play.live) < 12:
            play.add(priority=LIVE)
        play.step(after(3))
        play.now_s += 0.1
        assert play.now_s < 60
    ended = [play.ended[id] for id in batch]
    assert ended == sorted(ended)
    assert all(later - earlier > 4 for earlier, later in pairwise(ended))


def test_a_request_without_a_deadline_is_not_starved_by_deadlines() -> None:
    play = player(ageing_s=5.0)
    patient = play.add().id
    play.add(deadline_s=1000)
    while patient in play.live:
        play.add(deadline_s=play.now_s + 100)
        play.step(after(2))
        play.now_s += 0.1
        assert play.now_s < 30


def test_a_higher_priority_takes_the_slot_of_the_latest_of_the_lowest() -> None:
    play = player(slots=3)
    interactive, early, late = (play.add(priority=priority) for priority in (INTERACTIVE, BATCH, BATCH))
    for _ in range(5):
        play.step()
    live = play.add(priority=LIVE)
    assert play.step().encode == [live.id]
    decoded = late.decoded
    assert late.slot is not None
    step = play.step()
    assert step.started == [live.id]
    assert (late.preemptions, early.preemptions, interactive.preemptions) == (1, 0, 0)
    play.end(live.id)
    step = play.step()
    assert (step.started, step.prefill) == ([late.id], [(late.id, late.positions + decoded)])


def test_equals_do_not_preempt_each_other() -> None:
    play = player(slots=1)
    play.add(priority=LIVE)
    play.step()
    play.add(priority=LIVE)
    assert [play.step().started for _ in range(5)] == [["r1"], [], [], [], []]


def test_a_full_queue_gives_way_to_higher_priorities_and_to_clients_with_less() -> None:
    play = player(slots=1, queue_limit=4)
    ids = [play.add(client="flood", priority=priority).id for priority in (INTERACTIVE,) * 4 + (BATCH,)]
    assert play.scheduler.find_displaced("flood", INTERACTIVE) == ids[-1]
    play.end(ids[-1])
    play.add(client="other")
    assert play.scheduler.find_displaced("flood", INTERACTIVE) is None
    assert play.scheduler.find_displaced("another", INTERACTIVE) == ids[3]
    assert play.scheduler.find_displaced("another", BATCH) is None


def test_the_same_id_is_refused_twice() -> None:
    play = player()
    id = play.add().id
    with pytest.raises(ValueError, match="cannot be queued"):
        play.scheduler.add_request(SchedulerEntry(id))


def test_the_backlog_counts_what_goes_before_a_newcomer() -> None:
    play = player(slots=2)
    scheduler = play.scheduler
    assert scheduler.measure_backlog("a", LIVE, 1.0) == Backlog()
    for _ in range(2):
        play.add(audio_s=1, positions=10)
    play.step()
    assert scheduler.measure_backlog("a", LIVE, 1.0) == Backlog()
    assert scheduler.measure_backlog("", INTERACTIVE, 1.0) == Backlog(to_prefill=20, answers=1)
    assert scheduler.measure_backlog("a", INTERACTIVE, 1.0) == Backlog(to_prefill=10)
    play.step()
    for audio_s in (3, 4):
        play.add(audio_s=audio_s, client="flood")
    assert scheduler.measure_backlog("flood", INTERACTIVE, 1.0) == Backlog(audio_s=7, unencoded=2, answers=3)
    assert scheduler.measure_backlog("a", INTERACTIVE, 1.0) == Backlog(audio_s=1, unencoded=1, answers=1)
    assert scheduler.measure_backlog("a", BATCH, 1.0) == Backlog(audio_s=7, unencoded=2, answers=3)


def test_one_batch_is_encoded_at_a_time_however_many_steps_it_takes() -> None:
    scheduler = Scheduler(slots=4, queue_limit=4, encode_budget_audio_s=1.0)
    entries = [SchedulerEntry(id, audio_s=1.0) for id in "abc"]
    for entry in entries:
        scheduler.add_request(entry)
    assert scheduler.schedule_step().encode == ["a"]
    assert scheduler.schedule_step().encode == []
    entries[0].to_prefill = 10
    assert scheduler.schedule_step().encode == ["b"]
    scheduler.finish_request("b")
    assert scheduler.schedule_step().encode == ["c"]
