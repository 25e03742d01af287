"""Read safetensors files tensor by tensor, bfloat16 included, so that a checkpoint is never whole in memory.

The format: uint64 length of a JSON header, the header (per tensor its dtype, shape and byte range), the bytes
(huggingface.co/docs/safetensors).
"""

import json
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_dtypes import bfloat16

from models.graph.linear import Float32

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(bfloat16),
}
MAX_HEADER_BYTES = 100 * 2**20
COUNTER = ".num_batches_tracked"
"""The end of the names of counters of training steps, which normalisations over batches keep and no model computes with."""
INDEX = "model.safetensors.index.json"
BESIDE = ("adapter_model.safetensors", "out_llm.safetensors")
"""Files of further parts beside the weights: a LoRA adapter, Granite-speech's CTC head. Each is read by its name."""


class CheckpointError(ValueError):
    """The checkpoint cannot be imported. The message says in one sentence what is there and what is known."""


@dataclass(frozen=True)
class Tensor:
    """The place of one tensor."""

    file: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    def read(self) -> Float32:
        """Read the tensor in float32."""
        count = int(np.prod(self.shape, dtype=np.int64))
        array = np.fromfile(self.file, self.dtype, count, offset=self.offset)
        return array.astype(np.float32, copy=False).reshape(self.shape)


class Tensors(Mapping[str, Float32]):
    """Tensors by name, each read when it is asked for. Raises `CheckpointError` for one that is missing."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        name: str,
        renames: Mapping[str, str] | None = None,
        in_files: Collection[str] | None = None,
    ) -> None:
        """`name` is what messages call the checkpoint; `renames` are the beginnings by which tensors were renamed.

        `in_files` are the names of all tensors of the checkpoint, of which these may be a part.
        """
        self._tensors = dict(tensors)
        self._name = name
        self._renames = dict(renames or {})
        self._in_files = self._tensors.keys() if in_files is None else in_files

    def __getitem__(self, name: str) -> Float32:
        return self.place(name).read()

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def place(self, name: str) -> Tensor:
        """Return the place of a tensor, which has its shape."""
        if name not in self._tensors:
            wanted = self._name_in_file(name)
            raise CheckpointError(
                f"{self._name} lacks the tensor {wanted}, and holds {len(self._in_files)} others{self._example()}"
            )
        return self._tensors[name]

    def renamed(self, renames: Mapping[str, str]) -> "Tensors":
        """Return the tensors with the first beginning of `renames` that each name has replaced; others are left out."""
        found = {}
        for name, tensor in self._tensors.items():
            old = next((old for old in renames if name.startswith(old)), None)
            if old is not None:
                found[renames[old] + name.removeprefix(old)] = tensor
        return Tensors(found, self._name, renames, self._in_files)

    def part(self, name: str) -> "Tensors":
        """Return the tensors of a part, whose names begin with `model.` in newer checkpoints."""
        return self.renamed({f"model.{name}": "", name: ""})

    def replaced(self, old: str, new: str) -> "Tensors":
        """Return the tensors with a part of their names replaced."""
        found = {name.replace(old, new): tensor for name, tensor in self._tensors.items()}
        return Tensors(found, self._name, self._renames, self._in_files)

    def _name_in_file(self, name: str) -> str:
        old, new = next(((old, new) for old, new in self._renames.items() if name.startswith(new)), ("", ""))
        return old + name.removeprefix(new)

    def _example(self) -> str:
        return f", one is {min(self._in_files)}" if self._in_files else ""


def read_folder(folder: Path) -> Tensors:
    """Return the tensors of all safetensors files of a folder. Raises `CheckpointError` for a missing or broken file."""
    tensors: dict[str, Tensor] = {}
    for file in _files_of(folder):
        tensors |= read_file(file)
    return Tensors(tensors, folder.name)


def _files_of(folder: Path) -> list[Path]:
    """Return the files that the index names, or all that there are."""
    index = folder / INDEX
    if not index.exists():
        return sorted(file for file in folder.glob("*.safetensors") if file.name not in BESIDE)
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{folder.name} has an index that is not valid ({INDEX})") from None
    if foreign := [name for name in names if not isinstance(name, str) or "/" in name or name.startswith(".")]:
        raise CheckpointError(f"{folder.name} has an index that names a file outside the folder ({foreign[0]!r})")
    if missing := [name for name in names if not (folder / name).exists()]:
        raise CheckpointError(f"{folder.name} lacks {len(missing)} of its {len(names)} files of weights, one is {missing[0]}")
    return [folder / name for name in names]


def read_file(file: Path) -> dict[str, Tensor]:
    """Return the places of a file's tensors. Raises `CheckpointError` where it is cut short, broken, or of an unknown dtype."""
    size, place = file.stat().st_size, f"{file.parent.name}/{file.name}"
    with file.open("rb") as opened:
        start = opened.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise CheckpointError(f"{place} is no safetensors file: its header has {length} bytes, the file {size}")
        header = opened.read(length)
    try:
        entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        numbers = {name: entry for name, entry in entries.items() if not name.endswith(COUNTER)}
        found = {name: _tensor(file, name, entry, 8 + length, size) for name, entry in numbers.items()}
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{place} is no safetensors file: its header is not valid") from None
    return found


def _tensor(file: Path, name: str, entry: Mapping[str, Any], data: int, size: int) -> Tensor:
    place = f"{file.parent.name}/{file.name}"
    if entry["dtype"] not in DTYPES:
        raise CheckpointError(f"{place} has {name} as {entry['dtype']}, known are {', '.join(DTYPES)}")
    dtype, shape = DTYPES[entry["dtype"]], tuple(int(each) for each in entry["shape"])
    begin, end = entry["data_offsets"]
    if min((0, *shape)) < 0 or begin < 0 or end - begin != int(np.prod(shape, dtype=np.int64)) * dtype.itemsize:
        raise CheckpointError(f"{place} is broken: {name} has the shape {list(shape)} and {end - begin} bytes")
    if data + end > size:
        raise CheckpointError(f"{place} is cut short: {name} ends at byte {data + end}, the file at {size}")
    return Tensor(file, dtype, shape, data + begin)
