"""Attacks with bytes that no ordinary client sends; `python -m loadtest.hostile` measures what others notice of them."""

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from typing import Any
from urllib.parse import urlsplit

ATTACK_ADDRESS = "127.0.0.2"
PAUSE_S = 0.05
UPLOAD_BYTES = 33_554_000
# A tenth of a second, 16 bits at 16 kHz.
LIVE_PIECE_BYTES = 3200
# An Opus head, then nothing but the beginnings of pages.
OGG_BOMB = b"OggS\x00\x02" + bytes(20) + b"\x01\x13OpusHead\x01\x01\x00\x00\x80\xbb\x00\x00\x00\x00\x00" + b"OggS" * 2_000_000

Attack = Callable[[str], Coroutine[Any, Any, None]]
"""Attacks the server at a URL until it is cancelled."""


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter, str], Coroutine[Any, Any, None]]
"""Talks to the server with this host name on one connection."""


def repeated(connections: int, talk: Talk) -> Attack:
    """Return an attack that keeps so many connections, and talks on each; one that ends is opened again."""

    async def keep_one(url: str) -> None:
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                async with _connection(url) as (reader, writer):
                    await talk(reader, writer, urlsplit(url).netloc)
            await asyncio.sleep(PAUSE_S)

    async def run(url: str) -> None:
        await asyncio.gather(*(keep_one(url) for _ in range(connections)))

    return run


def request_head(host: str, request: str, *fields: str) -> bytes:
    """Return the head of a request such as `GET /health`."""
    return "\r\n".join([f"{request} HTTP/1.1", f"Host: {host}", *fields, "", ""]).encode()


def websocket_head(host: str, path: str = "/v1/stream") -> bytes:
    """Return the request for a WebSocket."""
    key = "Sec-WebSocket-Key: " + "A" * 22 + "=="
    return request_head(host, f"GET {path}", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", key)


def masked_frame(opcode: int, content: bytes) -> bytes:
    """Return a WebSocket frame of at most 65,535 bytes, masked with zeros."""
    size = bytes([0x80 | len(content)]) if len(content) < 126 else b"\xfe" + len(content).to_bytes(2, "big")
    return bytes([0x80 | opcode]) + size + bytes(4) + content


async def send_one_byte_chunks(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
    """Send a body that no handler reads."""
    writer.write(request_head(host, "GET /health", "Transfer-Encoding: chunked"))
    await _write_on(writer, b"1\r\nA\r\n" * 20_000)


async def post_one_byte_chunks(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
    """Send a body that a handler reads, up to the largest that it takes."""
    form = "Content-Type: multipart/form-data; boundary=b"
    writer.write(request_head(host, "POST /v1/instruct", form, "Transfer-Encoding: chunked"))
    part = b'--b\r\nContent-Disposition: form-data; name="audio"; filename="a"\r\n\r\n'
    writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
    await _write_on(writer, b"1\r\nA\r\n" * 20_000)


async def say_nothing(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter, _host: str) -> None:
    await reader.read()


async def send_half_a_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
    writer.write(request_head(host, "GET /health")[:-2])
    await reader.read()


async def announce_upload(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
    """Announce a body that never comes."""
    form = "Content-Type: multipart/form-data; boundary=b"
    writer.write(request_head(host, "POST /v1/instruct", form, "Content-Length: 9999"))
    await reader.read()


async def drip_upload(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
    """Send a form whose audio comes a byte at a time."""
    form = "Content-Type: multipart/form-data; boundary=b"
    writer.write(request_head(host, "POST /v1/instruct", form, "Content-Length: 9999"))
    writer.write(b'--b\r\nContent-Disposition: form-data; name="audio"; filename="a"\r\n\r\n')
    while not reader.at_eof():
        writer.write(b"A")
        await writer.drain()
        await asyncio.sleep(1)


async def break_upload_off(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
    """Send nearly all of a large body, and leave."""
    form = "Content-Type: multipart/form-data; boundary=b"
    writer.write(request_head(host, "POST /v1/instruct", form, f"Content-Length: {UPLOAD_BYTES}"))
    writer.write(b'--b\r\nContent-Disposition: form-data; name="audio"; filename="a"\r\n\r\n')
    for _ in range(33):
        writer.write(b"A" * 1_000_000)
        await writer.drain()
    await asyncio.sleep(1)


async def post_ogg_bomb(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
    """Send 8 MB that hold no audio and take long to read."""
    body = b"".join(
        [
            b'--b\r\nContent-Disposition: form-data; name="instruction"\r\n\r\nTranscribe the speech to text.\r\n',
            b'--b\r\nContent-Disposition: form-data; name="audio"; filename="a"\r\n\r\n',
            OGG_BOMB,
            b"\r\n--b--\r\n",
        ]
    )
    form = "Content-Type: multipart/form-data; boundary=b"
    writer.write(request_head(host, "POST /v1/instruct", form, f"Content-Length: {len(body)}", "Connection: close"))
    writer.write(body)
    await reader.read()


async def pretend_to_be_others(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
    """Announce a body in the name of an address that no client has."""
    name = ".".join(str(random.randrange(1, 255)) for _ in range(4))
    form = "Content-Type: multipart/form-data; boundary=b"
    writer.write(request_head(host, "POST /v1/instruct", form, f"X-Forwarded-For: {name}", "Content-Length: 9999"))
    await reader.read()


async def read_no_answers(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
    """Ask on and on, and read nothing."""
    await _write_on(writer, request_head(host, "GET /openapi.json") * 100)


async def squat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
    """Open a live session and send an empty message now and then."""
    await _open_websocket(reader, writer, host)
    start = b'{"type": "start", "instruction": "Transcribe the speech to text."}'
    writer.write(masked_frame(1, start))
    while True:
        writer.write(masked_frame(2, b""))
        await writer.drain()
        await asyncio.sleep(5)


async def leave_frame_unfinished(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
    """Open a WebSocket that takes messages of 20 MiB, and send all of a frame of 15 MiB but its end."""
    writer.write(websocket_head(host, "/v1/realtime"))
    await reader.readuntil(b"\r\n\r\n")
    size = 15 * 2**20
    writer.write(b"\x82\xff" + size.to_bytes(8, "big") + bytes(4))
    for _ in range(15):
        writer.write(bytes(2**20 - 64))
        await writer.drain()
    await asyncio.sleep(60)


async def _open_websocket(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
    writer.write(websocket_head(host))
    await reader.readuntil(b"\r\n\r\n")


async def send_noise_unread(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
    """Open a live session, send noise on and on as a microphone would, and read nothing."""
    await _send_unread(reader, writer, host, iter(partial(random.randbytes, LIVE_PIECE_BYTES), b""))


def send_speech_unread(speech: bytes) -> Talk:
    """Return what opens a live session, sends 16-bit speech on and on as it would be spoken, and reads nothing."""
    pieces = [speech[start : start + LIVE_PIECE_BYTES] for start in range(0, len(speech), LIVE_PIECE_BYTES)]

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        await _send_unread(reader, writer, host, itertools.cycle(pieces))

    return talk


async def _send_unread(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, pieces: Iterator[bytes]) -> None:
    await _open_websocket(reader, writer, host)
    writer.write(masked_frame(1, b'{"type": "start", "instruction": "Transcribe the speech to text."}'))
    for piece in pieces:
        writer.write(masked_frame(2, piece))
        await writer.drain()
        await asyncio.sleep(LIVE_PIECE_BYTES / 32_000)


async def flood_pings(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
    """Open a WebSocket and send pings as fast as they are answered."""
    await _open_websocket(reader, writer, host)
    pings = masked_frame(9, b"ping") * 1000
    while not reader.at_eof():
        writer.write(pings)
        await writer.drain()
        await reader.read(2**16)


async def send_bad_json(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
    """Open a WebSocket and send what is no message."""
    await _open_websocket(reader, writer, host)
    writer.write(masked_frame(1, b"{"))
    await reader.read()


async def _write_on(writer: asyncio.StreamWriter, data: bytes) -> None:
    while True:
        writer.write(data)
        await writer.drain()


@contextlib.asynccontextmanager
async def _connection(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, local_addr=(ATTACK_ADDRESS, 0))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
