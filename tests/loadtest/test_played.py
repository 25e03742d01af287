"""The engine in virtual time: every run is the same, waits come from what stages cost, and texts from the models."""

from dataclasses import replace

import numpy as np
import pytest

from loadtest.live.audio import StreamAudio
from loadtest.live.figures import Spoken, final_text
from loadtest.played.__main__ import Play, Player, describe
from loadtest.played.engine import Costs, VirtualClock
from loadtest.support.recordings import RATE_HZ, Recording
from models.assemble import load_models
from models.bundle.io import open_bundle
from models.chain import Models
from models.protocols import Float32
from tests.support.fakes.fake_models import FakeVoiceDetector
from tests.support.fakes.random_transcripts import take_any_transcript
from tests.support.tiny.tiny_bundle import write_transcribing_bundle


def noise(seed: int, seconds: float) -> Float32:
    return np.random.default_rng(seed).normal(0.0, 0.1, round(seconds * RATE_HZ)).astype(np.float32)


RECORDING = Recording("file", "", noise(3, 1.0))


class SampledVoiceDetector(FakeVoiceDetector):
    """Speech is any window that is not all zeros, of audio at 16 kHz."""

    window_samples = 512


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("transcribing") / "bundle"
    write_transcribing_bundle(folder, "int8")
    return replace(load_models(open_bundle(folder), slots=3, threads=1), voice=SampledVoiceDetector())


def stream(seed: int) -> StreamAudio:
    audio = np.pad(noise(seed, 1.6), (round(0.2 * RATE_HZ), RATE_HZ))
    return StreamAudio((audio * 32767).astype(np.int16), (Spoken("speech", "", 0.2, 1.8),))


def play(models: Models, costs: Costs, *, beside_files: bool) -> Player:
    audios = [stream(0), stream(1)]
    player = Player(models, Play(audios, 0.2, [RECORDING] if beside_files else []), costs)
    player.run()
    return player


@pytest.mark.parametrize("beside_files", [False, True])
def test_a_play_is_the_same_each_time_and_slower_stages_make_longer_waits(
    models: Models, monkeypatch: pytest.MonkeyPatch, beside_files: bool
) -> None:
    take_any_transcript(monkeypatch)
    costs = Costs()
    slow = replace(costs, encode_s=3 * costs.encode_s)
    first, again, slower = (play(models, each, beside_files=beside_files) for each in (costs, costs, slow))
    figures, slow_figures = describe(first), describe(slower)
    assert figures == describe(again)
    assert (figures["said"], figures["utterances"]) == (2, 2)
    assert slow_figures["final_ms"]["p50"] > figures["final_ms"]["p50"] + 1000 * costs.encode_s
    assert slow_figures["texts"] == figures["texts"] == [final_text(run) for run in first.runs]
    assert (figures["files"] > 1) == beside_files


def test_time_passes_up_to_what_happens_on_the_way() -> None:
    clock = VirtualClock()
    seen: list[tuple[str, float]] = []
    for at_s in (3.0, 1.0, 2.0):
        clock.add_event(at_s, lambda at_s=at_s: seen.append(("event", at_s)))  # type: ignore[misc]
    clock.spend(1.5)
    clock.spend(1.0, lambda: seen.append(("watch", clock.now_s)))
    assert seen == [("event", 1.0), ("event", 2.0), ("watch", 2.0)]
    assert clock.now_s == 2.5
    clock.wait()
    assert (clock.now_s, clock.has_events) == (3.0, False)
