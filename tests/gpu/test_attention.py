"""A plan's queries see the positions of their slot that they should, however a row was cut, padded and placed."""

from pathlib import Path

import numpy as np
import pytest

from export.gpu_bench.timing import load_plan
from models.protocols import LLM
from models.runtimes.cuda.llm_tensorrt import TensorRtLLM
from tests.support.gpu.attention import Comparison, MakePassage, Oracles, compare, mean_error, random_passages, text_passages
from tests.support.gpu.rig import THREADS, Rig
from tests.support.tiny.tiny_llama import MAX_POSITIONS, tiny_llama


@pytest.mark.parametrize("source", ["noise", "text"])
def test_a_plan_has_the_right_mask(rig: Rig, source: str, tmp_path: Path) -> None:
    plan = load_plan(rig.device, rig.bundle, "llm")
    llm = TensorRtLLM(rig.device, plan, rig.bundle.path(rig.bundle.manifest.require_llm().embedding), slots=rig.slots)
    oracles = Oracles(rig.llama, llm.max_positions + 1, tmp_path, THREADS)
    make = random_passages(llm) if source == "noise" else text_passages(llm, rig.text)
    for each in compare(llm, oracles.right(), oracles.wrong(), make):
        assert each.holds, f"{each.case}: the mean error is {each.error:.2g}, {each.limit:.2g} is allowed"


@pytest.fixture(scope="module")
def oracles(tmp_path_factory: pytest.TempPathFactory) -> Oracles:
    return Oracles(tiny_llama()[0], MAX_POSITIONS, tmp_path_factory.mktemp("oracles"), threads=1)


def compared(llm: LLM, oracles: Oracles, make: MakePassage) -> list[Comparison]:
    return list(compare(llm, oracles.right(), oracles.wrong(), make))


def test_the_comparison_passes_a_right_mask(oracles: Oracles) -> None:
    llm = oracles.right()
    for make in (random_passages(llm), text_passages(llm, range(llm.vocabulary_size))):
        assert all(each.holds for each in compared(llm, oracles, make))


@pytest.mark.parametrize(
    ("mask", "unseen"),
    [
        ("one position too many", set()),
        # For a row that begins with its slot a triangle is the right mask.
        ("a triangle from the slot's first position", {"one row", "rows of different lengths, padded"}),
    ],
)
def test_the_comparison_finds_a_wrong_mask(mask: str, unseen: set[str], oracles: Oracles) -> None:
    llm = oracles.wrong()[mask]
    for make in (random_passages(llm), text_passages(llm, range(llm.vocabulary_size))):
        assert {each.case for each in compared(llm, oracles, make) if each.holds} == unseen


def test_a_difference_that_is_not_finite_is_an_infinite_error() -> None:
    expected = np.ones((2, 3), np.float32)
    broken = expected.copy()
    broken[0, 1] = np.nan
    assert mean_error([broken], [expected]) == np.inf
