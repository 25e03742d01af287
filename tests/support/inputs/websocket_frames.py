"""Frames of WebSockets that keep RFC 6455 and that break it, each with the close code that the RFC wants."""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from tests.support.clients.stream_client import BINARY, CLOSE, PING, TEXT, frame

CONTINUATION, PONG = 0, 10
NORMAL, PROTOCOL_ERROR, NO_CODE, INVALID_DATA, TOO_BIG = 1000, 1002, 1005, 1007, 1009
DATA_OPCODES = {"continuation": CONTINUATION, "text": TEXT, "binary": BINARY}
CONTROL_OPCODES = {"close": CLOSE, "ping": PING, "pong": PONG}
UNKNOWN_OPCODES = (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
# Section 7.4: unused, reserved, or never sent in a frame; beyond 4999 there are none.
BAD_CLOSE_CODES = (0, 999, 1004, 1005, 1006, 1015, 1016, 1999, 2000, 2999, 5000, 65535)
GOOD_CLOSE_CODES = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)
BAD_UTF8 = {
    "lone continuation byte": b"a\x80",
    "two continuation bytes": b"\x80\xbf",
    "byte FE": b"\xfe",
    "byte FF": b"a\xffa",
    "overlong slash of two bytes": b"\xc0\xaf",
    "overlong slash of three bytes": b"\xe0\x80\xaf",
    "overlong NUL": b"\xc0\x80",
    "first surrogate": b"\xed\xa0\x80",
    "last surrogate": b"\xed\xbf\xbf",
    "pair of surrogates": b"\xed\xa0\x80\xed\xb0\x80",
    "beyond the last code point": b"\xf4\x90\x80\x80",
    "five bytes": b"\xf8\x88\x80\x80\x80",
    "cut sequence of two": b"\xc3",
    "cut sequence of three": b"\xe2\x82",
    "cut sequence of four": b"\xf0\x9f\x8e",
    "sequence with a letter inside": b"\xe2\x28\xa1",
}


@dataclass(frozen=True)
class SocketRoute:
    """A WebSocket's address, a text message that its dialect takes at any time, and the largest message that it takes."""

    path: str
    greeting: bytes
    max_message_bytes: int


@dataclass(frozen=True)
class FrameCase:
    """Bytes that a client sends after the handshake, and the answer that is right: pongs, then a close code.

    The code is `NO_CODE` where the server's close frame has to be empty.
    """

    name: str
    build: Callable[[SocketRoute], bytes]
    close_code: int
    pongs: tuple[bytes, ...] = ()


def frame_cases() -> list[FrameCase]:
    """Return all cases."""
    return [*_header_cases(), *_control_cases(), *_fragment_cases(), *_text_cases(), *_length_cases(), *_close_cases()]


def _case(name: str, data: bytes, close_code: int, *pongs: bytes) -> FrameCase:
    return FrameCase(name, lambda _route: data, close_code, pongs)


def _header_cases() -> Iterator[FrameCase]:
    for bits in range(1, 8):
        for name, opcode in (DATA_OPCODES | CONTROL_OPCODES).items():
            if opcode != CONTINUATION:
                yield _case(f"reserved bits {bits:03b} in a {name} frame", frame(opcode | bits << 4, b""), PROTOCOL_ERROR)
    for opcode in UNKNOWN_OPCODES:
        yield _case(f"opcode {opcode}", frame(opcode, b""), PROTOCOL_ERROR)
        yield _case(f"opcode {opcode} with content", frame(opcode, b"content"), PROTOCOL_ERROR)
    for name, opcode in (DATA_OPCODES | CONTROL_OPCODES).items():
        yield _case(f"unmasked {name} frame", bytes([0x80 | opcode, 2]) + b"{}", PROTOCOL_ERROR)


def _control_cases() -> Iterator[FrameCase]:
    for name, opcode in CONTROL_OPCODES.items():
        yield _case(f"{name} frame that is a fragment", frame(opcode, b"", final=False), PROTOCOL_ERROR)
        for length in (126, 127, 65_535, 65_536):
            yield _case(f"{name} frame of {length} bytes", frame(opcode, bytes(length)), PROTOCOL_ERROR)
    for content in (b"", b"\x00", b"\xff" * 125, bytes(range(125))):
        yield _case(f"ping of {len(content)} bytes, {content[:2]!r}", frame(PING, content) + _close(), NORMAL, content)
    yield _case("pong that was not asked for", frame(PONG, b"unasked") + _close(), NORMAL)
    yield _case("500 pongs that were not asked for", frame(PONG, b"") * 500 + _close(), NORMAL)
    pings = tuple(str(number).encode() for number in range(500))
    yield _case("500 pings", b"".join(frame(PING, each) for each in pings) + _close(), NORMAL, *pings)


def _fragment_cases() -> Iterator[FrameCase]:
    yield _case("continuation of nothing", frame(CONTINUATION, b"a"), PROTOCOL_ERROR)
    yield _case("first part of a continuation of nothing", frame(CONTINUATION, b"", final=False), PROTOCOL_ERROR)
    yield _case("continuation of a ping", frame(PING, b"p") + frame(CONTINUATION, b"a"), PROTOCOL_ERROR, b"p")
    yield _case("continuation of a pong", frame(PONG, b"p") + frame(CONTINUATION, b"a"), PROTOCOL_ERROR)
    for first, first_opcode in DATA_OPCODES.items():
        for second, second_opcode in DATA_OPCODES.items():
            if CONTINUATION not in (first_opcode, second_opcode):
                for final in (False, True):
                    data = frame(first_opcode, b"a", final=False) + frame(second_opcode, b"b", final=final)
                    kind = "message" if final else "fragment"
                    yield _case(f"{second} {kind} inside a fragmented {first} message", data, PROTOCOL_ERROR)
    for size in (1, 2, 7):
        yield FrameCase(f"text in fragments of {size}", partial(_greet_in_fragments, size), NORMAL)
    yield FrameCase(
        "text with pings between its fragments",
        lambda route: (
            frame(TEXT, route.greeting[:5], final=False)
            + frame(PING, b"first")
            + frame(CONTINUATION, route.greeting[5:9], final=False)
            + frame(PING, b"second")
            + frame(CONTINUATION, route.greeting[9:])
            + _close()
        ),
        NORMAL,
        (b"first", b"second"),
    )
    yield FrameCase(
        "text with an empty first and last fragment",
        lambda route: frame(TEXT, b"", final=False) + frame(0, route.greeting, final=False) + frame(0, b"") + _close(),
        NORMAL,
    )
    yield FrameCase(
        "continuation after a whole message",
        lambda route: frame(TEXT, route.greeting) + frame(CONTINUATION, b"a"),
        PROTOCOL_ERROR,
    )
    yield FrameCase(
        "continuation after the last fragment",
        lambda route: _cut(route.greeting, 9) + frame(CONTINUATION, b"a"),
        PROTOCOL_ERROR,
    )
    # The RFC lets a client give a message up like this, and wants a close frame of any code.
    yield _case("close inside a fragmented message", frame(TEXT, b"{", final=False) + _close(), PROTOCOL_ERROR)
    endless = frame(BINARY, b"", final=False) + frame(CONTINUATION, b"", final=False) * 5000
    yield _case("5,000 empty fragments", endless, TOO_BIG)


def _text_cases() -> Iterator[FrameCase]:
    for name, bad in BAD_UTF8.items():
        yield _case(f"text with {name}", frame(TEXT, b'"' + bad + b'"'), INVALID_DATA)
        parts = frame(TEXT, b'"' + bad[:1], final=False) + frame(CONTINUATION, bad[1:] + b'"')
        yield _case(f"text in fragments with {name}", parts, INVALID_DATA)
        yield _case(f"close reason with {name}", frame(CLOSE, struct.pack("!H", 1000) + bad), INVALID_DATA)


def _length_cases() -> Iterator[FrameCase]:
    for name, opcode in (("text", TEXT), ("binary", BINARY)):
        for power in (31, 32, 40, 62):
            yield _case(f"{name} frame that announces 2^{power} bytes", _announce(opcode, 2**power), TOO_BIG)
        yield FrameCase(f"{name} frame that announces a byte too many", partial(_one_too_many, opcode), TOO_BIG)
        yield FrameCase(f"{name} fragments with a byte too many together", partial(_one_too_many_in_fragments, opcode), TOO_BIG)
    # The first bit of a length has to be 0, but a frame with such a length is too big before all.
    for length in (2**63, 2**64 - 1):
        yield _case(f"length of {length}", _announce(BINARY, length), TOO_BIG)


def _close_cases() -> Iterator[FrameCase]:
    yield _case("close without a code", frame(CLOSE, b""), NO_CODE)
    yield _case("close of one byte", frame(CLOSE, b"\x03"), PROTOCOL_ERROR)
    for code in BAD_CLOSE_CODES:
        yield _case(f"close with code {code}", _close(code), PROTOCOL_ERROR)
    for code in GOOD_CLOSE_CODES:
        yield _case(f"close with code {code}", _close(code), code)
    yield _case("close with the longest reason", _close(1000, b"r" * 123), NORMAL)
    yield _case("close with a reason in Greek", _close(1000, "αντίο".encode()), NORMAL)
    yield _case("two closes", _close() + _close(1001), NORMAL)
    yield _case("text after the close", _close() + frame(TEXT, b"\xff"), NORMAL)
    yield _case("ping after the close", _close() + frame(PING, b"late"), NORMAL)
    yield FrameCase("text before the close", lambda route: frame(TEXT, route.greeting) + _close(), NORMAL)


def _close(code: int = NORMAL, reason: bytes = b"") -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + reason)


def _cut(text: bytes, size: int) -> bytes:
    """Return a text message in fragments of so many bytes, the last one whatever is left."""
    starts = range(0, len(text), size)
    frames = [
        frame(CONTINUATION if start else TEXT, text[start : start + size], final=start + size >= len(text)) for start in starts
    ]
    return b"".join(frames)


def _greet_in_fragments(size: int, route: SocketRoute) -> bytes:
    return _cut(route.greeting, size) + _close()


def _announce(opcode: int, length: int) -> bytes:
    """Return the head of a frame of this length."""
    return bytes([0x80 | opcode, 0xFF]) + struct.pack("!Q", length) + bytes(4)


def _one_too_many(opcode: int, route: SocketRoute) -> bytes:
    return _announce(opcode, route.max_message_bytes + 1)


def _one_too_many_in_fragments(opcode: int, route: SocketRoute) -> bytes:
    return frame(opcode, b"a", final=False) + _announce(CONTINUATION, route.max_message_bytes)
