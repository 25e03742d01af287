"""The part that the WebSocket clients of all live dialects have in common."""

import json
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.frames import Close
from websockets.sync.client import ClientConnection

TIMEOUT_S = 20


class EventSocket:
    """One WebSocket to the server, whose events are JSON objects with a `type`."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    def tell(self, type: str, **fields: object) -> None:
        self.socket.send(json.dumps({"type": type, **fields}))

    def say(self, audio: bytes) -> None:
        self.socket.send(audio)

    def check(self, event: dict[str, Any]) -> None:
        """Raise an error if the event is not as the dialect has it."""

    def event(self) -> dict[str, Any]:
        """Return the next event. Raises `ConnectionClosed`, or the error of `check`."""
        event: dict[str, Any] = json.loads(self.socket.recv(TIMEOUT_S))
        self.check(event)
        return event

    def until(self, type: str) -> list[dict[str, Any]]:
        """Return the events up to the next of this type."""
        events = [self.event()]
        while events[-1]["type"] != type:
            events.append(self.event())
        return events

    def events(self) -> tuple[list[dict[str, Any]], Close]:
        """Return all events that still come, and how the server closed."""
        events = []
        try:
            while True:
                events.append(self.event())
        except ConnectionClosed as closed:
            if closed.rcvd is None:
                raise AssertionError("the connection was cut") from None
            return events, closed.rcvd
