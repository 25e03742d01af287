"""The tensors of a file that torch wrote, without torch, and without running anything in it.

`torch.save` writes a zip archive of uncompressed members: a pickle that says how tensors are built, and the bytes of each storage
(github.com/pytorch/pytorch, `torch/serialization.py`). A pickle is a program, so it is not unpickled: its operations are read one
by one, those that build dictionaries of tensors are followed, and any other, and any name that is not in `KNOWN`, is refused.
"""

import io
import itertools
import math
import pickletools
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.checkpoints.safetensors_file import DTYPES, CheckpointError, Tensor

MAX_PICKLE_BYTES = 50 * 2**20
LOCAL_HEADER_BYTES = 30
STORAGES = {"DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16"}
"""Kinds of storages that hold weights; tensors of others, such as counters, are left out."""
DICTIONARY, TENSOR, PARAMETER = "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
KNOWN = {DICTIONARY, TENSOR, PARAMETER}
STORAGE_MODULES = ("torch", "torch.storage")
MARK = object()


@dataclass(frozen=True)
class FilePart:
    """A part of a file: `size` bytes from `offset` on."""

    file: Path
    offset: int
    size: int

    def read(self) -> bytes:
        with self.file.open("rb") as opened:
            opened.seek(self.offset)
            return opened.read(self.size)


@dataclass(frozen=True)
class _Name:
    """A name that the pickle looks up, which nothing here looks up."""

    text: str


@dataclass(frozen=True)
class _Storage:
    """A storage: its kind, and the number of its member."""

    kind: str
    key: str


@dataclass(frozen=True)
class _Built:
    """A tensor as the pickle builds it: from element `first` of a storage on."""

    storage: _Storage
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_file(part: FilePart, place: str) -> dict[str, Tensor]:
    """Return the places of the tensors in a dictionary that torch saved. Raises `CheckpointError`; `place` is the file's name."""
    try:
        with part.file.open("rb") as opened, zipfile.ZipFile(_Slice(opened, part)) as archive:
            members = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
            parts = {name: _place(opened, part, entry, place) for name, entry in members.items()}
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{place} is cut short, or no file of torch 1.6 or later") from None
    if "data.pkl" not in parts or parts["data.pkl"].size > MAX_PICKLE_BYTES:
        raise CheckpointError(f"{place} has no data.pkl of a common size, which says what its tensors are")
    if "byteorder" in parts and parts["byteorder"].read() != b"little":
        raise CheckpointError(f"{place} was written on a machine of another byte order")
    try:
        built = _follow(parts["data.pkl"].read(), place)
        return {name: _locate(each, parts) for name, each in built.items() if each.storage.kind in STORAGES}
    except CheckpointError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise CheckpointError(f"{place} is broken, or holds something else than tensors by name") from None


def _place(opened: io.BufferedReader, part: FilePart, entry: zipfile.ZipInfo, place: str) -> FilePart:
    """Return where a member's bytes lie in the file."""
    if entry.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(f"{place} has compressed members, which torch does not write")
    if entry.header_offset < 0:
        raise zipfile.BadZipFile
    opened.seek(part.offset + entry.header_offset)
    header = opened.read(LOCAL_HEADER_BYTES)
    if len(header) < LOCAL_HEADER_BYTES:
        raise zipfile.BadZipFile
    skipped = sum(struct.unpack("<HH", header[26:30]))
    begin = entry.header_offset + LOCAL_HEADER_BYTES + skipped
    if begin + entry.file_size > part.size:
        raise CheckpointError(f"{place} is cut short: {entry.filename} ends at byte {begin + entry.file_size} of {part.size}")
    return FilePart(part.file, part.offset + begin, entry.file_size)


def _locate(built: _Built, parts: Mapping[str, FilePart]) -> Tensor:
    """Return the place of a tensor. Raises `ValueError` where its numbers are not in a row, or not in the file."""
    data, dtype = parts[f"data/{built.storage.key}"], DTYPES[STORAGES[built.storage.kind]]
    steps = [1, *itertools.accumulate(reversed(built.shape[1:]), lambda a, b: a * b)][::-1] if built.shape else []
    in_a_row = all(size <= 1 or own == step for size, own, step in zip(built.shape, built.strides, steps, strict=True))
    end = (built.first + math.prod(built.shape)) * dtype.itemsize
    if min((0, built.first, *built.shape)) < 0 or not in_a_row or end > data.size:
        raise ValueError(built)
    return Tensor(data.file, dtype, built.shape, data.offset + built.first * dtype.itemsize)


def _follow(program: bytes, place: str) -> dict[str, _Built]:
    """Return the tensors that a pickle builds, by their names. Raises `CheckpointError` for a pickle that does anything else."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    argument: Any
    for operation, argument, _ in pickletools.genops(program):
        match operation.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                break
            case "MARK":
                stack.append(MARK)
            case "GLOBAL":
                stack.append(_know(argument, place))
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(operation.name == "NEWTRUE")
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "TUPLE":
                stack.append(tuple(_pop_marked(stack)))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(operation.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            # Lists and attributes say nothing about tensors.
            case "APPEND" | "BUILD":
                stack.pop()
            case "APPENDS":
                _pop_marked(stack)
            case "SETITEM":
                stack[-3:] = [_put(stack[-3], stack[-2:])]
            case "SETITEMS":
                pairs = _pop_marked(stack)
                stack[-1] = _put(stack[-1], pairs)
            case "BINPERSID":
                kind, storage, key, *_rest = stack.pop()
                if kind != "storage" or not isinstance(storage, _Name):
                    raise ValueError(kind)
                stack.append(_Storage(storage.text.rpartition(" ")[2], str(key)))
            case "REDUCE":
                given = stack.pop()
                stack[-1] = _build(stack[-1], given)
            case _:
                raise CheckpointError(f"{place} does {operation.name} when it is unpickled, which may run code and is not done")
    tensors = stack[-1]
    return {name: each for name, each in tensors.items() if isinstance(name, str) and isinstance(each, _Built)}


def _know(argument: str, place: str) -> _Name:
    module, _, name = argument.partition(" ")
    if argument in KNOWN or (module in STORAGE_MODULES and name.endswith("Storage")):
        return _Name(argument)
    raise CheckpointError(f"{place} names {module}.{name} when it is unpickled, which may run code and is not done")


def _build(name: Any, given: tuple[Any, ...]) -> Any:
    """Return what one of the known functions would."""
    match name:
        case _Name(text) if text == DICTIONARY:
            return _put({}, [each for pair in (given[0] if given else ()) for each in pair])
        case _Name(text) if text == TENSOR:
            storage, first, shape, strides = given[:4]
            return _Built(storage, int(first), tuple(map(int, shape)), tuple(map(int, strides)))
        case _Name(text) if text == PARAMETER:
            return given[0]
        case _:
            raise ValueError(name)


def _put(target: Any, pairs: list[Any]) -> dict[Any, Any]:
    if not isinstance(target, dict):
        raise TypeError(target)
    target.update(zip(pairs[::2], pairs[1::2], strict=True))
    return target


def _pop_marked(stack: list[Any]) -> list[Any]:
    """Take off the stack what lies above its last mark, and that."""
    place = max(number for number, each in enumerate(stack) if each is MARK)
    taken = stack[place + 1 :]
    del stack[place:]
    return taken


class _Slice(io.RawIOBase):
    """A part of an open file as a file."""

    def __init__(self, opened: io.BufferedReader, part: FilePart) -> None:
        super().__init__()
        self._opened, self._part, self._at = opened, part, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._part.size}[whence]
        if self._at < 0:
            raise ValueError("before the beginning")
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._part.size - self._at)
        self._opened.seek(self._part.offset + self._at)
        taken = self._opened.read(left if size < 0 else min(size, left))
        self._at += len(taken)
        return taken
