"""Predicted waits, and who is refused because of them."""

import pytest

from server.engine.scheduler.admission import Admission, Ratio, retry_after_s
from server.engine.scheduler.jobs import Backlog
from server.errors import DeadlineUnmeetable, Overloaded

SOME = Backlog(mel_frames=1000, unencoded=2, to_prefill=10, answers=3)
SOME_S = 1.0 + (10 + 2 * 50) * 0.002 + 3 * 20 * 0.01 / 4
ANSWER_300_S = 0.3 + 50 * 0.002 + 20 * 0.01


def measured(max_queue_wait_s: float | None = None) -> Admission:
    admission = Admission(slots=4, max_queue_wait_s=max_queue_wait_s)
    admission.encode_s.add(0.5, units=500)
    admission.prefill_s.add(0.2, units=100)
    admission.decode_s.add(0.01, units=1)
    admission.answered(positions=50, decode_steps=20)
    return admission


def test_nothing_measured_predicts_nothing() -> None:
    assert Admission(slots=4).answer_s(3000) == 0
    assert Admission(slots=4).wait_s(SOME) == 0


def test_predictions_add_up_the_stages() -> None:
    assert measured().answer_s(300) == pytest.approx(ANSWER_300_S)
    assert measured().wait_s(SOME) == pytest.approx(SOME_S)


def test_a_ratio_follows_what_was_measured_lately_and_weighs_by_size() -> None:
    ratio = Ratio()
    ratio.add(1.0, units=100)
    ratio.add(0.01, units=0.1)
    assert ratio.value == pytest.approx(0.01, rel=0.05)
    for _ in range(200):
        ratio.add(2.0, units=100)
    assert ratio.value == pytest.approx(0.02, rel=0.01)


def test_a_deadline_that_cannot_be_met_is_refused() -> None:
    measured().check(SOME, 300, deadline_s=SOME_S + ANSWER_300_S + 0.01)
    with pytest.raises(DeadlineUnmeetable) as refusal:
        measured().check(SOME, 300, deadline_s=SOME_S + ANSWER_300_S - 0.01)
    assert (refusal.value.status, refusal.value.code, refusal.value.retry_after_s) == (429, "deadline_unmeetable", 2)


def test_a_deadline_that_has_passed_is_refused_without_any_measurement() -> None:
    with pytest.raises(DeadlineUnmeetable):
        Admission(slots=1).check(Backlog(), 100, deadline_s=0.0)


def test_a_slow_spell_is_not_believed_for_ever() -> None:
    admission = measured()
    refusals = 0
    while True:
        try:
            admission.check(Backlog(), 300, deadline_s=ANSWER_300_S / 10)
        except DeadlineUnmeetable:
            refusals += 1
            assert refusals < 100
        else:
            break
    assert refusals > 1


def test_refusals_under_load_change_no_prediction() -> None:
    admission = measured()
    with pytest.raises(DeadlineUnmeetable):
        admission.check(SOME, 300, deadline_s=0.1)
    assert admission.wait_s(SOME) == pytest.approx(SOME_S)


def test_a_long_predicted_wait_is_refused_where_the_operator_says_so() -> None:
    measured().check(SOME, 300, deadline_s=None)
    measured(max_queue_wait_s=2.0).check(SOME, 300, deadline_s=None)
    with pytest.raises(Overloaded) as refusal:
        measured(max_queue_wait_s=1.0).check(SOME, 300, deadline_s=None)
    assert refusal.value.retry_after_s == 2


@pytest.mark.parametrize(("wait_s", "whole_s"), [(0.0, 1), (0.4, 1), (1.0, 1), (1.1, 2), (30.0, 30)])
def test_retry_after_is_whole_seconds_and_at_least_one(wait_s: float, whole_s: int) -> None:
    assert retry_after_s(wait_s) == whole_s
