"""The engine in this process: one thread that schedules and runs the stages, step by step."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

import numpy as np

from models.chain import Models
from models.protocols import EncodingInterrupted
from server.engine.live.sessions import LiveSessions
from server.engine.request_table import RequestTable
from server.engine.runner.encode_stage import WorkerThread
from server.engine.runner.runner import Runner
from server.engine.runner.sequence import SequenceState
from server.engine.runner.sequence_builder import compile_constraint, new_sequence
from server.engine.scheduler.admission import Admission
from server.engine.scheduler.scheduler import ENCODE_BUDGET_AUDIO_S, STEP_TOKENS, Scheduler
from server.engine.types.events import Event, LiveEvent
from server.engine.types.options import Priority, SamplingOptions
from server.engine.types.requests import InstructRequest, LiveInput, LiveRequest, SpeechTask
from server.engine.types.stats import EngineCounters, EngineStats
from server.errors import EngineFailed, NotReady, ServeError

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1
# A session costs little in silence.
LIVE_LIMIT = 16
RECORDING_LIMIT = 16
# How long a step that runs at the end of a drain is waited for.
STOP_GRACE_S = 5.0


class LocalEngine:
    """The `Engine` protocol over models in this process.

    Events are delivered under the engine's lock: none follows a terminal event, nor a call of `abort`. They come from the
    engine's thread, with two exceptions: the failures of a drain that ran out of time come from its caller's thread, and that
    of a request that gives up its place in a full queue from the thread that submits the newcomer.
    """

    def __init__(
        self,
        models: Models,
        sample_rate_hz: int,
        max_audio_s: float,
        queue_limit: int,
        *,
        encode_budget_audio_s: float = ENCODE_BUDGET_AUDIO_S,
        step_tokens: int = STEP_TOKENS,
        max_queue_wait_s: float | None = None,
        request_timeout_s: float | None = None,
        encoder_cache_bytes: int = 0,
        live_limit: int = LIVE_LIMIT,
        recording_limit: int = RECORDING_LIMIT,
        model_name: str = "model",
    ) -> None:
        """The budgets are those of `Scheduler`; `max_queue_wait_s` and `request_timeout_s` are those of `Admission`."""
        self.sample_rate_hz = sample_rate_hz
        self.max_audio_s = max_audio_s
        self.model_name = model_name
        self._models = models
        self._step_tokens = step_tokens
        self._encode_budget_audio_s = encode_budget_audio_s
        self._runner = Runner(models, encoder_cache_bytes=encoder_cache_bytes)
        # Guards everything below.
        self._changed = threading.Condition()
        slots, decoders = models.slots, len(models.decoders)
        scheduler = Scheduler(
            slots,
            queue_limit,
            encode_budget_audio_s,
            step_tokens,
            decoders=decoders,
            encodes_beside=models.encodes_beside,
        )
        admission = Admission(models.slots, max_queue_wait_s, request_timeout_s)
        # Encoding may last as long as many steps, so words are timed on another thread.
        self._encode_worker, self._word_worker = WorkerThread("engine-encode"), WorkerThread("engine-words")
        self._requests = RequestTable(scheduler, admission, sample_rate_hz, self._changed, self._start_timing_words)
        submit, cancel = self._requests.submit_internal, self._requests.cancel_request
        self._live = LiveSessions(models, sample_rate_hz, live_limit, recording_limit, self._changed, submit, cancel)
        self._ready = False
        self._stopping = False
        self._steps = 0
        self._longest_work_s = 0.0
        self._step_started_s: float | None = None
        # The batch that is being encoded, and the worker's part of that.
        self._encoding: list[SequenceState] = []
        self._encoded: Future[None] | None = None
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)

    def start(self) -> None:
        """Warm the models up and begin to serve. Raises `BackendError` if they do not run."""
        noise = np.random.default_rng(0).normal(0, 0.1, self.sample_rate_hz).astype(np.float32)
        instruction = self._models.transcription_instruction if not self._models.follows_instructions else "Warm up."
        warm_up = InstructRequest("warm-up", noise, SpeechTask(instruction, SamplingOptions(max_tokens=3)))
        sequence = new_sequence(self._models, warm_up, lambda _event: None)
        self._runner.warm_up(sequence)
        with self._changed:
            self._longest_work_s = self._estimate_longest_work_s(sequence)
            self._ready = not self._stopping
        self._thread.start()

    def transcribes(self, instruction: str) -> bool:
        return self._models.transcribes(instruction)

    def check_room(self, client: str, priority: Priority) -> None:
        with self._changed:
            self._require_ready()
            self._requests.check_room(client, priority)

    def submit(self, request: InstructRequest, deliver: Callable[[Event], None]) -> None:
        sequence = new_sequence(self._models, request, deliver)
        with self._changed:
            self._require_ready()
            self._requests.submit_request(sequence)

    def open_live(self, request: LiveRequest, deliver: Callable[[LiveEvent], None]) -> None:
        # Compiled here, not on the engine's thread, which then finds the constraint in a cache.
        compile_constraint(self._models, request.task.sampling.constraint)
        with self._changed:
            self._require_ready()
            self._live.open(request, deliver)

    def push(self, request_id: str, item: LiveInput) -> None:
        with self._changed:
            self._live.push(request_id, item)

    def abort(self, request_id: str) -> None:
        with self._changed:
            self._live.end(request_id)
            self._requests.cancel_request(request_id)

    def stats(self) -> EngineStats:
        with self._changed:
            started_s = self._step_started_s
            step_age_s = 0.0 if started_s is None else time.perf_counter() - started_s
            return self._snapshot(step_age_s)

    def drain(self, timeout_s: float) -> None:
        with self._changed:
            self._ready = False
            self._live.end_all_audio()
            self._changed.wait_for(lambda: not (self._requests.sequences or self._live) or not self._thread.is_alive(), timeout_s)
            self._stopping = True
            self._fail_all(NotReady("The engine is stopping."))
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(STOP_GRACE_S)

    def _estimate_longest_work_s(self, warm_up: SequenceState) -> float:
        """Scale what the warm-up's stages took to the largest encoder batch, a step's positions and all slots."""
        times = warm_up.times
        audio_s = max(self._encode_budget_audio_s, self.max_audio_s)
        return max(
            (times.features_s + times.encode_s + times.adapter_s) * audio_s / self._requests.audio_s(warm_up),
            times.prefill_s * max(1.0, self._step_tokens / max(1, warm_up.read_positions - warm_up.cached_tokens)),
            times.decode_s * self._models.slots,
        )

    def _serve(self) -> None:
        for worker in (self._encode_worker, self._word_worker):
            worker.start()
        try:
            while self._wait_for_work():
                self._step()
        except Exception:
            logger.exception("the engine died")
        with self._changed:
            self._ready = False
            self._step_started_s = None
            self._fail_all(EngineFailed("The engine failed."))
            self._requests.clear()
            self._changed.notify_all()
        self._live.stop()
        for worker in (self._encode_worker, self._word_worker):
            worker.stop()

    def _wait_for_work(self) -> bool:
        """Block until there is something to do. Return False once the engine has to stop."""
        with self._changed:
            self._step_started_s = None
            self._changed.wait_for(lambda: self._requests.have_work or self._live.have_detected or self._stopping)
            self._step_started_s = time.perf_counter()
            return not self._stopping

    def _step(self) -> None:
        """Take up what the voice detectors let through; if there are requests, run one stage further for some of them."""
        self._live.take_detected()
        with self._changed:
            self._steps += 1
            if not self._requests.have_work:
                return
        self._run_stages()

    def _run_stages(self) -> None:
        """Run one decode pass for every running request, and one stage further for some of those that came after."""
        self._settle(self._requests.expire_requests())
        self._preempt()
        decode, prefill, encode = self._requests.schedule_step()
        self._pack()
        if encode:
            self._start_encoding(encode)
        self._decode(decode)
        self._prefill([(sequence, positions) for sequence, positions in prefill if not sequence.ended])
        if self._encoding and not (self._models.encodes_beside and (decode or prefill) and self._is_encoding):
            self._encode()

    def _preempt(self) -> None:
        preempted = self._requests.preempt_requests()
        for sequence in preempted:
            self._runner.preempt(sequence)
        self._settle(preempted)

    @property
    def _is_encoding(self) -> bool:
        """Whether the encode worker is not through with its batch."""
        return self._encoded is not None and not self._encoded.done()

    def _start_encoding(self, batch: list[SequenceState]) -> None:
        """Begin the encode stage beside the other stages. On a GPU that goes on for as many steps as it takes."""
        # All requests of an earlier batch may have left.
        self._wait_for_encoding()
        self._encoding, self._encoded = batch, self._runner.start_encoding(batch, self._encode_worker)

    def _wait_for_encoding(self) -> None:
        """Wait for the encode worker, if it was given anything, and raise what that raised."""
        encoded, self._encoded = self._encoded, None
        if encoded is not None:
            encoded.result()

    def _decode(self, batch: list[SequenceState]) -> None:
        with self._requests.measure_cost(self._requests.admission.decode_s, min(1, len(batch))):
            self._runner.decode(batch)
        self._settle(batch)

    def _prefill(self, work: list[tuple[SequenceState, int]]) -> None:
        with self._requests.measure_cost(self._requests.admission.prefill_s, sum(positions for _, positions in work)):
            self._runner.prefill(work)
        batch = [sequence for sequence, _ in work]
        self._settle(batch)

    def _encode(self) -> None:
        """Finish the encode stage. Its cost is what it adds to a step: work beside the other stages is free."""
        batch, self._encoding = [sequence for sequence in self._encoding if not sequence.ended], []
        audio_s = sum(map(self._requests.audio_s, batch))
        with self._requests.measure_cost(self._requests.admission.encode_s, audio_s):
            self._wait_for_encoding()
            try:
                self._follow_sessions(batch, self._runner.go_on_encoding(batch, self._encode_worker))
            except EncodingInterrupted as interruption:
                for sequence in batch:
                    sequence.fail(interruption)
            else:
                self._runner.encode(batch)
        self._settle(batch)

    def _follow_sessions(self, batch: list[SequenceState], encoded: Future[None]) -> None:
        """Go on with live sessions while a batch is encoded, and interrupt that if it has to give way.

        Raises what the encode worker raised.
        """
        encoded.add_done_callback(self._notify)
        gives_way = False
        while not (encoded.done() or gives_way):
            with self._changed:
                self._changed.wait_for(
                    lambda: encoded.done() or self._live.have_detected or self._requests.should_interrupt(batch)
                )
            self._live.take_detected()
            with self._changed:
                gives_way = self._requests.should_interrupt(batch)
        if gives_way:
            self._runner.interrupt_encoding()
        encoded.result()

    def _notify(self, _done: Future[None]) -> None:
        with self._changed:
            self._changed.notify_all()

    def _start_timing_words(self, sequence: SequenceState) -> Future[None]:
        return self._word_worker.submit_work(partial(self._runner.time_words, sequence))

    def _settle(self, sequences: Sequence[SequenceState]) -> None:
        """Publish what a stage brought, and give the slots of requests that ended to others."""
        while sequences:
            self._requests.publish_events(sequences)
            sequences = self._pack()

    def _pack(self) -> list[SequenceState]:
        """Move every sequence to the slot that the scheduler has for it; return those that failed on the way.

        The lowest slot is filled first, because every move goes down, into a slot that was left or moved from before.
        """
        in_slots = self._requests.list_in_slots()
        for slot, sequence in in_slots:
            if sequence.slot != slot:
                self._runner.move(sequence, slot)
        return [sequence for _, sequence in in_slots if sequence.finished]

    def _require_ready(self) -> None:
        if not self._ready:
            raise NotReady("The server is not ready to take requests.", retry_after_s=RETRY_AFTER_S)

    def _fail_all(self, error: ServeError) -> None:
        self._live.fail_all(error)
        self._requests.fail_all(error)

    def _snapshot(self, step_age_s: float) -> EngineStats:
        requests, live, scheduler = self._requests, self._live, self._requests.scheduler
        counted = [id for id, sequence in requests.sequences.items() if not sequence.of_session]
        # An encoded request, which will have the next free slot, counts as running if there is one.
        begun = sum(not scheduler.is_queued(id) for id in counted)
        running = min(begun, scheduler.slots)
        return EngineStats(
            ready=self._ready,
            waiting=len(counted) - running,
            running=running,
            slots=scheduler.slots,
            queue_limit=scheduler.queue_limit,
            step_age_s=step_age_s,
            predicted_wait_s=requests.predict_wait_s(),
            is_overloaded=requests.is_overloaded,
            prefix_cache_bytes=self._runner.prefix_cache.nbytes,
            encoder_cache_bytes=self._runner.encoder_cache.nbytes,
            live_sessions=len(live) - live.recordings,
            live_limit=live.live_limit,
            recordings=live.recordings,
            recording_limit=live.recording_limit,
            live_jobs=len(requests.sequences) - len(counted) + live.busy,
            longest_work_s=self._longest_work_s,
            counters=_engine_counters(self._runner, live, self._steps),
        )


def _engine_counters(runner: Runner, live: LiveSessions, steps: int) -> EngineCounters:
    counters, prefixes, encoded = runner.counters, runner.prefix_cache, runner.encoder_cache
    return EngineCounters(
        steps=steps,
        progress=counters.progress + live.counters.progress,
        llm_passes=counters.llm_passes,
        generated_tokens=counters.generated_tokens,
        drafted=tuple(counters.drafted),
        accepted=tuple(counters.accepted),
        prefix_hits=prefixes.hits,
        prefix_misses=prefixes.misses,
        encoder_cache_hits=encoded.hits,
        encoder_cache_misses=encoded.misses,
        preemptions=counters.preemptions,
        utterances=live.counters.utterances,
        silent_utterances=live.counters.silent_utterances,
        partials=live.counters.partials,
    )
