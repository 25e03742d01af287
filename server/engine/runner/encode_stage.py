"""From audio to what the adapter made of it, and the thread in which that may happen beside the LLM's work."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from models.assemble import Models
from models.protocols import AdapterOutput, BackendError
from server.engine.runner.caches import AudioKey, ByteCache, audio_key
from server.engine.runner.sequence import SequenceState
from server.engine.runner.verification import RunnerCounters

logger = logging.getLogger(__name__)


class EncodeStage:
    """The first half of the stage `encode`: features, encoder, adapter. A sequence that has `encoded` needs none of it."""

    def __init__(self, models: Models, encoder_cache: ByteCache[AudioKey, AdapterOutput], counters: RunnerCounters) -> None:
        self._models = models
        self._encoder_cache = encoder_cache
        self._counters = counters

    def lookup_cache(self, sequences: Sequence[SequenceState]) -> None:
        """Take from the cache what was encoded before; audio of sessions does not come again."""
        for sequence in sequences:
            if self._encoder_cache.enabled and not sequence.of_session and sequence.audio_key is None:
                sequence.audio_key = audio_key(sequence.request.client, sequence.request.audio)
                sequence.encoded = self._encoder_cache.find(sequence.audio_key)

    def run(self, sequences: Sequence[SequenceState]) -> None:
        """Run the models on those that have not encoded; a sequence that fails, fails alone. Raises `BackendLostError`.

        It touches nothing but the sequences, and so may run beside any stage that works on others.
        """
        pending = [sequence for sequence in sequences if sequence.encoded is None and not sequence.finished]
        attempt(self._run, pending, self._models.check)

    def keep(self, sequence: SequenceState) -> None:
        """Have the cache keep what it encoded."""
        if sequence.audio_key is not None and sequence.encoded is not None:
            self._encoder_cache.keep(sequence.audio_key, sequence.encoded)

    def _run(self, batch: Sequence[SequenceState]) -> None:
        started_s = time.perf_counter()
        features = [self._models.features(sequence.request.audio) for sequence in batch]
        self._counters.progress += 1
        featured_s = time.perf_counter()
        states = self._models.encoder.encode(features)
        self._counters.progress += 1
        encoded_s = time.perf_counter()
        outputs = self._models.adapter.adapt(states)
        self._counters.progress += 1
        adapted_s = time.perf_counter()
        if len(outputs) != len(batch):
            raise BackendError(f"The adapter returned {len(outputs)} utterances of {len(batch)}.")
        for sequence, output in zip(batch, outputs, strict=True):
            sequence.encoded = output
            sequence.times.features_s = featured_s - started_s
            sequence.times.encode_s = encoded_s - featured_s
            sequence.times.adapter_s = adapted_s - encoded_s


class SideThread:
    """One thread for work beside its owner's, one piece at a time. It does not keep the process from ending."""

    def __init__(self, name: str) -> None:
        self._work: queue.SimpleQueue[tuple[Callable[[], None], Future[None]] | None] = queue.SimpleQueue()
        self._begun: Future[None] | None = None
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def begin(self, work: Callable[[], None]) -> None:
        """Have it done; `finish` has to come before the next."""
        self._begun = Future()
        self._work.put((work, self._begun))

    @property
    def idle(self) -> bool:
        """Whether `finish` would not have to wait."""
        return self._begun is None or self._begun.done()

    def finish(self) -> None:
        """Wait for what was begun, if anything; what that raised is raised here."""
        begun, self._begun = self._begun, None
        if begun is not None:
            begun.result()

    def stop(self) -> None:
        """End the thread; returns when it is through with what was begun."""
        self._work.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while self._do_next():
            pass

    def _do_next(self) -> bool:
        """What it worked on is let go of before the next is waited for."""
        if (piece := self._work.get()) is None:
            return False
        work, done = piece
        try:
            work()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)
        return True


def attempt(stage: Callable[[Sequence[SequenceState]], None], batch: Sequence[SequenceState], check: Callable[[], None]) -> None:
    """Run a stage, which may be run again; where a batch raises, each of its requests alone, so that only the culprits fail.

    `check` is called after each failure; what it raises nobody survives.
    """
    if not batch:
        return
    try:
        stage(batch)
    except Exception as error:
        logger.exception("a batch of %d failed", len(batch))
        check()
        if len(batch) == 1:
            batch[0].fail(error)
            return
        for sequence in batch:
            attempt(stage, [sequence], check)
