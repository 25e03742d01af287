"""The engine in this process: one thread that schedules, runs and settles, step by step."""

import logging
import threading
from collections.abc import Callable, Sequence

import numpy as np

from models.chain import Models
from models.prompt import lay_out_prompt
from server.detokenise import Detokeniser
from server.errors import EngineFailed, InvalidRequest, NotReady, Overloaded, PromptTooLong, ServeError
from server.generation import Generation
from server.request import Delta, EngineStats, Event, Failed, InstructRequest, SamplingOptions
from server.runner import Runner
from server.sampling import Sampler
from server.scheduler import Move, Scheduler

logger = logging.getLogger(__name__)

MEL_FRAMES_PER_SECOND = 100
# One of the longest utterances, or several common ones: running answers wait while a batch is encoded.
ENCODE_BUDGET_MEL_FRAMES = 3000
RETRY_AFTER_S = 1
# How long a step that runs at the end of a drain is waited for.
STOP_GRACE_S = 5.0


def discard(_event: Event) -> None:
    """Deliver to nobody."""


class LocalEngine:
    """The `Engine` protocol over models in this process.

    Events are delivered under the engine's lock: none follows a terminal event, nor a call of `abort`. They come from the
    engine's thread, except the failures of a drain that ran out of time, which come from its caller's.
    """

    def __init__(
        self,
        models: Models,
        sample_rate_hz: int,
        max_audio_s: float,
        queue_limit: int,
        encode_budget_mel_frames: int = ENCODE_BUDGET_MEL_FRAMES,
    ) -> None:
        self.sample_rate_hz = sample_rate_hz
        self.max_audio_s = max_audio_s
        self._models = models
        self._runner = Runner(models)
        self._scheduler = Scheduler(models.llm.slots, queue_limit, encode_budget_mel_frames)
        # Guards all below and the scheduler. `_generations` holds what the scheduler holds.
        self._changed = threading.Condition()
        self._generations: dict[str, Generation] = {}
        self._ready = False
        self._stopping = False
        self._steps = 0
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)

    def start(self) -> None:
        """Warm the models up and begin to serve. Raises `BackendError` where they do not run."""
        noise = np.random.default_rng(0).normal(0, 0.1, self.sample_rate_hz).astype(np.float32)
        warm_up = InstructRequest("warm-up", noise, "Warm up.", SamplingOptions(max_tokens=3))
        self._runner.warm_up(self._new_generation(warm_up, discard))
        with self._changed:
            self._ready = not self._stopping
        self._thread.start()

    def submit(self, request: InstructRequest, deliver: Callable[[Event], None]) -> None:
        generation = self._new_generation(request, deliver)
        mel_frames = len(request.audio) * MEL_FRAMES_PER_SECOND // self.sample_rate_hz
        with self._changed:
            if not self._ready:
                raise NotReady("The server is not ready to take requests.", retry_after_s=RETRY_AFTER_S)
            if request.id in self._generations:
                raise InvalidRequest("A request with this id is being served.")
            if self._scheduler.full:
                raise Overloaded("The server is busy; try again later.", retry_after_s=RETRY_AFTER_S)
            self._scheduler.add(request.id, mel_frames)
            self._generations[request.id] = generation
            self._changed.notify_all()

    def abort(self, request_id: str) -> None:
        with self._changed:
            generation = self._generations.get(request_id)
            if generation is not None:
                generation.ended = True
                if request_id in self._scheduler.waiting:
                    self._forget(generation)

    def stats(self) -> EngineStats:
        with self._changed:
            scheduler = self._scheduler
            return EngineStats(
                ready=self._ready,
                waiting=len(scheduler.waiting),
                running=len(scheduler.encoded) + len(scheduler.running),
                slots=scheduler.slots,
                queue_limit=scheduler.queue_limit,
                steps=self._steps,
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
            self._fail_all(EngineFailed("The engine failed."))
            self._generations.clear()
            self._scheduler.clear()
            self._changed.notify_all()

    def _wait_for_work(self) -> bool:
        """Block until there is a request; False once the engine is to stop."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._generations) or self._stopping)
            return not self._stopping

    def _step(self) -> None:
        """One token for every running request, and one stage further for some of those that came after."""
        decode, prefill, encode = self._schedule()
        self._runner.decode(decode)
        self._settle(decode)
        self._runner.prefill(prefill)
        self._settle(prefill)
        self._runner.encode(encode)
        self._settle(encode)

    def _schedule(self) -> tuple[list[Generation], list[Generation], list[Generation]]:
        """The generations to decode, to prefill and to encode in this step."""
        with self._changed:
            self._steps += 1
            step = self._scheduler.schedule()
            decode, prefill, encode = ([self._generations[id] for id in ids] for ids in (step.decode, step.prefill, step.encode))
        for slot, generation in enumerate(prefill, start=len(decode)):
            generation.slot = slot
        return decode, prefill, encode

    def _settle(self, generations: Sequence[Generation]) -> None:
        """Tell the clients what a stage brought, and give the places of requests that ended to others."""
        for generation in generations:
            with self._changed:
                if delta := generation.take_delta():
                    self._deliver(generation, Delta(generation.request.id, delta))
                if terminal := generation.terminal_event():
                    self._deliver(generation, terminal)
                move = self._forget(generation) if generation.ended else None
            if move is not None:
                self._runner.move(self._generations[move.id], move.target)

    def _forget(self, generation: Generation) -> Move | None:
        del self._generations[generation.request.id]
        self._changed.notify_all()
        return self._scheduler.finish(generation.request.id)

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

    def _new_generation(self, request: InstructRequest, deliver: Callable[[Event], None]) -> Generation:
        models = self._models
        prompt_ids = lay_out_prompt(models.template, models.tokeniser, request.instruction)
        boundaries = len(models.adapter.boundary_before) + len(models.adapter.boundary_after)
        speech_and_answer = 2
        if len(prompt_ids) + boundaries + speech_and_answer > models.llm.max_positions:
            raise PromptTooLong("The instruction is too long for the model.", param="instruction")
        detokeniser, sampler = Detokeniser(models.tokeniser), Sampler(request.sampling)
        return Generation(request, deliver, prompt_ids, detokeniser, sampler, request.sampling.max_tokens)
