"""The state of one request inside the engine, from `submit` to its terminal event."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from models.chain import Models
from models.protocols import BackendError, EncoderStates, Float32, MemoryDecoder, ProjectorOutput, SlotState
from models.speech_decoders.speech_model import LONGEST_TRANSCRIPT, SpeechModel
from models.text.constraint import TokenConstraint
from models.text.grammar import GrammarError
from models.text.tokeniser import PromptIds, lay_out_prompt
from models.text.transcript_label import lay_out_context
from server.engine.runner.caches import AudioKey, KeptSpeech, PrefixKey
from server.engine.runner.detokenise import Detokeniser, LabelledDetokeniser
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
from server.engine.types.options import Constraint, SamplingOptions
from server.engine.types.requests import InstructRequest
from server.errors import EngineFailed, InvalidConstraint, InvalidRequest, PromptTooLong, ServeError

SPEECH_DECODER = 0
"""The number of the speech decoder in a model that has one; the LLM has the last."""
OWN_CONTEXT_TOKENS = 3
"""The token before a context, the one behind it, and the position of a transcript's end."""


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
    which no client sees before it is whole; `heard` is the text of the draft of that.
    `known_words` are those that an earlier hypothesis heard, which are drafted before the rest of what is `heard`. `known_tokens`
    are an earlier hypothesis by the same decoder, which is the draft where the projector gives none. `kept` is what was computed
    of this utterance before.
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
    heard: str = ""
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
    told_logprobs: int = 0
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
        return self.request.sampling.max_tokens == 0

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
        drafted = self.draft.next
        # If a constraint does not allow the draft's token yet, the answer has not reached that.
        if drafted is None or self.draft.expects(token) or self.token_constraint.allowed((drafted,)):
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
        if not self.delta and not (self.finished and self.told_logprobs < len(self.logprobs)):
            return None
        event = Delta(self.request.id, self.delta, tuple(self.logprobs[self.told_logprobs :]))
        self.delta, self.told_logprobs = "", len(self.logprobs)
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
            None if self.request.sampling.logprobs is None else tuple(self.logprobs),
            (self.words or ()) if self.times_words else None,
            self.language,
        )

    def _final_times(self) -> StageTimes:
        """Return the times with the total; the part of that which no stage took is queue time."""
        total_s = self.elapsed_s
        stages_s = sum(dataclasses.astuple(self.times))
        return dataclasses.replace(self.times, total_s=total_s, queue_s=max(0.0, total_s - stages_s))


def new_sequence(
    models: Models,
    request: InstructRequest,
    deliver: Callable[[Event], None],
    prompt_ids: PromptIds | None = None,
    encoded: ProjectorOutput | None = None,
) -> SequenceState:
    """Return the sequence of a request; `prompt_ids` are those of its instruction, if the caller has them already.

    About what the caller has `encoded`, the LLM answers. Raises `PromptTooLong`, `InvalidConstraint`, or `InvalidRequest`.
    """
    check_request(models, request)
    if prompt_ids is None:
        prompt_ids = lay_out_request(models, request)
    before, after = models.boundaries(request.instruction)
    speech = 1
    if models.llm and len(prompt_ids) + len(before) + len(after) + speech > models.prompt_room(answer_tokens=1):
        place = "instruction" if models.label is None else "prompt" if request.prompt else "keywords"
        raise PromptTooLong(f"The {place} {'are' if place == 'keywords' else 'is'} too long for the model.", param=place)
    sampling = request.sampling
    constraint = compile_constraint(models, sampling.constraint)
    detokeniser = answer_detokeniser(models, request)
    sequence = SequenceState(request, deliver, prompt_ids, detokeniser, Sampler(sampling), constraint, sampling.max_tokens)
    sequence.encoded = encoded
    sequence.times_words = request.word_times != "none" and models.word_timer is not None
    sequence.language = None if models.label is None else request.language
    sequence.decoders = passed_decoders(models, request, is_encoded=encoded is not None)
    sequence.transcribing = models.speech is not None and sequence.decoders[:1] == (SPEECH_DECODER,)
    return sequence


def lay_out_request(models: Models, request: InstructRequest) -> PromptIds:
    """Return the LLM's prompt: with the instruction, or, where it only transcribes, with a context and a language's label."""
    if not models.decoders:
        return PromptIds((), ())
    if models.label is None:
        transcribes = models.transcribes(request.instruction)
        return lay_out_prompt(
            models.template,
            models.tokeniser,
            request.instruction,
            transcribes=transcribes,
            language=None if models.speech else request.language,
            keywords=request.keywords,
        )
    ids = lay_out_prompt(models.template, models.tokeniser, lay_out_context(request.prompt, request.keywords))
    forced = () if request.language is None else models.label.force(models.tokeniser, request.language)
    return PromptIds(ids.before_speech, (*ids.after_speech, *forced))


def lay_out_speech_context(speech: SpeechModel, prompt: str, keywords: Sequence[str]) -> list[int]:
    """Return the tokens that stand before a transcript: keywords, then the end of the text that comes before.

    Raises `InvalidRequest` for keywords that take more than half of the room. Of a prompt the last tokens that have room count
    (arXiv 2212.04356, section 2.3).
    """
    if not prompt and not keywords:
        return []
    room = speech.decoder.max_positions - speech.control_tokens - LONGEST_TRANSCRIPT - OWN_CONTEXT_TOKENS
    listed = speech.tokeniser.encode(f" {', '.join(keywords)}") if keywords else []
    if len(listed) > room // 2:
        raise InvalidRequest("The keywords are too many, or too long.", param="keywords")
    before = speech.tokeniser.encode(f" {prompt.strip()}") if prompt.strip() else []
    return [speech.tokens.previous, *listed, *before[max(0, len(before) - room + len(listed)) :]]


def answer_detokeniser(models: Models, request: InstructRequest) -> Detokeniser:
    """Return the detokeniser of the LLM's answer. Blanks around it are padding, unless a constraint asks for them.

    The label of a transcript is no part of its text; there is none where the request names the language.
    """
    sampling = request.sampling
    if models.label is not None and request.language is None:
        return LabelledDetokeniser(models.tokeniser, sampling.stop, models.label)
    return Detokeniser(models.tokeniser, sampling.stop, padding=None if sampling.constraint is None else "")


def passed_decoders(models: Models, request: InstructRequest, *, is_encoded: bool) -> tuple[int, ...]:
    """Return the decoders that a request passes, in order: none if only the encoder's output is wanted.

    The speech decoder's transcript is the answer where the instruction asks for that, and no constraint does for anything else.
    So is the draft, for which none is passed, where there is no decoder at all.
    """
    llm = len(models.decoders) - 1
    if request.sampling.max_tokens == 0 or not models.decoders:
        return ()
    if models.speech is None or is_encoded:
        return (llm,)
    if models.llm is None:
        return (SPEECH_DECODER,)
    is_spoken_text = models.transcribes(request.instruction) or models.translates(request.instruction)
    if is_spoken_text and request.sampling.constraint is None:
        return (SPEECH_DECODER,)
    return (SPEECH_DECODER, llm) if models.bridge == "transcript" else (llm,)


def check_request(models: Models, request: InstructRequest) -> None:
    """Raise `InvalidRequest` for options that do not go together.

    A relaxed draft needs an instruction that asks for a transcript, and no constraint; times of words need a transcript, and a
    model that can tell them; a language needs a speech model that knows it, a prompt or keywords one that has room for them.
    """
    constraint = request.sampling.constraint
    transcribes = models.transcribes(request.instruction)
    if not models.follows_instructions:
        check_transcriber(models, request)
    if request.draft == "relaxed" and not transcribes:
        raise InvalidRequest("The relaxed draft policy is offered for transcription only.", param="draft")
    if request.draft == "relaxed" and constraint is not None:
        raise InvalidRequest(f"The relaxed draft policy is not offered together with {constraint.kind}.", param="draft")
    if request.word_times != "none" and not transcribes:
        message = "Times of words and subtitles are offered for transcription only: other answers are not what was said."
        raise InvalidRequest(message, param="timestamps")
    if request.language is not None and not models.languages:
        raise InvalidRequest(refuse_language(models), param="language")
    if request.prompt and models.speech is None and models.label is None:
        raise InvalidRequest("This model does not take a prompt.", param="prompt")
    if request.keywords and not models.takes_keywords:
        raise InvalidRequest("This model does not take keywords.", param="keywords")
    if models.speech is None and not transcribes and request.language is not None:
        raise InvalidRequest("This model takes a language for transcripts only.", param="language")
    if models.speech is None and not transcribes and request.keywords:
        raise InvalidRequest("This model takes keywords for transcripts only.", param="keywords")
    if models.speech is not None:
        lay_out_speech_context(models.speech, request.prompt, request.keywords)
    if request.language not in (None, *models.languages):
        raise InvalidRequest(f"The model does not know the language {request.language!r}.", param="language")
    if request.languages and models.speech is None:
        raise InvalidRequest("This model cannot choose among several languages: name one, or none.", param="languages")
    if unknown := [code for code in request.languages if code not in models.languages]:
        raise InvalidRequest(f"The model does not know the language {unknown[0]!r}.", param="languages")
    if request.word_times == "required" and models.word_timer is None:
        raise InvalidRequest("This model cannot tell when a word was said.", param="timestamps")


def refuse_language(models: Models) -> str:
    """Return what a request that names a language is told by a model that finds out by itself which one is spoken."""
    refusal = "This model does not take a language: its published prompts name none that is spoken"
    if models.template.published:
        return f"{refusal}. A translation is asked for in the instruction, as in 'Translate the speech to French.'"
    return f"{refusal}."


def check_transcriber(models: Models, request: InstructRequest) -> None:
    """Raise `InvalidRequest` for requests that only an LLM can answer which follows instructions."""
    lack = "has no LLM: it transcribes" if models.llm is None else "only transcribes"
    if not models.transcribes(request.instruction) and not models.translates(request.instruction):
        spoken = f"{lack} ({models.transcription_instruction!r})"
        if translation := next(iter(models.translation_instructions), None):
            spoken += f" and translates into English ({translation!r})"
        raise InvalidRequest(f"This model {spoken}, and follows no other instruction.", param="instruction")
    if (constraint := request.sampling.constraint) is not None:
        without = (
            f"has no LLM, which {constraint.kind} needs" if models.llm is None else f"only transcribes, without {constraint.kind}"
        )
        raise InvalidRequest(f"This model {without}.", param=constraint.kind)
    if not models.decoders:
        check_undrawn(request.sampling)


def check_undrawn(sampling: SamplingOptions) -> None:
    """Raise `InvalidRequest` for options that change which tokens a model without a decoder writes: its scores know no order."""
    for name, neutral in {"temperature": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0}.items():
        if getattr(sampling, name) != neutral:
            message = f"This model has no decoder, and draws no tokens: {name} has to be {neutral:g}."
            raise InvalidRequest(message, param=name)


def compile_constraint(models: Models, constraint: Constraint | None) -> TokenConstraint:
    """Return the constraint as states of tokens. Raises `InvalidConstraint`.

    A constraint that was compiled lately takes no time, any other up to a quarter of a second.
    """
    if constraint is None or models.llm is None:
        return TokenConstraint()
    try:
        return models.grammars.follow(constraint.kind, constraint.grammar)
    except GrammarError as error:
        raise InvalidConstraint.because(constraint.kind, error) from None
