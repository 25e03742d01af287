"""All models of one server, by name: which one answers, and loading and unloading while others answer."""

import asyncio
import contextlib
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from models.bundle.io import BundleError
from models.protocols import BackendError
from server.engine.ipc.client import StartError
from server.engine.types.protocol import Engine
from server.engine.types.stats import EngineCounters, EngineStats
from server.errors import ModelLoadFailed, ModelNotFound, ModelNotLoaded, NotReady, Overloaded

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

ModelState = Literal["loading", "ready", "idle", "waking", "unloading", "unloaded", "failed"]
"""`idle` models were unloaded because they had no work, and are loaded again (`waking`) by the next request. `unloaded` ones
were unloaded by an operator, and wait for an operator."""

RETRY_AFTER_S = 1
SHOWN_NAME = re.compile(r"[\w./:@+-]{1,128}", re.ASCII)
# How often idle models are looked for, as a share of the time after which a model is idle, and at most.
IDLE_CHECK_SHARE, LONGEST_IDLE_CHECK_S = 0.1, 5.0


@dataclass(frozen=True)
class ModelSource:
    """A model to serve: its engine, yet to be started, and `build`, which makes another one after the model was unloaded.

    `alias` is the name by which the operator asked for the model. `build` may take seconds, and raises `BackendError`.
    """

    engine: Engine
    build: Callable[[], Engine]
    alias: str | None = None


Catalogue = Callable[[str], ModelSource]
"""Returns a model of this machine by its name, verified. Raises `LookupError` if there is none, and `BackendError`."""


def no_catalogue(_name: str) -> ModelSource:
    """Raise `LookupError`: the `Catalogue` of a machine without further models."""
    raise LookupError


class ServedModel:
    """A model under its own `name`, its engine while that is loaded, and the work that uses it.

    `state` is set by the registry, which holds `lock` while it loads or unloads the model. Belongs to the event loop.
    """

    def __init__(self, source: ModelSource) -> None:
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
        self._engine: Engine | None = source.engine
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
            message = f"The model `{self.name}` is being loaded; GET /ready tells when it can be asked."
            raise NotReady(message, retry_after_s=RETRY_AFTER_S)
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
            self._engine = await beside_loop(self._build)
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


class ModelRegistry:
    """The models of one server. The first is the default: it answers requests that name none, and has the `aliases`.

    Belongs to the event loop, except `stats`, `models` and what tells how the start went.
    """

    def __init__(
        self,
        sources: Sequence[ModelSource],
        *,
        aliases: Iterable[str] = (),
        catalogue: Catalogue = no_catalogue,
        waiting_limit: int = 16,
        drain_timeout_s: float = 30.0,
        idle_timeout_s: float | None = None,
    ) -> None:
        """At most `waiting_limit` requests wait for a model that is waking. Without `idle_timeout_s` no model gets idle.

        Raises `ValueError` if two models have one name, or take audio at different rates.
        """
        self.stopping = False
        """Whether the server takes no new work any more."""
        self._catalogue = catalogue
        self._waiting_limit = waiting_limit
        self._drain_timeout_s = drain_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._models: dict[str, ServedModel] = {}
        # Own names, and those by which operators asked for the models.
        self._names: dict[str, ServedModel] = {}
        for source in sources:
            if source.engine.model_name in self._models:
                raise ValueError(f"Two models have the name {source.engine.model_name!r}; only one of them can be served.")
            self._add(source)
        self._first = tuple(self._models.values())
        self.default = self._first[0]
        self.aliases = tuple(alias for alias in dict.fromkeys(aliases) if alias not in self._models)
        self._adding = asyncio.Lock()
        self._wakes: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """All models, the default first."""
        return tuple(self._models.values())

    @property
    def is_starting(self) -> bool:
        """Whether one of the models that the server began with was never ready yet, and has not failed."""
        return any(model.state == "loading" for model in self._first)

    @property
    def start_failed(self) -> bool:
        """Whether none of the models that the server began with could be loaded."""
        return all(model.state == "failed" for model in self._first)

    def find(self, name: str | None) -> ServedModel:
        """Return the model with this name, by default the first. Raises `ModelNotFound`."""
        if name is None or name in self.aliases:
            return self.default
        return self.find_named(name)

    def find_named(self, name: str) -> ServedModel:
        """Return the model with this name, which is no alias. Raises `ModelNotFound`."""
        if (model := self._names.get(name)) is not None:
            return model
        shown = f"model `{name}`" if SHOWN_NAME.fullmatch(name) else "model"
        raise ModelNotFound(f"The {shown} does not exist; GET /v1/models lists those that do.", param="model")

    def stats(self) -> Mapping[str, EngineStats]:
        """Return a snapshot of each model that an operator has not unloaded."""
        return {name: model.stats() for name, model in self._models.items() if model.state not in ("unloading", "unloaded")}

    def require_ready(self) -> int:
        """Return the `Retry-After` of refusals, in seconds. Raises the default's `NotReady` if no model takes requests."""
        if self.stopping:
            raise NotReady("The server is stopping.", retry_after_s=RETRY_AFTER_S)
        refusal: NotReady | None = None
        for model in self._models.values():
            try:
                return model.require_ready()
            except NotReady as error:
                refusal = refusal or error
        raise refusal or self.default.refusal()

    async def awaken(self, model: ServedModel) -> None:
        """Return when the model is loaded, which an idle one is for this. Raises `NotReady` or `Overloaded`."""
        if model.state not in ("idle", "waking"):
            return
        if model.waiting >= self._waiting_limit:
            raise Overloaded("The server is busy; try again soon.", retry_after_s=RETRY_AFTER_S)
        wake = self._wakes.get(model.name)
        if wake is None or wake.done():
            wake = self._wakes[model.name] = self._spawn(self._wake(model))
        model.waiting += 1
        try:
            await asyncio.shield(wake)
        finally:
            model.waiting -= 1

    async def load(self, name: str) -> ServedModel:
        """Load a model of the server or of its machine; goes on if the caller is cancelled.

        Raises `ModelNotFound` and `ModelLoadFailed`.
        """
        return await asyncio.shield(self._spawn(self._load(name)))

    async def unload(self, name: str) -> ServedModel:
        """Let a model finish what it has begun, and stop it; goes on if the caller is cancelled. Raises `ModelNotFound`."""
        return await asyncio.shield(self._spawn(self._unload(self.find_named(name))))

    def begin(self) -> None:
        """Begin to load all models, and to watch for idle ones."""
        for model in self._first:
            self._spawn(self._start_first(model))
        if self._idle_timeout_s is not None:
            self._spawn(self._watch_idleness(self._idle_timeout_s))

    async def drain(self, timeout_s: float) -> None:
        """Have all engines refuse new work, finish what runs, or fail it at the timeout, and stop."""
        await asyncio.gather(*(model.drain(timeout_s) for model in self._models.values()))

    async def close(self, timeout_s: float) -> None:
        """Drain, and end all loading and watching."""
        for task in self._tasks:
            task.cancel()
        await self.drain(timeout_s)

    def _add(self, source: ModelSource) -> ServedModel:
        model = ServedModel(source)
        rates_hz = {each.sample_rate_hz for each in (*self._models.values(), model)}
        if len(rates_hz) > 1:
            raise ValueError(f"The model {model.name!r} takes audio at {model.sample_rate_hz} Hz, unlike the others.")
        self._models[model.name] = self._names[model.name] = model
        if source.alias is not None:
            self._names.setdefault(source.alias, model)
        return model

    def _spawn(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _start_first(self, model: ServedModel) -> None:
        with contextlib.suppress(ModelLoadFailed):
            async with model.lock:
                await self._start(model)

    async def _start(self, model: ServedModel) -> None:
        """Load a model, under its lock. Raises `ModelLoadFailed`, which the log explains."""
        model.state, started_s = "loading", time.monotonic()
        try:
            await model.start()
        except Exception as error:
            model.state = "failed"
            raise _load_failed(model.name, error) from None
        model.state = "ready"
        logger.info("The model %s is ready after %.1f s.", model.name, time.monotonic() - started_s)

    async def _wake(self, model: ServedModel) -> None:
        async with model.lock:
            # An operator may have unloaded it meanwhile.
            if model.state != "idle":
                return
            model.state = "waking"
            try:
                await model.start()
            except Exception as error:
                # The next request tries again.
                model.state = "idle"
                raise _load_failed(model.name, error) from None
            model.state = "ready"

    async def _load(self, name: str) -> ServedModel:
        async with self._adding:
            model, is_new = self._names.get(name), False
            if model is None:
                model, is_new = await self._take_from_catalogue(name)
        async with model.lock:
            if model.state == "ready":
                return model
            try:
                await self._start(model)
            except ModelLoadFailed:
                if is_new:
                    del self._models[model.name]
                    self._names = {each: other for each, other in self._names.items() if other is not model}
                raise
        return model

    async def _take_from_catalogue(self, name: str) -> tuple[ServedModel, bool]:
        """Return a model that has to be loaded, and whether it was not known before."""
        try:
            source = await beside_loop(lambda: self._catalogue(name))
        except LookupError:
            return self.find_named(name), False
        except Exception as error:
            raise _load_failed(name, error) from None
        if (known := self._models.get(source.engine.model_name)) is not None:
            self._names[name] = known
            return known, False
        try:
            return self._add(source), True
        except ValueError as error:
            raise ModelLoadFailed(str(error), param="model") from None

    async def _unload(self, model: ServedModel) -> ServedModel:
        async with model.lock:
            if model.state == "ready":
                model.state = "unloading"
                await model.end_work(self._drain_timeout_s)
                await model.stop()
                logger.info("The model %s is unloaded.", model.name)
            model.state = "unloaded"
        return model

    async def _watch_idleness(self, idle_timeout_s: float) -> None:
        while True:
            await asyncio.sleep(min(IDLE_CHECK_SHARE * idle_timeout_s, LONGEST_IDLE_CHECK_S))
            for model in self.models:
                idle_s = time.monotonic() - model.used_at_s
                if model.state == "ready" and not model.is_used and not model.lock.locked() and idle_s >= idle_timeout_s:
                    async with model.lock:
                        model.state = "idle"
                        await model.stop()
                    logger.info("The model %s was not used for %.0f s and is unloaded until it is.", model.name, idle_s)


def _load_failed(name: str, error: Exception) -> ModelLoadFailed:
    """Log why a model could not be loaded, and return the error that says it in a sentence."""
    if isinstance(error, BundleError):
        reason = f"{error.file} {error.problem}"
    elif isinstance(error, BackendError | StartError):
        # These messages are complete and for the operator; any other error is for a developer.
        reason = str(error).removesuffix(".")
    else:
        logger.error("The model %s could not be loaded.", name, exc_info=error)
        return ModelLoadFailed(f"The model `{name}` could not be loaded; the server's log says why.", param="model")
    logger.error("The model %s could not be loaded: %s.", name, reason)
    return ModelLoadFailed(f"The model `{name}` could not be loaded: {reason}.", param="model")


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
