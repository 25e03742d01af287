"""Random schedules on real ONNX sessions: in int8, too, load, drafts, chunks and preemption change no token.

The LLM is a scaled-down one in the default bundle's precision and graph.
"""

from pathlib import Path

import numpy as np
import pytest

from export.precisions import PRECISIONS
from models.llms.llama import ExactAttention, build_decoder, embedding_table
from models.runtimes.onnx.decoder import OnnxLLM
from server.engine.types.requests import InstructRequest
from tests.support.fakes.drafting import Alone, answer_alone, drafted_requests, play_on
from tests.support.fakes.fake_models import tokeniser_definition
from tests.support.tiny.tiny_llama import MAX_POSITIONS, tiny_llama

ENGINES = 3
SCHEDULES_PER_ENGINE = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, precision = tmp_path_factory.mktemp("llm"), PRECISIONS["int8"]
    plain, _ = tiny_llama(vocabulary=len(tokeniser_definition()["model"]["vocab"]))
    model = precision.prepare_llm(plain)
    graph = build_decoder(model, max_positions=MAX_POSITIONS, attention=ExactAttention, body=precision.body, head=precision.head)
    graph.save(folder / "llm.onnx")
    np.save(folder / "embedding.npy", embedding_table(model))
    return folder


def load(folder: Path, slots: int) -> OnnxLLM:
    return OnnxLLM(folder / "llm.onnx", folder / "embedding.npy", slots=slots, threads=1)


@pytest.fixture(scope="module")
def asked() -> list[InstructRequest]:
    return drafted_requests()


@pytest.fixture(scope="module")
def alone(folder: Path, asked: list[InstructRequest]) -> list[Alone]:
    return answer_alone(load(folder, slots=1), asked)


@pytest.mark.parametrize("seed", range(ENGINES))
def test_load_drafts_and_preemption_change_no_token(
    folder: Path, asked: list[InstructRequest], alone: list[Alone], seed: int
) -> None:
    llm = load(folder, slots=seed % 3 + 1)
    counters = play_on(llm, asked, alone, seed, SCHEDULES_PER_ENGINE)
    assert counters.preemptions > 0
    assert sum(counters.accepted) > 0
