"""Requests, events and reports as bytes and back: JSON, then the samples. Nothing but what is named here can come out of it."""

import dataclasses
import io
import json
import struct
from typing import Any

import numpy as np

from server.engine.types import events, options, requests, stats
from server.engine.types.options import Priority
from server.errors import ServeError

JSON_BYTES = struct.Struct("<Q")


def _with_subclasses(kind: type[ServeError]) -> list[type[ServeError]]:
    return [kind, *(each for subclass in kind.__subclasses__() for each in _with_subclasses(subclass))]


MODULES = (events, options, requests, stats)
CLASSES: dict[str, Any] = {
    name: kind for module in MODULES for name, kind in vars(module).items() if dataclasses.is_dataclass(kind)
}
ERRORS = {kind.__name__: kind for kind in _with_subclasses(ServeError)}


def encode(value: object) -> bytes:
    """Bytes for `decode`. Takes numbers, strings, bytes, tuples, float32 arrays of one axis, `Priority`, errors of
    `server.errors` and dataclasses of `MODULES`; raises `TypeError` for anything else."""
    samples: list[bytes] = []
    text = json.dumps(_plain(value, samples)).encode()
    return b"".join([JSON_BYTES.pack(len(text)), text, *samples])


def decode(data: memoryview) -> Any:
    """What `encode` was given; arrays are read-only copies. Raises `ValueError`, `KeyError` or `TypeError` for other bytes."""
    start = JSON_BYTES.size
    end = start + JSON_BYTES.unpack_from(data)[0]
    return _value(json.loads(bytes(data[start:end])), io.BytesIO(data[end:]))


def _plain(value: object, samples: list[bytes]) -> object:
    match value:
        case Priority():
            return {"Priority": value.value}
        case None | bool() | int() | float() | str():
            return value
        case np.generic():
            return value.item()
        case bytes():
            return {"bytes": value.hex()}
        case tuple():
            return [_plain(each, samples) for each in value]
        case np.ndarray() if value.dtype == np.float32 and value.ndim == 1:
            samples.append(value.tobytes())
            return {"float32": value.size}
        case ServeError():
            return {type(value).__name__: [value.message, value.param, value.retry_after_s]}
        case _ if type(value).__name__ in CLASSES:
            fields = dataclasses.fields(CLASSES[type(value).__name__])
            return {type(value).__name__: [_plain(getattr(value, field.name), samples) for field in fields]}
        case _:
            raise TypeError(f"{type(value).__name__} is no plain data")


def _value(plain: Any, samples: io.BytesIO) -> Any:
    if isinstance(plain, list):
        return tuple(_value(each, samples) for each in plain)
    if not isinstance(plain, dict):
        return plain
    ((name, content),) = plain.items()
    match name:
        case "Priority":
            return Priority(content)
        case "bytes":
            return bytes.fromhex(content)
        case "float32":
            return np.frombuffer(samples.read(content * 4), np.float32)
        case _ if name in ERRORS:
            message, param, retry_after_s = content
            return ERRORS[name](message, param=param, retry_after_s=retry_after_s)
        case _:
            return CLASSES[name](*(_value(each, samples) for each in content))
