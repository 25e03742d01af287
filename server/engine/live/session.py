"""One live session inside the engine: from audio, as it comes, to utterances, and from their answers to events in order.

Which stages its work passes through, and when, is the engine's business; it belongs to the engine's thread, but for `push`.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from models.assemble import Models
from models.protocols import Float32, VoiceState
from server.engine.live.endpointing import Endpointer, EndpointEvent, SpeechBegan, SpeechOver, SpeechPaused, SpeechResumed
from server.engine.live.recent_audio import RecentAudio
from server.engine.live.recording_answer import RecordingAnswer
from server.engine.live.stable_text import StableText, heard_tokens
from server.engine.live.utterance import Utterance
from server.engine.runner.sequence import SequenceState, new_sequence
from server.engine.types.events import Delta, Done, Ended, Event, Failed, Flushed, Listened, LiveEvent, Problem, SpeechStarted
from server.engine.types.options import Priority, SamplingOptions, VoiceOptions
from server.engine.types.requests import Audio, ChangeInstruction, EndOfAudio, Flush, InstructRequest, LiveInput, LiveRequest
from server.errors import InvalidRequest, ServeError

# Audio that one session is listened to per step, so that a recording does not hold up the others.
LISTEN_S = 4.0
# Utterances that are over and not answered yet; beyond them, the rest of the audio waits.
MAX_UNANSWERED = 8
# A hypothesis is made so often, at first and once there is text, but takes no more than this share of a session's time.
FIRST_PARTIAL_INTERVAL_S, PARTIAL_INTERVAL_S = 0.16, 0.32
PARTIAL_SHARE = 1 / 3
# What a hypothesis is made of: the utterance, or its last seconds with some of what stands already.
PARTIAL_WINDOW_S, PARTIAL_CONTEXT_S = 8.0, 1.0
DRAFT_ONLY = SamplingOptions(max_tokens=0)


@dataclass
class LiveCounters:
    """Totals over all sessions; the fields mean what they mean in `EngineCounters`."""

    utterances: int = 0
    silent_utterances: int = 0
    partials: int = 0


@dataclass(frozen=True)
class EngineHooks:
    """What a session needs of the engine: to tell its client, to have work done, and to have it forgotten."""

    emit: Callable[[LiveEvent], None]
    begin: Callable[[SequenceState], None]
    drop: Callable[[SequenceState], None]


class LiveSession:
    """Raises, on construction, the `ServeError` of a request that cannot be served."""

    def __init__(
        self, request: LiveRequest, models: Models, sample_rate_hz: int, host: EngineHooks, counters: LiveCounters
    ) -> None:
        self.request = request
        self._models = models
        self._rate_hz = sample_rate_hz
        self._host = host
        self._counters = counters
        self._inputs: deque[LiveInput] = deque()
        self._audio = RecentAudio()
        self._taken = 0
        self._detected = 0
        self._voice_state: VoiceState | None = None
        self._endpointer = _endpointer(request.voice, models.voice.window_samples, sample_rate_hz)
        self._current: Utterance | None = None
        self._utterances = 0
        self._asked = 0
        # What is to be told in this order, as soon as it can be.
        self._unanswered: deque[Utterance | Flush | EndOfAudio] = deque()
        self._recording = RecordingAnswer(request, models, host.emit, host.begin) if self._answers_whole else None
        self._instruction = models.transcription_instruction if self._recording else request.instruction
        # What was asked about the whole says nothing of how its parts are transcribed.
        self._sampling = SamplingOptions() if self._recording else request.sampling
        self._check(self._instruction)

    @property
    def busy(self) -> bool:
        """Whether there is something to `listen` to now."""
        return bool(self._inputs) and len(self._unanswered) < MAX_UNANSWERED

    def push(self, item: LiveInput) -> None:
        """For any thread."""
        self._inputs.append(item)

    def listen(self) -> None:
        """Go through what was pushed, up to `LISTEN_S` of audio or to `MAX_UNANSWERED` utterances."""
        taken = self._taken
        limit = taken + round(LISTEN_S * self._rate_hz)
        while self.busy and self._taken < limit:
            match self._inputs.popleft():
                case Audio(samples):
                    room = limit - self._taken
                    if len(samples) > room:
                        self._inputs.appendleft(Audio(samples[room:]))
                    self._hear(samples[:room])
                case ChangeInstruction(instruction):
                    self._change(instruction)
                case Flush() as flush:
                    self._follow(self._endpointer.flush())
                    self._unanswered.append(flush)
                case EndOfAudio() as end:
                    self._hear_rest()
                    self._unanswered.append(end)
        if self._taken > taken:
            self._host.emit(Listened(self.request.id, self._taken / self._rate_hz))
        self._begin_partial()
        self._release()

    @property
    def _answers_whole(self) -> bool:
        """Transcripts of parts can be joined, but not what has to match a constraint."""
        asked = self.request
        follows = asked.sampling.constraint is not None
        return asked.scope == "recording" and (follows or not self._models.transcribes(asked.instruction))

    def _hear(self, samples: Float32) -> None:
        self._taken += len(samples)
        self._audio.append(samples)
        window = self._models.voice.window_samples
        whole = (self._audio.end - self._detected) // window * window
        if not whole:
            return
        audio = self._audio.between(self._detected, self._detected + whole)
        probabilities, self._voice_state = self._models.voice.detect(audio, self._voice_state)
        self._detected += whole
        self._follow(self._endpointer.push(probabilities))
        self._audio.forget_before(min(self._endpointer.needed_from, self._detected))

    def _hear_rest(self) -> None:
        """The last samples, which fill no window."""
        rest = self._audio.end - self._detected
        if rest:
            taken = self._taken
            self._hear(np.zeros(self._models.voice.window_samples - rest, np.float32))
            self._taken = taken
        self._follow(self._endpointer.flush())

    def _follow(self, marks: list[EndpointEvent]) -> None:
        for mark in marks:
            match mark:
                case SpeechBegan(start):
                    self._begin_utterance(start)
                case SpeechPaused(_, end) if self._current and self.request.priority == Priority.LIVE:
                    self._ask(self._current, end)
                case SpeechResumed() if self._current:
                    self._take_back(self._current)
                case SpeechOver(_, end) if self._current:
                    self._end_utterance(self._current, end)
                case _:
                    pass

    def _begin_utterance(self, start: int) -> None:
        models, start_s = self._models, start / self._rate_hz
        text = StableText(start_s, models.tokeniser.decode)
        partial_due = start + round((self.request.voice.prefix_padding_s + FIRST_PARTIAL_INTERVAL_S) * self._rate_hz)
        self._current = Utterance(self._utterances, start, self._instruction, text, partial_due)
        self._utterances += 1
        self._counters.utterances += 1
        self._host.emit(SpeechStarted(self.request.id, self._current.number, start_s))

    def _end_utterance(self, utterance: Utterance, end: int) -> None:
        if utterance.answer is None or utterance.end != end:
            self._take_back(utterance)
            self._ask(utterance, end)
        if utterance.partial is not None:
            self._host.drop(utterance.partial)
        self._unanswered.append(utterance)
        self._current = None

    def _ask(self, utterance: Utterance, end: int) -> None:
        """Have the utterance answered as if it were over at `end`."""
        utterance.end = end
        audio = self._audio.between(utterance.start, min(end, self._audio.end))
        request = self._request(audio, utterance.instruction)
        utterance.answer = new_sequence(self._models, request, partial(self._take_answer, utterance))
        self._host.begin(utterance.answer)

    def _take_back(self, utterance: Utterance) -> None:
        if utterance.answer is not None:
            self._host.drop(utterance.answer)
        utterance.answer = utterance.outcome = None

    def _take_answer(self, utterance: Utterance, event: Event) -> None:
        if not isinstance(event, Delta):
            utterance.outcome = event
            self._release()

    def _release(self) -> None:
        """Tell all that can be told."""
        while self._unanswered:
            match self._unanswered[0]:
                case Utterance(outcome=None):
                    return
                case Utterance() as utterance:
                    self._tell(utterance)
                case Flush(marker):
                    self._host.emit(Flushed(self.request.id, marker))
                case EndOfAudio():
                    self._end()
            self._unanswered.popleft()

    def _tell(self, utterance: Utterance) -> None:
        outcome = utterance.outcome
        if isinstance(outcome, Done):
            self._counters.silent_utterances += outcome.finish_reason == "no_speech"
            encoded = utterance.answer.encoded if utterance.answer else None
            if self._recording is not None and encoded is not None:
                self._recording.add(outcome.text, encoded.frames)
        # The last window of the voice detector may go beyond the audio.
        utterance.end = min(utterance.end, self._taken)
        self._host.emit(utterance.answered(self.request.id, self._rate_hz))

    def _end(self) -> None:
        audio_s = self._taken / self._rate_hz
        if self._recording is not None:
            self._recording.begin(audio_s)
        else:
            self._host.emit(Ended(self.request.id, audio_s))

    def _begin_partial(self) -> None:
        """Have a new hypothesis made of the utterance that is going on, where one is due."""
        utterance = self._current
        if not self.request.partials or utterance is None or utterance.partial is not None or utterance.answer is not None:
            return
        end = self._detected
        if end < utterance.partial_due:
            return
        settled_s = utterance.text.stable_end_s - PARTIAL_CONTEXT_S
        start = max(utterance.start, min(end - round(PARTIAL_WINDOW_S * self._rate_hz), round(settled_s * self._rate_hz)))
        take = partial(self._take_partial, utterance, start, end)
        request = self._request(self._audio.between(start, end), utterance.instruction)
        request = replace(request, sampling=DRAFT_ONLY, priority=Priority.PARTIAL, draft="off", word_times=False)
        utterance.partial = new_sequence(self._models, request, take)
        self._host.begin(utterance.partial)

    def _take_partial(self, utterance: Utterance, start: int, end: int, event: Event) -> None:
        partial_sequence, utterance.partial = utterance.partial, None
        if isinstance(event, Failed) or partial_sequence is None or partial_sequence.encoded is None:
            return
        self._counters.partials += 1
        start_s, end_s = start / self._rate_hz, end / self._rate_hz
        encoded = heard_tokens(partial_sequence.encoded.best_token.tolist(), start_s, self._models.frame_s)
        changed = utterance.text.update(encoded, end_s)
        interval_s = PARTIAL_INTERVAL_S if utterance.text.stable or utterance.text.tail else FIRST_PARTIAL_INTERVAL_S
        pause_s = max(interval_s, partial_sequence.elapsed_s / PARTIAL_SHARE)
        utterance.partial_due = end + round(pause_s * self._rate_hz)
        if changed:
            self._host.emit(utterance.heard_so_far(self.request.id, self._rate_hz, end_s))

    def _change(self, instruction: str) -> None:
        try:
            if self._recording is not None:
                raise InvalidRequest("The instruction about a whole recording cannot be changed.", param="instruction")
            self._check(instruction)
        except ServeError as error:
            self._host.emit(Problem(self.request.id, error))
        else:
            self._instruction = instruction

    def _check(self, instruction: str) -> None:
        """Raises the `ServeError` of an instruction under which nothing can be answered."""
        new_sequence(self._models, self._request(np.empty(0, np.float32), instruction), lambda _event: None)

    def _request(self, audio: Float32, instruction: str) -> InstructRequest:
        self._asked += 1
        asked = self.request
        id = f"{asked.id}/{self._asked}"
        return InstructRequest(
            id, audio, instruction, self._sampling, asked.client, asked.priority, None, asked.draft, asked.word_times
        )


def _endpointer(options: VoiceOptions, window_samples: int, sample_rate_hz: int) -> Endpointer:
    try:
        return Endpointer(options, window_samples, sample_rate_hz)
    except ValueError:
        message = "The longest utterance leaves no room for speech after its padding."
        raise InvalidRequest(message, param="max_utterance_ms") from None
