"""Hypotheses of a speech decoder while an utterance goes on, and its answer, on real sessions of a tiny random model."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from models.assemble import load_models
from models.bundle.io import open_bundle
from models.chain import Models
from server.engine.engine import LocalEngine
from server.engine.live import partials
from server.engine.runner.transcript import read_words
from server.engine.types.events import Ended, Listened, Partial, UtteranceDone
from server.engine.types.options import Priority, SamplingOptions, VoiceOptions
from server.engine.types.requests import LiveRequest, SpeechTask
from tests.support.clients.engine_call import TIMEOUT_S, wait_until
from tests.support.clients.live_client import LiveClient
from tests.support.fakes.fake_models import SAMPLE_RATE_HZ, FakeVoiceDetector, silence, speech
from tests.support.fakes.random_transcripts import take_any_transcript
from tests.support.tiny.tiny_bundle import write_transcribing_bundle

TRANSCRIBE = "Transcribe the speech to text."
PIECE = SAMPLE_RATE_HZ // 4
VOICE = VoiceOptions(prefix_padding_s=0.1, silence_s=0.3, max_utterance_s=6.0)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("transcribing") / "bundle"
    write_transcribing_bundle(folder, "int8")
    return replace(load_models(open_bundle(folder), slots=3, threads=1), voice=FakeVoiceDetector())


def is_followed(client: LiveClient, engine: LocalEngine, said_s: float) -> bool:
    """Return whether all audio so far was listened to, and no hypothesis of it is being made."""
    listened = client.of(Listened)
    stats = engine.stats()
    return bool(listened) and listened[-1].audio_s > said_s - 0.1 and stats.waiting + stats.running == 0


def converse(models: Models, *, partials: bool) -> LiveClient:
    """Speak two utterances bit by bit."""
    engine = LocalEngine(models, SAMPLE_RATE_HZ, 30.0, queue_limit=32)
    engine.start()
    sampling = SamplingOptions(max_tokens=24)
    request = LiveRequest(
        "session", SpeechTask(TRANSCRIBE, sampling, language="en"), priority=Priority.LIVE, voice=VOICE, partials=partials
    )
    client = LiveClient(engine, request)
    said_s = 0.0
    for seed in range(2):
        audio = speech(seed, 5.0)
        for start in range(0, len(audio), PIECE):
            client.say(audio[start : start + PIECE])
            said_s += PIECE / SAMPLE_RATE_HZ
            wait_until(partial(is_followed, client, engine, said_s))
        client.say(silence(0.6))
        said_s += 0.6
    assert isinstance(client.end(), Ended)
    engine.drain(TIMEOUT_S)
    return client


@pytest.mark.parametrize("longest_writing_s", [60.0, -1.0])
def test_hypotheses_of_the_speech_decoder_and_drafts_change_no_answer(
    models: Models, monkeypatch: pytest.MonkeyPatch, longest_writing_s: float
) -> None:
    monkeypatch.setattr(partials, "LONGEST_WRITING_S", longest_writing_s)
    take_any_transcript(monkeypatch)
    quiet, talking = converse(models, partials=False), converse(models, partials=True)
    assert quiet.of(Partial) == []
    assert talking.of(Partial)
    answers = [event.done.text for event in talking.of(UtteranceDone)]
    assert all(answers)
    assert answers == [event.done.text for event in quiet.of(UtteranceDone)]


def test_a_draft_in_the_speech_decoders_tokens_is_read_with_its_tokeniser(models: Models) -> None:
    drafting = replace(models, draft_vocabulary="speech_decoder")
    tokeniser = drafting.require_speech().tokeniser
    path = np.array([-1, *tokeniser.encode(" the end")])
    assert [word.text for word in read_words(path, 0.08, drafting.draft_tokeniser)] == ["the", "end"]
