"""One utterance that is spoken bit by bit to a model, and the same audio as a file."""

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest

from models.chain import Models
from models.protocols import Float32
from server.engine.engine import LocalEngine
from server.engine.live import partials, session
from server.engine.runner.runner import Runner
from server.engine.types.events import Ended, Listened, Partial, UtteranceDone
from server.engine.types.options import Priority, SamplingOptions, VoiceOptions
from server.engine.types.requests import InstructRequest, LiveRequest, SpeechTask
from tests.support.clients.engine_call import wait_until
from tests.support.clients.live_client import TIMEOUT_S, LiveClient
from tests.support.clients.runner_client import Answer, run
from tests.support.fakes.fake_models import FakeVoiceDetector

RATE_HZ = 16_000
PIECE = RATE_HZ // 2
VOICE = VoiceOptions(prefix_padding_s=0.1, silence_s=0.3)


class AnySoundIsVoice(FakeVoiceDetector):
    """Speech is any window that is not all zeros, at 16 kHz."""

    window_samples = 512


@dataclass(frozen=True)
class SpokenUtterance:
    """The partials of an utterance, its answer, and the answer to it as a file; how many hypotheses there were, and how many
    tokens were drafted for all of these.
    """

    partials: list[Partial]
    hypotheses: int
    drafted: int
    live: UtteranceDone
    file: Answer


def make_all_hypotheses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a hypothesis made of each piece, however long one takes and however fast the pieces come."""
    monkeypatch.setattr(partials, "PARTIAL_SHARE", math.inf)
    monkeypatch.setattr(session, "LIVE_LEAD_S", math.inf)


def speak(models: Models, audio: Float32, *, max_tokens: int, partials: bool = True) -> SpokenUtterance:
    """Say an utterance in pieces of half a second, each once everything about the one before it is done."""
    engine = LocalEngine(replace(models, voice=AnySoundIsVoice()), RATE_HZ, 30.0, queue_limit=8)
    engine.start()
    sampling, instruction = SamplingOptions(max_tokens=max_tokens), models.transcription_instruction
    client = LiveClient(
        engine, LiveRequest("live", SpeechTask(instruction, sampling), priority=Priority.LIVE, voice=VOICE, partials=partials)
    )
    whole = np.concatenate([np.zeros(PIECE, np.float32), audio, np.zeros(2 * PIECE, np.float32)])
    for start in range(0, len(whole), PIECE):
        client.say(whole[start : start + PIECE])
        wait_until(partial(_is_followed, client, engine, min(len(whole), start + PIECE) / RATE_HZ))
    assert isinstance(client.end(), Ended)
    counters = engine.stats().counters
    engine.drain(TIMEOUT_S)
    (done,) = client.of(UtteranceDone)
    same = whole[round(done.start_s * RATE_HZ) : round(done.end_s * RATE_HZ)]
    _, answer = run(Runner(models), InstructRequest("file", same, SpeechTask(instruction, sampling)))
    return SpokenUtterance(client.of(Partial), counters.partials, sum(counters.drafted), done, answer)


def _is_followed(client: LiveClient, engine: LocalEngine, said_s: float) -> bool:
    """Return whether all audio so far was listened to, and nothing about it is left to do."""
    listened, stats = client.of(Listened), engine.stats()
    return bool(listened) and listened[-1].audio_s > said_s - 0.1 and stats.live_jobs == 0
