"""The transcript of a sequence, from the speech decoder's first token to the text that was understood."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from models.chain import Models
from models.ctc import collapse
from models.protocols import Float32, ProjectorOutput
from models.speech_decoders.speech_model import LEAST_MEAN_LOGPROB, NO_SPEECH_PROBABILITY, SpeechModel, is_loop
from server.engine.runner.detokenise import Detokeniser
from server.engine.runner.heard_words import continue_words, read_words
from server.engine.runner.sampling import Sampler
from server.engine.runner.sequence import Memory, SequenceState
from server.engine.runner.transcript import (
    DEFAULT_LANGUAGE,
    DOUBTFUL_WORDS,
    TEMPERATURES,
    KeywordBoost,
    TranscriptConstraint,
    TranscriptDraft,
    cut_to_heard,
    fewest_words,
    lay_out_context,
    longest_transcript,
    most_words,
)
from server.engine.types.options import SamplingOptions, VoiceOptions

Verdict = Literal["understood", "silence", "write again"]


class TranscriptStage:
    """Lays out what the speech decoder begins with, and judges what it wrote."""

    def __init__(self, models: Models) -> None:
        self._models = models
        # The language that was heard last: a guess that saves a pass if it is right.
        self._language = DEFAULT_LANGUAGE

    def begin_transcript(self, sequence: SequenceState) -> None:
        """Give a sequence the prompt, the draft and the rules of a transcript, each time at the next of `TEMPERATURES`."""
        speech, request, encoded = self._models.require_speech(), sequence.request, sequence.require_encoded()
        tokens = speech.tokens
        translates = self._models.translates(request.instruction)
        sampling = request.sampling if sequence.answers_transcript else SamplingOptions()
        if temperature := TEMPERATURES[sequence.attempt]:
            sampling = replace(sampling, temperature=temperature, seed=sampling.seed or 0)
        longest = longest_transcript(len(request.audio) / self._models.sample_rate_hz)
        boost = KeywordBoost([speech.tokeniser.encode(f" {keyword}") for keyword in request.keywords])
        sequence.transcript_control_tokens = speech.control_tokens
        sequence.heard = "" if translates else self._read_draft(encoded)
        fewest, most = (fewest_words(sequence.heard), most_words(sequence.heard)) if sequence.heard else (0.0, math.inf)
        languages = request.languages if request.language is None else (request.language,)
        is_new = sequence.attempt == 0
        sequence.begin_text(
            Detokeniser(speech.tokeniser, sampling.stop),
            Sampler(sampling),
            TranscriptConstraint(speech, languages, boost, fewest, most, translates=translates, repeats=is_new),
            speech.control_tokens + min(sampling.max_tokens, longest),
        )
        context = lay_out_context(speech, request.prompt, request.keywords)
        sequence.prompt = speech.decoder.embed([*context, tokens.start])
        sequence.memory = Memory(speech.decoder, encoded.states)
        sequence.audio_frames = len(encoded.embeddings)
        guess = self._language if not languages or self._language in languages else languages[0]
        control = (
            tokens.languages.get(guess, next(iter(tokens.languages.values()))),
            tokens.translate if translates else tokens.transcribe,
            tokens.no_timestamps,
        )
        drafted = "" if request.draft == "off" or translates else self._draft_text(sequence)
        sequence.draft = TranscriptDraft(speech, control, drafted)

    def judge_transcript(self, sequence: SequenceState) -> Verdict:
        """Check a transcript that has ended: a loop is cut where the draft ends, or is to be written again."""
        text, heard = sequence.detokeniser.text, sequence.heard
        speech = self._models.require_speech()
        if self._is_silence(sequence, text):
            sequence.detokeniser, sequence.tokens, sequence.logprobs = Detokeniser(speech.tokeniser), [], []
            sequence.delta, sequence.finish_reason = "", "no_speech"
            return "silence"
        sequence.language = speech.language_of(sequence.tokens[0]) if speech.tokens.multilingual else self._language
        self._language = sequence.language or self._language
        asked = sequence.request.sampling
        is_as_long_as_asked = sequence.answers_transcript and sequence.max_tokens == speech.control_tokens + asked.max_tokens
        is_cut = sequence.finish_reason == "length" and not is_as_long_as_asked
        # The draft was trained on English.
        is_drafted = heard != "" and sequence.language == DEFAULT_LANGUAGE
        if is_loop(text) or is_cut or (is_drafted and len(text.split()) > most_words(heard)):
            if is_drafted:
                _keep_tokens(sequence, speech, cut_to_heard(sequence.tokens[speech.control_tokens :], speech, heard))
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

    def _draft_text(self, sequence: SequenceState) -> str:
        """Return what is drafted: the words of an earlier hypothesis, if there was one, and what was heard behind them."""
        draft = sequence.require_encoded().draft
        if draft is None:
            return self._models.require_speech().tokeniser.decode(sequence.known_tokens)
        if not sequence.known_words:
            return sequence.heard
        heard = read_words(draft.best_token, self._models.frame_s, self._models.draft_tokeniser)
        return " ".join(word.text for word in continue_words(sequence.known_words, heard))

    def _read_draft(self, encoded: ProjectorOutput) -> str:
        """Return the text of the CTC draft."""
        return "" if encoded.draft is None else self._models.draft_tokeniser.decode(collapse(encoded.draft.best_token))


def _keep_tokens(sequence: SequenceState, speech: SpeechModel, kept: Sequence[int]) -> None:
    """End a transcript with the first of its text's tokens."""
    sequence.logprobs = sequence.logprobs[: len(kept)]
    sequence.tokens = [*sequence.tokens[: speech.control_tokens], *kept]
    sequence.detokeniser = Detokeniser(speech.tokeniser, sequence.request.sampling.stop)
    sequence.delta = "".join(map(sequence.detokeniser.push, kept))
    sequence.finish("stop")
