"""The engine in a replica of Ray Serve, and the figures by which Ray scales and checks it."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from deploy.ray.frames import read_frame, write_frame
from server.engine.factory import build_engine
from server.engine.ipc.main import submit_or_fail
from server.engine.types.events import Done, Ended, Event, Failed, LiveEvent
from server.engine.types.protocol import Engine
from server.logs import configure_logging
from server.settings import Settings

# Named by a call for a report in place of a session: the router gives each such call to another replica, in turn.
REPORTS = "reports"


class EngineReplica:
    """One engine. Serve calls `answer` for each request and session, and `push` for the inputs of a session.

    The engine is started by the constructor, which raises if it does not start: Serve reports that as a failed deployment.
    """

    def __init__(self, bundle: str, settings: str, build: Callable[[Path, Settings], Engine] = build_engine) -> None:
        """`settings` are JSON; `build` makes the engine from the bundle's folder."""
        self._settings = Settings.model_validate_json(settings)
        self._id = uuid.uuid4().hex
        configure_logging(self._settings.log_level.upper())
        self._engine = build(Path(bundle), self._settings)
        self._engine.start()
        self._ready_at_s = time.monotonic()

    async def answer(self, frame: bytes) -> AsyncIterator[bytes]:
        """Yield this replica's id once the request is taken, then the events, as many in a frame as there are.

        A refusal comes as `Failed`. A caller that stops listening aborts the request.
        """
        (request,) = read_frame(frame)
        events: asyncio.Queue[Event | LiveEvent] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def deliver(event: Event | LiveEvent) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        is_over = False
        try:
            # Not on the loop: to compile a constraint takes up to a quarter of a second.
            await asyncio.to_thread(submit_or_fail, self._engine, request, deliver)
            yield self._id.encode()
            while not is_over:
                batch = [await events.get()]
                while not events.empty():
                    batch.append(events.get_nowait())
                is_over = any(isinstance(event, Done | Failed | Ended) for event in batch)
                yield write_frame(*batch)
        finally:
            if not is_over:
                self._engine.abort(request.id)

    async def push(self, request_id: str, frames: list[bytes]) -> None:
        """Give a session more inputs."""
        for frame in frames:
            for item in read_frame(frame):
                self._engine.push(request_id, item)

    async def report(self) -> tuple[str, bytes]:
        """Return this replica's id and a frame with the engine's stats."""
        return self._id, write_frame(self._engine.stats())

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the figures that `deploy.ray.scaling` decides by."""
        stats = self._engine.stats()
        taken = (stats.waiting + stats.running) / max(1, stats.slots)
        sessions = stats.live_sessions / max(1, stats.live_limit)
        return {"predicted_wait_s": stats.predicted_wait_s, "taken_share": max(taken, sessions)}

    def check_health(self) -> None:
        """Raise if the engine is not ready, and has not been for so long that it does not recover by itself."""
        now_s = time.monotonic()
        if self._engine.stats().ready:
            self._ready_at_s = now_s
        elif now_s - self._ready_at_s > 3 * self._settings.stall_timeout_s:
            raise RuntimeError("the engine is not ready and does not become so")

    def __del__(self) -> None:
        """Stop the engine; Serve has waited for its requests."""
        if hasattr(self, "_ready_at_s"):
            self._engine.drain(0)
