"""An upload is waited for as long as it gets on, and its bytes are freed with its request, without Python's cyclic collector."""

import asyncio
import contextlib
import gc
import itertools
import tracemalloc
from types import SimpleNamespace

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from server.api.access.shares import LEAST_PROGRESS_BYTES
from server.api.body import BodyLimits, FormFields, read_form
from server.errors import BodyTimedOut, BodyTooLarge, InvalidRequest, UnknownField

AUDIO_BYTES = 4 * 2**20
BODY = b'--b\r\nContent-Disposition: form-data; name="audio"; filename="a"\r\n\r\n' + bytes(AUDIO_BYTES)
END = b"\r\n--b--\r\n"


async def read(*pieces: bytes, timeout_s: float = 30.0) -> int:
    """Read a body that arrives in these pieces, or breaks off after them; return the bytes of its audio."""
    messages: list[Message] = [{"type": "http.request", "body": piece, "more_body": piece != END} for piece in pieces]
    messages.append({"type": "http.disconnect"})
    waiting = iter(messages)

    async def receive() -> Message:
        # A timeout that has passed is noticed here.
        await asyncio.sleep(0)
        return next(waiting)

    headers = [(b"content-type", b"multipart/form-data; boundary=b")]
    scope = {"type": "http", "headers": headers, "state": {"client": "a"}}
    form = await read_form(Request(scope, receive), BodyLimits(AUDIO_BYTES + 1024, timeout_s), FormFields(["instruction"]))
    return len(form.audio)


async def outcome_of(pieces: list[bytes]) -> type[Exception] | None:
    try:
        assert await read(*pieces) == AUDIO_BYTES
    except (ClientDisconnect, InvalidRequest) as error:
        return type(error)
    return None


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ([BODY, END], None),
        ([BODY], ClientDisconnect),
        ([BODY, bytes(2048)], BodyTooLarge),
        ([BODY, b'\r\n--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n'], UnknownField),
        ([BODY, b"\r\n--b\r\n\0\r\n"], InvalidRequest),
    ],
    ids=["whole", "broken off", "too large", "unknown field", "malformed"],
)
def test_an_upload_is_freed_at_once(pieces: list[bytes], error: type[Exception] | None) -> None:
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(3):
            assert asyncio.run(outcome_of(pieces)) == error
        after, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert after - before < AUDIO_BYTES
    assert most - before > AUDIO_BYTES


@pytest.mark.parametrize("progress_bytes", [LEAST_PROGRESS_BYTES, LEAST_PROGRESS_BYTES // 8])
def test_a_slow_body_is_waited_for_as_long_as_it_gets_on(progress_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is played says that each of its pieces took a second."""
    clock = itertools.count()
    monkeypatch.setattr("server.api.body.time", SimpleNamespace(monotonic=lambda: next(clock)))
    body = BODY[: 20 * progress_bytes]
    pieces = [body[start : start + progress_bytes] for start in range(0, len(body), progress_bytes)]
    gets_on = progress_bytes == LEAST_PROGRESS_BYTES
    with contextlib.nullcontext() if gets_on else pytest.raises(BodyTimedOut):
        assert asyncio.run(read(*pieces, END, timeout_s=5.0)) > 19 * progress_bytes
