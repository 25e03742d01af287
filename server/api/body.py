"""The body of a request as it arrives, within a limit on its size."""

from collections.abc import Callable

from starlette.requests import ClientDisconnect, Request

from server.errors import BodyTooLarge, InvalidRequest

IDENTITY = "identity"


async def read_body(request: Request, max_body_bytes: int, take_chunk: Callable[[bytes], object]) -> None:
    """Hand the body over chunk by chunk.

    Raises `BodyTooLarge`, before the first chunk where the declared length says so; `InvalidRequest` for a compressed body;
    `ClientDisconnect`; and the error of `take_chunk`. A refused body is not read to its end.
    """
    if request.headers.get("content-encoding", IDENTITY).strip().lower() != IDENTITY:
        raise InvalidRequest("The body has to come without a Content-Encoding.")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_body_bytes:
        raise _too_large(max_body_bytes)
    body_bytes, more_body = 0, True
    while more_body:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        more_body = message.get("more_body", False)
        body_bytes += len(chunk)
        if body_bytes > max_body_bytes:
            raise _too_large(max_body_bytes)
        take_chunk(chunk)


async def read_whole_body(request: Request, max_body_bytes: int) -> bytearray:
    """Return the whole body. Raises as `read_body` does."""
    content = bytearray()
    await read_body(request, max_body_bytes, content.extend)
    return content


def _too_large(max_body_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is larger than {max_body_bytes} bytes.")
