"""Work of live sessions in the scheduler: urgent, or only to be encoded, and never with a place in the queue."""

from server.engine.scheduler.queues import SchedulerEntry
from server.engine.scheduler.scheduler import Scheduler
from server.engine.types.options import Priority

LIVE, PARTIAL, _, BATCH = Priority


def test_live_work_is_encoded_without_other_work() -> None:
    scheduler = Scheduler(slots=4, queue_limit=8)
    entries = {}
    for id, priority in (("batch", BATCH), ("partial", PARTIAL), ("one", LIVE), ("two", LIVE)):
        entries[id] = SchedulerEntry(id, priority=priority, audio_s=1.0)
        scheduler.add_request(entries[id])
    assert scheduler.schedule_step().encode == ["one", "two"]
    for id in ("one", "two"):
        entries[id].to_prefill = 10
    assert scheduler.schedule_step().encode == ["partial", "batch"]


def test_work_of_sessions_has_no_place_in_the_queue() -> None:
    scheduler = Scheduler(slots=1, queue_limit=1)
    for number in range(5):
        scheduler.add_request(SchedulerEntry(f"session {number}", priority=BATCH, of_session=True))
    full_of_sessions = scheduler.full
    assert not full_of_sessions
    assert scheduler.find_displaced("client", LIVE) is None
    for number in range(2):
        scheduler.add_request(SchedulerEntry(f"request {number}", priority=BATCH))
    assert scheduler.full
    assert scheduler.find_displaced("client", LIVE) == "request 1"
    scheduler.add_request(SchedulerEntry("another of a session", of_session=True))


def test_what_is_only_encoded_waits_for_no_slot() -> None:
    scheduler = Scheduler(slots=1, queue_limit=8, encode_ahead=0)
    answer = SchedulerEntry("answer")
    scheduler.add_request(answer)
    assert scheduler.schedule_step().encode == ["answer"]
    answer.to_prefill = 10
    scheduler.add_request(SchedulerEntry("next"))
    scheduler.add_request(SchedulerEntry("draft", priority=PARTIAL, decoders=()))
    assert scheduler.schedule_step().encode == ["draft"]
