"""When words begin and end: by what was heard, by the pauses in the audio, and through the engine."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.protocols import CtcDraft, Float32
from models.text.word_times import TimedWord, silences
from server.engine.engine import LocalEngine
from server.engine.types.events import Done
from server.engine.types.options import SamplingOptions
from server.engine.types.requests import InstructRequest, SpeechTask
from server.errors import InvalidRequest
from tests.support.clients.engine_client import Client, answers_alone, instruct, serving
from tests.support.fakes.fake_models import (
    SAMPLE_RATE_HZ,
    FakeLLM,
    fake_models,
    silence,
    speech,
    sure_output,
    tiny_tokeniser,
    tiny_word_timer,
)
from tests.support.tasks import change_task

FRAME_S = 0.08
BLANK = -1


def ids(text: str) -> list[int]:
    return tiny_tokeniser().encode(text)


THE, END, OF, FILE = (ids(text)[0] for text in ("the", " end", " of", " file"))


def heard(frames: int, **tokens: list[int]) -> CtcDraft:
    """An output in which some tokens were heard, by the frames of each."""
    best = np.full(frames, BLANK, np.int64)
    for name, places in tokens.items():
        best[places] = {"the": THE, "end": END, "of": OF, "file": FILE}[name]
    return sure_output(np.empty((0, 8), np.float32), best).require_draft()


def audio_with(total_s: float, *loud: tuple[float, float]) -> Float32:
    """Noise from and to these seconds, and a thousandth of it everywhere."""
    audio = speech(0, total_s)
    level = np.full(len(audio), 1e-3, np.float32)
    for start_s, end_s in loud:
        level[round(start_s * SAMPLE_RATE_HZ) : round(end_s * SAMPLE_RATE_HZ)] = 1
    return audio * level


def times(output: CtcDraft, audio: Float32, text: str) -> list[TimedWord]:
    return list(tiny_word_timer().times(output, audio, ids(text), text.strip()))


def test_words_lie_around_where_they_were_heard() -> None:
    the, end = times(heard(30, the=[10], end=[20]), speech(1, 2.4), "the end")
    assert (the.text, end.text) == ("the", "end")
    assert the.start_s < 10.5 * FRAME_S < the.end_s < end.start_s < 20.5 * FRAME_S < end.end_s


def test_words_that_follow_each_other_closely_touch() -> None:
    the, end, of = times(heard(30, the=[10], end=[12, 13], of=[15]), speech(1, 2.4), "the end of")
    assert the.end_s == end.start_s
    assert end.end_s == of.start_s


def test_the_more_letters_the_earlier_it_began() -> None:
    (short,) = times(heard(30, of=[10]), speech(1, 2.4), " of")
    (long,) = times(heard(30, file=[10]), speech(1, 2.4), " file")
    assert long.start_s < short.start_s
    assert long.end_s > short.end_s


def test_pauses_in_the_audio_bound_words() -> None:
    audio = audio_with(2.4, (0.5, 0.9), (1.4, 2.0))
    the, end, of = times(heard(30, the=[8], end=[19], of=[22]), audio, "the end of")
    assert (the.start_s, the.end_s) == pytest.approx((0.5, 0.9))
    assert (end.start_s, of.end_s) == pytest.approx((1.4, 2.0))
    assert end.end_s == of.start_s


def test_short_silences_are_no_pauses() -> None:
    starts_s, ends_s = silences(audio_with(2.0, (0.2, 0.9), (0.95, 1.5)), SAMPLE_RATE_HZ)
    assert np.concatenate([starts_s, ends_s]) == pytest.approx([0, 1.5, 0.2, 2.0])


@pytest.mark.parametrize("audio", [silence(1.0), np.full(800, 0.5, np.float32), np.empty(0, np.float32), silence(0.005)])
def test_audio_that_is_all_the_same_has_no_pauses(audio: Float32) -> None:
    assert silences(audio, SAMPLE_RATE_HZ)[0].tolist() == []


def test_what_has_no_sound_goes_with_the_word_before_it() -> None:
    words = times(heard(30, the=[10], end=[20]), speech(1, 2.4), "the - «end» !")
    assert [word.text for word in words] == ["the -", "«end» !"]


@pytest.mark.parametrize("text", ["", "...", " - \n"])
def test_a_text_without_letters_has_no_words(text: str) -> None:
    assert times(heard(30, the=[10]), speech(1, 2.4), text) == []


def test_tokens_behind_a_stop_string_are_left_out() -> None:
    output, audio = heard(30, the=[10], end=[14], of=[20]), speech(1, 2.4)
    cut = tiny_word_timer().times(output, audio, ids("the end of"), "the end")
    assert [word.text for word in cut] == ["the", "end"]
    assert list(cut) == times(output, audio, "the end")


@given(
    st.lists(st.sampled_from([BLANK, THE, END, OF, FILE]), min_size=1, max_size=20),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.just("the end of the file " * 20),
    st.integers(0, 900),
    st.integers(0, 900),
)
def test_times_are_ordered_and_within_the_audio(frames: list[int], text: str, quiet_from: int, quiet_to: int) -> None:
    """The answer may be the audio's words or others, short or far too long, in any script."""
    output = sure_output(np.empty((0, 8), np.float32), np.array(frames, np.int64)).require_draft()
    # The last frame stands for less audio than it might.
    audio = speech(2, len(frames) * FRAME_S - 0.03)
    audio[quiet_from:quiet_to] = 0
    tokens = ids(text)
    said = tiny_tokeniser().decode(tokens).strip()
    words = tiny_word_timer().times(output, audio, tokens, said)
    assert " ".join(word.text for word in words) == (" ".join(said.split()) if any(map(str.isalnum, said)) else "")
    bounds_s = [bound_s for word in words for bound_s in (word.start_s, word.end_s)]
    assert bounds_s == sorted(bounds_s)
    assert all(0 <= bound_s <= len(audio) / SAMPLE_RATE_HZ for bound_s in bounds_s)


def asked(request: InstructRequest) -> InstructRequest:
    return change_task(request, word_times="required")


def answer(engine: LocalEngine, request: InstructRequest) -> Done:
    return Client(engine, request).done()


def test_the_engine_gives_the_words_of_the_whole_text() -> None:
    with serving() as engine:
        done = answer(engine, asked(instruct("a", speech(3, 3.0))))
        assert done.words
        assert " ".join(word.text for word in done.words) == " ".join(done.text.split())
        assert done.words[-1].end_s <= 3.0
        assert answer(engine, instruct("b", speech(3, 3.0))).words is None
        assert answer(engine, asked(instruct("c", silence(1.0)))).words == ()


def test_company_changes_no_times() -> None:
    requests = [asked(instruct(f"r{index}", speech(index, 1 + index % 3))) for index in range(9)]
    with serving() as engine:
        together = [client.done().words for client in [Client(engine, request) for request in requests]]
    assert together == [done.words for done in answers_alone(requests)]


def test_times_are_refused_where_the_answer_is_not_what_was_said() -> None:
    models = replace(fake_models(FakeLLM()), boundary_instructions=frozenset({"transcribe"}))
    engine = LocalEngine(models, SAMPLE_RATE_HZ, 30.0, 16)
    request = InstructRequest("a", speech(1), SpeechTask("Translate it.", SamplingOptions(), word_times="required"))
    with pytest.raises(InvalidRequest, match="transcription only") as refused:
        engine.submit(request, lambda _event: None)
    assert refused.value.param == "timestamps"


def test_times_are_refused_where_the_model_has_no_draft() -> None:
    engine = LocalEngine(replace(fake_models(FakeLLM()), word_timer=None), SAMPLE_RATE_HZ, 30.0, 16)
    with pytest.raises(InvalidRequest, match="cannot tell"):
        engine.submit(asked(instruct("a", speech(1))), lambda _event: None)
