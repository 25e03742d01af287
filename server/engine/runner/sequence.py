"""The state of one request inside the engine, from `submit` to its terminal event."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from models.protocols import BackendError, EncoderStates, Float32, MemoryDecoder, ProjectorOutput, SlotState
from models.text.constraint import TokenConstraint
from models.text.tokeniser import Detokeniser, PromptIds
from server.engine.runner.caches import AudioKey, KeptSpeech, PrefixKey
from server.engine.runner.sampling import Sampler
from server.engine.runner.speculation import LONGEST_NEXT_PROPOSAL, Draft, TokenDraft
from server.engine.scheduler.queues import SchedulerEntry
from server.engine.types.events import (
    Delta,
    Done,
    Event,
    Failed,
    FinishReason,
    Speculation,
    StageTimes,
    TokenLogprob,
    Usage,
    Word,
)
from server.engine.types.requests import InstructRequest
from server.errors import EngineFailed, ServeError

SPEECH_DECODER = 0
"""The number of the speech decoder in a model that has one; the LLM has the last."""


@dataclass(frozen=True)
class Memory:
    """The states that a decoder attends to beside its own tokens: those of the speech, or of an LLM's prompt."""

    decoder: MemoryDecoder
    states: EncoderStates

    def write(self, slot: int) -> None:
        """Write the memory of a slot, before its first position."""
        self.decoder.write_memory(slot, self.states)


@dataclass(eq=False)
class SequenceState:
    """A request and its answer so far.

    `prompt` [positions, embedding_size] is laid out once the speech is encoded, and so is the `memory` of a decoder that has one.
    `slot` is where its K/V lies, `position` how many positions that holds, which is where the next token's goes. The scheduler's
    `entry` says how many positions are still to be run before the answer goes on. The `proposal` is the last of them, and
    `forced` if it comes from the constraint rather than the draft. A stage that ends the request sets `finish_reason` or
    `error`; `ended` is set with its terminal event, or when the client left. `encoded` may be given; it is cached under
    `audio_key`. A sequence that `gives_way` fails where its encoding would delay others.

    The sequence passes `decoders`, by their numbers in `Models.decoders`; `passes_on` is set where the first of those that are
    left is done and another one goes on. While it is `transcribing`, the speech decoder writes `control_tokens` and a transcript,
    which no client sees before it is whole; `draft_text` is the CTC draft of that. In a live session `known_words` are those of
    the last hypothesis, and the draft goes on behind them. `known_tokens` are the last hypothesis by the same decoder, which is
    the draft where the projector gives none. `kept` is what was computed of this utterance before.
    """

    request: InstructRequest
    deliver: Callable[[Event], None]
    prompt_ids: PromptIds
    detokeniser: Detokeniser
    sampler: Sampler
    token_constraint: TokenConstraint
    max_tokens: int
    # Looked up when it is called: a test may let the clock show another time.
    submitted_at_s: float = field(default_factory=lambda: time.perf_counter())
    times: StageTimes = field(default_factory=StageTimes)
    of_session: bool = False
    gives_way: bool = False
    decoders: tuple[int, ...] = (0,)
    passes_on: bool = False
    transcribing: bool = False
    transcript_control_tokens: int = 0
    attempt: int = 0
    logprob_sum: float = 0.0
    no_speech_probability: float = 0.0
    language: str | None = None
    draft_text: str = ""
    known_words: tuple[Word, ...] = ()
    known_tokens: tuple[int, ...] = ()
    kept: KeptSpeech | None = None
    entry: SchedulerEntry = field(default_factory=lambda: SchedulerEntry(""))
    features: Float32 | None = None
    encoded: ProjectorOutput | None = None
    audio_key: AudioKey | None = None
    prompt: Float32 = field(default_factory=lambda: np.empty((0, 0), np.float32))
    memory: Memory | None = None
    audio_frames: int = 0
    prefix_key: PrefixKey = ((), False)
    prefix_length: int = 0
    prefix_state: SlotState | None = None
    cached_tokens: int = 0
    draft: Draft = field(default_factory=lambda: TokenDraft(()))
    proposal: tuple[int, ...] = ()
    forced: bool = False
    slot: int = 0
    position: int = 0
    tokens: list[int] = field(default_factory=list)
    delta: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    delivered_logprobs: int = 0
    times_words: bool = False
    words: tuple[Word, ...] | None = None
    drafted: int = 0
    accepted: int = 0
    llm_passes: int = 0
    finish_reason: FinishReason | None = None
    error: ServeError | None = None
    ended: bool = False

    @property
    def drafts_only(self) -> bool:
        """Whether only `encoded` is wanted, and no answer."""
        return self.request.task.sampling.max_tokens == 0

    def require_encoded(self) -> ProjectorOutput:
        """Return what was encoded. Raises `BackendError` before that."""
        if self.encoded is None:
            raise BackendError("The adapter returned nothing.")
        return self.encoded

    @property
    def read_positions(self) -> int:
        """How many positions a decoder reads before the answer, in its slot or as an LLM's memory."""
        return len(self.prompt) if self.memory is None or self.transcribing else len(self.memory.states)

    @property
    def answers_transcript(self) -> bool:
        """Whether the transcript that is written is the answer."""
        return self.transcribing and self.decoders == (SPEECH_DECODER,)

    @property
    def control_tokens(self) -> int:
        """How many of the first tokens are no text."""
        return self.transcript_control_tokens if self.transcribing else 0

    @property
    def text_tokens(self) -> tuple[int, ...]:
        """The tokens of the answer so far that are text, and a label before it."""
        return tuple(self.tokens[self.control_tokens :])

    @property
    def elapsed_s(self) -> float:
        """Seconds since it was submitted."""
        return time.perf_counter() - self.submitted_at_s

    @property
    def room(self) -> int:
        """How many tokens may be proposed, so that they and the one after them are still allowed."""
        return self.max_tokens - len(self.tokens) - 1

    def propose(self) -> None:
        """Make the proposal for the next pass: tokens that the constraint forces, or else those of the draft that it allows."""
        forced = self.token_constraint.forced()[: max(0, min(self.room, LONGEST_NEXT_PROPOSAL))]
        self.forced = len(forced) > 0
        self.proposal = forced or self.token_constraint.allowed(self.draft.propose(self.room))

    def append(self, token: int) -> None:
        """Add a token of the answer. The answer ends with a stop string, a completed constraint, or `max_tokens`."""
        started_s = time.perf_counter()
        self.tokens.append(token)
        if token == self.detokeniser.marker:
            self.logprobs.clear()
        self.delta += self.detokeniser.push(token)
        # If a constraint does not allow the draft's token yet, the answer has not reached that.
        if self.draft.expects(token) or (drafted := self.draft.next) is None or self.token_constraint.allowed((drafted,)):
            self.draft.advance(token)
        self.token_constraint.advance(token)
        self.times.detokenise_s += time.perf_counter() - started_s
        if self.detokeniser.stopped or self.token_constraint.complete:
            self.finish("stop")
        elif len(self.tokens) == self.max_tokens:
            self.finish("length")

    def finish(self, reason: FinishReason) -> None:
        """End the answer, with the text that was held back."""
        self.delta += self.detokeniser.finish()
        self.language = self.detokeniser.language or self.language
        self.finish_reason = "no_speech" if self.detokeniser.is_silent and reason == "stop" else reason

    def fail(self, error: Exception) -> None:
        """End the request with an error; errors that are not meant for clients become `EngineFailed`."""
        if isinstance(error, ServeError):
            self.error = error
        else:
            self.error = EngineFailed("The engine failed on this request.")
            self.error.__cause__ = error

    def begin_text(self, detokeniser: Detokeniser, sampler: Sampler, constraint: TokenConstraint, max_tokens: int) -> None:
        """Begin a text from its first token: a transcript, another attempt at one, or the answer about it."""
        self.detokeniser, self.sampler, self.token_constraint, self.max_tokens = detokeniser, sampler, constraint, max_tokens
        self.tokens, self.logprobs, self.delta, self.finish_reason = [], [], "", None
        self.logprob_sum = 0.0

    @property
    def finished(self) -> bool:
        """True once a stage has ended the request."""
        return self.error is not None or self.finish_reason is not None

    @property
    def lacks_words(self) -> bool:
        """Whether the answer is there, and the times of its words are asked for and not known yet."""
        is_answered = self.error is None and self.finish_reason in ("stop", "length")
        return is_answered and self.times_words and self.words is None

    def take_delta(self) -> Delta | None:
        """Return the text since the last call with the log-probabilities of its tokens, or None if there is neither.

        Tokens that complete no text yet come with a later delta, or with the last. A transcript comes whole.
        """
        if self.transcribing and not self.finished:
            return None
        if not self.delta and not (self.finished and self.delivered_logprobs < len(self.logprobs)):
            return None
        event = Delta(self.request.id, self.delta, tuple(self.logprobs[self.delivered_logprobs :]))
        self.delta, self.delivered_logprobs = "", len(self.logprobs)
        return event

    def terminal_event(self) -> Done | Failed | None:
        """Return the event that ends this request, or None before a stage has ended it."""
        if self.error is not None:
            return Failed(self.request.id, self.error)
        if self.finish_reason is None:
            return None
        text_tokens = len(self.prompt) + self.control_tokens if self.transcribing else len(self.prompt_ids)
        if not self.audio_frames:
            text_tokens = 0
        return Done(
            self.request.id,
            self.detokeniser.text,
            self.finish_reason,
            Usage(self.audio_frames, text_tokens, max(0, len(self.tokens) - self.control_tokens), self.cached_tokens),
            self._final_times(),
            Speculation(self.drafted, self.accepted, self.llm_passes),
            None if self.request.task.sampling.logprobs is None else tuple(self.logprobs),
            (self.words or ()) if self.times_words else None,
            self.language,
        )

    def _final_times(self) -> StageTimes:
        """Return the times with the total; the part of that which no stage took is queue time."""
        total_s = self.elapsed_s
        stages_s = sum(dataclasses.astuple(self.times))
        return dataclasses.replace(self.times, total_s=total_s, queue_s=max(0.0, total_s - stages_s))
