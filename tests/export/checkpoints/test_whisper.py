"""A pulled Whisper writes the tokens of transformers: tiny random models, as they and as CTranslate2 save them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from models.chain import Models
from models.protocols import Float32
from server.engine.runner import transcript
from server.engine.runner.runner import Runner
from server.engine.types.options import SamplingOptions
from server.engine.types.requests import InstructRequest, SpeechTask
from server.errors import InvalidRequest
from tests.export.checkpoints.conftest import Pull
from tests.support.clients.runner_client import run
from tests.support.tiny.tiny_checkpoints import WHISPER_SPECIALS, write_whisper
from tests.support.tiny.tiny_whisper import write_ctranslate2

TRANSCRIBE, TRANSLATE = "Transcribe the speech to text.", "Translate the speech into English."
TOKENS = 14
KINDS: dict[str, dict[str, Any]] = {"whisper": {}, "whisper-128": {"mel_bins": 128}, "whisper.en": {"multilingual": False}}


@pytest.fixture(scope="session", params=list(KINDS))
def whisper(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pull: Pull
) -> tuple[WhisperForConditionalGeneration, Models, Path]:
    folder = tmp_path_factory.mktemp("checkpoint") / request.param
    theirs = write_whisper(folder, **KINDS[request.param])
    return theirs, pull(folder, request.param), folder


@pytest.fixture(autouse=True)
def _taken_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a random model's text taken as it is, though it is not likely."""
    monkeypatch.setattr(transcript, "LEAST_MEAN_LOGPROB", -100.0)
    monkeypatch.setattr(transcript, "is_loop", lambda _text: False)
    monkeypatch.setattr(transcript.TranscriptStage, "_has_voice", lambda _stage, _audio: True)


def noise(seed: int) -> Float32:
    random = np.random.default_rng(seed)
    samples = random.normal(0, 0.1, random.integers(8_000, 80_000)) * np.sin(seed + 1)
    return np.asarray(samples, np.float32)


def reference(model: Any, audio: Float32, language: str | None, task: str) -> list[int]:
    """The tokens of transformers' greedy search behind the control tokens, without the end."""
    extractor = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
    features = extractor(audio, sampling_rate=16_000, return_tensors="pt").input_features
    options = {"language": language, "task": task} if model.generation_config.is_multilingual else {}
    with torch.inference_mode():
        tokens = model.generate(features, max_new_tokens=TOKENS, do_sample=False, **options)[0].tolist()
    text = [token for token in tokens if token not in (model.config.decoder_start_token_id, model.config.eos_token_id)]
    return text[-TOKENS:]


def ours(models: Models, audio: Float32, language: str | None, instruction: str) -> list[int]:
    request = InstructRequest("1", audio, SpeechTask(instruction, SamplingOptions(max_tokens=TOKENS), language=language))
    sequence, _ = run(Runner(models), request)
    return sequence.tokens[sequence.control_tokens :]


@pytest.mark.parametrize("seed", range(4))
def test_a_pulled_whisper_writes_the_tokens_of_transformers(
    whisper: tuple[WhisperForConditionalGeneration, Models, Path], seed: int
) -> None:
    theirs, models, _ = whisper
    audio, multilingual = noise(seed), models.require_speech().tokens.multilingual
    language = ("en", "de", "fr")[seed % 3] if multilingual else None
    translates = multilingual and seed % 2 == 1
    expected = reference(theirs, audio, language, "translate" if translates else "transcribe")
    written = ours(models, audio, language, TRANSLATE if translates else TRANSCRIBE)
    assert len(set(expected)) > 2
    assert written[-TOKENS:] == expected[-len(written) :]
    assert len(written) >= 1


def test_one_with_condensed_silence_hears_long_audio_as_transformers_and_short_audio_nearly(
    whisper: tuple[WhisperForConditionalGeneration, Models, Path], pull: Pull
) -> None:
    theirs, exact, folder = whisper
    condensed = pull(folder, f"{folder.name}-condensed", condenses_silence=True)
    language = "en" if condensed.require_speech().tokens.multilingual else None
    long = np.random.default_rng(5).normal(0, 0.1, 30 * 16_000).astype(np.float32)
    written = ours(condensed, long, language, TRANSCRIBE)
    assert written[-TOKENS:] == reference(theirs, long, language, "transcribe")[-len(written) :]
    short = noise(3)
    own = -(-len(short) // 320)
    states, whole = (models.encoder.encode([models.features(models.pad_audio(short))])[0][:own] for models in (condensed, exact))
    assert np.abs(states - whole).mean() < 0.1 * np.abs(whole).mean()


def test_english_only_models_refuse_other_languages_and_translation(
    whisper: tuple[WhisperForConditionalGeneration, Models, Path],
) -> None:
    _, models, _ = whisper
    if models.require_speech().tokens.multilingual:
        pytest.skip("a multilingual model")
    with pytest.raises(InvalidRequest, match="language"):
        ours(models, noise(1), "de", TRANSCRIBE)
    with pytest.raises(InvalidRequest, match="has no LLM"):
        ours(models, noise(1), None, TRANSLATE)


def test_other_instructions_are_refused_plainly(whisper: tuple[WhisperForConditionalGeneration, Models, Path]) -> None:
    _, models, _ = whisper
    with pytest.raises(InvalidRequest, match=r"This model has no LLM: it transcribes .* and follows no other instruction"):
        ours(models, noise(1), None, "Summarise it.")


def test_a_ctranslate2_folder_gives_the_same_model(
    whisper: tuple[WhisperForConditionalGeneration, Models, Path], tmp_path: Path, pull: Pull
) -> None:
    from export.checkpoints.checkpoint import Checkpoint
    from export.checkpoints.whisper import read_whisper

    theirs, models, folder = whisper
    if not models.require_speech().tokens.multilingual:
        pytest.skip("English only is told by the number of real tokens")
    weights = read_whisper(Checkpoint(folder, "tiny"))
    arrays = {name: np.asarray(each) for name, each in {**weights.encoder, **weights.decoder}.items()}
    write_ctranslate2(tmp_path / "model.bin", arrays)
    ids = {name: theirs.config.vocab_size - len(WHISPER_SPECIALS) + number for number, name in enumerate(WHISPER_SPECIALS)}
    generation = json.loads((folder / "generation_config.json").read_text())
    config = {
        "lang_ids": [ids[code] for code in ("en", "de", "fr")],
        "suppress_ids": generation["suppress_tokens"],
        "suppress_ids_begin": generation["begin_suppress_tokens"],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    from_ctranslate2 = pull(tmp_path, f"{folder.name}-ct2")
    for seed in (1, 2):
        assert ours(from_ctranslate2, noise(seed), "en", TRANSCRIBE) == ours(models, noise(seed), "en", TRANSCRIBE)
