"""One live session inside the engine: from audio, as it comes, to utterances, and from their answers to events in order."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from models.chain import Models
from models.protocols import Float32
from models.text.tokeniser import PromptIds
from server.engine.live.audio import DetectedAudio, DetectedInput, RecentAudio, VoiceInputs
from server.engine.live.endpointing import Endpointer, EndpointEvent, SpeechBegan, SpeechOver, SpeechPaused, SpeechResumed
from server.engine.live.partials import PartialMaker
from server.engine.live.recording_answer import RecordingAnswer
from server.engine.live.utterance import Utterance
from server.engine.runner.sequence import SequenceState
from server.engine.runner.sequence_builder import new_sequence
from server.engine.types.events import (
    Delta,
    Done,
    Ended,
    Event,
    Flushed,
    Listened,
    LiveEvent,
    Problem,
    SpeechStarted,
)
from server.engine.types.options import Priority, SamplingOptions, VoiceOptions
from server.engine.types.requests import (
    Audio,
    ChangeInstruction,
    EndOfAudio,
    Flush,
    InstructRequest,
    LiveInput,
    LiveRequest,
    SpeechTask,
)
from server.errors import InvalidRequest, ServeError

# Inputs of one session that may wait behind the voice detector, and that one step takes of them.
MAX_DETECTED = 16
STEP_INPUTS = 16
# Utterances that are over and not answered yet; beyond them, the rest of the audio waits.
MAX_UNANSWERED = 8
# How far a session's audio may be ahead of the wall clock, and by how much its clock may run faster, and still be live.
LIVE_LEAD_S = 2.0
LIVE_RATE = 1.1


@dataclass
class LiveCounters:
    """Totals over all sessions; the fields mean what they mean in `EngineCounters`."""

    progress: int = 0
    utterances: int = 0
    silent_utterances: int = 0
    partials: int = 0


@dataclass(frozen=True)
class EngineHooks:
    """A session's way to its client and to the engine."""

    emit_event: Callable[[LiveEvent], None]
    start_sequence: Callable[[SequenceState], None]
    drop_sequence: Callable[[SequenceState], None]


def work_priority(asked: Priority, heard_s: float, elapsed_s: float) -> Priority:
    """Return the priority of a session's work `elapsed_s` after its first sample, when `heard_s` of its audio is heard.

    `LIVE` holds only while audio comes as fast as it is spoken: audio of a file that is sent at once is not waited for live.
    """
    if asked == Priority.LIVE and heard_s - LIVE_RATE * elapsed_s > LIVE_LEAD_S:
        return Priority.INTERACTIVE
    return asked


class LiveSession:
    """Cuts pushed audio into utterances, asks the engine for partials and answers, and emits events in order.

    The constructor raises a `ServeError` if the request cannot be served. `push` is for any thread, `detect_voice` for the
    listener's, and everything else for the engine's.
    """

    def __init__(
        self, request: LiveRequest, models: Models, sample_rate_hz: int, hooks: EngineHooks, counters: LiveCounters
    ) -> None:
        self.request = request
        self._models = models
        self._rate_hz = sample_rate_hz
        self._hooks = hooks
        self._counters = counters
        self._inputs = VoiceInputs(models.voice, sample_rate_hz)
        self._detected_inputs: deque[DetectedInput] = deque()
        self._first_audio_at_s: float | None = None
        self._audio = RecentAudio()
        # Samples of the client, and samples in whole windows of the voice detector.
        self._taken = 0
        self._detected = 0
        self._endpointer = _endpointer(request.voice, models.voice.window_samples, sample_rate_hz)
        self._current: Utterance | None = None
        self._utterances = 0
        self._requests = 0
        # Told in this order, each as soon as it can be.
        self._unanswered: deque[Utterance | Flush | EndOfAudio] = deque()
        self._recording = None
        if self._answers_whole:
            self._recording = RecordingAnswer(request, models, hooks.emit_event, hooks.start_sequence)
        # An instruction about all of the audio says nothing about how its parts are transcribed.
        self._task = request.task
        if self._recording:
            self._task = replace(request.task, instruction=models.transcription_instruction, sampling=SamplingOptions())
        self._next_instruction: str | None = None
        self._prompt_ids = self._lay_out(self._task)
        self._partials = PartialMaker(models, sample_rate_hz)

    @property
    def wants_listening(self) -> bool:
        """Whether `detect_voice` should be called: there are inputs, and not too much waits behind the voice detector."""
        return len(self._inputs) > 0 and len(self._detected_inputs) < MAX_DETECTED

    @property
    def has_detected(self) -> bool:
        """Whether `take_detected` should be called."""
        return len(self._detected_inputs) > 0 and len(self._unanswered) < MAX_UNANSWERED

    def push(self, item: LiveInput) -> None:
        if self._first_audio_at_s is None and isinstance(item, Audio):
            self._first_audio_at_s = time.monotonic()
        self._inputs.push(item)

    def detect_voice(self) -> None:
        """Run the voice detector over the next inputs."""
        self._detected_inputs.extend(self._inputs.detect_voice())
        self._counters.progress += 1

    def take_detected(self, audio_s: float) -> None:
        """Follow the inputs that have passed the voice detector: up to `STEP_INPUTS` of them, and up to `audio_s` of audio."""
        before, limit = self._taken, self._taken + audio_s * self._rate_hz
        for _ in range(STEP_INPUTS):
            if self._taken >= limit or not self.has_detected:
                break
            self._take_input(self._detected_inputs.popleft())
        self._begin_partial()
        if self._taken > before:
            self._hooks.emit_event(Listened(self.request.id, self._taken / self._rate_hz))
        self._release()

    @property
    def _answers_whole(self) -> bool:
        """Transcripts of parts can be joined, but not answers that have to match a constraint."""
        asked = self.request
        if not self._models.follows_instructions:
            return False
        is_constrained = asked.task.sampling.constraint is not None
        return asked.scope == "recording" and (is_constrained or not self._models.transcribes(asked.task.instruction))

    @property
    def _priority(self) -> Priority:
        elapsed_s = 0.0 if self._first_audio_at_s is None else time.monotonic() - self._first_audio_at_s
        return work_priority(self.request.priority, self._taken / self._rate_hz, elapsed_s)

    @property
    def _is_ahead(self) -> bool:
        """Whether audio came faster than it is spoken, so that this session's work is not live."""
        return self._priority != self.request.priority

    def _take_input(self, item: DetectedInput) -> None:
        match item:
            case DetectedAudio(samples, probabilities, padding):
                self._taken += len(samples) - padding
                self._detected += len(probabilities) * self._models.voice.window_samples
                self._audio.append(samples)
                self._follow(self._endpointer.push(probabilities))
                self._audio.forget_before(min(self._endpointer.needed_from, self._detected))
            case ChangeInstruction(instruction):
                self._change_instruction(instruction)
            case Flush():
                self._follow(self._endpointer.flush())
                self._unanswered.append(item)
            case EndOfAudio():
                self._follow(self._endpointer.flush())
                self._use_next_instruction()
                self._unanswered.append(item)

    def _follow(self, events: list[EndpointEvent]) -> None:
        for event in events:
            match event:
                case SpeechBegan(start):
                    self._begin_utterance(start)
                case SpeechPaused(_, end) if self._current and self._priority == Priority.LIVE:
                    self._request_answer(self._current, end)
                case SpeechResumed() if self._current:
                    self._withdraw_answer(self._current)
                case SpeechOver(_, end) if self._current:
                    self._end_utterance(self._current, end)
                case _:
                    pass

    def _begin_utterance(self, start: int) -> None:
        self._use_next_instruction()
        start_s = start / self._rate_hz
        text = self._partials.new_text(start_s)
        partial_due = self._partials.first_due(start, self.request.voice.prefix_padding_s)
        self._current = Utterance(self._utterances, start, self._task, self._prompt_ids, text, partial_due)
        self._utterances += 1
        self._counters.utterances += 1
        self._hooks.emit_event(SpeechStarted(self.request.id, self._current.number, start_s))

    def _end_utterance(self, utterance: Utterance, end: int) -> None:
        if utterance.answer is None or utterance.end != end:
            self._withdraw_answer(utterance)
            self._request_answer(utterance, end)
        self._unanswered.append(utterance)
        self._current = None
        if utterance.outcome is not None:
            utterance.forget_kept()

    def _request_answer(self, utterance: Utterance, end: int) -> None:
        """Have the utterance answered as if it were over at `end`; a hypothesis of it would come too late."""
        if utterance.partial is not None:
            self._hooks.drop_sequence(utterance.partial)
            utterance.partial = None
        utterance.end = end
        audio = self._audio.between(utterance.start, min(end, self._audio.end))
        request = self._new_request(audio, utterance.task)
        take_event = partial(self._take_answer, utterance)
        utterance.answer = new_sequence(self._models, request, take_event, utterance.prompt_ids)
        utterance.answer.known_words = utterance.known_words(utterance.start, self._rate_hz)
        # A recording has no hypotheses, and many utterances that wait.
        utterance.answer.kept = None if self.request.is_recording else utterance.kept
        if self._models.transcribes(utterance.task.instruction):
            utterance.answer.known_tokens = utterance.hypothesis
        self._hooks.start_sequence(utterance.answer)

    def _withdraw_answer(self, utterance: Utterance) -> None:
        if utterance.answer is not None:
            self._hooks.drop_sequence(utterance.answer)
        utterance.answer = utterance.outcome = None

    def _take_answer(self, utterance: Utterance, event: Event) -> None:
        if not isinstance(event, Delta):
            utterance.outcome = event
            if utterance is not self._current:
                utterance.forget_kept()
            self._release()

    def _release(self) -> None:
        """Emit all events whose turn has come."""
        while self._unanswered:
            match self._unanswered[0]:
                case Utterance(outcome=None):
                    return
                case Utterance() as utterance:
                    self._release_utterance(utterance)
                case Flush(marker):
                    self._hooks.emit_event(Flushed(self.request.id, marker))
                case EndOfAudio():
                    self._end()
            self._unanswered.popleft()

    def _release_utterance(self, utterance: Utterance) -> None:
        outcome = utterance.outcome
        if isinstance(outcome, Done):
            self._counters.silent_utterances += outcome.finish_reason == "no_speech"
            encoded = utterance.answer.encoded if utterance.answer else None
            if self._recording is not None and encoded is not None:
                self._recording.add_utterance(outcome.text, encoded.embeddings)
        # The last window of the voice detector may go beyond the audio.
        utterance.end = min(utterance.end, self._taken)
        self._hooks.emit_event(utterance.final_event(self.request.id, self._rate_hz))

    def _end(self) -> None:
        audio_s = self._taken / self._rate_hz
        if self._recording is not None:
            self._recording.request_answer(audio_s)
        else:
            self._hooks.emit_event(Ended(self.request.id, audio_s))

    def _begin_partial(self) -> None:
        """Have a new hypothesis made of the utterance that is going on, if one is due."""
        utterance = self._current
        if (
            not self.request.partials
            or utterance is None
            or utterance.partial is not None
            or utterance.answer is not None
            or self._endpointer.is_silent
        ):
            return
        end = self._detected
        if end < utterance.partial_due or (self._is_ahead and time.monotonic() < utterance.partial_due_at_s):
            return
        start, task = self._partials.choose_task(utterance, self._task, end)
        request = self._new_request(self._audio.between(start, end), task, Priority.PARTIAL)
        take_event = partial(self._take_partial, utterance, start, end)
        utterance.partial = self._partials.new_hypothesis(utterance, request, start, take_event)
        self._hooks.start_sequence(utterance.partial)

    def _take_partial(self, utterance: Utterance, start: int, end: int, event: Event) -> None:
        if isinstance(event, Delta):
            return
        hypothesis, utterance.partial = utterance.partial, None
        if not isinstance(event, Done) or hypothesis is None or hypothesis.encoded is None:
            return
        self._counters.partials += 1
        if self._partials.update_text(utterance, hypothesis, event, start, end):
            self._hooks.emit_event(utterance.partial_event(self.request.id, self._rate_hz, end / self._rate_hz))

    def _change_instruction(self, instruction: str) -> None:
        """Note the instruction of utterances to come. To lay it out takes time, so that waits until one of them begins."""
        if self._recording is None:
            self._next_instruction = instruction
        else:
            message = "The instruction about a whole recording cannot be changed."
            self._hooks.emit_event(Problem(self.request.id, InvalidRequest(message, param="instruction")))

    def _use_next_instruction(self) -> None:
        instruction, self._next_instruction = self._next_instruction, None
        if instruction is None or instruction == self._task.instruction:
            return
        task = replace(self._task, instruction=instruction)
        try:
            self._prompt_ids = self._lay_out(task)
            self._task = task
        except ServeError as error:
            self._hooks.emit_event(Problem(self.request.id, error))

    def _lay_out(self, task: SpeechTask) -> PromptIds:
        """Return the prompt of a task. Raises a `ServeError` if it can be done for no utterance."""
        request = self._new_request(np.empty(0, np.float32), task)
        return new_sequence(self._models, request, lambda _event: None).prompt_ids

    def _new_request(self, audio: Float32, task: SpeechTask, highest: Priority = Priority.LIVE) -> InstructRequest:
        self._requests += 1
        id, priority = f"{self.request.id}/{self._requests}", max(highest, self._priority)
        return InstructRequest(id, audio, task, self.request.client, priority)


def _endpointer(options: VoiceOptions, window_samples: int, sample_rate_hz: int) -> Endpointer:
    try:
        return Endpointer(options, window_samples, sample_rate_hz)
    except ValueError:
        message = "The longest utterance leaves no room for speech after its padding."
        raise InvalidRequest(message, param="max_utterance_ms") from None
