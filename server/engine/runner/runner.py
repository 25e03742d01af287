"""Runs the stages of a step on the models; a request that fails, fails alone.

Every stage takes the sequences that the scheduler chose for it and writes its result, text or error, into them.
"""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial

import numpy as np

from models.chain import Models
from models.ctc import collapse
from models.protocols import BackendError, Decoder, DecodeRow, Float32, PrefillRow, ProjectorOutput, SlotState
from models.text.tokeniser import plain_words
from server.engine.runner.caches import PREFIX_CACHE_BYTES, AudioKey, ByteCache, PrefixKey, output_bytes
from server.engine.runner.ctc_answer import write_answer
from server.engine.runner.encode_stage import EncodeStage, WorkerThread, attempt
from server.engine.runner.sampling import Sampler
from server.engine.runner.sequence import SPEECH_DECODER, Memory, SequenceState
from server.engine.runner.sequence_builder import answer_detokeniser, compile_constraint
from server.engine.runner.speculation import Draft, TokenDraft
from server.engine.runner.transcript import TranscriptStage
from server.engine.runner.verification import RunnerCounters, Verifier
from server.engine.types.events import Word
from server.errors import PromptTooLong

logger = logging.getLogger(__name__)


class Runner:
    """The stages `encode`, `prefill` and `decode`, and `move` and `preempt` between them; they raise `BackendLostError` only."""

    def __init__(
        self,
        models: Models,
        prefix_cache_bytes: int = PREFIX_CACHE_BYTES,
        encoder_cache_bytes: int = 0,
    ) -> None:
        self.counters = RunnerCounters()
        self._verifier = Verifier(models, self.counters)
        self.prefix_cache = ByteCache[PrefixKey, SlotState](prefix_cache_bytes, lambda state: state.nbytes)
        self.encoder_cache = ByteCache[AudioKey, ProjectorOutput](encoder_cache_bytes, output_bytes)
        self._encode_stage = EncodeStage(models, self.encoder_cache, self.counters)
        self.models = models
        self._transcripts = TranscriptStage(models)

    def encode(self, sequences: Sequence[SequenceState]) -> None:
        """Turn audio into prompt embeddings and a draft; audio without speech is answered with no text here.

        Afterwards `entry.to_prefill` says how many positions the prefill has to run. Nothing is encoded twice.
        """
        self._encode_stage.lookup_cache(sequences)
        self._encode_stage.run(sequences)
        attempt(self._lay_out_encoded, [sequence for sequence in sequences if not sequence.finished], self.models.check)

    def start_encoding(self, sequences: Sequence[SequenceState], worker: WorkerThread) -> Future[None]:
        """Have the worker do what may run beside other stages; `go_on_encoding` is next, once these are through.

        This is all of the models' work if they have a processor of their own for it, and the features if they do not.
        """
        self._encode_stage.begin_batch(sequences)
        stage = self._encode_stage.run if self.models.encodes_beside else self._encode_stage.compute_features
        return worker.submit_work(partial(stage, sequences))

    def go_on_encoding(self, sequences: Sequence[SequenceState], worker: WorkerThread) -> Future[None]:
        """Have the worker do the rest of the models' work on a batch that was started; then `encode` lays out the prompts.

        The future raises `EncodingInterrupted` after `interrupt_encoding`, and `BackendLostError`.
        """
        return worker.submit_work(partial(self._encode_stage.run, sequences))

    def interrupt_encoding(self) -> None:
        """Have the worker leave its batch, which is encoded from the beginning if it is begun again."""
        self._encode_stage.interrupt()

    def time_words(self, sequence: SequenceState) -> None:
        """Give a finished sequence the words that its request asks for; never raises. Touches nothing else."""
        timer, encoded, request = self.models.word_timer, sequence.encoded, sequence.request
        if timer is None or encoded is None or encoded.draft is None:
            return
        started_s = time.perf_counter()
        try:
            text = sequence.detokeniser.text
            tokens = self.models.draft_tokeniser.encode(text) if sequence.transcribing else sequence.tokens
            words = timer.times(encoded.draft, request.audio, tokens, text)
        except Exception as error:
            logger.exception("request %s: its words could not be timed", request.id)
            sequence.fail(error)
        else:
            sequence.words = tuple(Word(word.text, word.start_s, word.end_s) for word in words)
        sequence.times.detokenise_s += time.perf_counter() - started_s

    def prefill(self, work: Sequence[tuple[SequenceState, int]]) -> None:
        """Run the next positions: of each sequence the given number. One with none left to prefill has its first tokens then.

        A budget that ends within the proposal shortens that.
        """
        tokens = dict(work)

        def run(batch: Sequence[SequenceState]) -> None:
            self._prefill([(sequence, tokens[sequence]) for sequence in batch])

        for batch in by_decoder(list(tokens)):
            attempt(run, batch, self.models.check)

    def decode(self, sequences: Sequence[SequenceState]) -> None:
        """Run one pass, which gives one more token at least, for the sequences in slots 0..n-1 of each decoder."""
        for batch in by_decoder(sequences):
            self._decode(batch)

    def _decode(self, sequences: Sequence[SequenceState]) -> None:
        started_s = time.perf_counter()
        for sequence in sequences:
            sequence.propose()
        logits = self._decode_logits(sequences)
        elapsed_s = time.perf_counter() - started_s
        for sequence in sequences:
            sequence.times.decode_s += elapsed_s
        for sequence, rows in zip(sequences, logits, strict=False):
            sequence.llm_passes += 1
            sequence.position += 1
            self._take_logits(sequence, rows)

    def warm_up(self, sequence: SequenceState) -> None:
        """Run every stage once, in slot 0. Raises `BackendError` if one of them fails."""
        self.encode([sequence])
        if self.models.decoders:
            self._warm_up_decoders(sequence)
        if sequence.error is not None:
            cause = sequence.error.__cause__ or sequence.error
            raise BackendError(f"The models could not run the warm-up request: {cause}") from sequence.error

    def _warm_up_decoders(self, sequence: SequenceState) -> None:
        if not sequence.audio_frames and sequence.error is None:
            sequence.finish_reason = None
            self._lay_out_speech(sequence, sequence.require_encoded())
        self._run_once(sequence)
        answers = self.models.llm is not None and self.models.bridge == "transcript"
        if sequence.transcribing and answers and sequence.error is None:
            sequence.transcribing, sequence.decoders = False, (len(self.models.decoders) - 1,)
            self._begin_answer(sequence, "warm")
            self._run_once(sequence)

    def _run_once(self, sequence: SequenceState) -> None:
        self.prefill([(sequence, sequence.entry.to_prefill)])
        # The answer may have ended at once; decode needs any token.
        sequence.finish_reason = None
        sequence.append(0)
        sequence.entry.to_prefill = 0
        self._decode([sequence])

    def move(self, sequence: SequenceState, target: int) -> None:
        """Move a sequence to another slot, with its K/V if it has any and still needs it."""
        source, sequence.slot = sequence.slot, target
        if sequence.position == 0 or sequence.finished:
            return
        try:
            self._decoder(sequence).cache.move(source, target, sequence.position)
        except Exception as error:
            logger.exception("request %s could not be moved", sequence.request.id)
            self.models.check()
            sequence.fail(error)

    def preempt(self, sequence: SequenceState) -> None:
        """Take a sequence's slot away. All its positions have to be prefilled again; then its answer goes on unchanged."""
        self.counters.preemptions += 1
        self._plan_prefill(sequence)

    def _lay_out_encoded(self, batch: Sequence[SequenceState]) -> None:
        for sequence in batch:
            if sequence.encoded is None:
                raise BackendError("The adapter returned nothing.")
            self._encode_stage.store(sequence)
            if sequence.drafts_only:
                sequence.finish("length")
            elif not holds_speech(sequence.encoded):
                sequence.finish("no_speech")
            else:
                self._lay_out_speech(sequence, sequence.encoded)

    def _lay_out_speech(self, sequence: SequenceState, encoded: ProjectorOutput) -> None:
        """Build the prompt of the first decoder that the sequence passes; without decoders the draft is the answer."""
        if not self.models.decoders:
            write_answer(sequence, encoded.require_draft(), self.models.tokeniser)
            self.counters.generated_tokens += len(sequence.tokens)
        elif sequence.transcribing:
            self._begin_transcript(sequence)
        else:
            self._lay_out(sequence, encoded.embeddings, self._draft(sequence, encoded))

    def _take_logits(self, sequence: SequenceState, logits: Float32) -> None:
        self._verifier.take_logits(sequence, logits)
        if sequence.transcribing and sequence.finish_reason is not None and sequence.error is None:
            self._end_transcript(sequence)

    def _begin_transcript(self, sequence: SequenceState) -> None:
        self._transcripts.begin_transcript(sequence)
        self._plan_prefill(sequence)

    def _end_transcript(self, sequence: SequenceState) -> None:
        """Have a transcript written once more, or go on to the LLM with it, or let it be the answer."""
        match self._transcripts.judge_transcript(sequence):
            case "write again":
                self._begin_transcript(sequence)
                sequence.decoders = (SPEECH_DECODER, *sequence.decoders)
                sequence.passes_on = True
            case "understood" if not sequence.answers_transcript:
                self._begin_answer(sequence, sequence.detokeniser.text)
                sequence.passes_on = sequence.error is None and not sequence.finished

    def _begin_answer(self, sequence: SequenceState, transcript: str) -> None:
        """Have the LLM answer about a transcript."""
        request, models = sequence.request, self.models
        sequence.transcribing = False
        sampler, constraint = Sampler(request.task.sampling), compile_constraint(models, request.task.sampling.constraint)
        detokeniser = answer_detokeniser(models, request.task)
        sequence.begin_text(detokeniser, sampler, constraint, request.task.sampling.max_tokens)
        tokens = models.tokeniser.encode(transcript)
        if not tokens:
            sequence.finish("no_speech")
            return
        drafts = request.task.draft != "off" and self._verifier.gate.allows(plain_words(request.task.instruction))
        self._lay_out(sequence, models.require_llm().embed(tokens), TokenDraft(tokens if drafts else ()))

    def _draft(self, sequence: SequenceState, output: ProjectorOutput) -> Draft:
        """Return the draft that the request asks for, empty if drafts do not pay. The relaxed policy always needs it.

        Under that policy an earlier hypothesis is no draft: nothing but the LLM vouches for its words.
        """
        request = sequence.request
        if request.task.draft == "exact":
            wanted = self._verifier.gate.allows(plain_words(request.task.instruction))
        else:
            wanted = request.task.draft == "relaxed" and output.draft is not None
        known = sequence.known_tokens if output.draft is None else collapse(output.draft.best_token)
        return TokenDraft(known if wanted else ())

    def _lay_out(self, sequence: SequenceState, frames: Float32, draft: Draft) -> None:
        """Build the prompt, and cut `max_tokens` to the positions that are left."""
        llm, ids = self.models.require_llm(), sequence.prompt_ids
        start, end = self.models.boundaries(sequence.request.task.instruction)
        before, after = llm.embed(ids.before_speech), llm.embed(ids.after_speech)
        prompt = np.concatenate([before, start, frames, end, after])
        sequence.max_tokens = min(sequence.max_tokens, self.models.answer_room(len(prompt)))
        if sequence.max_tokens < 1:
            sequence.fail(PromptTooLong("The instruction and the speech together are too long for the model."))
            return
        sequence.audio_frames = len(frames)
        sequence.draft = draft
        if (reader := self.models.encoder_decoder) is not None:
            # The encoder reads a prompt as a whole: no part of that can be kept for another one.
            sequence.memory, sequence.prompt = Memory(reader, prompt), reader.embed([reader.start_token])
            self._plan_prefill(sequence)
            return
        sequence.memory, sequence.prompt = None, prompt
        sequence.prefix_length = len(before) + len(start)
        sequence.prefix_key = ids.before_speech, len(start) > 0
        kept = None if sequence.kept is None else sequence.kept.find(prompt)
        sequence.prefix_state = self.prefix_cache.find(sequence.prefix_key) if kept is None else kept
        sequence.cached_tokens = sequence.prefix_state.length if sequence.prefix_state is not None else 0
        self._plan_prefill(sequence)

    def _plan_prefill(self, sequence: SequenceState) -> None:
        """Plan the prefill of all positions up to the next token."""
        sequence.propose()
        sequence.position = 0
        held = len(sequence.prompt) + len(sequence.tokens) + len(sequence.proposal)
        sequence.entry.to_prefill = held - sequence.cached_tokens

    def _prefill(self, work: Sequence[tuple[SequenceState, int]]) -> None:
        started_s = time.perf_counter()
        rows = []
        for sequence, tokens in work:
            if sequence.position == 0 and sequence.memory is not None:
                sequence.memory.write(sequence.slot)
            elif sequence.position == 0 and sequence.prefix_state is not None:
                self.models.require_llm().cache.write(sequence.slot, sequence.prefix_state)
            rows.append(self._prefill_row(sequence, tokens))
        decoder = self._decoder(work[0][0])
        logits = decoder.prefill(rows)
        self.counters.progress += 1
        _check(decoder, logits, [row.wanted for row in rows])
        elapsed_s = time.perf_counter() - started_s
        self.counters.llm_passes += len(rows)
        for (sequence, _), row, row_logits in zip(work, rows, logits, strict=True):
            sequence.times.prefill_s += elapsed_s
            sequence.llm_passes += 1
            self._settle_prefill(sequence, row, row_logits)

    def _prefill_row(self, sequence: SequenceState, tokens: int) -> PrefillRow:
        """Return the next positions of prompt, answer so far and proposal."""
        answer = [*sequence.tokens, *sequence.proposal]
        whole = np.concatenate([sequence.prompt, self._decoder(sequence).embed(answer)]) if answer else sequence.prompt
        start = len(whole) - sequence.entry.to_prefill
        end = min(start + tokens, len(whole))
        first_wanted = len(whole) - len(sequence.proposal) - 1
        return PrefillRow(sequence.slot, start, whole[start:end], wanted=max(1, end - max(start, first_wanted)))

    def _settle_prefill(self, sequence: SequenceState, row: PrefillRow, logits: Float32) -> None:
        known = len(sequence.prompt) + len(sequence.tokens)
        end = row.position + len(row.embeddings)
        if end < known:
            sequence.entry.to_prefill -= len(row.embeddings)
            sequence.position = end
            return
        sequence.proposal = sequence.proposal[: end - known]
        sequence.entry.to_prefill = 0
        sequence.position = known
        keeps_prefix = sequence.memory is None and sequence.prefix_state is None
        self._take_logits(sequence, logits)
        if sequence.error is not None or sequence.memory is not None:
            return
        if keeps_prefix and (state := self._read_slot(sequence, sequence.prefix_length)):
            self.prefix_cache.store(sequence.prefix_key, state)
        finished = self._finished_windows(sequence)
        if sequence.kept and finished > sequence.cached_tokens and (state := self._read_slot(sequence, finished)):
            sequence.kept.store(sequence.prompt, state)

    def _finished_windows(self, sequence: SequenceState) -> int:
        """Return the positions of the prompt up to the end of the last whole window, 0 if there is none to keep."""
        window = self.models.window
        if sequence.kept is None or window is None or sequence.audio_frames < window.frames:
            return 0
        return sequence.prefix_length + sequence.audio_frames // window.frames * window.frames

    def _read_slot(self, sequence: SequenceState, positions: int) -> SlotState | None:
        """Return a copy of a slot's first positions, or None where that fails: it is kept for the next request only."""
        try:
            return self.models.require_llm().cache.read(sequence.slot, positions)
        except Exception:
            logger.exception("the prefix of request %s could not be kept", sequence.request.id)
            self.models.check()
            return None

    def _decode_logits(self, sequences: Sequence[SequenceState]) -> list[Float32]:
        """Return logits of the sequences, or of as many of the first ones as could be run.

        If the batch raises, rows cannot be left out of its middle. So it grows from slot 0 until it raises again: the row added
        last is at fault and fails, and those after it wait for the next step.
        """
        rows = [DecodeRow(sequence.slot, sequence.position, (sequence.tokens[-1], *sequence.proposal)) for sequence in sequences]
        decoder = self._decoder(sequences[0])
        try:
            return self._decode_rows(decoder, rows)
        except Exception:
            logger.exception("a decode batch of %d failed; looking for the request at fault", len(rows))
        self.models.check()
        logits: list[Float32] = []
        for count, sequence in enumerate(sequences, start=1):
            try:
                logits = self._decode_rows(decoder, rows[:count])
            except Exception as error:
                self.models.check()
                sequence.fail(error)
                break
        return logits

    def _decode_rows(self, decoder: Decoder, rows: Sequence[DecodeRow]) -> list[Float32]:
        self.counters.llm_passes += len(rows)
        logits = decoder.decode(rows)
        self.counters.progress += 1
        _check(decoder, logits, [len(row.tokens) for row in rows])
        return logits

    def _decoder(self, sequence: SequenceState) -> Decoder:
        """Return the decoder that a sequence is at."""
        return self.models.decoders[sequence.decoders[0]]


def by_decoder(sequences: Sequence[SequenceState]) -> list[list[SequenceState]]:
    """Split sequences by the decoder that they are at, in the order of the decoders."""
    numbers = sorted({sequence.decoders[0] for sequence in sequences})
    return [[sequence for sequence in sequences if sequence.decoders[0] == number] for number in numbers]


def _check(decoder: Decoder, logits: Sequence[Float32], wanted: Sequence[int]) -> None:
    expected = [(count, decoder.vocabulary_size) for count in wanted]
    if [rows.shape for rows in logits] != expected:
        raise BackendError(f"The decoder returned logits {[rows.shape for rows in logits]} instead of {expected}.")


def holds_speech(output: ProjectorOutput) -> bool:
    """Return whether anything is left for the LLM; an output whose draft is all blank holds no speech."""
    silent = output.draft is not None and bool((output.draft.best_token < 0).all())
    return len(output.embeddings) > 0 and not silent
