"""Random schedules on the real engine: a request has the tokens it has alone, whatever ran beside it, and nothing is left."""

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from random import Random

import pytest

from server.engine import LocalEngine
from server.generation import Generation
from server.request import InstructRequest
from tests.engine_client import TIMEOUT_S, Client, wait_until_idle
from tests.fake_models import SAMPLE_RATE_HZ, FakeLLM, Trouble, fake_models
from tests.random_schedules import play_schedules, random_requests, without_id

ENGINES = 10
SCHEDULES_PER_ENGINE = 50


@cache
def asked() -> list[InstructRequest]:
    return random_requests()


@cache
def answers() -> list[tuple[object, ...]]:
    with serving(FakeLLM(slots=1)) as engine:
        return [without_id(Client(engine, request).done()) for request in asked()]


@contextmanager
def serving(llm: FakeLLM, queue_limit: int = 64, **budgets: float) -> Iterator[LocalEngine]:
    engine = LocalEngine(fake_models(llm), SAMPLE_RATE_HZ, 30.0, queue_limit, **budgets)  # type: ignore[arg-type]
    engine.start()
    try:
        yield engine
    finally:
        engine.drain(TIMEOUT_S)


@pytest.fixture
def _no_logs() -> Iterator[None]:
    """Log records hold tracebacks, whose frames hold requests."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("_no_logs")
@pytest.mark.parametrize("seed", range(ENGINES))
def test_whatever_else_runs_the_tokens_are_the_same_and_nothing_is_left_over(seed: int) -> None:
    random = Random(seed)
    budgets = {"encode_budget_mel_frames": random.choice([1, 300, 1000]), "step_tokens": random.choice([12, 30, 256])}
    gather_s = random.choice([0.0, 0.002])
    with serving(FakeLLM(slots=random.randint(1, 4)), random.choice([4, 16]), encode_gather_s=gather_s, **budgets) as engine:
        answered = play_schedules(engine, random, SCHEDULES_PER_ENGINE, asked(), answers(), list(Trouble))
        wait_until_idle(engine)
        stats = engine.stats()
        assert (stats.waiting, stats.running, stats.step_age_s) == (0, 0, 0.0)
        gc.collect()
        assert not [left for left in gc.get_objects() if type(left) is Generation]
    assert answered > SCHEDULES_PER_ENGINE
    assert stats.counters.preemptions > 0
    assert sum(stats.counters.accepted) > 0
