"""A queue of all that waits to be sent to the client of a live session, and the reason for its close, which is the last."""

import asyncio
from collections import deque
from dataclasses import dataclass

from server.engine.types.events import Delta, Listened, LiveEvent, Partial, UtteranceDone
from server.errors import NotReady, Overloaded, ServeError, SessionIdle, SessionTooLong
from server.observability.live import Outcome

NORMAL, POLICY, SERVER_ERROR, RESTART, TRY_AGAIN = 1000, 1008, 1011, 1012, 1013


@dataclass(frozen=True)
class CloseReason:
    """The end of a session: the error that is sent first, and the close code, None if the client does not read any more."""

    outcome: Outcome
    close_code: int | None = None
    error: ServeError | None = None


def close_reason_of(error: ServeError) -> CloseReason:
    """Return how a session ends because of this error."""
    match error:
        case SessionIdle():
            return CloseReason("idle", POLICY, error)
        case SessionTooLong():
            return CloseReason("too_long", POLICY, error)
        case Overloaded():
            return CloseReason("overloaded", TRY_AGAIN, error)
        case NotReady():
            return CloseReason("not_ready", TRY_AGAIN, error)
        case ServeError(status=status) if status < 500:
            return CloseReason("client_error", POLICY, error)
        case _:
            return CloseReason("server_error", SERVER_ERROR, error)


OutboxItem = LiveEvent | CloseReason | str
"""An event of the engine, the end of the session, or the content of a text frame."""


class Outbox:
    """A queue of events and frames for the client, and of what ends the session. Belongs to the event loop.

    Only outdated events are dropped: a partial, when a newer one or the answer of its utterance comes, and a `Listened`, when a
    newer one comes. Pieces of text that wait together become one.
    """

    def __init__(self) -> None:
        self._items: deque[OutboxItem] = deque()
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: OutboxItem) -> None:
        last = self._items[-1] if self._items else None
        if isinstance(item, Delta) and isinstance(last, Delta):
            self._items[-1] = Delta(item.request_id, last.text + item.text)
            return
        if isinstance(item, Listened | Partial | UtteranceDone):
            self._remove_outdated(item)
        self._items.append(item)
        self._filled.set()

    async def take(self) -> OutboxItem:
        """Return the next item, once there is one."""
        while not self._items:
            self._filled.clear()
            await self._filled.wait()
        return self._items.popleft()

    def _remove_outdated(self, item: Listened | Partial | UtteranceDone) -> None:
        outdated = next((waiting for waiting in self._items if _is_outdated(waiting, item)), None)
        if outdated is not None:
            self._items.remove(outdated)


def _is_outdated(waiting: OutboxItem, newer: Listened | Partial | UtteranceDone) -> bool:
    if isinstance(newer, Listened):
        return isinstance(waiting, Listened)
    return isinstance(waiting, Partial) and waiting.utterance == newer.utterance
