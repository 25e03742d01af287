"""The engine in this process: one thread that schedules, runs and settles, step by step."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from models.chain import Models
from server.admission import Admission, Ratio, overloaded
from server.engine_protocol import EngineCounters, EngineStats
from server.errors import EngineFailed, InvalidRequest, NotReady, Overloaded, RequestTimedOut, ServeError
from server.generation import Generation, new_generation
from server.request import Delta, Done, Event, Failed, InstructRequest, Priority, SamplingOptions
from server.runner import Runner
from server.scheduler import ENCODE_BUDGET_MEL_FRAMES, STEP_TOKENS, Scheduler

logger = logging.getLogger(__name__)

MEL_FRAMES_PER_SECOND = 100
RETRY_AFTER_S = 1
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
        encode_budget_mel_frames: int = ENCODE_BUDGET_MEL_FRAMES,
        step_tokens: int = STEP_TOKENS,
        encode_gather_s: float = 0.0,
        max_queue_wait_s: float | None = None,
        encoder_cache_bytes: int = 0,
    ) -> None:
        """The budgets and `encode_gather_s` are those of `Scheduler`. Beyond `max_queue_wait_s` of predicted wait it refuses."""
        self.sample_rate_hz = sample_rate_hz
        self.max_audio_s = max_audio_s
        self._models = models
        self._runner = Runner(models, encoder_cache_bytes=encoder_cache_bytes)
        # Guards all below. `_generations` holds what the scheduler holds.
        self._changed = threading.Condition()
        self._scheduler = Scheduler(models.llm.slots, queue_limit, encode_budget_mel_frames, step_tokens, encode_gather_s)
        self._admission = Admission(models.llm.slots, max_queue_wait_s)
        self._generations: dict[str, Generation] = {}
        self._ready = False
        self._stopping = False
        self._steps = 0
        self._step_started_s: float | None = None
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)

    def start(self) -> None:
        """Warm the models up and begin to serve. Raises `BackendError` where they do not run."""
        noise = np.random.default_rng(0).normal(0, 0.1, self.sample_rate_hz).astype(np.float32)
        warm_up = InstructRequest("warm-up", noise, "Warm up.", SamplingOptions(max_tokens=3))
        self._runner.warm_up(new_generation(self._models, warm_up, lambda _event: None))
        with self._changed:
            self._ready = not self._stopping
        self._thread.start()

    def submit(self, request: InstructRequest, deliver: Callable[[Event], None]) -> None:
        generation = new_generation(self._models, request, deliver)
        mel_frames = self._mel_frames(request)
        submitted_s, deadline_s = generation.submitted_at_s, request.deadline_s
        with self._changed:
            if not self._ready:
                raise NotReady("The server is not ready to take requests.", retry_after_s=RETRY_AFTER_S)
            if request.id in self._generations:
                raise InvalidRequest("A request with this id is being served.")
            backlog = self._scheduler.ahead_of(request.client, request.priority, mel_frames)
            self._admission.check(backlog, mel_frames, deadline_s)
            busy = overloaded(self._admission.wait_s(backlog))
            displaced = self._make_room(request, busy) if self._scheduler.full else None
            expires_s = math.inf if deadline_s is None else submitted_s + deadline_s
            self._scheduler.add(request.id, mel_frames, submitted_s, request.client, request.priority, expires_s)
            self._generations[request.id] = generation
            if displaced is not None:
                self._deliver(displaced, Failed(displaced.request.id, busy))
            self._changed.notify_all()

    def abort(self, request_id: str) -> None:
        with self._changed:
            if generation := self._generations.get(request_id):
                generation.ended = True
                if self._scheduler.is_queued(request_id):
                    self._forget(generation)

    def stats(self) -> EngineStats:
        with self._changed:
            scheduler, runner, started_s = self._scheduler, self._runner, self._step_started_s
            backlog = scheduler.ahead_of("", Priority.INTERACTIVE, ENCODE_BUDGET_MEL_FRAMES)
            running = min(len(scheduler) - scheduler.queued, scheduler.slots)
            return EngineStats(
                ready=self._ready,
                waiting=len(scheduler) - running,
                running=running,
                slots=scheduler.slots,
                queue_limit=scheduler.queue_limit,
                step_age_s=0.0 if started_s is None else time.perf_counter() - started_s,
                predicted_wait_s=self._admission.wait_s(backlog),
                prefix_cache_bytes=runner.prefix_cache.nbytes,
                encoder_cache_bytes=runner.encoder_cache.nbytes,
                counters=self._counters(),
            )

    def drain(self, timeout_s: float) -> None:
        with self._changed:
            self._ready = False
            self._changed.wait_for(lambda: not self._generations or not self._thread.is_alive(), timeout_s)
            self._stopping = True
            self._fail_all(NotReady("The server is shutting down."))
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(STOP_GRACE_S)

    def _serve(self) -> None:
        try:
            while self._wait_for_work():
                self._step()
        except Exception:
            logger.exception("the engine died")
        with self._changed:
            self._ready = False
            self._step_started_s = None
            self._fail_all(EngineFailed("The engine failed."))
            self._generations.clear()
            self._scheduler.clear()
            self._changed.notify_all()

    def _wait_for_work(self) -> bool:
        """Block until there is a request; False once the engine is to stop."""
        with self._changed:
            self._step_started_s = None
            self._changed.wait_for(lambda: bool(self._generations) or self._stopping)
            self._step_started_s = time.perf_counter()
            return not self._stopping

    def _step(self) -> None:
        """One pass for every running request, and one stage further for some of those that came after."""
        self._settle(self._over())
        self._preempt()
        decode, prefill, encode = self._schedule()
        self._decode(decode)
        self._prefill([(generation, positions) for generation, positions in prefill if not generation.ended])
        self._encode([generation for generation in encode if not generation.ended])
        with self._changed:
            self._steps += 1

    def _over(self) -> list[Generation]:
        """Those whose client left since the last step, or whose deadline has passed."""
        with self._changed:
            for id in self._scheduler.expired(time.perf_counter()):
                self._generations[id].fail(RequestTimedOut("The request's deadline has passed."))
            return [generation for generation in self._generations.values() if generation.ended or generation.finished]

    def _preempt(self) -> None:
        with self._changed:
            preempted = [self._generations[id] for id in self._scheduler.preempt(time.perf_counter())]
        for generation in preempted:
            self._runner.preempt(generation)
        self._note_prefill(preempted)
        self._settle(preempted)

    def _schedule(self) -> tuple[list[Generation], list[tuple[Generation, int]], list[Generation]]:
        """The generations to decode, to prefill (with how many positions) and to encode, those in slots with their slot."""
        with self._changed:
            generations, scheduler = self._generations, self._scheduler
            step = scheduler.schedule(time.perf_counter())
            for id in step.started:
                generations[id].slot = scheduler.running.index(id)
            prefill = [(generations[id], positions) for id, positions in step.prefill]
            return [generations[id] for id in step.decode], prefill, [generations[id] for id in step.encode]

    def _decode(self, batch: list[Generation]) -> None:
        with self._measuring(self._admission.decode_s, min(1, len(batch))):
            self._runner.decode(batch)
        self._settle(batch)

    def _prefill(self, work: list[tuple[Generation, int]]) -> None:
        with self._measuring(self._admission.prefill_s, sum(positions for _, positions in work)):
            self._runner.prefill(work)
        batch = [generation for generation, _ in work]
        self._note_prefill(batch)
        self._settle(batch)

    def _encode(self, batch: list[Generation]) -> None:
        with self._measuring(self._admission.encode_s, sum(self._mel_frames(generation.request) for generation in batch)):
            self._runner.encode(batch)
        self._note_prefill(batch)
        self._settle(batch)

    @contextmanager
    def _measuring(self, cost: Ratio, units: int) -> Iterator[None]:
        started_s = time.perf_counter()
        yield
        if units:
            with self._changed:
                cost.add(time.perf_counter() - started_s, units)

    def _note_prefill(self, generations: Sequence[Generation]) -> None:
        with self._changed:
            for generation in generations:
                self._scheduler.set_to_prefill(generation.request.id, generation.to_prefill)

    def _settle(self, generations: Sequence[Generation]) -> None:
        """Tell the clients what a stage brought, and give the places of requests that ended to others."""
        while generations:
            with self._changed:
                for generation in generations:
                    self._tell(generation)
            generations = self._pack()

    def _tell(self, generation: Generation) -> None:
        if delta := generation.take_delta():
            self._deliver(generation, delta)
        if terminal := generation.terminal_event():
            if isinstance(terminal, Done) and generation.llm_passes:
                self._admission.answered(len(generation.prompt) - generation.cached_tokens, generation.llm_passes - 1)
            self._deliver(generation, terminal)
        if generation.ended:
            self._forget(generation)

    def _pack(self) -> list[Generation]:
        """Bring every request to the slot that the scheduler has for it; returns those that failed on the way.

        From the lowest slot on, because every move goes down, into a slot that was left or moved from before.
        """
        with self._changed:
            in_slots = [self._generations[id] for id in self._scheduler.running]
        for slot, generation in enumerate(in_slots):
            if generation.slot != slot:
                self._runner.move(generation, slot)
        return [generation for generation in in_slots if generation.finished]

    def _forget(self, generation: Generation) -> None:
        """Free all that a request holds, unless its client's leaving has done so already."""
        id = generation.request.id
        if self._generations.get(id) is generation:
            del self._generations[id]
            self._scheduler.finish(id)
            self._changed.notify_all()

    def _make_room(self, request: InstructRequest, busy: Overloaded) -> Generation:
        """Take the place in the queue of a request with less of a right to it, which is to be told; raises `busy`."""
        id = self._scheduler.displaced_by(request.client, request.priority)
        if id is None:
            raise busy
        displaced = self._generations[id]
        self._forget(displaced)
        return displaced

    def _deliver(self, generation: Generation, event: Event) -> None:
        with self._changed:
            if generation.ended:
                return
            generation.ended = not isinstance(event, Delta)
            try:
                generation.deliver(event)
            except Exception:
                logger.exception("request %s: its client cannot be told; giving it up", generation.request.id)
                generation.ended = True

    def _fail_all(self, error: ServeError) -> None:
        for generation in self._generations.values():
            self._deliver(generation, Failed(generation.request.id, error))

    def _mel_frames(self, request: InstructRequest) -> int:
        return len(request.audio) * MEL_FRAMES_PER_SECOND // self.sample_rate_hz

    def _counters(self) -> EngineCounters:
        runner = self._runner
        counters, prefixes, encoded = runner.counters, runner.prefix_cache, runner.encoder_cache
        return EngineCounters(
            steps=self._steps,
            llm_passes=counters.llm_passes,
            generated_tokens=counters.generated_tokens,
            drafted=tuple(counters.drafted),
            accepted=tuple(counters.accepted),
            prefix_hits=prefixes.hits,
            prefix_misses=prefixes.misses,
            encoder_cache_hits=encoded.hits,
            encoder_cache_misses=encoded.misses,
            preemptions=counters.preemptions,
        )
