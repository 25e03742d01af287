"""The bodies of requests as they arrive, within limits, and the multipart/form-data in them: one audio part, and text parts.

Parts of a form stay bytes until they are whole, so text is decoded once, as strict UTF-8, and no part touches the disk. Clients
differ in how they send the same form, so the audio may be named `audio` or `file`, any part may have a file name, and a list is
sent as repeated parts `x`, `x[]` or `x[0]`.
"""

import asyncio
import io
import re
import time
from collections.abc import Callable, Collection, Sized
from dataclasses import dataclass, field
from typing import TypeVar

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from server.api.access.shares import LEAST_PROGRESS_BYTES, Shares
from server.api.middleware import client_of
from server.errors import AudioTooShort, BodyTimedOut, BodyTooLarge, InvalidRequest, Overloaded, UnknownField

Content = TypeVar("Content", bound=Sized)
Parsed = TypeVar("Parsed")

IDENTITY = "identity"
CHUNKED = "chunked"
# Bytes or characters of content that takes longer to parse than other requests should wait.
LARGE_CONTENT = 65_536
# The memory that unfinished bodies may hold together, in bodies of the largest size.
BODIES_IN_MEMORY = 16
RETRY_AFTER_S = 1
FILE_FIELD = "audio"
AUDIO_FIELDS = (FILE_FIELD, "file")
MAX_PARTS = 256
# Unknown names that an error shows.
MAX_SHOWN = 4
MAX_TEXT_BYTES = 65_536
MAX_BOUNDARY_BYTES = 70
LIST_ITEM = re.compile(r"(.{1,64})\[[0-9]{0,3}\]", re.ASCII)
PLAIN_NAME = re.compile(r"[A-Za-z0-9_\[\]-]{1,64}")


class BodyLimits:
    """The limits of all bodies of one server, which share the `memory` that unfinished ones hold.

    A body has at most `max_bytes`, and gets on if `LEAST_PROGRESS_BYTES` of it come within `timeout_s`.
    """

    def __init__(self, max_bytes: int, timeout_s: float) -> None:
        self.max_bytes = max_bytes
        self.timeout_s = timeout_s
        self.memory = Shares(BODIES_IN_MEMORY * max_bytes)


async def read_body(request: Request, limits: BodyLimits, take_chunk: Callable[[bytes], object]) -> None:
    """Hand the body over chunk by chunk.

    Raises `BodyTooLarge`, before the first chunk where the declared length says so; `InvalidRequest` for a compressed body;
    `BodyTimedOut` if it does not get on; `Overloaded` if unfinished bodies hold too much memory; `ClientDisconnect`; and the
    error of `take_chunk`. A refused body is not read to its end.
    """
    _check_head(request, limits)
    client, body_bytes, held_bytes = client_of(request), 0, 0
    waited_s, marked_bytes, more_body = 0.0, 0, True
    try:
        while more_body:
            started_s = time.monotonic()
            message = await _receive(request, limits.timeout_s, waited_s)
            waited_s += time.monotonic() - started_s
            chunk: bytes = message.get("body", b"")
            more_body = message.get("more_body", False)
            body_bytes += len(chunk)
            if body_bytes > limits.max_bytes:
                raise _too_large(limits)
            if more_body:
                if not limits.memory.take(client, len(chunk)):
                    raise Overloaded("Too much is being uploaded; try again soon.", retry_after_s=RETRY_AFTER_S)
                held_bytes += len(chunk)
            if body_bytes - marked_bytes >= LEAST_PROGRESS_BYTES:
                marked_bytes, waited_s = body_bytes, 0.0
            take_chunk(chunk)
    finally:
        limits.memory.give_back(client, held_bytes)


async def read_whole_body(request: Request, limits: BodyLimits) -> bytearray:
    """Return the whole body. Raises as `read_body` does."""
    content = bytearray()
    await read_body(request, limits, content.extend)
    return content


async def parse_beside_loop(parse: Callable[[Content], Parsed], content: Content) -> Parsed:
    """Return `parse(content)`, from a thread if the content is large."""
    return parse(content) if len(content) <= LARGE_CONTENT else await asyncio.to_thread(parse, content)


def _check_head(request: Request, limits: BodyLimits) -> None:
    """Raise the error of a body that is unacceptable by its head."""
    if request.headers.get("content-encoding", IDENTITY).strip().lower() != IDENTITY:
        raise InvalidRequest("The body has to come without a Content-Encoding.")
    if request.headers.get("transfer-encoding", CHUNKED).strip().lower() != CHUNKED:
        raise InvalidRequest("The body has to come without a Transfer-Encoding other than chunked.")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limits.max_bytes:
        raise _too_large(limits)


async def _receive(request: Request, timeout_s: float, waited_s: float) -> Message:
    """Return the next message of a body, which has been waited for `waited_s` since it got on."""
    try:
        async with asyncio.timeout(max(0.0, timeout_s - waited_s)):
            message = await request.receive()
    except TimeoutError:
        raise BodyTimedOut(f"The request body did not get on for {timeout_s:g} s.") from None
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message


def _too_large(limits: BodyLimits) -> BodyTooLarge:
    return BodyTooLarge(
        f"The request body is larger than {limits.max_bytes} bytes; the server's setting max_body_bytes may allow more."
    )


@dataclass(frozen=True)
class FormFields:
    """The names of a form's text fields. Those of `lists` may be repeated, as `x`, `x[]` or `x[0]`; those of `objects` may come
    in parts `x[key]`, which keep that name.

    Errors call the audio by the name of `audio`. Unknown fields are refused, or, with `skips_unknown`, dropped and named in
    `Form.unknown`.
    """

    texts: Collection[str]
    lists: Collection[str] = ()
    objects: Collection[str] = ()
    audio: str = FILE_FIELD
    skips_unknown: bool = False

    def has(self, name: str) -> bool:
        """Return whether a part with this name is one of these fields, or of them a part."""
        plain, _, key = name.partition("[")
        return name in self.texts or self._is_item(name) or (len(key) > 1 and plain in self.objects)

    def plain_name(self, name: str) -> str:
        """Return the name of a part, `x[]` where it is an item of a list."""
        return f"{name.partition('[')[0]}[]" if self._is_item(name) else name

    def _is_item(self, name: str) -> bool:
        item = LIST_ITEM.fullmatch(name)
        return item is not None and item[1] in self.lists


@dataclass
class Form:
    """The bytes of the audio part, and the text parts by name; `lists` has the fields that came as `x[]` or repeated.

    `audio_type` is the content type of the audio part, which may be empty.
    """

    audio: bytes
    texts: dict[str, str]
    lists: dict[str, list[str]] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    audio_type: str = ""


async def read_form(request: Request, limits: BodyLimits, fields: FormFields) -> Form:
    """Read a form to its end.

    Raises `InvalidRequest`, `UnknownField` and `AudioTooShort` as soon as the fault is seen, and the errors of `read_body`.
    """
    content_type, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary", b"")
    if content_type != b"multipart/form-data" or not 1 <= len(boundary) <= MAX_BOUNDARY_BYTES:
        raise InvalidRequest("Send the request as multipart/form-data with its boundary in the content type, as curl -F does.")
    parts = _Parts(fields)
    parser = parts.parser(boundary)
    try:
        await read_body(request, limits, parser.write)
    except MultipartParseError:
        raise InvalidRequest("The multipart body is malformed.") from None
    return parts.form()


class _Parts:
    """The parts of a body, which a `MultipartParser` reports through the callbacks.

    The parser holds this object and must not be held by it: in a reference cycle the bytes of every upload would stay until
    Python's cyclic collector ran.
    """

    def __init__(self, fields: FormFields) -> None:
        self._fields = fields
        self._audio: io.BytesIO | None = None
        self._texts: list[tuple[str, io.BytesIO]] = []
        self._unknown: dict[str, None] = {}
        # The part that is being read: its name, and its content unless that is dropped.
        self._name = ""
        self._content: io.BytesIO | None = None
        self._part_count = 0
        self._header_name, self._header_value = bytearray(), bytearray()
        self._disposition = self._content_type = b""
        self._audio_type = ""
        self._ended = False

    def parser(self, boundary: bytes) -> MultipartParser:
        """Return a parser that reports its parts here."""
        return MultipartParser(
            boundary,
            {
                "on_part_begin": self._start_part,
                "on_header_field": self._extend_header_name,
                "on_header_value": self._extend_header_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._check_headers,
                "on_part_data": self._extend_content,
                "on_end": self._end_body,
            },
        )

    def form(self) -> Form:
        """Return the form once the body has ended. Raises `InvalidRequest` or `AudioTooShort`."""
        if not self._ended:
            raise InvalidRequest("The multipart body ends before its closing boundary.")
        if self._audio is None:
            raise InvalidRequest(self._missing_audio(), param=self._fields.audio)
        if not self._audio.tell():
            raise AudioTooShort("The audio is empty.", param=self._fields.audio)
        texts: dict[str, list[str]] = {}
        listed = {name.removesuffix("[]") for name, _ in self._texts if name.endswith("[]")}
        for name, content in self._texts:
            texts.setdefault(name.removesuffix("[]"), []).append(_decode_text(name, content.getvalue()))
        listed |= {name for name, values in texts.items() if len(values) > 1}
        return Form(
            self._audio.getvalue(),
            {name: values[0] for name, values in texts.items() if name not in listed},
            {name: values for name, values in texts.items() if name in listed},
            tuple(self._unknown),
            self._audio_type,
        )

    def _missing_audio(self) -> str:
        """Say that the audio is missing, and which fields there are that it might be meant to be."""
        names = [name for name in self._unknown if PLAIN_NAME.fullmatch(name)][:MAX_SHOWN]
        others = f", and {', '.join(names)} has no meaning here" if names else ""
        return f"The field {self._fields.audio} is missing{others}."

    def _start_part(self) -> None:
        self._disposition = self._content_type = b""
        self._part_count += 1
        if self._part_count > MAX_PARTS:
            raise InvalidRequest(f"The body has more than {MAX_PARTS} parts.")

    def _extend_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _extend_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        elif self._header_name.lower() == b"content-type":
            self._content_type = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _check_headers(self) -> None:
        disposition, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("latin-1")
        if disposition != b"form-data" or not name:
            raise InvalidRequest("A part of the body has no name.")
        self._name = name
        if name in AUDIO_FIELDS:
            if self._audio is not None:
                raise InvalidRequest(f"The field {name} is given more than once.", param=name)
            self._content = self._audio = io.BytesIO()
            self._audio_type = self._content_type.decode("latin-1")
        elif self._fields.has(name):
            plain = self._fields.plain_name(name)
            if plain in (earlier for earlier, _ in self._texts) and plain.removesuffix("[]") not in self._fields.lists:
                raise InvalidRequest(f"The field {name} is given more than once.", param=name)
            self._content = io.BytesIO()
            self._texts.append((plain, self._content))
        else:
            self._skip_unknown(name)

    def _skip_unknown(self, name: str) -> None:
        if not self._fields.skips_unknown:
            known = ", ".join((self._fields.audio, *self._fields.texts))
            shown = name if PLAIN_NAME.fullmatch(name) else None
            raise UnknownField(f"The form has an unknown field; the fields are {known}.", param=shown)
        self._unknown[name] = None
        self._content = None

    def _extend_content(self, data: bytes, start: int, end: int) -> None:
        content = self._content
        if content is None:
            return
        content.write(memoryview(data)[start:end])
        if content is not self._audio and content.tell() > MAX_TEXT_BYTES:
            raise InvalidRequest(f"The field {self._name} is longer than {MAX_TEXT_BYTES} bytes.", param=self._name)

    def _end_body(self) -> None:
        self._ended = True


def _decode_text(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest(f"The field {name} is not valid UTF-8.", param=name) from None
