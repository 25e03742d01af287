"""Fields as OpenAI's clients send them, in a form or in JSON, read by one model of pydantic's.

Null and empty text count as not given. Fields that the model does not have are no error: they are named in the reply's
`warnings`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import from_json
from starlette.requests import Request

from server.api.base64_audio import decode_base64
from server.api.body import AUDIO_FIELDS, PLAIN_NAME, BodyLimits, Form, FormFields, read_form, read_whole_body
from server.api.options import ClientMessage, Message, field_schemas, list_fields, parse_message
from server.engine.types.options import SamplingOptions
from server.errors import AudioTooShort, InvalidRequest

JSON_TYPE = "application/json"
MAX_WARNINGS = 16
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
NUMBER = re.compile(r"[+-]?([0-9]{1,20}(\.[0-9]{0,20})?|\.[0-9]{1,20})", re.ASCII)


class SampledFields(ClientMessage):
    """The fields by which OpenAI's and vLLM's clients choose how tokens are drawn, beside the temperature."""

    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1, le=1000)
    repetition_penalty: float = Field(1.0, ge=0.5, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | SkipJsonSchema[None] = None

    def sample(self, max_tokens: int, temperature: float, **more: Any) -> SamplingOptions:
        """Return the options in the engine's terms, with `more` of these."""
        return SamplingOptions(
            max_tokens=max_tokens,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            temperature=temperature,
            top_k=max(0, self.top_k),
            top_p=self.top_p,
            seed=None if self.seed is None else self.seed % 2**63,
            **more,
        )


@dataclass(frozen=True)
class Upload:
    """A piece of audio with its content type, if any, and the fields that came with it."""

    audio: bytes
    values: dict[str, Any]
    audio_type: str = ""


def is_json(request: Request) -> bool:
    """Return whether the body says that it is JSON."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == JSON_TYPE


async def read_upload(request: Request, limits: BodyLimits, model: type[ClientMessage]) -> Form | bytearray:
    """Read a form with the fields of `model`, or a JSON body, which is not parsed yet. Raises the errors of `read_form`."""
    if is_json(request):
        return await read_whole_body(request, limits)
    fields = FormFields(tuple(model.model_fields), list_fields(model), object_fields(model), audio="file", skips_unknown=True)
    return await read_form(request, limits, fields)


def parse_upload(body: Form | bytearray, model: type[ClientMessage]) -> Upload:
    """Return the audio and the fields of a body. Raises `InvalidRequest` or `AudioTooShort`."""
    if isinstance(body, Form):
        return Upload(body.audio, {**_form_values(model, body), **dict.fromkeys(body.unknown, "")}, body.audio_type)
    values = parse_json(body)
    given = [name for name in ("input_audio", *AUDIO_FIELDS) if values.get(name) is not None]
    if len(given) != 1:
        raise InvalidRequest("A JSON body has its audio in input_audio, once.", param="input_audio")
    (name,) = given
    value = values.pop(name)
    if isinstance(value, dict):
        name, value = f"{name}.data", value.get("data")
    return Upload(decode_audio(value, name), values)


def parse_json(body: bytearray) -> dict[str, Any]:
    """Return the object that a JSON body holds. Raises `InvalidRequest`."""
    try:
        content: object = from_json(bytes(body).removeprefix(BYTE_ORDER_MARK), allow_inf_nan=False)
    except ValueError:
        raise InvalidRequest("The body is not valid JSON.") from None
    if not isinstance(content, dict):
        raise InvalidRequest("The body has to be a JSON object.")
    return content


def decode_audio(value: object, param: str) -> bytes:
    """Return the bytes of base64 text, which may be a `data:` URL. Raises `InvalidRequest` or `AudioTooShort`."""
    if not isinstance(value, str):
        raise InvalidRequest(f"{param} has to be base64 text.", param=param)
    audio = decode_base64(value, param)
    if not audio:
        raise AudioTooShort("The audio is empty.", param=param)
    return audio


def parse_options(model: type[Message], values: Mapping[str, Any], query: Iterable[str] = ()) -> tuple[Message, tuple[str, ...]]:
    """Return the values as a `model`, and warnings of the fields that it does not have, and of the names in the `query`.

    Raises `InvalidRequest` for the first wrong value.
    """
    known = {name: value for name, value in values.items() if name in model.model_fields and value is not None}
    unread = [name for name in values if name not in model.model_fields]
    return parse_message(model, known, "The body"), (*_warnings(unread), *_warnings(list(query), " of the address"))


def _warnings(names: list[str], place: str = "") -> tuple[str, ...]:
    shown = [name if PLAIN_NAME.fullmatch(name) else "with another name" for name in names]
    warnings = [f"The field {name}{place} has no effect here." for name in shown[:MAX_WARNINGS]]
    more = len(names) - MAX_WARNINGS
    return (*warnings, f"{more} more fields{place} have no effect.") if more > 0 else tuple(warnings)


def object_fields(model: type[ClientMessage]) -> tuple[str, ...]:
    """Return the names of the fields that may be objects."""
    return tuple(name for name, schema in field_schemas(model).items() if "$ref" in str(schema))


def _form_values(model: type[ClientMessage], form: Form) -> dict[str, Any]:
    """Return the values of a form; parts `x[key]` make an object."""
    schemas = field_schemas(model)
    values: dict[str, Any] = {}
    objects: dict[str, Any] = {}
    for name, text in form.texts.items():
        plain, bracket, key = name.partition("[")
        if bracket:
            objects.setdefault(plain, {})[key.removesuffix("]")] = _json_or_text(text)
        elif text.strip():
            values[name] = _value_of(schemas.get(name, {}), text)
    return {**values, **objects, **{name: [item for item in items if item] for name, items in form.lists.items()}}


def _value_of(schema: Mapping[str, Any], text: str) -> object:
    """Return what a form's text stands for by the schema of its field; text that stands for nothing stays text."""
    match schema.get("type"):
        case "boolean":
            return {"true": True, "false": False, "1": True, "0": False}.get(text.strip().lower(), text)
        case "number" if NUMBER.fullmatch(text.strip()):
            return float(text)
        case "integer" | "number":
            return _json_or_text(text)
        case "array":
            return _json_or_text(text) if text.lstrip().startswith("[") else [text]
    return text


def _json_or_text(text: str) -> object:
    try:
        value: object = from_json(text, allow_inf_nan=False)
    except ValueError:
        return text
    return value
