"""The adapter's boundary vectors are put around the speech under the instructions they were trained for, and no other."""

import dataclasses

import pytest

from models.chain import Models
from tests.support.fakes.fake_models import FakeLLM, fake_models


@pytest.fixture
def models() -> Models:
    return dataclasses.replace(fake_models(FakeLLM()), boundary_instructions=frozenset({"transcribe the audio"}))


@pytest.mark.parametrize("instruction", ["Transcribe the audio.", "transcribe the audio", "  TRANSCRIBE the audio! "])
def test_case_and_punctuation_do_not_matter(models: Models, instruction: str) -> None:
    before, after = models.boundaries(instruction)
    assert before is models.projector.boundary_before
    assert after is models.projector.boundary_after


@pytest.mark.parametrize("instruction", ["Transcribe the audio in French.", "Summarise the audio.", "..."])
def test_another_instruction_gets_none(models: Models, instruction: str) -> None:
    before, after = models.boundaries(instruction)
    assert before.shape == (0, models.require_llm().embedding_size)
    assert after.shape == (0, models.require_llm().embedding_size)


def test_a_bundle_that_names_no_instructions_uses_them_under_all(models: Models) -> None:
    assert len(dataclasses.replace(models, boundary_instructions=None).boundaries("Anything?")[0])
