"""multipart/form-data read strictly, as it arrives: one file part, known text parts, each at most once.

Parts stay bytes until they are whole, so text is decoded once, as strict UTF-8, and no part touches the disk.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, field

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from server.errors import BodyTooLarge, InvalidRequest, UnknownField

FILE_FIELD = "audio"
MAX_PARTS = 24
MAX_TEXT_BYTES = 65_536
MAX_BOUNDARY_BYTES = 70
PLAIN_NAME = re.compile(r"[A-Za-z0-9_\[\]-]{1,64}")


@dataclass
class Form:
    """The bytes of the audio part (None without one) and the text parts by name."""

    audio: bytes | None
    texts: dict[str, str]


@dataclass
class _Part:
    header_name: bytearray = field(default_factory=bytearray)
    header_value: bytearray = field(default_factory=bytearray)
    disposition: bytes = b""
    name: str = ""
    content: bytearray = field(default_factory=bytearray)


async def read_form(request: Request, max_body_bytes: int, text_fields: Collection[str]) -> Form:
    """Read the body to its end; besides the audio it may hold `text_fields`.

    Raises `InvalidRequest`, `UnknownField`, `BodyTooLarge`, or `ClientDisconnect`. What is wrong is refused as soon as it is
    seen, so a refused body is not read to its end.
    """
    reader = _FormReader(_boundary(request), text_fields)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_body_bytes:
        raise _too_large(max_body_bytes)
    body_bytes = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        body_bytes += len(chunk)
        if body_bytes > max_body_bytes:
            raise _too_large(max_body_bytes)
        reader.write(chunk)
        if not message.get("more_body", False):
            return reader.finish()


def _boundary(request: Request) -> bytes:
    content_type, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary", b"")
    if content_type != b"multipart/form-data" or not 1 <= len(boundary) <= MAX_BOUNDARY_BYTES:
        raise InvalidRequest("Send the request as multipart/form-data with its boundary in the content type.")
    return boundary


class _FormReader:
    """Collects the parts that the streaming parser reports."""

    def __init__(self, boundary: bytes, text_fields: Collection[str]) -> None:
        self._text_fields = text_fields
        self._parts: dict[str, bytes] = {}
        self._part = _Part()
        self._part_count = 0
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._extend_header_name,
                "on_header_value": self._extend_header_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._check_headers,
                "on_part_data": self._extend_content,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )

    def write(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except MultipartParseError:
            raise InvalidRequest("The multipart body is malformed.") from None

    def finish(self) -> Form:
        if not self._ended:
            raise InvalidRequest("The multipart body ends before its closing boundary.")
        audio = self._parts.pop(FILE_FIELD, None)
        return Form(audio, {name: _decode_text(name, content) for name, content in self._parts.items()})

    def _begin_part(self) -> None:
        self._part = _Part()
        self._part_count += 1
        if self._part_count > MAX_PARTS:
            raise InvalidRequest(f"The body has more than {MAX_PARTS} parts.")

    def _extend_header_name(self, data: bytes, start: int, end: int) -> None:
        self._part.header_name += data[start:end]

    def _extend_header_value(self, data: bytes, start: int, end: int) -> None:
        self._part.header_value += data[start:end]

    def _end_header(self) -> None:
        part = self._part
        if part.header_name.lower() == b"content-disposition":
            part.disposition = bytes(part.header_value)
        part.header_name.clear()
        part.header_value.clear()

    def _check_headers(self) -> None:
        disposition, options = parse_options_header(self._part.disposition)
        name = options.get(b"name", b"").decode("latin-1")
        if disposition != b"form-data" or not name:
            raise InvalidRequest("A part of the body has no name.")
        if name != FILE_FIELD and name not in self._text_fields:
            known = ", ".join((FILE_FIELD, *self._text_fields))
            shown = name if PLAIN_NAME.fullmatch(name) else None
            raise UnknownField(f"The form has an unknown field; the fields are {known}.", param=shown)
        if name in self._parts:
            raise InvalidRequest(f"The field {name} is given more than once.", param=name)
        is_file = b"filename" in options
        if name == FILE_FIELD and not is_file:
            raise InvalidRequest(f"The field {name} has to be a file, not text.", param=name)
        if name != FILE_FIELD and is_file:
            raise InvalidRequest(f"The field {name} has to be text, not a file.", param=name)
        self._part.name = name

    def _extend_content(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        part.content += data[start:end]
        if part.name != FILE_FIELD and len(part.content) > MAX_TEXT_BYTES:
            raise InvalidRequest(f"The field {part.name} is longer than {MAX_TEXT_BYTES} bytes.", param=part.name)

    def _end_part(self) -> None:
        self._parts[self._part.name] = bytes(self._part.content)

    def _end(self) -> None:
        self._ended = True


def _decode_text(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest(f"The field {name} is not valid UTF-8.", param=name) from None


def _too_large(max_body_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is larger than {max_body_bytes} bytes.")
