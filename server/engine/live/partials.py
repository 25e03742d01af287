"""Partial text of an utterance that is still being spoken: when a hypothesis is made, of which audio, and what it changes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from models.chain import Models
from models.text.tokeniser import PromptIds
from server.engine.live.agreed_text import AgreedText
from server.engine.live.stable_text import StableText
from server.engine.live.utterance import Utterance
from server.engine.runner.sequence import SequenceState
from server.engine.runner.sequence_builder import new_sequence
from server.engine.runner.transcript import longest_transcript, read_words
from server.engine.types.events import Done, Event, Word, shift_words
from server.engine.types.options import SamplingOptions
from server.engine.types.requests import InstructRequest, SpeechTask

# A hypothesis is made so often, at first and once there is text, but takes no more than this share of a session's time.
FIRST_PARTIAL_INTERVAL_S, PARTIAL_INTERVAL_S = 0.16, 0.32
PARTIAL_SHARE = 1 / 3
# A hypothesis is made of the utterance, or of its last seconds with some of the words that stand already.
PARTIAL_WINDOW_S, PARTIAL_CONTEXT_S = 8.0, 1.0
DRAFT_ONLY = SamplingOptions(max_tokens=0)
# The first hypothesis waits for as long as one takes, but no longer than this: the first words come with it.
LONGEST_FIRST_WAIT_S = 0.4
# The speech of which the first hypothesis is made, where a decoder writes it without a draft.
FIRST_WRITTEN_S = 0.8
# After a hypothesis that took longer the next one is a draft alone, which takes half as long.
LONGEST_WRITING_S = 0.6


@dataclass
class PartialPace:
    """How often a session's hypotheses are made, by how long the last ones took. Pure."""

    hypothesis_took_s: float = 0.0
    draft_took_s: float = 0.0

    @property
    def first_wait_s(self) -> float:
        """How much speech the first hypothesis waits for."""
        return min(FIRST_PARTIAL_INTERVAL_S + self.draft_took_s, LONGEST_FIRST_WAIT_S)

    @property
    def has_time_to_write(self) -> bool:
        """Whether the decoder may write the next hypothesis, which is a draft alone otherwise."""
        return self.hypothesis_took_s <= LONGEST_WRITING_S

    def note_hypothesis(self, took_s: float, *, is_draft: bool, has_text: bool) -> float:
        """Take note of a hypothesis, and return the pause before the next one."""
        if is_draft:
            self.draft_took_s = took_s
        self.hypothesis_took_s = 0.0 if is_draft else took_s
        return max(PARTIAL_INTERVAL_S if has_text else FIRST_PARTIAL_INTERVAL_S, took_s / PARTIAL_SHARE)


class PartialMaker:
    """Makes the hypotheses of one session. Positions are samples of its audio.

    With a speech decoder that decoder writes a hypothesis, and else it is the projector's draft. Without drafts each is a
    transcript of the whole utterance so far.
    """

    def __init__(self, models: Models, sample_rate_hz: int) -> None:
        self._models = models
        self._rate_hz = sample_rate_hz
        self._can_write = models.speech is not None and models.word_timer is not None
        self._pace = PartialPace()

    def new_text(self, start_s: float) -> StableText | AgreedText:
        """Return the text of an utterance, of which nothing is heard yet."""
        return StableText(start_s) if self._models.drafts else AgreedText(start_s)

    def first_due(self, start: int, prefix_padding_s: float) -> int:
        """Return when the first hypothesis is due of an utterance that begins at `start`, with padding before its speech."""
        wait_s = self._pace.first_wait_s if self._models.drafts else FIRST_WRITTEN_S
        return start + round((prefix_padding_s + wait_s) * self._rate_hz)

    def choose_task(self, utterance: Utterance, task: SpeechTask, end: int) -> tuple[int, SpeechTask]:
        """Return from where on the next hypothesis hears an utterance, up to `end`, and as which task."""
        task = replace(task, instruction=self._models.transcription_instruction)
        if not isinstance(utterance.text, StableText):
            sampling = SamplingOptions(max_tokens=longest_transcript((end - utterance.start) / self._rate_hz))
            return utterance.start, replace(task, sampling=sampling, draft="exact", word_times="none")
        settled_s = utterance.text.stable_end_s - PARTIAL_CONTEXT_S
        start = max(utterance.start, min(end - round(PARTIAL_WINDOW_S * self._rate_hz), round(settled_s * self._rate_hz)))
        # The first words come sooner from the draft.
        is_written = self._can_write and self._pace.has_time_to_write and len(utterance.text.words) > 0
        if is_written:
            return start, replace(task, sampling=SamplingOptions(), draft="exact", word_times="required")
        return start, replace(task, sampling=DRAFT_ONLY, draft="off", word_times="none")

    def new_hypothesis(
        self, utterance: Utterance, request: InstructRequest, start: int, take_event: Callable[[Event], None]
    ) -> SequenceState:
        """Return the hypothesis that a request asks for, about audio from `start`; what was heard before is its draft."""
        prompt_ids: PromptIds | None = utterance.prompt_ids
        if isinstance(utterance.text, AgreedText) and not self._models.transcribes(utterance.task.instruction):
            prompt_ids = None
        hypothesis = new_sequence(self._models, request, take_event, prompt_ids)
        hypothesis.gives_way = True
        if isinstance(utterance.text, StableText):
            hypothesis.known_words = utterance.known_words(start, self._rate_hz)
        else:
            hypothesis.known_tokens, hypothesis.kept = utterance.hypothesis, utterance.kept
        return hypothesis

    def update_text(self, utterance: Utterance, hypothesis: SequenceState, done: Done, start: int, end: int) -> bool:
        """Take a hypothesis of the audio from `start` to `end`, and return whether the utterance's text changed."""
        start_s, end_s, took_s = start / self._rate_hz, end / self._rate_hz, hypothesis.elapsed_s
        if isinstance(utterance.text, AgreedText):
            changed = utterance.text.update(done.text, end_s)
            utterance.hypothesis = hypothesis.text_tokens
        else:
            changed = utterance.text.update(shift_words(self._read_hypothesis(hypothesis, done), start_s), end_s)
        has_text = bool(utterance.text.stable or utterance.text.tail)
        pause_s = self._pace.note_hypothesis(took_s, is_draft=hypothesis.drafts_only, has_text=has_text)
        utterance.partial_due = end + round(pause_s * self._rate_hz)
        utterance.partial_due_at_s = time.monotonic() + pause_s
        return changed

    def _read_hypothesis(self, hypothesis: SequenceState, done: Done) -> Sequence[Word]:
        """Return the words of a hypothesis with their times."""
        if not hypothesis.drafts_only:
            return done.words or ()
        path = hypothesis.require_encoded().require_draft().best_token
        return read_words(path, self._models.frame_s, self._models.draft_tokeniser)
