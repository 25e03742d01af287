"""What waits to be told to the client of a live session, in order."""

import asyncio
from collections import deque

from server.api.native.stream_messages import CloseReason, ReadyEvent
from server.engine.types.events import Delta, LiveEvent, Partial, UtteranceDone

Item = LiveEvent | ReadyEvent | CloseReason


class Outbox:
    """A queue of events, and of what ends the session. It belongs to the event loop.

    Nothing is lost but what is out of date: of an utterance's partials only the newest waits, and none beside the answer.
    Pieces of text that wait together become one.
    """

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Item) -> None:
        last = self._items[-1] if self._items else None
        if isinstance(item, Delta) and isinstance(last, Delta):
            self._items[-1] = Delta(item.request_id, last.text + item.text)
            return
        if isinstance(item, Partial | UtteranceDone):
            self._drop_partial(item.utterance)
        self._items.append(item)
        self._filled.set()

    async def take(self) -> Item:
        """The next one, once there is one."""
        while not self._items:
            self._filled.clear()
            await self._filled.wait()
        return self._items.popleft()

    def _drop_partial(self, utterance: int) -> None:
        for index, item in enumerate(self._items):
            if isinstance(item, Partial) and item.utterance == utterance:
                del self._items[index]
                return
