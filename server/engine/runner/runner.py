"""Runs the stages of a step on the models; a request that fails, fails alone.

Every stage takes the generations that the scheduler chose for it and writes into them what came out, text or error.
"""

import logging
import time
from collections.abc import Sequence

import numpy as np

from models.assemble import Models
from models.protocols import AdapterOutput, BackendError, DecodeRow, Float32, PrefillRow, SlotState, collapse
from models.text.tokeniser import plain_words
from server.engine.runner.caches import PREFIX_CACHE_BYTES, AudioKey, ByteCache, PrefixKey, output_bytes
from server.engine.runner.encode_stage import Hearing, attempt
from server.engine.runner.sequence import Generation
from server.engine.runner.speculation import Draft
from server.engine.runner.verification import RunnerCounters, Verifier
from server.errors import PromptTooLong

logger = logging.getLogger(__name__)

# Of 0.3 to 0.003 the word error rate on held-out recordings of the training data differs by a tenth of a point.
RELAXED_PROBABILITY = 0.05


class Runner:
    """The stages `encode`, `prefill` and `decode`, and `move` and `preempt` between them; they raise `BackendLostError` only.

    Under the relaxed draft policy a draft token stands where the LLM gives it at least `relaxed_probability`.
    """

    def __init__(
        self,
        models: Models,
        prefix_cache_bytes: int = PREFIX_CACHE_BYTES,
        encoder_cache_bytes: int = 0,
        relaxed_probability: float = RELAXED_PROBABILITY,
    ) -> None:
        self.counters = RunnerCounters()
        self._verifier = Verifier(models, self.counters, relaxed_probability)
        self.prefix_cache = ByteCache[PrefixKey, SlotState](prefix_cache_bytes, lambda state: state.nbytes)
        self.encoder_cache = ByteCache[AudioKey, AdapterOutput](encoder_cache_bytes, output_bytes)
        self.hearing = Hearing(models, self.encoder_cache)
        self.models = models

    def encode(self, generations: Sequence[Generation]) -> None:
        """Audio to prompt embeddings and draft; audio without speech is answered with no text here.

        Afterwards `to_prefill` says how many positions the prefill has to run. What was `heard` already is not heard again.
        """
        self.hearing.recall(generations)
        self.hearing.hear(generations)
        attempt(self._lay_out_heard, [generation for generation in generations if not generation.finished], self.models.check)

    def prefill(self, work: Sequence[tuple[Generation, int]]) -> None:
        """The next positions, so many each, into the slots; those of which none is left to prefill have their first tokens.

        A budget that ends within the proposal shortens it.
        """
        tokens = dict(work)

        def run(batch: Sequence[Generation]) -> None:
            self._prefill([(generation, tokens[generation]) for generation in batch])

        attempt(run, list(tokens), self.models.check)

    def decode(self, generations: Sequence[Generation]) -> None:
        """One pass, and one more token at least, for the generations in slots 0..n-1."""
        if not generations:
            return
        started_s = time.perf_counter()
        for generation in generations:
            generation.propose()
        logits = self._decode_logits(generations)
        elapsed_s = time.perf_counter() - started_s
        for generation in generations:
            generation.times.decode_s += elapsed_s
        for generation, rows in zip(generations, logits, strict=False):
            generation.llm_passes += 1
            generation.position += 1
            self._verifier.take(generation, rows)

    def warm_up(self, generation: Generation) -> None:
        """Run every stage once, in slot 0. Raises `BackendError` where one of them fails."""
        self.encode([generation])
        if not generation.audio_frames and generation.error is None:
            generation.finish_reason = None
            self._lay_out(generation, np.zeros((1, self.models.llm.embedding_size), np.float32), Draft(()))
        self.prefill([(generation, generation.to_prefill)])
        # The answer may have ended at once; decode needs a token, whichever.
        generation.append(0)
        self.decode([generation])
        if generation.error is not None:
            cause = generation.error.__cause__ or generation.error
            raise BackendError(f"The models could not run the warm-up request: {cause}") from generation.error

    def move(self, generation: Generation, target: int) -> None:
        """Take a generation to another slot, with its K/V where it has any and still needs it."""
        source, generation.slot = generation.slot, target
        if generation.position == 0 or generation.finished:
            return
        try:
            self.models.llm.move(source, target, generation.position)
        except Exception as error:
            logger.exception("request %s could not be moved", generation.request.id)
            self.models.check()
            generation.fail(error)

    def preempt(self, generation: Generation) -> None:
        """Take its slot away: all that it held has to be prefilled again, and its answer goes on as if nothing had been."""
        self.counters.preemptions += 1
        self._plan_prefill(generation)

    def _lay_out_heard(self, batch: Sequence[Generation]) -> None:
        for generation in batch:
            if generation.heard is None:
                raise BackendError("The adapter returned nothing.")
            self.hearing.keep(generation)
            if generation.drafts_only:
                generation.finish("length")
            elif not holds_speech(generation.heard):
                generation.finish("no_speech")
            else:
                self._lay_out(generation, generation.heard.frames, self._draft(generation, generation.heard))

    def _draft(self, generation: Generation, output: AdapterOutput) -> Draft:
        """The draft that the request asks for, empty where drafts do not pay; the relaxed policy reads it all the same."""
        request = generation.request
        if request.draft == "exact":
            wanted = self._verifier.gate.allows(plain_words(request.instruction))
        else:
            wanted = request.draft == "relaxed"
        return Draft(collapse(output.best_token) if wanted else ())

    def _lay_out(self, generation: Generation, frames: Float32, draft: Draft) -> None:
        """Build the prompt; `max_tokens` is cut to the positions that it leaves."""
        llm, ids = self.models.llm, generation.prompt_ids
        start, end = self.models.boundaries(generation.request.instruction)
        before, after = llm.embed(ids.before_speech), llm.embed(ids.after_speech)
        prompt = np.concatenate([before, start, frames, end, after])
        generation.max_tokens = min(generation.max_tokens, llm.max_positions - len(prompt))
        if generation.max_tokens < 1:
            generation.fail(PromptTooLong("The instruction and the speech together are too long for the model."))
            return
        generation.prompt = prompt
        generation.audio_frames = len(frames)
        generation.prefix_length = len(before) + len(start)
        generation.prefix_key = ids.before_speech, len(start) > 0
        generation.prefix_state = self.prefix_cache.find(generation.prefix_key)
        generation.cached_tokens = generation.prefix_state.length if generation.prefix_state is not None else 0
        generation.draft = draft
        self._plan_prefill(generation)

    def _plan_prefill(self, generation: Generation) -> None:
        """From nothing in any slot to the next token."""
        generation.propose()
        generation.position = 0
        held = len(generation.prompt) + len(generation.tokens) + len(generation.proposal)
        generation.to_prefill = held - generation.cached_tokens

    def _prefill(self, work: Sequence[tuple[Generation, int]]) -> None:
        started_s = time.perf_counter()
        rows = []
        for generation, tokens in work:
            if generation.position == 0 and generation.prefix_state is not None:
                self.models.llm.write_slot(generation.slot, generation.prefix_state)
            rows.append(self._prefill_row(generation, tokens))
        logits = self.models.llm.prefill(rows)
        self._check(logits, [row.wanted for row in rows])
        elapsed_s = time.perf_counter() - started_s
        self.counters.llm_passes += len(rows)
        for (generation, _), row, row_logits in zip(work, rows, logits, strict=True):
            generation.times.prefill_s += elapsed_s
            generation.llm_passes += 1
            self._settle_prefill(generation, row, row_logits)

    def _prefill_row(self, generation: Generation, tokens: int) -> PrefillRow:
        """The next positions of prompt, answer so far and proposal."""
        answer = [*generation.tokens, *generation.proposal]
        whole = np.concatenate([generation.prompt, self.models.llm.embed(answer)]) if answer else generation.prompt
        start = len(whole) - generation.to_prefill
        end = min(start + tokens, len(whole))
        first_wanted = len(whole) - len(generation.proposal) - 1
        return PrefillRow(generation.slot, start, whole[start:end], wanted=max(1, end - max(start, first_wanted)))

    def _settle_prefill(self, generation: Generation, row: PrefillRow, logits: Float32) -> None:
        known = len(generation.prompt) + len(generation.tokens)
        end = row.position + len(row.embeddings)
        if end < known:
            generation.to_prefill -= len(row.embeddings)
            generation.position = end
            return
        generation.proposal = generation.proposal[: end - known]
        generation.to_prefill = 0
        generation.position = known
        self._verifier.take(generation, logits)
        if generation.prefix_state is None and generation.error is None:
            self._keep_prefix(generation)

    def _keep_prefix(self, generation: Generation) -> None:
        try:
            state = self.models.llm.read_slot(generation.slot, generation.prefix_length)
        except Exception:
            logger.exception("the prefix of request %s could not be kept", generation.request.id)
            self.models.check()
        else:
            self.prefix_cache.keep(generation.prefix_key, state)

    def _decode_logits(self, generations: Sequence[Generation]) -> list[Float32]:
        """Logits of the generations, or of as many of the first ones as could be run.

        Where the batch raises, rows cannot be left out of its middle. So it grows from slot 0 until it raises again: the row
        added last is at fault and fails, and those after it wait for the next step.
        """
        rows = [
            DecodeRow(generation.slot, generation.position, (generation.tokens[-1], *generation.proposal))
            for generation in generations
        ]
        try:
            return self._decode_rows(rows)
        except Exception:
            logger.exception("a decode batch of %d failed; looking for the request at fault", len(rows))
        self.models.check()
        logits: list[Float32] = []
        for count, generation in enumerate(generations, start=1):
            try:
                logits = self._decode_rows(rows[:count])
            except Exception as error:
                self.models.check()
                generation.fail(error)
                break
        return logits

    def _decode_rows(self, rows: Sequence[DecodeRow]) -> list[Float32]:
        self.counters.llm_passes += len(rows)
        logits = self.models.llm.decode(rows)
        self._check(logits, [len(row.tokens) for row in rows])
        return logits

    def _check(self, logits: Sequence[Float32], wanted: Sequence[int]) -> None:
        expected = [(count, self.models.llm.vocabulary_size) for count in wanted]
        if [rows.shape for rows in logits] != expected:
            raise BackendError(f"The LLM returned logits {[rows.shape for rows in logits]} instead of {expected}.")


def holds_speech(output: AdapterOutput) -> bool:
    """False where nothing is left for the LLM, or the draft holds no token at all; an adapter without a draft cannot tell."""
    silent = len(output.best_token) > 0 and bool((output.best_token < 0).all())
    return len(output.frames) > 0 and not silent
