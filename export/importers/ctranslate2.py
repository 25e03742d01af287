"""Read a CTranslate2 `model.bin`: named arrays, and aliases that share them."""

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[np.generic]]

SUPPORTED_VERSION = 6
DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


class WeightFileError(ValueError):
    """The file is not a CTranslate2 model that this reader knows, or it is cut short."""


class Reader:
    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.offset = 0

    def take(self, size: int) -> memoryview:
        if self.offset + size > len(self.data):
            raise WeightFileError(f"CTranslate2 model is truncated at byte {self.offset}")
        piece = self.data[self.offset : self.offset + size]
        self.offset += size
        return piece

    def integer(self, layout: str) -> int:
        return int(struct.unpack(layout, self.take(struct.calcsize(layout)))[0])

    def string(self) -> str:
        return bytes(self.take(self.integer("<H"))).rstrip(b"\0").decode()


def read_ctranslate2(path: Path) -> Arrays:
    """Return all arrays by name, memory-mapped and read-only. Raises `WeightFileError`."""
    reader = Reader(memoryview(np.memmap(path, dtype=np.uint8, mode="r").data))
    version = reader.integer("<I")
    if version != SUPPORTED_VERSION:
        raise WeightFileError(f"CTranslate2 format version is {version}, this reader knows {SUPPORTED_VERSION}")
    reader.string()
    reader.integer("<I")
    arrays: Arrays = {}
    for _ in range(reader.integer("<I")):
        name = reader.string()
        shape = [reader.integer("<I") for _ in range(reader.integer("<B"))]
        dtype = reader.integer("<B")
        if dtype not in DTYPES:
            raise WeightFileError(f"CTranslate2 variable {name} has unknown type {dtype}")
        data = reader.take(reader.integer("<I"))
        arrays[name] = np.frombuffer(data, DTYPES[dtype]).reshape(shape)
    for _ in range(reader.integer("<I")):
        alias = reader.string()
        arrays[alias] = arrays[reader.string()]
    return arrays
