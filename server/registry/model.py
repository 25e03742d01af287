"""One model of the server: its names, its engine while it is loaded, and the work that uses it. Belongs to the event loop."""

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from server.engine.types.protocol import Engine
from server.engine.types.stats import EngineCounters, EngineStats
from server.errors import ModelNotLoaded, NotReady

Result = TypeVar("Result")

ModelState = Literal["loading", "ready", "idle", "waking", "unloading", "unloaded", "failed"]
"""`idle` models were unloaded because they had no work, and are loaded again (`waking`) by the next request. `unloaded` ones
were unloaded by an operator, and wait for an operator."""

RETRY_AFTER_S = 1


@dataclass(frozen=True)
class ModelSource:
    """A model to serve: its engine, yet to be started, and `build`, which makes another one after the model was unloaded.

    `alias` is the name by which the operator asked for the model. `build` may take seconds, and raises `BackendError`.
    """

    engine: Engine
    build: Callable[[], Engine]
    alias: str | None = None


class ServedModel:
    """A model under its own `name`. `state` is set by the registry, which holds `lock` while it loads or unloads the model."""

    def __init__(self, source: ModelSource, wrap: Callable[[Engine], Engine]) -> None:
        """`wrap` is applied to every engine of the model."""
        self.name = source.engine.model_name
        self.sample_rate_hz = source.engine.sample_rate_hz
        self.max_audio_s = source.engine.max_audio_s
        self.created_s = int(time.time())
        self.state: ModelState = "loading"
        self.lock = asyncio.Lock()
        # How many requests wait until the model is awake.
        self.waiting = 0
        self.used_at_s = time.monotonic()
        self._build = source.build
        self._wrap = wrap
        self._engine: Engine | None = wrap(source.engine)
        self._past = EngineCounters()
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()
        self._sessions: set[Callable[[], None]] = set()

    @property
    def is_used(self) -> bool:
        """Whether a request or a live session has this model at work."""
        return self._users > 0

    @contextlib.contextmanager
    def in_use(self) -> Iterator[Engine]:
        """Yield the engine, which is not stopped before the block ends, but for the timeout of an unloading.

        Raises `NotReady`. Nothing may be awaited between `ModelRegistry.awaken` and this. An engine that is being started refuses
        by itself.
        """
        if self.state not in ("ready", "loading") or self._engine is None:
            raise self.refusal()
        self._users += 1
        self._unused.clear()
        try:
            yield self._engine
        finally:
            self._users -= 1
            self.used_at_s = time.monotonic()
            if not self._users:
                self._unused.set()

    def attach(self, stop: Callable[[], None]) -> None:
        """Have `stop` called when an operator unloads the model."""
        self._sessions.add(stop)

    def detach(self, stop: Callable[[], None]) -> None:
        self._sessions.discard(stop)

    def require_ready(self) -> int:
        """Return the `Retry-After` of refusals, in seconds, by the engine's predicted wait. Raises `NotReady`."""
        if self.state in ("idle", "waking"):
            return RETRY_AFTER_S
        if self.state not in ("ready", "loading"):
            raise self.refusal()
        stats = self.stats()
        if not stats.ready:
            raise NotReady("The server is not ready to take requests.", retry_after_s=RETRY_AFTER_S)
        return max(RETRY_AFTER_S, math.ceil(stats.predicted_wait_s))

    def refusal(self) -> NotReady:
        """Return the error for a request while the model is not loaded."""
        match self.state:
            case "failed":
                return NotReady("The engine could not be started; the server's log says why.")
            case "unloading" | "unloaded":
                return ModelNotLoaded(f"The model `{self.name}` is not loaded.", param="model")
        return NotReady("The server is not ready to take requests.", retry_after_s=RETRY_AFTER_S)

    def stats(self) -> EngineStats:
        """Return a snapshot. Its counters go on when the model is loaded again."""
        if self._engine is None:
            takes_requests = self.state in ("idle", "waking")
            return EngineStats(takes_requests, waiting=0, running=0, slots=0, queue_limit=0, counters=self._past)
        stats = self._engine.stats()
        return replace(stats, counters=self._past + stats.counters)

    async def start(self) -> None:
        """Load the model, and return when its engine is ready. Raises what `build` and `Engine.start` raise."""
        if self._engine is None:
            self._engine = self._wrap(await beside_loop(self._build))
        engine = self._engine
        try:
            await beside_loop(engine.start)
        except Exception:
            self._engine = None
            raise
        self.used_at_s = time.monotonic()

    async def end_work(self, timeout_s: float) -> None:
        """Have live sessions end, and return once nothing uses the model, or after the timeout."""
        for stop in tuple(self._sessions):
            stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._unused.wait()

    async def stop(self) -> None:
        """Stop the engine and free its memory; what runs fails."""
        await self.drain(0)
        if self._engine is not None:
            self._past += self._engine.stats().counters
            self._engine = None

    async def drain(self, timeout_s: float) -> None:
        """Have the engine refuse new work, finish what runs, or fail it at the timeout, and stop."""
        if (engine := self._engine) is not None:
            await beside_loop(lambda: engine.drain(timeout_s))


async def beside_loop(function: Callable[[], Result]) -> Result:
    """Return `function()`, run on a daemon thread: a server that is stopped while models load does not wait for them."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = function()
        except Exception as raised:
            error = raised
        # The loop may be closed meanwhile.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="model-load", daemon=True).start()
    return await future
