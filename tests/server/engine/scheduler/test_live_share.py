"""Live work goes before files, but not before everybody else's without bound."""

import math

import pytest

from server.engine.scheduler.queues import SchedulerEntry, ServedAudio
from server.engine.scheduler.scheduler import LIVE_LEAD_AUDIO_S, PARTIAL_LEAD_AUDIO_S, Scheduler
from server.engine.types.options import Priority
from tests.support.schedules.scheduler_play import Played, Player

LIVE, PARTIAL, INTERACTIVE, BATCH = Priority


def ends_soon(played: Played, stage: str) -> bool:
    return stage == "decode" and played.decoded >= 3


def keep_busy(play: Player, client: str, priority: Priority, count: int = 4) -> None:
    """Have so many requests of a client wait or run."""
    for _ in range(count - sum(each.client == client and each.priority == priority for each in play.live.values())):
        play.add(audio_s=5.0, client=client, priority=priority)


def served_in(steps: int, crowd: Priority, others: Priority, *, client: str = "other") -> float:
    """Return the share of the requests of `others` in what is answered while a crowd of live sessions never stops."""
    play = Player(Scheduler(4, 1000, ageing_s=math.inf), 128, 30.0)
    ended: dict[Priority, int] = {crowd: 0, others: 0}
    for _ in range(steps):
        keep_busy(play, "crowd", crowd, 16)
        keep_busy(play, client, others)
        before = dict(play.live)
        play.step(ends_soon)
        for id in before.keys() - play.live.keys():
            ended[before[id].priority] += 1
    return ended[others] / sum(ended.values())


@pytest.mark.parametrize("crowd", [LIVE, PARTIAL])
def test_live_sessions_that_never_stop_leave_files_of_others_about_a_half(crowd: Priority) -> None:
    assert 0.3 < served_in(600, crowd, INTERACTIVE) < 0.7


def test_of_one_client_live_work_always_goes_before_files() -> None:
    assert served_in(200, LIVE, INTERACTIVE, client="crowd") == 0.0


def test_batch_work_has_no_claim_to_a_share() -> None:
    assert served_in(200, LIVE, BATCH) == 0.0


def test_hypotheses_wait_before_answers_do() -> None:
    scheduler = Scheduler(slots=4, queue_limit=100)
    for number, seconds in enumerate((PARTIAL_LEAD_AUDIO_S, PARTIAL_LEAD_AUDIO_S / 2)):
        entry = SchedulerEntry(f"past {number}", "crowd", LIVE, seconds)
        scheduler.add_request(entry)
        if not number:
            scheduler.add_request(SchedulerEntry("file", "other", INTERACTIVE, 1.0, decoders=()))
        assert scheduler.schedule_step().encode[:1] == [entry.id]
        scheduler.finish_request(entry.id)
    scheduler.add_request(SchedulerEntry("text", "crowd", PARTIAL, 1.0, decoders=()))
    scheduler.add_request(SchedulerEntry("answer", "crowd", LIVE, 1.0))
    assert scheduler.schedule_step().encode == ["answer"]
    scheduler.finish_request("answer")
    assert scheduler.schedule_step().encode[0] == "file"
    assert LIVE_LEAD_AUDIO_S > PARTIAL_LEAD_AUDIO_S


def test_a_client_that_comes_back_has_saved_nothing_up() -> None:
    served = ServedAudio()
    served.add_entry("a")
    served.serve_audio("a", 100.0)
    served.add_entry("b")
    assert served.leads_s() == {"a": 0.0, "b": 0.0}
    served.serve_audio("a", 10.0)
    assert served.leads_s() == {"a": 10.0, "b": 0.0}
    served.remove_entry("b")
    served.serve_audio("a", 10.0)
    served.add_entry("b")
    assert served.leads_s() == {"a": 5.0, "b": 0.0}
    for client in "ab":
        served.remove_entry(client)
    served.add_entry("a")
    assert served.leads_s() == {"a": 0.0}
