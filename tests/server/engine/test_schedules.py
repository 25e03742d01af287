"""Random schedules on the real engine: a request has the tokens it has alone, whatever ran beside it, and nothing is left."""

from functools import cache
from random import Random

import pytest

from server.engine.types.requests import InstructRequest
from tests.support.clients.engine_client import Client, serving_models, wait_until_idle
from tests.support.fakes.fake_models import FakeLLM, Trouble, fake_models
from tests.support.schedules.random_schedules import (
    play_schedules,
    random_budgets,
    random_requests,
    sequences_left,
    without_id,
    without_logs,
)

ENGINES = 4
SCHEDULES_PER_ENGINE = 30


@cache
def asked() -> list[InstructRequest]:
    return random_requests()


@cache
def answers() -> list[tuple[object, ...]]:
    with serving_models(fake_models(FakeLLM(slots=1))) as engine:
        return [without_id(Client(engine, request).done()) for request in asked()]


@pytest.mark.parametrize("seed", range(ENGINES))
def test_whatever_else_runs_the_tokens_are_the_same_and_nothing_is_left_over(seed: int) -> None:
    random = Random(seed)
    budgets = random_budgets(random)
    models, queue_limit = fake_models(FakeLLM(slots=seed % 4 + 1)), random.choice([4, 16])
    with without_logs(), serving_models(models, queue_limit, **budgets) as engine:
        answered = play_schedules(engine, random, SCHEDULES_PER_ENGINE, asked(), answers(), list(Trouble))
        wait_until_idle(engine)
        stats = engine.stats()
        assert (stats.waiting, stats.running, stats.step_age_s) == (0, 0, 0.0)
        assert not sequences_left()
    assert answered > SCHEDULES_PER_ENGINE
    # With four slots few requests have to wait for one.
    assert stats.counters.preemptions > 0 or stats.slots == 4
    assert sum(stats.counters.accepted) > 0
