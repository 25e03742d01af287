"""What live sessions bring to the scheduler: urgent work, work that is only encoded, and none that takes a place in the queue."""

from server.engine.scheduler.scheduler import Scheduler
from server.engine.types.options import Priority

LIVE, PARTIAL, _, BATCH = Priority


def test_live_work_is_encoded_without_other_work() -> None:
    scheduler = Scheduler(slots=4, queue_limit=8)
    for id, priority in (("batch", BATCH), ("partial", PARTIAL), ("one", LIVE), ("two", LIVE)):
        scheduler.add(id, 100, 0.0, priority=priority)
    assert scheduler.schedule(0.0).encode == ["one", "two"]
    for id in ("one", "two"):
        scheduler.set_to_prefill(id, 10)
    assert scheduler.schedule(0.0).encode == ["partial", "batch"]


def test_work_of_sessions_has_no_place_in_the_queue() -> None:
    scheduler = Scheduler(slots=1, queue_limit=1)
    for number in range(5):
        scheduler.add(f"session {number}", 100, 0.0, priority=BATCH, of_session=True)
    full_of_sessions = scheduler.full
    assert not full_of_sessions
    assert scheduler.displaced_by("client", LIVE) is None
    for number in range(2):
        scheduler.add(f"request {number}", 100, 0.0, priority=BATCH)
    assert scheduler.full
    assert scheduler.displaced_by("client", LIVE) == "request 1"
    scheduler.add("another of a session", 100, 0.0, of_session=True)


def test_what_is_only_encoded_waits_for_no_slot() -> None:
    scheduler = Scheduler(slots=1, queue_limit=8, encode_ahead=0)
    scheduler.add("answer", 100, 0.0)
    assert scheduler.schedule(0.0).encode == ["answer"]
    scheduler.set_to_prefill("answer", 10)
    scheduler.add("next", 100, 0.0)
    scheduler.add("draft", 100, 0.0, priority=PARTIAL, encode_only=True)
    assert scheduler.schedule(0.0).encode == ["draft"]
