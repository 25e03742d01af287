"""Predicted waits, and who is refused because of them."""

import math

import pytest

from server.engine.scheduler.admission import Admission, Ratio, retry_after_s
from server.engine.scheduler.queues import Backlog
from server.errors import DeadlineUnmeetable, Overloaded

SOME = Backlog(audio_s=10.0, unencoded=2, to_prefill=10, answers=3)
SOME_S = 1.0 + (10 + 2 * 50) * 0.002 + 3 * 20 * 0.01 / 4
ANSWER_3_S = 0.3 + 50 * 0.002 + 20 * 0.01


def measured(max_queue_wait_s: float | None = None) -> Admission:
    admission = Admission(slots=4, max_queue_wait_s=max_queue_wait_s)
    admission.encode_s.add_measurement(0.5, units=5)
    admission.prefill_s.add_measurement(0.2, units=100)
    admission.decode_s.add_measurement(0.01, units=1)
    admission.record_answer(positions=50, decode_steps=20)
    return admission


def test_nothing_measured_predicts_nothing() -> None:
    assert Admission(slots=4).predict_answer_s(30.0) == 0
    assert Admission(slots=4).predict_wait_s(SOME) == 0


def test_predictions_add_up_the_stages() -> None:
    assert measured().predict_answer_s(3.0) == pytest.approx(ANSWER_3_S)
    assert measured().predict_wait_s(SOME) == pytest.approx(SOME_S)


def test_a_ratio_follows_what_was_measured_lately_and_weighs_by_size() -> None:
    ratio = Ratio()
    ratio.add_measurement(1.0, units=100)
    ratio.add_measurement(0.01, units=0.1)
    assert ratio.value == pytest.approx(0.01, rel=0.05)
    for _ in range(200):
        ratio.add_measurement(2.0, units=100)
    assert ratio.value == pytest.approx(0.02, rel=0.01)


def test_a_deadline_that_cannot_be_met_is_refused() -> None:
    measured().check_request(SOME, 3.0, deadline_s=SOME_S + ANSWER_3_S + 0.01, now_s=0.0)
    with pytest.raises(DeadlineUnmeetable) as refusal:
        measured().check_request(SOME, 3.0, deadline_s=SOME_S + ANSWER_3_S - 0.01, now_s=0.0)
    assert (refusal.value.status, refusal.value.code, refusal.value.retry_after_s) == (429, "deadline_unmeetable", 2)


def test_a_deadline_that_has_passed_is_refused_without_any_measurement() -> None:
    with pytest.raises(DeadlineUnmeetable):
        Admission(slots=1).check_request(Backlog(), 1.0, deadline_s=0.0, now_s=0.0)


def refusals_until_admitted(admission: Admission, interval_s: float) -> int:
    """How many requests with a tight deadline are refused, one in so many seconds, before one is taken; 1000 at most."""
    for refusals in range(1000):
        try:
            admission.check_request(Backlog(), 3.0, deadline_s=ANSWER_3_S / 10, now_s=refusals * interval_s)
        except DeadlineUnmeetable:
            continue
        return refusals
    return 1000


def test_a_slow_spell_is_not_believed_for_ever() -> None:
    assert 1 < refusals_until_admitted(measured(), interval_s=1.0) < 100


def test_a_flood_of_deadlines_that_cannot_be_met_changes_no_prediction_much() -> None:
    admission = measured()
    assert refusals_until_admitted(admission, interval_s=0.0005) == 1000
    assert admission.predict_answer_s(3.0) > 0.9 * ANSWER_3_S


def test_a_request_that_cannot_be_answered_in_its_time_is_refused_at_once() -> None:
    def check(request_timeout_s: float) -> None:
        admission = measured()
        admission.request_timeout_s = request_timeout_s
        admission.check_request(SOME, 3.0, deadline_s=None, now_s=0.0)

    check(SOME_S + ANSWER_3_S + 0.01)
    with pytest.raises(Overloaded) as refusal:
        check(SOME_S + ANSWER_3_S - 0.01)
    assert refusal.value.retry_after_s == math.ceil(SOME_S)


def test_a_request_that_need_not_wait_is_never_refused_for_its_length() -> None:
    admission = measured()
    admission.request_timeout_s = 1e-6
    admission.check_request(Backlog(), 3.0, deadline_s=None, now_s=0.0)


def test_refusals_under_load_change_no_prediction() -> None:
    admission = measured()
    with pytest.raises(DeadlineUnmeetable):
        admission.check_request(SOME, 3.0, deadline_s=0.1, now_s=0.0)
    assert admission.predict_wait_s(SOME) == pytest.approx(SOME_S)


def test_a_long_predicted_wait_is_refused_where_the_operator_says_so() -> None:
    measured().check_request(SOME, 3.0, deadline_s=None, now_s=0.0)
    measured(max_queue_wait_s=2.0).check_request(SOME, 3.0, deadline_s=None, now_s=0.0)
    with pytest.raises(Overloaded) as refusal:
        measured(max_queue_wait_s=1.0).check_request(SOME, 3.0, deadline_s=None, now_s=0.0)
    assert refusal.value.retry_after_s == 2


@pytest.mark.parametrize(("wait_s", "whole_s"), [(0.0, 1), (0.4, 1), (1.0, 1), (1.1, 2), (30.0, 30)])
def test_retry_after_is_whole_seconds_and_at_least_one(wait_s: float, whole_s: int) -> None:
    assert retry_after_s(wait_s) == whole_s
