"""multipart/form-data read strictly, as it arrives: one file part, known text parts, each at most once.

Parts stay bytes until they are whole, so text is decoded once, as strict UTF-8, and no part touches the disk.
"""

import io
import re
from collections.abc import Collection
from dataclasses import dataclass

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from server.errors import AudioTooShort, BodyTooLarge, InvalidRequest, UnknownField

FILE_FIELD = "audio"
MAX_PARTS = 24
MAX_TEXT_BYTES = 65_536
MAX_BOUNDARY_BYTES = 70
PLAIN_NAME = re.compile(r"[A-Za-z0-9_\[\]-]{1,64}")


@dataclass
class Form:
    """The bytes of the audio part and the text parts by name."""

    audio: bytes
    texts: dict[str, str]


async def read_form(request: Request, max_body_bytes: int, text_fields: Collection[str]) -> Form:
    """Read the body to its end; besides the audio it may hold `text_fields`.

    Raises `InvalidRequest`, `UnknownField`, `AudioTooShort`, `BodyTooLarge`, or `ClientDisconnect`. A fault is refused as soon as
    it is seen, so a refused body is not read to its end.
    """
    content_type, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary", b"")
    if content_type != b"multipart/form-data" or not 1 <= len(boundary) <= MAX_BOUNDARY_BYTES:
        raise InvalidRequest("Send the request as multipart/form-data with its boundary in the content type.")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_body_bytes:
        raise _too_large(max_body_bytes)
    parts = _Parts(text_fields)
    parser = parts.parser(boundary)
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
        try:
            parser.write(chunk)
        except MultipartParseError:
            raise InvalidRequest("The multipart body is malformed.") from None
    return parts.form()


class _Parts:
    """The parts of a body, which a `MultipartParser` reports through the callbacks.

    The parser holds this object and must not be held by it: in a reference cycle the bytes of every upload would stay until
    Python's cyclic collector ran.
    """

    def __init__(self, text_fields: Collection[str]) -> None:
        self._text_fields = text_fields
        self._contents: dict[str, io.BytesIO] = {}
        self._part_count = 0
        self._header_name, self._header_value = bytearray(), bytearray()
        self._disposition = b""
        self._name = ""
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
        audio = self._contents.pop(FILE_FIELD, None)
        if audio is None:
            raise InvalidRequest(f"The field {FILE_FIELD} is missing.", param=FILE_FIELD)
        if not audio.tell():
            raise AudioTooShort("The audio is empty.", param=FILE_FIELD)
        return Form(audio.getvalue(), {name: _decode_text(name, part.getvalue()) for name, part in self._contents.items()})

    def _start_part(self) -> None:
        self._disposition = b""
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
        self._header_name.clear()
        self._header_value.clear()

    def _check_headers(self) -> None:
        disposition, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("latin-1")
        if disposition != b"form-data" or not name:
            raise InvalidRequest("A part of the body has no name.")
        if name != FILE_FIELD and name not in self._text_fields:
            known = ", ".join((FILE_FIELD, *self._text_fields))
            shown = name if PLAIN_NAME.fullmatch(name) else None
            raise UnknownField(f"The form has an unknown field; the fields are {known}.", param=shown)
        if name in self._contents:
            raise InvalidRequest(f"The field {name} is given more than once.", param=name)
        if (name == FILE_FIELD) != (b"filename" in options):
            kinds = ("a file", "text") if name == FILE_FIELD else ("text", "a file")
            raise InvalidRequest(f"The field {name} has to be {kinds[0]}, not {kinds[1]}.", param=name)
        self._name = name
        self._contents[name] = io.BytesIO()

    def _extend_content(self, data: bytes, start: int, end: int) -> None:
        content = self._contents[self._name]
        content.write(memoryview(data)[start:end])
        if self._name != FILE_FIELD and content.tell() > MAX_TEXT_BYTES:
            raise InvalidRequest(f"The field {self._name} is longer than {MAX_TEXT_BYTES} bytes.", param=self._name)

    def _end_body(self) -> None:
        self._ended = True


def _decode_text(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest(f"The field {name} is not valid UTF-8.", param=name) from None


def _too_large(max_body_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is larger than {max_body_bytes} bytes.")
