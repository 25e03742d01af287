"""Predicted waits, and who is refused because of them."""

import pytest

from server.admission import Costs, Ratio, check_wait, retry_after_s
from server.errors import DeadlineUnmeetable, Overloaded
from server.scheduler import Backlog


def measured() -> Costs:
    costs = Costs()
    costs.encode_s.add(0.5, units=500)
    costs.prefill_s.add(0.2, units=100)
    costs.decode_s.add(0.01, units=1)
    costs.positions.add(50, units=1)
    costs.decode_steps.add(20, units=1)
    return costs


def test_nothing_measured_predicts_nothing() -> None:
    assert Costs().answer_s(3000) == 0
    assert Costs().wait_s(Backlog(mel_frames=3000, unencoded=5, to_prefill=100, answers=5), slots=4) == 0


def test_predictions_add_up_the_stages() -> None:
    assert measured().answer_s(300) == pytest.approx(0.3 + 50 * 0.002 + 20 * 0.01)
    wait_s = measured().wait_s(Backlog(mel_frames=1000, unencoded=2, to_prefill=10, answers=3), slots=4)
    assert wait_s == pytest.approx(1.0 + (10 + 2 * 50) * 0.002 + 3 * 20 * 0.01 / 4)


def test_a_ratio_follows_what_was_measured_lately_and_weighs_by_size() -> None:
    ratio = Ratio()
    ratio.add(1.0, units=100)
    ratio.add(0.01, units=0.1)
    assert ratio.value == pytest.approx(0.01, rel=0.05)
    for _ in range(200):
        ratio.add(2.0, units=100)
    assert ratio.value == pytest.approx(0.02, rel=0.01)


def test_a_deadline_that_cannot_be_met_is_refused() -> None:
    check_wait(1.0, 0.5, deadline_s=1.5, max_queue_wait_s=None)
    with pytest.raises(DeadlineUnmeetable) as refusal:
        check_wait(1.2, 0.5, deadline_s=1.5, max_queue_wait_s=None)
    assert (refusal.value.status, refusal.value.code, refusal.value.retry_after_s) == (429, "deadline_unmeetable", 2)


def test_a_deadline_that_has_passed_is_refused_without_any_measurement() -> None:
    with pytest.raises(DeadlineUnmeetable):
        check_wait(0.0, 0.0, deadline_s=0.0, max_queue_wait_s=None)


def test_a_long_predicted_wait_is_refused_where_the_operator_says_so() -> None:
    check_wait(100.0, 1.0, deadline_s=None, max_queue_wait_s=None)
    with pytest.raises(Overloaded) as refusal:
        check_wait(2.5, 1.0, deadline_s=None, max_queue_wait_s=2.0)
    assert refusal.value.retry_after_s == 3


@pytest.mark.parametrize(("wait_s", "whole_s"), [(0.0, 1), (0.4, 1), (1.0, 1), (1.1, 2), (30.0, 30)])
def test_retry_after_is_whole_seconds_and_at_least_one(wait_s: float, whole_s: int) -> None:
    assert retry_after_s(wait_s) == whole_s
