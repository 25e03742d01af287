"""Work of live sessions in the scheduler: urgent, or only to be encoded, and never with a place in the queue."""

from server.engine.scheduler.queues import SchedulerEntry
from server.engine.scheduler.scheduler import LIVE_PASSES, Scheduler
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


def encoded(scheduler: Scheduler, entry: SchedulerEntry, to_prefill: int = 10) -> None:
    """Have an entry encoded, which then waits for a slot."""
    scheduler.add_request(entry)
    assert scheduler.schedule_step().encode == [entry.id]
    entry.to_prefill = to_prefill


def run_pass(scheduler: Scheduler, entry: SchedulerEntry) -> list[str]:
    """Run one step, in which an entry is prefilled or decoded; return what is encoded in it."""
    step = scheduler.schedule_step()
    assert entry.id in [*step.decode, *(id for id, _ in step.prefill)]
    entry.to_prefill = 0
    return step.encode


def test_on_the_decoders_processor_a_sessions_work_is_encoded_one_by_one() -> None:
    scheduler = Scheduler(slots=4, queue_limit=8, encodes_beside=False)
    entries = {}
    for id, priority in (("one", LIVE), ("two", LIVE), ("text", PARTIAL), ("file", BATCH), ("another", BATCH)):
        entries[id] = SchedulerEntry(id, priority=priority, audio_s=1.0, decoders=() if priority <= PARTIAL else (0,))
        scheduler.add_request(entries[id])
    for expected in (["one"], ["two"], ["text"], ["file", "another"]):
        assert scheduler.schedule_step().encode == expected
        for id in expected:
            if entries[id].decoders:
                entries[id].to_prefill = 10
            else:
                scheduler.finish_request(id)


def test_on_the_decoders_processor_encoding_waits_for_the_first_passes_of_a_session() -> None:
    scheduler = Scheduler(slots=4, queue_limit=8, encodes_beside=False)
    answer = SchedulerEntry("answer", priority=LIVE)
    encoded(scheduler, answer)
    scheduler.add_request(SchedulerEntry("file", priority=BATCH))
    scheduler.add_request(SchedulerEntry("equal", priority=LIVE))
    for _ in range(LIVE_PASSES):
        assert run_pass(scheduler, answer) == []
    assert run_pass(scheduler, answer) == ["equal"]


def test_encoding_waits_for_nothing_that_comes_after_it() -> None:
    scheduler = Scheduler(slots=4, queue_limit=8, encodes_beside=False)
    text = SchedulerEntry("text", priority=PARTIAL)
    encoded(scheduler, text)
    scheduler.add_request(SchedulerEntry("answer", priority=LIVE))
    assert run_pass(scheduler, text) == ["answer"]


def test_encoding_of_one_that_has_waited_long_waits_no_longer() -> None:
    scheduler = Scheduler(slots=4, queue_limit=8, ageing_s=5.0, encodes_beside=False)
    answer = SchedulerEntry("answer", priority=LIVE)
    encoded(scheduler, answer)
    scheduler.add_request(SchedulerEntry("file", priority=BATCH, waiting_since_s=0.0))
    assert run_pass(scheduler, answer) == []
    scheduler.preempt_requests(now_s=6.0)
    assert run_pass(scheduler, answer) == ["file"]


def test_beside_the_decoders_encoding_waits_for_no_pass() -> None:
    scheduler = Scheduler(slots=4, queue_limit=8)
    answer = SchedulerEntry("answer", priority=LIVE)
    encoded(scheduler, answer)
    scheduler.add_request(SchedulerEntry("file", priority=BATCH))
    assert run_pass(scheduler, answer) == ["file"]


def test_what_is_queued_goes_before_an_entry_by_its_priority_alone() -> None:
    scheduler = Scheduler(slots=4, queue_limit=8)
    text = SchedulerEntry("text", priority=PARTIAL)
    encoded(scheduler, text)
    assert not scheduler.has_queued_before(text)
    scheduler.add_request(SchedulerEntry("another text", priority=PARTIAL))
    scheduler.add_request(SchedulerEntry("file", priority=BATCH))
    assert not scheduler.has_queued_before(text)
    scheduler.add_request(SchedulerEntry("answer", priority=LIVE))
    assert scheduler.has_queued_before(text)
