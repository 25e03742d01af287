"""The engine gets all audio in few pieces, however a client cuts it, and instructions and flushes in order."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from server.api.access.limits import KeyUsage
from server.api.live.engine_session import LEAST_AUDIO_S, InputBuffer
from server.engine.types.requests import Audio, ChangeInstruction, EndOfAudio, Flush, LiveInput, LiveRequest, SpeechTask
from server.observability.live import LiveMetrics, SessionTimer
from tests.support.fakes.fake_engine import FakeEngine

RATE_HZ = 16_000

STEPS = st.lists(
    st.one_of(
        st.integers(0, 400),
        st.builds(Flush, st.text(max_size=2)),
        st.builds(ChangeInstruction, st.text(max_size=2)),
    ),
    max_size=60,
)


def pushed(steps: list[int | Flush | ChangeInstruction]) -> list[LiveInput]:
    """Return the inputs that reach the engine; a number in `steps` stands for that many samples, counted up from 0."""
    engine = FakeEngine()
    engine.start()
    engine.open_live(LiveRequest("s", SpeechTask("Transcribe.")), lambda _event: None)
    session = engine.sessions["s"]
    timer = SessionTimer(LiveMetrics(CollectorRegistry(), [1.0]), "fake-model")
    inputs = InputBuffer(engine, LiveRequest("s", SpeechTask("Transcribe.")), timer, KeyUsage())
    samples = 0
    for step in steps:
        match step:
            case int():
                inputs.add_audio(np.arange(samples, samples + step, dtype=np.float32))
                samples += step
            case Flush():
                inputs.push_flush(step)
            case ChangeInstruction():
                inputs.change_instruction(step)
    inputs.push_end()
    assert inputs.pushed_s == samples / RATE_HZ
    engine.drain(0)
    return session.inputs


@given(STEPS)
def test_all_the_audio_in_few_pieces(steps: list[int | Flush | ChangeInstruction]) -> None:
    items = pushed(steps)
    assert items[-1] == EndOfAudio()
    audio = [item.samples for item in items if isinstance(item, Audio)]
    samples = sum(step for step in steps if isinstance(step, int))
    assert np.array_equal(np.concatenate([np.empty(0, np.float32), *audio]), np.arange(samples, dtype=np.float32))
    flushes = [step for step in steps if isinstance(step, Flush)]
    assert [item for item in items if isinstance(item, Flush)] == flushes
    small = [piece for piece in audio if len(piece) < LEAST_AUDIO_S * RATE_HZ]
    assert len(small) <= len(flushes) + 1
    assert sum(isinstance(item, ChangeInstruction) for item in items) <= len(audio) + len(flushes) + 1


@given(STEPS)
def test_a_flush_comes_after_the_audio_before_it(steps: list[int | Flush | ChangeInstruction]) -> None:
    expected, before = [], 0
    for step in steps:
        if isinstance(step, int):
            before += step
        elif isinstance(step, Flush):
            expected.append(before)
    seen, heard = [], 0
    for item in pushed(steps):
        if isinstance(item, Audio):
            heard += len(item.samples)
        elif isinstance(item, Flush):
            seen.append(heard)
    assert seen == expected


def test_of_several_instructions_the_last_goes_before_what_follows() -> None:
    first, second = ChangeInstruction("a"), ChangeInstruction("b")
    kinds = [item if not isinstance(item, Audio) else len(item.samples) for item in pushed([100, first, second, 100, Flush("x")])]
    assert kinds == [second, 200, Flush("x"), EndOfAudio()]
    assert pushed([first]) == [first, EndOfAudio()]
