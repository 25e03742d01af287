"""A bundle with a search: the LLM reads the tokens that the search found, and the draft is a path that writes them."""

import numpy as np
import pytest

from models.assemble import load_models
from models.bundle.io import Bundle, open_bundle
from models.bundle.memory import loaded_bytes, slot_bytes
from models.chain import Models
from models.ctc import collapse
from models.protocols import ProjectorOutput
from server.engine.runner.runner import Runner
from server.engine.types.options import DraftPolicy, SamplingOptions
from server.engine.types.requests import InstructRequest, SpeechTask
from tests.support.clients.runner_client import run
from tests.support.fakes.fake_models import speech
from tests.support.tiny.tiny_bundle import with_search, write_speaking_bundle


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("searched") / "bundle"
    write_speaking_bundle(folder)
    return open_bundle(folder)


@pytest.fixture(scope="module")
def models(plain: Bundle) -> Models:
    return load_models(with_search(plain), slots=2, threads=1)


def project(models: Models, seed: int) -> ProjectorOutput:
    features = models.features(models.pad_audio(speech(seed, 30.0)))
    return models.projector.project(models.encoder.encode([features]))[0]


def test_the_frames_are_the_embeddings_of_the_drafts_tokens(models: Models) -> None:
    lengths = set()
    for seed in range(6):
        output = project(models, seed)
        tokens = collapse(output.require_draft().best_token)
        np.testing.assert_array_equal(output.embeddings, models.require_llm().embed(tokens))
        lengths.add(len(tokens))
    assert max(lengths) > 3


def test_the_search_finds_other_transcripts_than_the_best_path(models: Models, plain: Bundle) -> None:
    both = models, load_models(plain, slots=1, threads=1)
    drafts = [[collapse(project(each, seed).require_draft().best_token) for seed in range(6)] for each in both]
    assert drafts[0] != drafts[1]


def test_an_utterance_is_searched_alike_alone_and_among_others(models: Models) -> None:
    features = [models.features(models.pad_audio(speech(seed, 10.0 * (seed + 1)))) for seed in range(3)]
    states = models.encoder.encode(features)
    together = models.projector.project(states)
    for each, mine in zip(states, together, strict=True):
        alone = models.projector.project([each])[0]
        np.testing.assert_array_equal(mine.embeddings, alone.embeddings)
        np.testing.assert_array_equal(mine.require_draft().best_token, alone.require_draft().best_token)


@pytest.mark.parametrize("instruction", ["Transcribe the speech to text.", "Who speaks?"])
def test_a_draft_changes_no_token_of_an_answer(models: Models, instruction: str) -> None:
    def ask(seed: int, draft: DraftPolicy) -> tuple[int, ...]:
        task = SpeechTask(instruction, SamplingOptions(max_tokens=12), draft=draft)
        return run(Runner(models), InstructRequest("1", speech(seed, 30.0), task))[1].tokens

    assert [ask(seed, "exact") for seed in range(3)] == [ask(seed, "off") for seed in range(3)]


def test_the_slots_of_the_search_are_counted_as_memory(plain: Bundle) -> None:
    searched = with_search(plain).manifest
    assert loaded_bytes(searched, slots=2) == loaded_bytes(plain.manifest, slots=2) + 3 * slot_bytes(plain.manifest)
