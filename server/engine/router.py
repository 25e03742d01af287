"""Several engines as one: each GPU has its own engine, and every request goes to the engine with the most room."""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from server.engine.ipc.client import StartError
from server.engine.types.events import Done, Ended, Event, Failed, LiveEvent
from server.engine.types.options import Priority
from server.engine.types.protocol import Engine
from server.engine.types.requests import InstructRequest, LiveInput, LiveRequest
from server.engine.types.stats import EngineStats, RouterStats, combine_stats
from server.errors import InvalidRequest, NotReady, Overloaded

AnyRequest = TypeVar("AnyRequest", InstructRequest, LiveRequest)


@dataclass(eq=False)
class _Route:
    """The engine that has a request, or is asked to take it. Requests that use an id again have routes of their own."""

    engine: Engine


class EngineRouter:
    """The `Engine` protocol over engines that serve the same models.

    A request goes to the ready engine with the smallest share of its places taken, a session to that with the smallest share of
    its sessions or recordings. If that refuses at once for want of room, the next one is asked. Everything that follows goes to
    the engine that took the request. The requests of an engine that is lost fail, and new ones go to the others meanwhile.

    `stats` are those of all engines as `combine_stats` puts them together.

    `deliver` is called under the lock of the one engine that has the request. It may call `push` and `abort` for that request;
    methods that ask every engine (`submit`, `open_live`, `stats`) are for other threads.
    """

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        """`engines` are yet to be started, and keyed by names for the operator, such as `GPU 0`."""
        self._names = tuple(engines)
        self._engines = tuple(engines.values())
        self.sample_rate_hz = self._engines[0].sample_rate_hz
        self.max_audio_s = self._engines[0].max_audio_s
        self.model_name = self._engines[0].model_name
        self.transcribes = self._engines[0].transcribes
        # Guards the routes; nothing else is called under it.
        self._lock = threading.Lock()
        self._routes: dict[str, _Route] = {}

    def start(self) -> None:
        """Start all at the same time. If one cannot be started, drain the others and raise a `StartError` that names it."""
        with ThreadPoolExecutor(len(self._engines)) as pool:
            starts = [pool.submit(engine.start) for engine in self._engines]
            wait(starts, return_when=FIRST_EXCEPTION)
            for name, start in zip(self._names, starts, strict=True):
                if start.done() and (error := start.exception()) is not None:
                    self.drain(0)
                    raise StartError(f"{name}: {error}") from error

    def check_room(self, client: str, priority: Priority) -> None:
        _ask_until_taken(self._engines, lambda engine: engine.check_room(client, priority))

    def submit(self, request: InstructRequest, deliver: Callable[[Event], None]) -> None:
        def share(stats: EngineStats) -> float:
            return (stats.running + stats.waiting) / max(1, stats.slots + stats.queue_limit)

        self._hand_over(request, deliver, share, lambda engine: engine.submit)

    def open_live(self, request: LiveRequest, deliver: Callable[[LiveEvent], None]) -> None:
        def share(stats: EngineStats) -> float:
            if request.is_recording:
                return stats.recordings / max(1, stats.recording_limit)
            return stats.live_sessions / max(1, stats.live_limit)

        self._hand_over(request, deliver, share, lambda engine: engine.open_live)

    def push(self, request_id: str, item: LiveInput) -> None:
        with self._lock:
            route = self._routes.get(request_id)
        if route is not None:
            route.engine.push(request_id, item)

    def abort(self, request_id: str) -> None:
        with self._lock:
            route = self._routes.pop(request_id, None)
        if route is not None:
            route.engine.abort(request_id)

    def stats(self) -> RouterStats:
        return combine_stats({name: engine.stats() for name, engine in zip(self._names, self._engines, strict=True)})

    def drain(self, timeout_s: float) -> None:
        with ThreadPoolExecutor(len(self._engines)) as pool:
            for drain in [pool.submit(engine.drain, timeout_s) for engine in self._engines]:
                drain.result()

    def _hand_over(
        self,
        request: AnyRequest,
        deliver: Callable[[Any], None],
        share: Callable[[EngineStats], float],
        door: Callable[[Engine], Callable[[AnyRequest, Callable[[Any], None]], None]],
    ) -> None:
        engines = self._by_share(share)
        route = _Route(engines[0])
        with self._lock:
            if request.id in self._routes:
                raise InvalidRequest("A request with this id is being served.")
            self._routes[request.id] = route

        def hand_to(engine: Engine) -> None:
            route.engine = engine
            door(engine)(request, partial(self._deliver, route, deliver))

        try:
            _ask_until_taken(engines, hand_to)
        except Exception:
            self._forget(request.id, route)
            raise

    def _by_share(self, share: Callable[[EngineStats], float]) -> list[Engine]:
        """Return the engines that are ready, those with more room first. If none is, return all: they refuse with the reason."""
        every = [(engine, engine.stats()) for engine in self._engines]
        ready = [(share(stats), engine) for engine, stats in every if stats.ready]
        return [engine for _, engine in sorted(ready, key=lambda pair: pair[0])] or list(self._engines)

    def _deliver(self, route: _Route, deliver: Callable[[Any], None], event: Event | LiveEvent) -> None:
        if isinstance(event, Done | Failed | Ended):
            self._forget(event.request_id, route)
        try:
            deliver(event)
        except Exception:
            # The engine gives the request up.
            self._forget(event.request_id, route)
            raise

    def _forget(self, request_id: str, route: _Route) -> None:
        with self._lock:
            if self._routes.get(request_id) is route:
                del self._routes[request_id]


def _retry_after_s(refusal: Overloaded | NotReady) -> float:
    return float("inf") if refusal.retry_after_s is None else refusal.retry_after_s


def _ask_until_taken(engines: Sequence[Engine], ask: Callable[[Engine], None]) -> None:
    """Ask engines in order, up to the first that does not refuse. If all refuse, raise the refusal that ends soonest."""
    refusals: list[Overloaded | NotReady] = []
    for engine in engines:
        try:
            ask(engine)
        except (Overloaded, NotReady) as refusal:
            refusals.append(refusal)
        else:
            return
    raise min(refusals, key=_retry_after_s)
