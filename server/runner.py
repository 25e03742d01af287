"""Runs the stages of a step on the models; a request that fails, fails alone.

Every stage takes the generations that the scheduler chose for it and writes into them what came out, text or error.
"""

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np

from models.backends import AdapterOutput, BackendError, DecodeRow, Float32, PrefillRow
from models.chain import Models
from server.errors import PromptTooLong
from server.generation import Generation

logger = logging.getLogger(__name__)


class Runner:
    """The stages `encode`, `prefill` and `decode`, and the `move` between slots; none of them raises."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def encode(self, generations: Sequence[Generation]) -> None:
        """Audio to prompt embeddings; audio without speech is answered with no text here."""
        attempt(self._encode, generations)

    def prefill(self, generations: Sequence[Generation]) -> None:
        """Prompts into their slots, and the first token of each answer."""
        attempt(self._prefill, generations)

    def decode(self, generations: Sequence[Generation]) -> None:
        """One more token for the generations in slots 0..n-1."""
        if not generations:
            return
        started_s = time.perf_counter()
        logits = self._decode_logits(generations)
        elapsed_s = time.perf_counter() - started_s
        for generation in generations:
            generation.times.decode_s += elapsed_s
        for generation, row in zip(generations, logits, strict=False):
            generation.position += 1
            self._choose_token(generation, row)

    def warm_up(self, generation: Generation) -> None:
        """Run every stage once, in slot 0. Raises `BackendError` where one of them fails."""
        self.encode([generation])
        if not generation.audio_frames:
            self._lay_out(generation, np.zeros((1, self._models.llm.embedding_size), np.float32))
        self.prefill([generation])
        # The answer may have ended at once; decode needs a token, whichever.
        generation.append(0)
        self.decode([generation])
        if generation.error is not None:
            raise BackendError("The models could not run the warm-up request.") from generation.error

    def move(self, generation: Generation, target: int) -> None:
        """Take a generation to another slot, with its K/V where it has any and still needs it."""
        source, generation.slot = generation.slot, target
        if generation.position == 0 or generation.finished:
            return
        try:
            self._models.llm.move(source, target, generation.position)
        except Exception as error:
            logger.exception("request %s could not be moved", generation.request.id)
            generation.fail(error)

    def _encode(self, batch: Sequence[Generation]) -> None:
        started_s = time.perf_counter()
        features = [self._models.features(generation.request.audio) for generation in batch]
        featured_s = time.perf_counter()
        states = self._models.encoder.encode(features)
        encoded_s = time.perf_counter()
        outputs = self._models.adapter.adapt(states)
        adapted_s = time.perf_counter()
        if len(outputs) != len(batch):
            raise BackendError(f"The adapter returned {len(outputs)} utterances of {len(batch)}.")
        for generation, output in zip(batch, outputs, strict=True):
            generation.times.features_s = featured_s - started_s
            generation.times.encode_s = encoded_s - featured_s
            generation.times.adapter_s = adapted_s - encoded_s
            if holds_speech(output):
                self._lay_out(generation, output.frames)
            else:
                generation.finish("no_speech")

    def _lay_out(self, generation: Generation, frames: Float32) -> None:
        """Build the prompt; `max_tokens` is cut to the positions that it leaves."""
        llm, ids = self._models.llm, generation.prompt_ids
        start, end = self._models.boundaries(generation.request.instruction)
        before, after = llm.embed(ids.before_speech), llm.embed(ids.after_speech)
        prompt = np.concatenate([before, start, frames, end, after])
        generation.max_tokens = min(generation.max_tokens, llm.max_positions - len(prompt))
        if generation.max_tokens < 1:
            generation.fail(PromptTooLong("The instruction and the speech together are too long for the model."))
        generation.prompt = prompt
        generation.audio_frames = len(frames)

    def _prefill(self, batch: Sequence[Generation]) -> None:
        started_s = time.perf_counter()
        logits = self._models.llm.prefill([PrefillRow(generation.slot, 0, generation.prompt) for generation in batch])
        self._check(logits, len(batch))
        elapsed_s = time.perf_counter() - started_s
        for generation, row in zip(batch, logits, strict=True):
            generation.times.prefill_s = elapsed_s
            generation.position = len(generation.prompt)
            self._choose_token(generation, row)

    def _decode_logits(self, generations: Sequence[Generation]) -> Float32:
        """Logits of the generations, or of as many of the first ones as could be run.

        Where the batch raises, rows cannot be left out of its middle. So it grows from slot 0 until it raises again: the row
        added last is at fault and fails, and those after it wait for the next step.
        """
        rows = [DecodeRow(generation.slot, generation.position, generation.tokens[-1]) for generation in generations]
        try:
            return self._decode_rows(rows)
        except Exception:
            logger.exception("a decode batch of %d failed; looking for the request at fault", len(rows))
        logits = np.empty((0, self._models.llm.vocabulary_size), np.float32)
        for count, generation in enumerate(generations, start=1):
            try:
                logits = self._decode_rows(rows[:count])
            except Exception as error:
                generation.fail(error)
                break
        return logits

    def _decode_rows(self, rows: Sequence[DecodeRow]) -> Float32:
        logits = self._models.llm.decode(rows)
        self._check(logits, len(rows))
        return logits

    def _choose_token(self, generation: Generation, logits: Float32) -> None:
        try:
            token = generation.sampler.choose(logits)
        except BackendError as error:
            logger.error("request %s: %s", generation.request.id, error)
            generation.fail(error)
            return
        if token in self._models.template.end_tokens:
            generation.finish("stop")
        else:
            generation.append(token)

    def _check(self, logits: Float32, rows: int) -> None:
        if logits.shape != (rows, self._models.llm.vocabulary_size):
            raise BackendError(f"The LLM returned logits {logits.shape} for {rows} rows.")


def holds_speech(output: AdapterOutput) -> bool:
    """False where nothing is left for the LLM, or the draft holds no token at all; an adapter without a draft cannot tell."""
    silent = len(output.best_token) > 0 and bool((output.best_token < 0).all())
    return len(output.frames) > 0 and not silent


def attempt(stage: Callable[[Sequence[Generation]], None], batch: Sequence[Generation]) -> None:
    """Run a stage, which may be run again; where a batch raises, each of its requests alone, so that only the culprits fail."""
    if not batch:
        return
    try:
        stage(batch)
    except Exception as error:
        logger.exception("a batch of %d failed", len(batch))
        if len(batch) == 1:
            batch[0].fail(error)
            return
        for generation in batch:
            attempt(stage, [generation])
