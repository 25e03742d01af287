"""Messages between the server and its engine's process: their types, their bytes, and the socket that carries them.

A message is a value with the `address` of what it belongs to: the serial number of a request or session, or its id. The bytes
are msgpack. Only the types in `MESSAGES`, and what their fields hold, can come out of them.
"""

import contextlib
import dataclasses
import select
import socket
import struct
import threading
from dataclasses import dataclass
from typing import Any, get_args

import msgspec
import numpy as np

from server.engine.types.events import Event, LiveEvent
from server.engine.types.requests import InstructRequest, LiveInput, LiveRequest
from server.engine.types.stats import EngineStats
from server.errors import ServeError

Address = int | str | None

FRAME_LENGTH = struct.Struct("<Q")
SAMPLES_CODE = 1
# The kernel cuts it to what the system allows; the more fits, the fewer wake-ups a request's audio costs.
SOCKET_BUFFER_BYTES = 2**20
# Longer frames are read straight into memory of their own.
READ_BYTES = 2**16


@dataclass(frozen=True)
class StartEngine:
    """The first message to a child: make an engine of `arguments` with `factory`, a `module:function`."""

    factory: str
    arguments: tuple[str | int | float, ...]
    log_level: int


@dataclass(frozen=True)
class StartFailed:
    """The only message from a child whose engine could not be started."""

    reason: str


@dataclass(frozen=True)
class Abort:
    """Forget the request or session of this id."""


MESSAGES: tuple[Any, ...] = (
    *(StartEngine, StartFailed, Abort, InstructRequest, LiveRequest, EngineStats),
    *dict.fromkeys(get_args(LiveInput) + get_args(Event) + get_args(LiveEvent)),
)


class Envelope(msgspec.Struct, array_like=True):
    address: Address
    kind: str
    value: msgspec.Raw


def _error_classes(kind: type[ServeError]) -> dict[str, type[ServeError]]:
    subclasses = (each for subclass in kind.__subclasses__() for each in _error_classes(subclass).values())
    return {each.__name__: each for each in (kind, *subclasses)}


ERRORS = _error_classes(ServeError)


def _encode_other(value: object) -> object:
    match value:
        case np.ndarray() if value.dtype == np.float32 and value.ndim == 1:
            return msgspec.msgpack.Ext(SAMPLES_CODE, np.ascontiguousarray(value).data.cast("B"))
        case np.generic():
            return value.item()
        case ServeError():
            return type(value).__name__, value.message, value.param, value.retry_after_s
        case _:
            raise TypeError(f"{type(value).__name__} cannot be sent")


def _decode_extension(code: int, data: memoryview) -> object:
    if code != SAMPLES_CODE:
        raise ValueError(f"unknown extension {code}")
    # Without a copy, unless the samples are not aligned.
    return np.require(np.frombuffer(data, np.float32), requirements="A")


def _decode_other(kind: type, value: Any) -> object:
    if kind is not ServeError:
        return value
    name, message, param, retry_after_s = value
    return ERRORS[name](message, param=param, retry_after_s=retry_after_s)


ENCODER = msgspec.msgpack.Encoder(enc_hook=_encode_other)
ENVELOPES = msgspec.msgpack.Decoder(list[Envelope])
DECODERS: dict[str, msgspec.msgpack.Decoder[Any]] = {
    kind.__name__: msgspec.msgpack.Decoder(kind, dec_hook=_decode_other, ext_hook=_decode_extension) for kind in MESSAGES
}


def pack(*messages: tuple[Address, Any]) -> bytearray:
    """Return one frame for `Channel.send`. Raises `TypeError` for values of other types than those in `MESSAGES`."""
    for _, value in messages:
        if type(value) not in MESSAGES:
            raise TypeError(f"{type(value).__name__} cannot be sent")
    frame = bytearray(FRAME_LENGTH.size)
    try:
        ENCODER.encode_into([(address, type(value).__name__, value) for address, value in messages], frame, len(frame))
    except UnicodeEncodeError:
        return pack(*((address, _replace_surrogates(value)) for address, value in messages))
    FRAME_LENGTH.pack_into(frame, 0, len(frame) - FRAME_LENGTH.size)
    return frame


def unpack(data: bytearray | memoryview) -> list[tuple[Address, Any]]:
    """Return the messages of a frame without its length. Raises `ValueError` or `KeyError` for bytes that `pack` did not make.

    Arrays may share the memory of `data`.
    """
    return [(envelope.address, DECODERS[envelope.kind].decode(envelope.value)) for envelope in ENVELOPES.decode(data)]


def _replace_surrogates(value: Any) -> Any:
    """Return a value whose strings are valid Unicode. JSON can hold halves of surrogate pairs; they become U+FFFD."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, tuple):
        return tuple(_replace_surrogates(each) for each in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _replace_surrogates(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value


class Channel:
    """One end of a stream socket that carries frames, each whole or not at all. Any thread may send, one may receive."""

    def __init__(self, end: socket.socket) -> None:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        self._socket = end
        self._sending = threading.Lock()
        self._poll = select.poll()
        self._poll.register(end, select.POLLIN)
        self._buffer = bytearray(READ_BYTES)
        # Bytes that are not a whole frame yet: its beginning, or, once its length is known, all that has come of it.
        self._beginning = b""
        self._frame: bytearray | None = None
        self._filled = 0

    def send(self, frame: bytes | bytearray | memoryview) -> None:
        """Send what `pack` returned; blocks while the other end does not read. Raises `OSError` once it is gone."""
        with self._sending:
            self._socket.sendall(frame)

    def send_some(self, frame: bytearray) -> memoryview:
        """Send what the socket takes without blocking, and return the rest. For a thread that knows that no other one sends."""
        view = memoryview(frame)
        try:
            return view[self._socket.send(view, socket.MSG_DONTWAIT) :]
        except BlockingIOError:
            return view

    def receive(self, timeout_s: float | None = None) -> list[tuple[Address, Any]]:
        """Return the messages that have arrived, none after the timeout. Raises `EOFError` once the other end is closed.

        A message of which only a part has arrived does not block.
        """
        if not self._poll.poll(None if timeout_s is None else timeout_s * 1000):
            return []
        target = memoryview(self._buffer) if self._frame is None else memoryview(self._frame)[self._filled :]
        try:
            count = self._socket.recv_into(target, flags=socket.MSG_DONTWAIT)
        except ConnectionResetError:
            count = 0
        if count == 0:
            raise EOFError
        if self._frame is None:
            return self._take_frames(self._beginning + bytes(target[:count]))
        self._filled += count
        if self._filled < len(self._frame):
            return []
        frame, self._frame = self._frame, None
        return unpack(frame)

    def finish(self) -> None:
        """Let the other end meet its `EOFError` after all that was sent."""
        self._socket.shutdown(socket.SHUT_WR)

    def hang_up(self) -> None:
        """End both directions at once; a `send` that blocks in another thread fails."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()

    def _take_frames(self, received: bytes) -> list[tuple[Address, Any]]:
        """Unpack the whole frames at the start of `received`, and keep what follows them."""
        messages: list[tuple[Address, Any]] = []
        start = 0
        while len(received) - start >= FRAME_LENGTH.size:
            body = start + FRAME_LENGTH.size
            (length,) = FRAME_LENGTH.unpack_from(received, start)
            if body + length > len(received):
                self._frame, self._filled = bytearray(length), len(received) - body
                self._frame[: self._filled] = received[body:]
                self._beginning = b""
                return messages
            messages += unpack(memoryview(received)[body : body + length])
            start = body + length
        self._beginning = received[start:]
        return messages
