"""How the speech decoder writes a transcript: control tokens first, then text that a draft proposes (arXiv 2212.04356).

The control tokens (language, task, no timestamps) are chosen like any other token, among those that are allowed at their place,
and are part of the draft. So a language that was guessed right costs no pass.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from models.chain import Models
from models.ctc import Run, collapse, find_runs
from models.protocols import CtcDraft, Float32, Int64, ProjectorOutput
from models.speech_decoders.speech_model import (
    DEFAULT_LANGUAGE_ODDS,
    LEAST_MEAN_LOGPROB,
    LONGEST_TRANSCRIPT,
    NO_SPEECH_PROBABILITY,
    SpeechModel,
    is_loop,
)
from models.text.constraint import TokenConstraint
from models.text.prefix_draft import PrefixDraft
from models.text.realignment import Draft as WordAlignment
from models.text.realignment import count_drafted
from models.text.tokeniser import Detokeniser, Tokeniser
from server.engine.runner.sampling import Sampler
from server.engine.runner.sequence import Memory, SequenceState
from server.engine.runner.sequence_builder import lay_out_speech_context
from server.engine.types.events import Word
from server.engine.types.options import SamplingOptions, VoiceOptions

Verdict = Literal["understood", "silence", "write again"]

DEFAULT_LANGUAGE = "en"
MOST_TOKENS_PER_S, MOST_TOKENS_MORE = 10.0, 16
"""The most tokens of text that a transcript has for each second of audio, and in addition."""
LOOP_SHARE, LOOP_MARGIN = 1.5, 5
"""A transcript is a loop if it has more words than this share of the draft's, and this margin more."""
LEAST_SHARE, LEAST_MARGIN = 0.6, 3
"""A transcript leaves speech out, and goes on, while it has fewer words than this share of the draft's, less this margin."""
TEMPERATURES = (0.0, 0.0, 0.4, 0.8)
"""A transcript that is a loop is written again at the next of these, and from then on without repeating itself."""
DOUBTFUL_WORDS = 5
"""Whisper writes a few words about silence ("you", "Thank you."), so a transcript that short needs a voice in the audio."""
KNOWN_PROBABILITY = 0.95
"""Of a drafted word that an earlier hypothesis about the same audio had."""
REPEATED_TOKENS = 3
"""In a transcript that is written again, no run of this many tokens occurs twice."""
BEGINNING_BOOST, CONTINUING_BOOST = 1.0, 3.0
"""Added to the logit of a keyword's first token anywhere, and of its next one behind its beginning."""


class KeywordBoost:
    """Makes the tokens of keywords likelier where one of them may begin, and more so where one has begun.

    The boost depends on nothing but the text so far, so that a draft changes no transcript.
    """

    def __init__(self, keywords: Sequence[Sequence[int]]) -> None:
        self._keywords = [tuple(keyword) for keyword in keywords if keyword]

    def find_boosts(self, text: Sequence[int]) -> dict[int, float]:
        """Return the tokens that are boosted behind a text, each with the number that is added to its logit."""
        boosts: dict[int, float] = {}
        for keyword in self._keywords:
            boosts[keyword[0]] = max(boosts.get(keyword[0], 0.0), BEGINNING_BOOST)
            for begun in range(min(len(keyword) - 1, len(text)), 0, -1):
                if tuple(text[-begun:]) == keyword[:begun]:
                    boosts[keyword[begun]] = CONTINUING_BOOST
                    break
        return boosts


class TranscriptConstraint(TokenConstraint):
    """Allows control tokens first, and then text without the tokens that Whisper suppresses."""

    def __init__(
        self,
        speech: SpeechModel,
        languages: Sequence[str],
        boost: KeywordBoost,
        fewest_words: float = 0.0,
        most_words: float = math.inf,
        *,
        translates: bool,
        repeats: bool = True,
    ) -> None:
        """The language is identified among `languages`, which `speech.tokens.languages` has; none means among all of those.

        Text in the language of the draft ends behind `fewest_words` at the earliest, and behind the first word after `most_words`
        at the latest. Without `repeats` no `REPEATED_TOKENS` in a row occur twice.
        """
        self._boost = boost
        self._fewest_words, self._most_words = fewest_words, most_words
        self._words = self._digits = 0
        self._decode = speech.tokeniser.decode
        self._begins_word = speech.tokeniser.begins_word
        tokens = speech.tokens
        self._end = tokens.end
        candidates = [tokens.languages[language] for language in languages or tokens.languages]
        task = tokens.translate if translates else tokens.transcribe
        allowed = [np.array(candidates), np.array([task]), np.array([tokens.no_timestamps])]
        self._allowed = allowed[len(allowed) - speech.control_tokens :]
        self._default = tokens.languages.get(DEFAULT_LANGUAGE, candidates[0])
        self._suppressed = np.array(tokens.suppressed, np.int64)
        self._suppressed_first = np.array((*tokens.suppressed, *tokens.suppressed_first), np.int64)
        self._repeats = repeats
        self._written: list[int] = []

    def mask(self, logits: Float32) -> Float32:
        masked = logits.copy()
        written = len(self._written)
        if written < len(self._allowed):
            allowed = self._allowed[written]
            best = allowed[logits[allowed].argmax()]
            if self._default in allowed and logits[best] - logits[self._default] < np.log(DEFAULT_LANGUAGE_ODDS):
                best = self._default
            masked[:] = -np.inf
            masked[best] = logits[best]
        elif self._words > self._most_words and self._written[0] == self._default:
            masked[:] = -np.inf
            masked[self._end] = logits[self._end]
        else:
            masked[self._suppressed_first if written == len(self._allowed) else self._suppressed] = -np.inf
            # A number may be spoken as a word for each of its digits.
            if self._words + self._digits < self._fewest_words and self._written[0] == self._default:
                masked[self._end] = -np.inf
            if not self._repeats:
                masked[self._repeated()] = -np.inf
            for token, boost in self._boost.find_boosts(self._written[len(self._allowed) :]).items():
                masked[token] += boost
        return masked

    def advance(self, token: int) -> None:
        self._written.append(token)
        text = self._decode([token])
        # As `count_words` counts them.
        self._words += max(int(self._begins_word(token)), text.count("-"))
        self._digits += sum(map(str.isdigit, text))

    def _repeated(self) -> list[int]:
        """Return the tokens that would complete a run of tokens that is written already."""
        text, length = self._written[len(self._allowed) :], REPEATED_TOKENS - 1
        last = text[-length:]
        return [text[end] for end in range(length, len(text)) if text[end - length : end] == last]


@dataclass(frozen=True)
class DraftWord(Word):
    """A word of a CTC draft, with the probability that the draft gives it."""

    probability: float = 1.0


def read_words(
    best_token: Int64 | Sequence[int], frame_s: float, tokeniser: Tokeniser, probability: Float32 | Sequence[float] = ()
) -> list[DraftWord]:
    """Return the words of a CTC path [frames], each from its first token's first frame to its last one's last.

    `probability` [frames] is that of the best token; the probability of a word is the product of its tokens'.
    """
    words: list[list[Run]] = []
    for run in find_runs(best_token):
        if not words or tokeniser.begins_word(run.token):
            words.append([])
        words[-1].append(run)
    drafted = []
    for runs in words:
        if text := tokeniser.decode([run.token for run in runs]).strip():
            likely = [float(max(probability[run.first : run.last + 1], default=1.0)) for run in runs]
            drafted.append(DraftWord(text, runs[0].first * frame_s, (runs[-1].last + 1) * frame_s, math.prod(likely)))
    return drafted


def continue_words(known: Sequence[Word], drafted: Sequence[DraftWord]) -> list[DraftWord]:
    """Return the words of an earlier hypothesis, each almost certain, and behind the last of them those of the draft."""
    certain = [DraftWord(word.text, word.start_s, word.end_s, KNOWN_PROBABILITY) for word in known]
    return [*certain, *(word for word in drafted if not known or word.middle_s > known[-1].end_s)]


class TranscriptDraft:
    """A draft of control tokens and text: a `speculation.Draft`.

    A text is realigned word by word; how much of it is proposed depends on the `probabilities` of its words, without which each
    is certain. The CTC output proposes where the text does not, such as behind its last word.
    """

    def __init__(
        self,
        speech: SpeechModel,
        control: Sequence[int],
        text: str = "",
        probabilities: Sequence[float] = (),
        output: PrefixDraft | None = None,
    ) -> None:
        self._control = tuple(control[len(control) - speech.control_tokens :])
        self._words = WordAlignment(text, speech.tokeniser.encode, speech.tokeniser.decode, probabilities)
        self._output = output
        self._written: list[int] = []
        self._drafted: tuple[int, ...] | None = None

    @property
    def next(self) -> int | None:
        return next(iter(self._following()), None)

    @property
    def overrun(self) -> int:
        return 0

    def propose(self, room: int) -> tuple[int, ...]:
        # The rest of the last proposal ends early, because that was cut by how likely it was as a whole.
        self._drafted = None
        return self._following()[: max(0, room)]

    def expects(self, token: int) -> bool:  # noqa: ARG002 - what follows is found anew, wherever the text stands
        return True

    def advance(self, token: int) -> None:
        self._written.append(token)
        expected = self._drafted is not None and self._drafted[:1] == (token,)
        self._drafted = (self._drafted or ())[1:] or None if expected else None

    def learn(self, proposed: int, accepted: int) -> None:
        """Learn nothing."""

    def _following(self) -> tuple[int, ...]:
        """Return the drafted tokens behind what is written, or what is left of them if they are being written."""
        if self._drafted is None:
            written = self._written[len(self._control) :]
            text = self._words.propose(written) if self._words.words else []
            if not text and self._output is not None:
                text = self._output.propose(written)
            self._drafted = (*self._control[len(self._written) :], *text)
        return self._drafted


def split_words(text: str) -> list[str]:
    """Return the words of a text. A hyphen ends a word too: letters that are spelt one by one would be one word otherwise."""
    return text.replace("-", " ").split()


def count_words(text: str) -> int:
    """Return how many words a text has begun: behind a hyphen another one begins."""
    return len(text.split()) + text.count("-")


def most_words(draft: str) -> float:
    """Return how many words a transcript may have that is no loop, by the draft's text."""
    return LOOP_SHARE * count_words(draft) + LOOP_MARGIN


def fewest_words(draft: str) -> float:
    """Return how many words a transcript has at least that leaves no speech out, by the draft's text."""
    return LEAST_SHARE * count_words(draft) - LEAST_MARGIN


def longest_transcript(audio_s: float) -> int:
    """Return how many tokens of text audio of this length may have."""
    return min(LONGEST_TRANSCRIPT, int(MOST_TOKENS_PER_S * audio_s) + MOST_TOKENS_MORE)


def cut_to_draft(tokens: Sequence[int], speech: SpeechModel, draft: str) -> list[int]:
    """Return the tokens of a transcript up to where it goes on behind the draft's end."""
    decode = speech.tokeniser.decode
    wanted = count_drafted(split_words(decode(tokens)), split_words(draft))
    # The next word begins with a space of its own, so that a cut before it loses nothing of the last word.
    ends = [count for count in range(len(tokens) + 1) if len(split_words(decode(tokens[:count]))) <= wanted]
    return list(tokens[: max(ends, default=0)])


class TranscriptStage:
    """Lays out what the speech decoder begins with, and judges what it wrote."""

    def __init__(self, models: Models) -> None:
        self._models = models
        # The language of the last transcript: a guess that saves a pass if it is right.
        self._language = DEFAULT_LANGUAGE

    def begin_transcript(self, sequence: SequenceState) -> None:
        """Give a sequence the prompt, the draft and the rules of a transcript, each time at the next of `TEMPERATURES`."""
        speech, request, encoded = self._models.require_speech(), sequence.request, sequence.require_encoded()
        tokens = speech.tokens
        translates = self._models.translates(request.task.instruction)
        sampling = request.task.sampling if sequence.answers_transcript else SamplingOptions()
        if temperature := TEMPERATURES[sequence.attempt]:
            sampling = replace(sampling, temperature=temperature, seed=sampling.seed or 0)
        longest = longest_transcript(len(request.audio) / self._models.sample_rate_hz)
        boost = KeywordBoost([speech.tokeniser.encode(f" {keyword}") for keyword in request.task.keywords])
        sequence.transcript_control_tokens = speech.control_tokens
        draft = sequence.draft_text = "" if translates else self._read_draft(encoded)
        fewest, most = (fewest_words(draft), most_words(draft)) if draft else (0.0, math.inf)
        languages = request.task.languages if request.task.language is None else (request.task.language,)
        is_new = sequence.attempt == 0
        sequence.begin_text(
            Detokeniser(speech.tokeniser, sampling.stop),
            Sampler(sampling),
            TranscriptConstraint(speech, languages, boost, fewest, most, translates=translates, repeats=is_new),
            speech.control_tokens + min(sampling.max_tokens, longest),
        )
        context = lay_out_speech_context(speech, request.task.prompt, request.task.keywords)
        sequence.prompt = speech.decoder.embed([*context, tokens.start])
        sequence.memory = Memory(speech.decoder, encoded.states)
        sequence.audio_frames = len(encoded.embeddings)
        guess = self._language if not languages or self._language in languages else languages[0]
        control = (
            tokens.languages.get(guess, next(iter(tokens.languages.values()))),
            tokens.translate if translates else tokens.transcribe,
            tokens.no_timestamps,
        )
        is_drafted = request.task.draft != "off" and not translates
        sequence.draft = self._make_draft(sequence, control) if is_drafted else TranscriptDraft(speech, control)

    def judge_transcript(self, sequence: SequenceState) -> Verdict:
        """Check a transcript that has ended: a loop is cut where the draft ends, or is to be written again."""
        text, draft = sequence.detokeniser.text, sequence.draft_text
        speech = self._models.require_speech()
        if self._is_silence(sequence, text):
            sequence.detokeniser, sequence.tokens, sequence.logprobs = Detokeniser(speech.tokeniser), [], []
            sequence.delta, sequence.finish_reason = "", "no_speech"
            return "silence"
        sequence.language = speech.language_of(sequence.tokens[0]) if speech.tokens.multilingual else self._language
        self._language = sequence.language or self._language
        asked = sequence.request.task.sampling
        is_as_long_as_asked = sequence.answers_transcript and sequence.max_tokens == speech.control_tokens + asked.max_tokens
        is_cut = sequence.finish_reason == "length" and not is_as_long_as_asked
        # The draft was trained on English.
        is_drafted = draft != "" and sequence.language == DEFAULT_LANGUAGE
        if is_loop(text) or is_cut or (is_drafted and count_words(text) > most_words(draft)):
            if is_drafted:
                _keep_tokens(sequence, speech, cut_to_draft(sequence.tokens[speech.control_tokens :], speech, draft))
            elif asked.temperature == 0 and sequence.attempt + 1 < len(TEMPERATURES):
                sequence.attempt += 1
                return "write again"
        return "understood"

    def _is_silence(self, sequence: SequenceState, text: str) -> bool:
        """Return whether a transcript is a guess about audio that holds no speech."""
        mean_logprob = sequence.logprob_sum / max(1, len(sequence.tokens) - sequence.control_tokens + 1)
        if sequence.no_speech_probability > NO_SPEECH_PROBABILITY and mean_logprob < LEAST_MEAN_LOGPROB:
            return True
        return len(text.split()) <= DOUBTFUL_WORDS and not self._has_voice(sequence.request.audio)

    def _has_voice(self, audio: Float32) -> bool:
        """Return whether the voice detector hears speech anywhere in audio [samples]."""
        voice, state = self._models.voice, None
        whole = np.pad(audio, (0, -len(audio) % voice.window_samples))
        for window in whole.reshape(-1, voice.window_samples):
            probabilities, state = voice.detect(window, state)
            if probabilities[0] >= VoiceOptions.threshold:
                return True
        return False

    def _make_draft(self, sequence: SequenceState, control: Sequence[int]) -> TranscriptDraft:
        """Draft the words of an earlier hypothesis, if there was one, and what the CTC output has behind them."""
        draft, speech = sequence.require_encoded().draft, self._models.require_speech()
        if draft is None:
            return TranscriptDraft(speech, control, speech.tokeniser.decode(sequence.known_tokens))
        is_in_its_tokens = self._models.draft_vocabulary == "speech_decoder"
        drafted = [] if is_in_its_tokens else self._read_words(draft)
        words = continue_words(sequence.known_words, drafted)
        text, likely = " ".join(word.text for word in words), [word.probability for word in words for _ in word.text.split()]
        return TranscriptDraft(speech, control, text, likely, PrefixDraft(draft) if is_in_its_tokens else None)

    def _read_words(self, draft: CtcDraft) -> list[DraftWord]:
        return read_words(draft.best_token, self._models.frame_s, self._models.draft_tokeniser, draft.probability)

    def _read_draft(self, encoded: ProjectorOutput) -> str:
        """Return the text of the CTC draft."""
        return "" if encoded.draft is None else self._models.draft_tokeniser.decode(collapse(encoded.draft.best_token))


def _keep_tokens(sequence: SequenceState, speech: SpeechModel, kept: Sequence[int]) -> None:
    """End a transcript with the first of its text's tokens."""
    sequence.logprobs = sequence.logprobs[: len(kept)]
    sequence.tokens = [*sequence.tokens[: speech.control_tokens], *kept]
    sequence.detokeniser = Detokeniser(speech.tokeniser, sequence.request.task.sampling.stop)
    sequence.delta = "".join(map(sequence.detokeniser.push, kept))
    sequence.finish("stop")
