"""Live sessions on fake models: engines, requests, and audio with pauses."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from models.chain import Models
from models.protocols import Float32
from server.engine.engine import LocalEngine
from server.engine.types.options import DraftPolicy, SamplingOptions, Scope, VoiceOptions
from server.engine.types.requests import LiveRequest, SpeechTask
from tests.support.clients.engine_call import TIMEOUT_S
from tests.support.fakes.fake_models import SAMPLE_RATE_HZ, FakeEncoder, FakeLLM, fake_models, silence, speech

VOICE = VoiceOptions(prefix_padding_s=0.1, silence_s=0.3, max_utterance_s=3.0)


def live(
    id: str = "session", scope: Scope = "utterance", instruction: str = "Transcribe.", draft: DraftPolicy = "exact", **fields: Any
) -> LiveRequest:
    task = SpeechTask(instruction, SamplingOptions(max_tokens=12), draft)
    return replace(LiveRequest(id, task, voice=VOICE, scope=scope), **fields)


@contextmanager
def serving(models: Models | None = None, encoder: FakeEncoder | None = None) -> Iterator[LocalEngine]:
    engine = LocalEngine(models or fake_models(FakeLLM(), encoder), SAMPLE_RATE_HZ, 30.0, 64, encode_budget_audio_s=3.0)
    engine.start()
    try:
        yield engine
    finally:
        engine.drain(TIMEOUT_S)
        stats = engine.stats()
        assert (stats.ready, stats.waiting, stats.running, stats.live_sessions, stats.live_jobs) == (False, 0, 0, 0, 0)


def two_tasks() -> Models:
    """Return models that transcribe under one instruction only, and follow all others."""
    models = fake_models(FakeLLM(max_positions=400, mean_tokens=4))
    return replace(models, boundary_instructions=frozenset({"transcribe"}), transcription_instruction="Transcribe.")


def conversation(seeds: range, pause_s: float = 0.6) -> Float32:
    """Return utterances of different lengths, each with silence after it."""
    parts = [part for seed in seeds for part in (speech(seed, 0.4 + seed % 3 * 0.5), silence(pause_s))]
    return np.concatenate(parts)
