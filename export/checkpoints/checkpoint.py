"""A checkpoint as it lies in a folder: its configuration, its weights in safetensors or CTranslate2's format, its tokeniser."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from export.checkpoints.safetensors_file import CheckpointError, Tensors, read_folder
from export.importers.byte_level_bpe import write_qwen2_tokeniser
from export.importers.sentencepiece import write_sentencepiece
from export.importers.tekken import write_tekken
from models.text.tokeniser import Tokeniser

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
CTRANSLATE2_WEIGHTS = "model.bin"


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a checkpoint; `name` is what the user called it. Everything raises `CheckpointError`."""

    folder: Path
    name: str

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of `config.json`."""
        return self.read_json("config.json")

    @property
    def model_type(self) -> str:
        """The architecture that `config.json` names; empty for CTranslate2's folders, which name none.

        NeMo's speech LLMs name none either: they are recognised by the parts that they name.
        """
        if "model_type" not in self.config and {"perception", "pretrained_llm"} <= self.config.keys():
            return "salm"
        return str(self.config.get("model_type", ""))

    @cached_property
    def tensors(self) -> Tensors:
        """The weights in safetensors files."""
        tensors = read_folder(self.folder)
        if not tensors:
            pickled = sorted(path.name for path in self.folder.iterdir() if path.suffix in PICKLED)
            found = f"only {pickled[0]}, which may hold code and is not read" if pickled else "no weights"
            raise CheckpointError(f"{self.name} has {found}: known are safetensors files")
        return tensors

    @property
    def is_ctranslate2(self) -> bool:
        """Whether the folder is one that CTranslate2's converter writes."""
        return (self.folder / CTRANSLATE2_WEIGHTS).is_file() and "model_type" not in self.config

    def has(self, file: str) -> bool:
        return (self.folder / file).is_file()

    def read_json_if_any(self, file: str) -> dict[str, Any]:
        """Return the object in a JSON file, an empty one where there is none."""
        return self.read_json(file) if self.has(file) else {}

    def read_json(self, file: str) -> dict[str, Any]:
        """Return the object in a JSON file."""
        path = self.folder / file
        if not path.is_file():
            raise CheckpointError(f"{self.name} lacks {file}: in it are {self._listing()}")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError, RecursionError) as error:
            raise CheckpointError(f"{self.name} has a {file} that cannot be read ({error})") from None
        if not isinstance(content, dict):
            raise CheckpointError(f"{self.name} has a {file} that is no JSON object")
        return content

    @cached_property
    def tokeniser_json(self) -> str:
        """The text of `tokenizer.json`, or, where there is none, of one made of the first file of `TOKENISERS` that there is."""
        for file, write in {} if self.has("tokenizer.json") else TOKENISERS.items():
            if self.has(file):
                try:
                    return write(self)
                except CheckpointError:
                    raise
                except Exception as error:  # the library's exceptions share no narrower base class
                    raise CheckpointError(f"{self.name} has a {file} that cannot be used ({error})") from None
        return self.tokeniser_file.read_text(encoding="utf-8")

    @property
    def tokeniser_file(self) -> Path:
        """The `tokenizer.json`."""
        if not self.has("tokenizer.json"):
            raise CheckpointError(
                f"{self.name} lacks tokenizer.json; other tokenisers that are known are {', '.join(TOKENISERS)}"
            )
        return self.folder / "tokenizer.json"

    def open_tokeniser(self) -> Tokeniser:
        """Return the tokeniser."""
        try:
            return Tokeniser(json.loads(self.tokeniser_json))
        except CheckpointError:
            raise
        except Exception as error:  # the library's exceptions share no narrower base class
            raise CheckpointError(f"{self.name} has a tokenizer.json that cannot be used ({error})") from None

    def _listing(self) -> str:
        names = sorted(path.name for path in self.folder.iterdir())
        return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") if names else "no files"


def _write_qwen2(checkpoint: Checkpoint) -> str:
    merges = (checkpoint.folder / "merges.txt").read_text(encoding="utf-8")
    return write_qwen2_tokeniser(checkpoint.read_json("vocab.json"), merges, _added_tokens(checkpoint))


def _write_tekken(checkpoint: Checkpoint) -> str:
    return write_tekken(checkpoint.read_json("tekken.json"))


def _write_sentencepiece(checkpoint: Checkpoint) -> str:
    return write_sentencepiece((checkpoint.folder / "tokenizer.model").read_bytes(), _added_tokens(checkpoint))


def _added_tokens(checkpoint: Checkpoint) -> dict[str, Any]:
    return checkpoint.read_json_if_any("tokenizer_config.json").get("added_tokens_decoder") or {}


TOKENISERS: dict[str, Callable[[Checkpoint], str]] = {
    "merges.txt": _write_qwen2,
    "tekken.json": _write_tekken,
    "tokenizer.model": _write_sentencepiece,
}
"""Tokenisers that are turned into a `tokenizer.json`, by a file that only they have: Qwen's, Mistral's and SentencePiece's."""


def read_value(config: dict[str, Any], key: str, place: str) -> Any:
    """Return a value of a configuration. Raises `CheckpointError` where it is missing; `place` is the checkpoint's name."""
    if config.get(key) is None:
        raise CheckpointError(f"{place} has no {key} in its config.json")
    return config[key]


def read_layers(config: Mapping[str, Any], key: str, tensors: Tensors, beginning: str, place: str) -> int:
    """Return how many layers a part has, whose tensors' names begin with `beginning` and a number. Raises `CheckpointError`."""
    layers = read_value(dict(config), key, place)
    found = {name.removeprefix(beginning).split(".")[0] for name in tensors if name.startswith(beginning)}
    if not found:
        tensors.place(f"{beginning}0")
    if layers != len(found) or isinstance(layers, bool | float):
        raise CheckpointError(
            f"{place} says in its config.json that {key} is {layers!r}, but its weights have {len(found)} of these"
        )
    return len(found)


def require_known_values(known: Mapping[str, Any], given: Mapping[str, Any], part: str, place: str) -> None:
    """Raise `CheckpointError` for a value of a part that is another than the known one; one that is missing is known."""
    for name, value in known.items():
        if given.get(name, value) != value:
            raise CheckpointError(f"{place} has {part} with {name} {given[name]!r}; known is {value!r}")


def require_shape(tensors: Tensors, name: str, shape: tuple[int, ...], place: str) -> None:
    """Raise `CheckpointError` unless a tensor has the shape that the configuration says."""
    found = tensors.place(name).shape
    if found != shape:
        raise CheckpointError(f"{place} says in its config.json that {name} is {list(shape)}, but it is {list(found)}")
