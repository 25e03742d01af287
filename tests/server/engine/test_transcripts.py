"""Transcripts by the speech decoder, and answers about them, on real sessions of a tiny random model."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from models.assemble import load_models
from models.bundle.io import open_bundle
from models.chain import Models
from models.protocols import Float32
from models.speech_decoders.speech_model import LONGEST_TRANSCRIPT, is_loop
from server.engine.engine import LocalEngine
from server.engine.runner import transcript
from server.engine.runner.sequence_builder import lay_out_speech_context
from server.engine.runner.transcript import (
    BEGINNING_BOOST,
    CONTINUING_BOOST,
    KeywordBoost,
    TranscriptConstraint,
    cut_to_draft,
    fewest_words,
    split_words,
)
from server.engine.types.events import Delta, Done, Event, Failed
from server.engine.types.options import Constraint, Priority, SamplingOptions
from server.engine.types.requests import InstructRequest, SpeechTask
from server.errors import InvalidRequest
from tests.support.fakes.random_transcripts import take_any_transcript
from tests.support.tiny.tiny_bundle import write_transcribing_bundle

TRANSCRIBE, TRANSLATE, ASK = "Transcribe the speech to text.", "Translate to English.", "Who speaks?"
SLOTS = 3


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("transcribing") / "bundle"
    write_transcribing_bundle(folder, "int8")
    return load_models(open_bundle(folder), slots=SLOTS, threads=1)


@pytest.fixture
def engine(models: Models) -> Iterator[LocalEngine]:
    engine = LocalEngine(models, 16_000, 30.0, queue_limit=32)
    engine.start()
    yield engine
    engine.drain(5.0)


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    take_any_transcript(monkeypatch)


class Call:
    """One request, and what comes back."""

    def __init__(
        self,
        engine: LocalEngine,
        number: int,
        audio: Float32,
        instruction: str,
        priority: Priority = Priority.INTERACTIVE,
        **options: Any,
    ) -> None:
        self.events: list[Event] = []
        self.ended = threading.Event()
        sampling = options.pop("sampling", SamplingOptions(max_tokens=24))
        task = SpeechTask(instruction, sampling, **options)
        engine.submit(InstructRequest(f"r{number}", audio, task, priority=priority), self.take)

    def take(self, event: Event) -> None:
        self.events.append(event)
        if not isinstance(event, Delta):
            self.ended.set()

    @property
    def done(self) -> Done:
        assert self.ended.wait(60)
        last = self.events[-1]
        assert isinstance(last, Done), last
        assert "".join(event.text for event in self.events if isinstance(event, Delta)) == last.text
        return last


def noise(seed: int, seconds: float = 0.9) -> Float32:
    return np.random.default_rng(seed).normal(0, 0.2, round(seconds * 16_000)).astype(np.float32)


def answers(engine: LocalEngine, first: int, **options: Any) -> list[tuple[str, str, str | None]]:
    """Ask for transcripts, translations and answers, all at once."""
    calls = [
        Call(engine, first + number, noise(number, 0.4 + 0.3 * number), (TRANSCRIBE, TRANSLATE, ASK)[number % 3], **options)
        for number in range(7)
    ]
    return [(call.done.text, call.done.finish_reason, call.done.language) for call in calls]


@pytest.mark.usefixtures("once")
def test_drafted_is_undrafted_and_together_is_alone(engine: LocalEngine) -> None:
    together = answers(engine, 0)
    assert any(text for text, _, _ in together)
    assert answers(engine, 10, draft="off") == together
    alone = []
    for number in range(7):
        instruction = (TRANSCRIBE, TRANSLATE, ASK)[number % 3]
        done = Call(engine, 20 + number, noise(number, 0.4 + 0.3 * number), instruction).done
        alone.append((done.text, done.finish_reason, done.language))
    assert alone == together


@pytest.mark.usefixtures("once")
def test_what_is_preempted_says_the_same(engine: LocalEngine) -> None:
    expected = answers(engine, 0)
    batch = [
        Call(engine, 100 + n, noise(n, 0.4 + 0.3 * n), (TRANSCRIBE, TRANSLATE, ASK)[n % 3], priority=Priority.BATCH)
        for n in range(7)
    ]
    urgent = [Call(engine, 200 + n, noise(n), TRANSCRIBE, priority=Priority.LIVE) for n in range(4)]
    assert all(call.done for call in urgent)
    assert [(call.done.text, call.done.finish_reason, call.done.language) for call in batch] == expected


@pytest.mark.usefixtures("once")
def test_the_task_and_the_language_change_the_text(engine: LocalEngine) -> None:
    asked = [(TRANSCRIBE, "en"), (TRANSCRIBE, "de"), (TRANSLATE, "de")]
    # A random model may write the same for one recording.
    answers_of = [
        [Call(engine, 10 * number + seed, noise(seed, 2.0), instruction, language=language).done for seed in range(4)]
        for number, (instruction, language) in enumerate(asked)
    ]
    assert len({tuple(done.text for done in answers) for answers in answers_of}) == len(asked)
    assert [{done.language for done in answers} for answers in answers_of] == [{"en"}, {"de"}, {"de"}]


def test_a_language_that_the_model_does_not_know_is_refused(engine: LocalEngine) -> None:
    with pytest.raises(InvalidRequest, match="language") as caught:
        Call(engine, 0, noise(0), TRANSCRIBE, language="xx")
    assert caught.value.param == "language"


@pytest.mark.usefixtures("once")
def test_what_comes_before_and_keywords_change_the_text_and_drafts_still_do_not(engine: LocalEngine) -> None:
    audio = noise(5, 2.0)
    options: list[dict[str, Any]] = [{}, {"prompt": "and then"}, {"keywords": ("Qwen", "Thinbridge")}]
    calls = [Call(engine, number, audio, TRANSCRIBE, **each).done for number, each in enumerate(options)]
    assert len({done.text for done in calls}) == len(options)
    assert all(done.usage.text_tokens > calls[0].usage.text_tokens for done in calls[1:])
    undrafted = [Call(engine, 9 + n, audio, TRANSCRIBE, draft="off", **each).done for n, each in enumerate(options)]
    assert [done.text for done in undrafted] == [done.text for done in calls]


def test_of_a_long_prompt_the_end_counts(models: Models) -> None:
    speech = models.require_speech()
    whole = lay_out_speech_context(speech, "word " * 400 + "the end", ("Qwen",))
    assert whole[0] == speech.tokens.previous
    assert speech.tokeniser.decode(whole[1:]).startswith(" Qwen")
    assert speech.tokeniser.decode(whole[1:]).endswith("word the end")
    assert len(whole) + 1 + speech.control_tokens + LONGEST_TRANSCRIPT < speech.decoder.max_positions


def test_special_tokens_in_a_prompt_and_among_keywords_are_text(models: Models) -> None:
    speech = models.require_speech()
    special = set(speech.tokeniser.special_tokens.values())
    for name in (*speech.tokeniser.special_tokens, *models.tokeniser.special_tokens):
        context = lay_out_speech_context(speech, f"and {name}", (name, f"{name}a"))
        assert context[0] == speech.tokens.previous
        assert special.isdisjoint(context[1:])
        assert speech.tokeniser.decode(context[1:]) == f" {name}, {name}a and {name}"


def test_keywords_that_have_no_room_are_refused(engine: LocalEngine) -> None:
    with pytest.raises(InvalidRequest, match="keywords") as caught:
        Call(engine, 0, noise(0), TRANSCRIBE, keywords=("something long",) * 64)
    assert caught.value.param == "keywords"


def test_a_keyword_is_boosted_where_it_may_begin_and_more_where_it_has_begun() -> None:
    boost = KeywordBoost([[1, 2, 3], [1, 4]])
    assert boost.find_boosts([]) == {1: BEGINNING_BOOST}
    assert boost.find_boosts([9, 1]) == {1: BEGINNING_BOOST, 2: CONTINUING_BOOST, 4: CONTINUING_BOOST}
    assert boost.find_boosts([1, 2]) == {1: BEGINNING_BOOST, 3: CONTINUING_BOOST}
    assert boost.find_boosts([1, 2, 3]) == {1: BEGINNING_BOOST}


@pytest.mark.parametrize(("odds", "chosen"), [(1.0, "en"), (7.0, "en"), (9.0, "de")])
def test_another_language_than_english_has_to_be_far_likelier(models: Models, odds: float, chosen: str) -> None:
    speech = models.require_speech()
    logits = np.zeros(speech.decoder.vocabulary_size, np.float32)
    logits[speech.tokens.languages["de"]] = np.log(odds)
    masked = TranscriptConstraint(speech, (), KeywordBoost([]), translates=False).mask(logits)
    assert speech.language_of(int(masked.argmax())) == chosen


@pytest.mark.parametrize(("language", "ends"), [("en", True), ("de", False)])
def test_english_text_ends_behind_the_most_words_that_the_draft_allows(models: Models, language: str, ends: bool) -> None:
    speech = models.require_speech()
    constraint = TranscriptConstraint(speech, (language,), KeywordBoost([]), most_words=2, translates=False)
    word = next(id for id in range(speech.tokens.end) if speech.tokeniser.begins_word(id))
    logits = np.zeros(speech.decoder.vocabulary_size, np.float32)
    for token in (speech.tokens.languages[language], speech.tokens.transcribe, speech.tokens.no_timestamps, word, word):
        constraint.advance(token)
    assert np.isfinite(constraint.mask(logits)).sum() > 1
    constraint.advance(word)
    allowed = np.flatnonzero(np.isfinite(constraint.mask(logits))).tolist()
    assert (allowed == [speech.tokens.end]) == ends


def test_a_word_that_is_spelt_has_as_many_words_as_letters(models: Models) -> None:
    speech = models.require_speech()
    constraint = TranscriptConstraint(speech, ("en",), KeywordBoost([]), most_words=3, translates=False)
    logits = np.zeros(speech.decoder.vocabulary_size, np.float32)
    for token in (speech.tokens.languages["en"], speech.tokens.transcribe, speech.tokens.no_timestamps):
        constraint.advance(token)
    for token in speech.tokeniser.encode(" a-b-c-"):
        assert np.isfinite(constraint.mask(logits)).sum() > 1
        constraint.advance(token)
    assert np.flatnonzero(np.isfinite(constraint.mask(logits))).tolist() == [speech.tokens.end]


@pytest.mark.parametrize(("language", "waits"), [("en", True), ("de", False)])
def test_english_text_goes_on_while_it_leaves_out_what_the_draft_heard(models: Models, language: str, waits: bool) -> None:
    """Whisper writes a sentence that is spoken six times once."""
    speech = models.require_speech()
    fewest = fewest_words("what a spiteful thing")
    assert fewest_words("") < fewest_words("one two three four") == fewest < 1 < fewest_words("so it is said " * 3)
    constraint = TranscriptConstraint(speech, (language,), KeywordBoost([]), fewest_words("so it is said " * 3), translates=False)
    word = next(id for id in range(speech.tokens.end) if speech.tokeniser.begins_word(id))
    logits = np.zeros(speech.decoder.vocabulary_size, np.float32)
    for token in (speech.tokens.languages[language], speech.tokens.transcribe, speech.tokens.no_timestamps, *[word] * 4):
        constraint.advance(token)
    assert np.isfinite(constraint.mask(logits)[speech.tokens.end]) != waits
    constraint.advance(word)
    assert np.isfinite(constraint.mask(logits)[speech.tokens.end])


def test_a_number_counts_as_the_words_of_its_digits(models: Models) -> None:
    speech = models.require_speech()
    constraint = TranscriptConstraint(
        speech, ("en",), KeywordBoost([]), fewest_words("five five five one two three four"), translates=False
    )
    tokens = speech.tokeniser.encode(" 55")
    for token in (speech.tokens.languages["en"], speech.tokens.transcribe, speech.tokens.no_timestamps, *tokens):
        constraint.advance(token)
    assert np.isfinite(constraint.mask(np.zeros(speech.decoder.vocabulary_size, np.float32))[speech.tokens.end])


@pytest.mark.usefixtures("once")
def test_an_instruction_is_answered_by_the_llm_about_the_transcript(engine: LocalEngine, models: Models) -> None:
    audio = noise(3, 1.5)
    transcript = Call(engine, 0, audio, TRANSCRIBE, sampling=SamplingOptions(max_tokens=224)).done
    answer = Call(engine, 1, audio, ASK).done
    assert transcript.text
    assert transcript.usage.text_tokens == 4
    assert answer.text != transcript.text
    assert answer.usage.audio_frames == len(models.tokeniser.encode(transcript.text))
    assert answer.language == transcript.language


@pytest.mark.usefixtures("once")
def test_a_constraint_is_followed_by_the_llm(engine: LocalEngine) -> None:
    sampling = SamplingOptions(constraint=Constraint("choice", '["yes", "no"]'))
    assert Call(engine, 0, noise(1), TRANSCRIBE, sampling=sampling).done.text in ("yes", "no")


def test_a_loop_without_a_draft_is_written_again_the_same_way_each_time(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = Call(engine, 0, noise(4, 1.2), TRANSCRIBE, language="de").done
    monkeypatch.setattr(transcript, "is_loop", lambda _text: True)
    again = [Call(engine, number, noise(4, 1.2), TRANSCRIBE, language="de").done for number in (1, 2)]
    assert again[0].text == again[1].text != once.text
    assert again[0].speculation.llm_passes > once.speculation.llm_passes


@pytest.mark.usefixtures("once")
def test_a_few_words_without_a_voice_are_no_speech(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    audio, sampling = noise(2, 1.5), SamplingOptions(max_tokens=4)
    assert Call(engine, 0, audio, TRANSCRIBE, sampling=sampling).done.finish_reason == "length"
    monkeypatch.setattr(transcript.TranscriptStage, "_has_voice", lambda _stage, _audio: False)
    done = Call(engine, 1, audio, TRANSCRIBE, sampling=sampling).done
    assert (done.text, done.finish_reason, done.usage.output_tokens) == ("", "no_speech", 0)


@pytest.mark.parametrize(("text", "loops"), [("", False), ("A plain sentence, said once.", False), ("and so on " * 12, True)])
def test_text_that_repeats_itself_is_a_loop(text: str, loops: bool) -> None:
    assert is_loop(text) == loops


def test_a_word_that_is_spelt_on_and_on_is_cut_like_words(models: Models) -> None:
    speech = models.require_speech()
    kept = cut_to_draft(speech.tokeniser.encode(" it-is-a-s-s-s-s-s-s-s-s-s"), speech, "it is as")
    assert 2 <= len(split_words(speech.tokeniser.decode(kept))) <= 5


@pytest.mark.usefixtures("once")
def test_log_probabilities_are_those_of_the_text_alone(engine: LocalEngine) -> None:
    sampling = SamplingOptions(max_tokens=12, logprobs=2)
    done = Call(engine, 0, noise(2, 1.5), TRANSCRIBE, sampling=sampling).done
    assert done.logprobs is not None
    assert b"".join(each.bytes for each in done.logprobs).decode(errors="replace").strip() == done.text
    assert len(done.logprobs) == done.usage.output_tokens
    assert all(each.logprob <= 0 and len(each.top) == 2 for each in done.logprobs)


@pytest.mark.usefixtures("once")
def test_a_transcript_ends_at_a_stop_string(engine: LocalEngine) -> None:
    whole = Call(engine, 0, noise(2, 1.5), TRANSCRIBE).done.text
    stop = whole[len(whole) // 2 :][:2]
    done = Call(engine, 1, noise(2, 1.5), TRANSCRIBE, sampling=SamplingOptions(max_tokens=24, stop=(stop,))).done
    assert done.finish_reason == "stop"
    assert done.text == whole[: whole.index(stop)].strip()


def test_a_decoder_that_fails_fails_its_request_alone(
    engine: LocalEngine, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = models.require_speech().decoder
    write = decoder.write_memory

    def fail_on_long(slot: int, states: Float32) -> None:
        if len(states) > 200:
            raise RuntimeError("out of order")
        write(slot, states)

    monkeypatch.setattr(decoder, "write_memory", fail_on_long)
    bad, good = Call(engine, 0, noise(0, 5.0), TRANSCRIBE), Call(engine, 1, noise(1), TRANSCRIBE)
    assert good.done.finish_reason in ("stop", "length")
    assert bad.ended.wait(60)
    assert isinstance(bad.events[-1], Failed)


def test_the_speech_decoder_comes_before_the_llm(models: Models) -> None:
    assert models.decoders == (models.require_speech().decoder, models.llm)
    assert replace(models, speech=None).decoders == (models.llm,)


def test_the_language_is_found_among_those_that_may_be_spoken(engine: LocalEngine) -> None:
    """The tiny model knows two."""

    def heard(number: int, **options: Any) -> tuple[str, str | None]:
        done = Call(engine, number, noise(number), TRANSCRIBE, **options).done
        return done.text, done.language

    for number in range(3):
        assert heard(number, languages=("de",)) == heard(number, language="de")
        assert heard(number, languages=("de", "en")) == heard(number)
    with pytest.raises(InvalidRequest, match="'xx'") as caught:
        Call(engine, 0, noise(0), TRANSCRIBE, languages=("de", "xx"))
    assert caught.value.param == "languages"
