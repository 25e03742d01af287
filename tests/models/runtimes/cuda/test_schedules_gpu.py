"""Random schedules on the GPU's runtime, simulated: the scheduler's every move leaves the CPU runtime's answers.

In float32, so that no two tokens are near enough for rounding to choose between them.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from server.engine.types.requests import InstructRequest
from tests.support.fakes.drafting import Alone, answer_alone, drafted_requests, play_on
from tests.support.fakes.fake_models import tokeniser_definition
from tests.support.simulated_gpu.gpu_llm import build_llm_plan, on_cpu, on_simulated_gpu
from tests.support.tasks import change_task

ENGINES = 3
SCHEDULES_PER_ENGINE = 20
VOCABULARY = len(tokeniser_definition()["model"]["vocab"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llm")


@pytest.fixture(scope="module")
def asked() -> list[InstructRequest]:
    """Without log-probabilities, whose last digits may differ."""
    requests = drafted_requests()
    return [change_task(each, sampling=replace(each.task.sampling, logprobs=None)) for each in requests]


@pytest.fixture(scope="module")
def alone(folder: Path, asked: list[InstructRequest]) -> list[Alone]:
    cpu = on_cpu(folder, slots=1, vocabulary=VOCABULARY)
    # On a GPU a slot's last position is not for requests, so the longest answers are one token shorter.
    cpu.max_positions -= 1
    return answer_alone(cpu, asked)


@pytest.fixture(scope="module")
def plan(folder: Path) -> bytes:
    return build_llm_plan(folder, vocabulary=VOCABULARY)


@pytest.mark.parametrize("seed", range(ENGINES))
def test_load_drafts_and_preemption_change_no_token(
    folder: Path, plan: bytes, asked: list[InstructRequest], alone: list[Alone], seed: int
) -> None:
    llm = on_simulated_gpu(plan, folder, slots=seed % 4 + 1)
    counters = play_on(llm, asked, alone, seed, SCHEDULES_PER_ENGINE)
    assert counters.preemptions > 0
    assert sum(counters.accepted) > 0
