"""A client decides how many inputs it pushes, and how fast; it does not decide how much work a step does, nor what goes first."""

import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.protocols import Float32, VoiceState
from models.text.tokeniser import Tokeniser
from server.engine.live.audio import TURN_INPUTS, TURN_S, DetectedAudio, RecentAudio, VoiceInputs
from server.engine.live.session import (
    LIVE_LEAD_S,
    MAX_DETECTED,
    STEP_INPUTS,
    EngineHooks,
    LiveCounters,
    LiveSession,
    work_priority,
)
from server.engine.runner.sequence import SequenceState
from server.engine.types.events import Done, Ended, Flushed, Listened, LiveEvent, StageTimes, Usage
from server.engine.types.options import Priority
from server.engine.types.requests import Audio, ChangeInstruction, EndOfAudio, Flush, LiveInput
from tests.support.clients.engine_client import Client, instruct
from tests.support.clients.live_client import LiveClient
from tests.support.fakes.fake_models import (
    SAMPLE_RATE_HZ,
    WIDTH,
    FakeLLM,
    FakeProjector,
    FakeVoiceDetector,
    fake_models,
    silence,
    speech,
    tokeniser_definition,
)
from tests.support.fakes.live_engine import conversation, live, serving

WINDOW = FakeVoiceDetector.window_samples
INPUTS = st.one_of(
    st.integers(0, 3 * WINDOW).map(lambda count: Audio(np.ones(count, np.float32))),
    st.just(Audio(np.ones(2 * SAMPLE_RATE_HZ, np.float32))),
    st.sampled_from([Flush("a"), ChangeInstruction("a"), ChangeInstruction("b")]),
)


class CountingTokeniser(Tokeniser):
    """Counts how often it encodes."""

    def __init__(self) -> None:
        super().__init__(tokeniser_definition())
        self.encoded = 0

    def encode(self, text: str) -> list[int]:
        self.encoded += 1
        return super().encode(text)


def opened_session(events: list[LiveEvent], sequences: list[SequenceState]) -> LiveSession:
    """A session whose work is collected and not done."""
    hooks = EngineHooks(events.append, sequences.append, lambda _sequence: None)
    return LiveSession(live(partials=False), fake_models(FakeLLM()), SAMPLE_RATE_HZ, hooks, LiveCounters())


def listen_to_all(session: LiveSession) -> None:
    while session.wants_listening or session.has_detected:
        if session.wants_listening:
            session.detect_voice()
        if session.has_detected:
            session.take_detected(1.0)


def test_updates_cost_nothing_until_an_utterance_begins() -> None:
    """400 of them in a step, each tokenised on the engine's thread, kept it from its other work."""
    tokeniser = CountingTokeniser()
    with serving(replace(fake_models(FakeLLM()), tokeniser=tokeniser)) as engine:
        client = LiveClient(engine, live())
        before = tokeniser.encoded
        for index in range(1000):
            engine.push("session", ChangeInstruction("7" * (index % 50)))
            client.say(silence(0.01))
        client.wait_for(lambda: bool(client.of(Listened)) and client.of(Listened)[-1].audio_s > 9.99)
        assert tokeniser.encoded == before
        client.say(speech(1, 0.4))
        assert isinstance(client.end(), Ended)
        # Once for all that the utterance needs.
        assert tokeniser.encoded == before + 1


@given(st.lists(INPUTS, max_size=150))
def test_a_turn_of_the_listener_is_bounded_and_keeps_the_order(inputs: list[LiveInput]) -> None:
    waiting = VoiceInputs(FakeVoiceDetector(), SAMPLE_RATE_HZ)
    for item in (*inputs, EndOfAudio()):
        waiting.push(item)
    heard = []
    while len(waiting):
        before = len(waiting)
        turn = waiting.detect_voice()
        pieces = [item for item in turn if isinstance(item, DetectedAudio)]
        assert before - len(waiting) <= TURN_INPUTS
        assert sum(len(piece.samples) - piece.padding for piece in pieces) <= TURN_S * SAMPLE_RATE_HZ
        heard += turn
    samples = sum(len(item.samples) for item in inputs if isinstance(item, Audio))
    pieces = [item for item in heard if isinstance(item, DetectedAudio)]
    assert sum(len(piece.samples) - piece.padding for piece in pieces) == samples
    assert sum(len(piece.probabilities) for piece in pieces) == -(-samples // WINDOW)
    assert [item for item in heard if isinstance(item, Flush)] == [item for item in inputs if isinstance(item, Flush)]
    assert heard[-1] == EndOfAudio()


@pytest.mark.parametrize(
    "flood",
    [
        [Audio(np.zeros(1, np.float32))],
        [Audio(np.zeros(0, np.float32))],
        [Flush("a")],
        [ChangeInstruction("a")],
        [ChangeInstruction("a"), Audio(np.zeros(8, np.float32))],
    ],
)
def test_a_step_takes_a_bounded_number_of_any_inputs(flood: Sequence[LiveInput]) -> None:
    events: list[LiveEvent] = []
    session = opened_session(events, [])
    for _ in range(2000):
        for item in flood:
            session.push(item)
    while session.wants_listening or session.has_detected:
        waiting = 0
        while session.wants_listening:
            session.detect_voice()
            waiting += 1
            assert waiting <= 2000 * len(flood)
        told = len(events)
        session.take_detected(1.0)
        assert len(events) - told <= STEP_INPUTS + 1
    assert len([event for event in events if isinstance(event, Flushed)]) == 2000 * (flood[0] == Flush("a"))


def test_the_listener_does_not_run_far_ahead_of_the_engine() -> None:
    session = opened_session([], [])
    for _ in range(100):
        session.push(Audio(silence(10.0)))
    turns = 0
    while session.wants_listening:
        session.detect_voice()
        turns += 1
    assert turns == MAX_DETECTED


def test_other_work_does_not_wait_for_the_voice_detector() -> None:
    gate = threading.Event()

    class GatedDetector(FakeVoiceDetector):
        def detect(self, audio: Float32, state: VoiceState | None) -> tuple[Float32, VoiceState]:
            gate.wait()
            return super().detect(audio, state)

    with serving(replace(fake_models(FakeLLM()), voice=GatedDetector())) as engine:
        client = LiveClient(engine, live())
        try:
            client.say(conversation(range(1)))
            Client(engine, instruct("request", speech(1))).done()
            assert not client.events
        finally:
            gate.set()
        assert isinstance(client.end(), Ended)
        assert len(client.texts()) == 1


def test_live_priority_holds_up_to_real_time() -> None:
    assert work_priority(Priority.LIVE, heard_s=5.0, elapsed_s=5.0) == Priority.LIVE
    assert work_priority(Priority.LIVE, heard_s=LIVE_LEAD_S, elapsed_s=0.0) == Priority.LIVE
    assert work_priority(Priority.LIVE, heard_s=LIVE_LEAD_S + 0.1, elapsed_s=0.0) == Priority.INTERACTIVE
    # A lead from audio that was recorded before the session began is forgiven in time.
    assert work_priority(Priority.LIVE, heard_s=5.0 + 60.0, elapsed_s=60.0) == Priority.LIVE


@given(st.sampled_from(Priority), st.floats(0, 1e4), st.floats(0, 1e4))
def test_priority_is_never_raised(asked: Priority, heard_s: float, elapsed_s: float) -> None:
    priority = work_priority(asked, heard_s, elapsed_s)
    assert priority >= asked
    assert priority == asked or asked == Priority.LIVE


@pytest.mark.parametrize(("speed", "priorities"), [(1.0, {Priority.LIVE}), (10.0, {Priority.LIVE, Priority.INTERACTIVE})])
def test_work_of_a_file_sent_at_once_is_not_live(
    speed: float, priorities: set[Priority], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock_s = 100.0
    monkeypatch.setattr("server.engine.live.session.time.monotonic", lambda: clock_s)
    sequences: list[SequenceState] = []
    session = opened_session([], sequences)
    audio = conversation(range(6))
    piece = SAMPLE_RATE_HZ // 10
    for start in range(0, len(audio), piece):
        session.push(Audio(audio[start : start + piece]))
        clock_s += 0.1 / speed
        listen_to_all(session)
    assert {sequence.request.priority for sequence in sequences} == priorities
    assert sequences[-1].request.priority == max(priorities)


@pytest.mark.parametrize(("speed", "partials"), [(1.0, range(15, 30)), (1e6, range(4, 10))])
def test_audio_sent_at_once_brings_partials_by_the_clock(speed: float, partials: range, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds of speech, cut every three; every hypothesis is ready at once."""
    clock_s = 100.0
    monkeypatch.setattr("server.engine.live.session.time.monotonic", lambda: clock_s)
    count = 0

    def answer_partial(sequence: SequenceState) -> None:
        nonlocal count
        if sequence.drafts_only:
            count += 1
            (sequence.encoded,) = FakeProjector().project([np.ones((40, WIDTH), np.float32)])
            sequence.deliver(Done(sequence.request.id, "", "length", Usage(0, 0, 0), StageTimes()))

    hooks = EngineHooks(lambda _event: None, answer_partial, lambda _sequence: None)
    session = LiveSession(live(), fake_models(FakeLLM()), SAMPLE_RATE_HZ, hooks, LiveCounters())
    for index in range(20):
        session.push(Audio(speech(index, 0.5)))
        clock_s += 0.5 / speed
        listen_to_all(session)
    assert count in partials


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 60)), max_size=40))
def test_recent_audio_is_what_was_appended_and_not_forgotten(script: list[tuple[int, int]]) -> None:
    recent, whole = RecentAudio(), np.empty(0, np.float32)
    for length, forget in script:
        samples = np.arange(len(whole), len(whole) + length, dtype=np.float32)
        recent.append(samples)
        whole = np.concatenate([whole, samples])
        recent.forget_before(forget)
        assert (recent.start, recent.end) == (max(recent.start, min(forget, len(whole))), len(whole))
        np.testing.assert_array_equal(recent.between(recent.start, recent.end), whole[recent.start :])
    with pytest.raises(ValueError, match="not within"):
        recent.between(0, len(whole) + 1)
