"""The engine in this process: one thread that listens, schedules, runs and settles, step by step."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from models.assemble import Models
from server.engine.live.sessions import LiveSessions
from server.engine.request_table import RequestTable
from server.engine.runner.encode_stage import SideThread
from server.engine.runner.runner import Runner
from server.engine.runner.sequence import SequenceState, follow, new_sequence
from server.engine.scheduler.admission import Admission
from server.engine.scheduler.scheduler import ENCODE_BUDGET_AUDIO_S, STEP_TOKENS, Scheduler
from server.engine.stats import engine_stats
from server.engine.types.events import Event, LiveEvent
from server.engine.types.options import SamplingOptions
from server.engine.types.requests import InstructRequest, LiveInput, LiveRequest
from server.engine.types.stats import EngineStats
from server.errors import EngineFailed, NotReady, ServeError

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1
# A session costs little while nobody speaks.
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
    ) -> None:
        """The budgets are those of `Scheduler`; `max_queue_wait_s` and `request_timeout_s` are those of `Admission`."""
        self.sample_rate_hz = sample_rate_hz
        self.max_audio_s = max_audio_s
        self._models = models
        self._step_tokens = step_tokens
        self._encode_budget_audio_s = encode_budget_audio_s
        self._runner = Runner(models, encoder_cache_bytes=encoder_cache_bytes)
        # Guards all below.
        self._changed = threading.Condition()
        scheduler = Scheduler(models.llm.slots, queue_limit, encode_budget_audio_s, step_tokens)
        admission = Admission(models.llm.slots, max_queue_wait_s, request_timeout_s)
        self._requests = RequestTable(scheduler, admission, sample_rate_hz, self._changed)
        submit, cancel = self._requests.submit_internal, self._requests.cancel_request
        self._live = LiveSessions(models, sample_rate_hz, live_limit, recording_limit, self._changed, submit, cancel)
        self._ready = False
        self._stopping = False
        self._steps = 0
        self._longest_work_s = 0.0
        self._step_started_s: float | None = None
        self._side = SideThread("engine-encode_stage") if models.encodes_beside else None
        self._encoding: list[SequenceState] = []
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)

    def start(self) -> None:
        """Warm the models up and begin to serve. Raises `BackendError` where they do not run."""
        noise = np.random.default_rng(0).normal(0, 0.1, self.sample_rate_hz).astype(np.float32)
        warm_up = InstructRequest("warm-up", noise, "Warm up.", SamplingOptions(max_tokens=3))
        sequence = new_sequence(self._models, warm_up, lambda _event: None)
        self._runner.warm_up(sequence)
        with self._changed:
            self._longest_work_s = self._estimate_longest_work_s(sequence)
            self._ready = not self._stopping
        self._live.start()
        self._thread.start()

    def transcribes(self, instruction: str) -> bool:
        return self._models.transcribes(instruction)

    def submit(self, request: InstructRequest, deliver: Callable[[Event], None]) -> None:
        sequence = new_sequence(self._models, request, deliver)
        with self._changed:
            self._require_ready()
            self._requests.submit_request(sequence)

    def open_live(self, request: LiveRequest, deliver: Callable[[LiveEvent], None]) -> None:
        # Its answers follow a constraint while the engine is waiting; this takes the time before.
        follow(self._models, request.sampling.constraint)
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
            return engine_stats(
                self._requests,
                self._live,
                self._runner,
                ready=self._ready,
                steps=self._steps,
                step_age_s=step_age_s,
                longest_work_s=self._longest_work_s,
            )

    def drain(self, timeout_s: float) -> None:
        with self._changed:
            self._ready = False
            self._live.end_all_audio()
            self._changed.wait_for(lambda: not (self._requests.sequences or self._live) or not self._thread.is_alive(), timeout_s)
            self._stopping = True
            self._fail_all(NotReady("The server is shutting down."))
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(STOP_GRACE_S)

    def _estimate_longest_work_s(self, warm_up: SequenceState) -> float:
        """Scale what the warm-up's stages took to the largest encoder batch, a step's positions and all slots."""
        times = warm_up.times
        audio_s = max(self._encode_budget_audio_s, self.max_audio_s)
        return max(
            (times.features_s + times.encode_s + times.adapter_s) * audio_s / self._requests.audio_s(warm_up),
            times.prefill_s * max(1.0, self._step_tokens / max(1, len(warm_up.prompt) - warm_up.cached_tokens)),
            times.decode_s * self._models.llm.slots,
        )

    def _serve(self) -> None:
        if self._side is not None:
            self._side.start()
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
        if self._side is not None:
            self._side.stop()

    def _wait_for_work(self) -> bool:
        """Block until there is something to do; False once the engine is to stop."""
        with self._changed:
            self._step_started_s = None
            self._changed.wait_for(lambda: self._requests.sequences or self._live.have_heard or self._stopping)
            self._step_started_s = time.perf_counter()
            return not self._stopping

    def _step(self) -> None:
        """One pass for every running request, and one stage further for some of those that came after."""
        self._live.take_heard()
        self._settle(self._requests.expire_requests())
        self._preempt()
        decode, prefill, encode = self._requests.schedule_step()
        self._pack()
        if encode:
            self._hear(encode)
        self._decode(decode)
        self._prefill([(sequence, positions) for sequence, positions in prefill if not sequence.ended])
        if self._side is None or self._side.idle or not (decode or prefill):
            self._encode()
        with self._changed:
            self._steps += 1

    def _preempt(self) -> None:
        preempted = self._requests.preempt_requests()
        for sequence in preempted:
            self._runner.preempt(sequence)
        self._settle(preempted)

    def _hear(self, batch: list[SequenceState]) -> None:
        """Have a batch encoded. Where that has a processor of its own, what touches nothing of other stages begins now, and goes
        on beside as many steps as it takes."""
        if self._side is not None:
            # Of a batch whose requests have all left.
            self._side.finish()
            self._runner.encode_stage.lookup_cache(batch)
            self._side.begin(partial(self._runner.encode_stage.run, batch))
        self._encoding = batch

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
        """The rest of it, or all. Its cost is what it adds to a step: what was encoded beside the other stages is free."""
        batch, self._encoding = [sequence for sequence in self._encoding if not sequence.ended], []
        audio_s = sum(map(self._requests.audio_s, batch))
        with self._requests.measure_cost(self._requests.admission.encode_s, audio_s):
            if self._side is not None:
                self._side.finish()
            self._runner.encode(batch)
        self._settle(batch)

    def _settle(self, sequences: Sequence[SequenceState]) -> None:
        """Tell the clients what a stage brought, and give the places of requests that ended to others."""
        while sequences:
            self._requests.publish_events(sequences)
            sequences = self._pack()

    def _pack(self) -> list[SequenceState]:
        """Bring every request to the slot that the scheduler has for it; returns those that failed on the way.

        From the lowest slot on, because every move goes down, into a slot that was left or moved from before.
        """
        in_slots = self._requests.list_in_slots()
        for slot, sequence in enumerate(in_slots):
            if sequence.slot != slot:
                self._runner.move(sequence, slot)
        return [sequence for sequence in in_slots if sequence.finished]

    def _require_ready(self) -> None:
        if not self._ready:
            raise NotReady("The server is not ready to take requests.", retry_after_s=RETRY_AFTER_S)

    def _fail_all(self, error: ServeError) -> None:
        self._live.fail_all(error)
        self._requests.fail_all(error)
