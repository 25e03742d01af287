"""The encode stage, from audio to the adapter's output, and a thread for work beside the one that decodes."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from models.chain import Models
from models.protocols import BackendError, EncodingInterrupted, Float32, ProjectorOutput
from server.engine.runner.caches import AudioKey, ByteCache, audio_key
from server.engine.runner.sequence import SequenceState
from server.engine.runner.verification import RunnerCounters

logger = logging.getLogger(__name__)


class EncodeStage:
    """Runs features, encoder and adapter. Skips sequences whose `encoded` is set, such as those found in the cache.

    `interrupt`, from another thread, has the `run` of a batch raise `EncodingInterrupted`, until the next batch is begun.
    """

    def __init__(self, models: Models, encoder_cache: ByteCache[AudioKey, ProjectorOutput], counters: RunnerCounters) -> None:
        self._models = models
        self._encoder_cache = encoder_cache
        self._counters = counters
        self._interrupted = threading.Event()

    def begin_batch(self, sequences: Sequence[SequenceState]) -> None:
        """Begin a batch, with what is found of it in the cache."""
        self._interrupted.clear()
        self.lookup_cache(sequences)

    def interrupt(self) -> None:
        """Stop the batch that is being run, if its encoder is not through with it."""
        self._interrupted.set()
        self._models.interrupt_encoder()

    def lookup_cache(self, sequences: Sequence[SequenceState]) -> None:
        """Set `encoded` of sequences whose audio is in the cache; audio of sessions does not come again."""
        for sequence in sequences:
            if self._encoder_cache.enabled and not sequence.of_session and sequence.audio_key is None:
                sequence.audio_key = audio_key(sequence.request.client, sequence.request.audio)
                sequence.encoded = self._encoder_cache.find(sequence.audio_key)

    def compute_features(self, sequences: Sequence[SequenceState]) -> None:
        """Compute the features of sequences that lack them; a sequence that fails, fails alone. Raises `BackendLostError`.

        Only the sequences are touched, so this may run beside any stage that works on others. So may `run`.
        """
        attempt(self._compute_features, self._unfinished(sequences), self._models.check)

    def run(self, sequences: Sequence[SequenceState]) -> None:
        """Encode sequences, with features where they lack them; a sequence that fails, fails alone.

        Raises `BackendLostError` and `EncodingInterrupted`.
        """
        self.compute_features(sequences)
        attempt(self._run, self._unfinished(sequences), self._models.check)

    def store(self, sequence: SequenceState) -> None:
        """Keep in the cache what was encoded of a sequence."""
        if sequence.audio_key is not None and sequence.encoded is not None:
            self._encoder_cache.store(sequence.audio_key, sequence.encoded)

    @staticmethod
    def _unfinished(sequences: Sequence[SequenceState]) -> list[SequenceState]:
        return [sequence for sequence in sequences if sequence.encoded is None and not sequence.finished]

    def _compute_features(self, batch: Sequence[SequenceState]) -> None:
        for sequence in batch:
            self._features_of(sequence)

    def _features_of(self, sequence: SequenceState) -> Float32:
        if sequence.features is None:
            started_s = time.perf_counter()
            sequence.features = self._models.features(self._models.pad_audio(sequence.request.audio))
            sequence.times.features_s = time.perf_counter() - started_s
            self._counters.progress += 1
        return sequence.features

    def _run(self, batch: Sequence[SequenceState]) -> None:
        features = [self._features_of(sequence) for sequence in batch]
        featured_s = time.perf_counter()
        if self._interrupted.is_set():
            raise EncodingInterrupted("The encoder was interrupted.")
        states = self._models.encode(features, [sequence.kept.windows if sequence.kept else {} for sequence in batch])
        self._counters.progress += 1
        encoded_s = time.perf_counter()
        outputs = self._models.project(states, [len(sequence.request.audio) for sequence in batch])
        self._counters.progress += 1
        adapted_s = time.perf_counter()
        if len(outputs) != len(batch):
            raise BackendError(f"The adapter returned {len(outputs)} utterances of {len(batch)}.")
        for sequence, output in zip(batch, outputs, strict=True):
            sequence.encoded, sequence.features = output, None
            sequence.times.encode_s = encoded_s - featured_s
            sequence.times.adapter_s = adapted_s - encoded_s


class WorkerThread:
    """A thread that does pieces of work in their order. It does not keep the process from ending."""

    def __init__(self, name: str) -> None:
        self._work: queue.SimpleQueue[tuple[Callable[[], None], Future[None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def submit_work(self, work: Callable[[], None]) -> Future[None]:
        """Queue a piece of work; what it raises, the future raises."""
        future: Future[None] = Future()
        self._work.put((work, future))
        return future

    def stop(self) -> None:
        """End the thread; returns when all that was submitted is done."""
        self._work.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while self._do_next():
            pass

    def _do_next(self) -> bool:
        """Do one piece. A function of its own, so that the piece is let go of before the next one is waited for."""
        if (piece := self._work.get()) is None:
            return False
        work, future = piece
        try:
            work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(None)
        return True


def attempt(stage: Callable[[Sequence[SequenceState]], None], batch: Sequence[SequenceState], check: Callable[[], None]) -> None:
    """Run a stage that may be repeated. If a batch raises, run each of its sequences alone, so that only the culprits fail.

    `check` is called after each failure; what it raises ends the engine.
    """
    if not batch:
        return
    try:
        stage(batch)
    except EncodingInterrupted:
        raise
    except Exception as error:
        logger.exception("a batch of %d failed", len(batch))
        check()
        if len(batch) == 1:
            batch[0].fail(error)
            return
        for sequence in batch:
            attempt(stage, [sequence], check)
