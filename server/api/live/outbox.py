"""A queue of all that waits to be sent to the client of a live session."""

import asyncio
from collections import deque

from server.api.live.closing import CloseReason
from server.engine.types.events import Delta, Listened, LiveEvent, Partial, UtteranceDone

OutboxItem = LiveEvent | CloseReason | str
"""An event of the engine, the end of the session, or the content of a text frame."""


class Outbox:
    """A queue of events and frames for the client, and of what ends the session. Belongs to the event loop.

    Only outdated events are lost: of an utterance's partials the newest waits, and none waits beside the answer; of the positions
    that were listened to the newest waits. Pieces of text that wait together become one.
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
