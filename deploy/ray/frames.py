"""Messages between edge and engine replicas: the bytes of `server.engine.ipc.codec`, so that Ray carries bytes alone."""

from typing import Any

from server.engine.ipc.codec import FRAME_LENGTH, pack, unpack
from server.engine.types.events import Event, LiveEvent
from server.engine.types.requests import InstructRequest, LiveInput, LiveRequest
from server.engine.types.stats import EngineStats

Message = InstructRequest | LiveRequest | LiveInput | Event | LiveEvent | EngineStats


def write_frame(*messages: Message) -> bytes:
    """Return the bytes of messages."""
    return bytes(pack(*((None, message) for message in messages)))


def read_frame(frame: bytes) -> list[Any]:
    """Return the messages that `write_frame` was given; their arrays share its memory."""
    return [value for _, value in unpack(memoryview(frame)[FRAME_LENGTH.size :])]
