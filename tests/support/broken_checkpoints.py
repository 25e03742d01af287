"""Checkpoints that are damaged in one way, and what is said of them."""

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from export.checkpoints.safetensors_file import CheckpointError


def check_refusal(
    whole: Path, copy: Path, damage: Callable[[Path], object], expected: str, pull: Callable[[Path], object]
) -> None:
    """Damage a copy of a checkpoint, and check that pulling it is refused in one sentence that holds `expected`."""
    copytree(whole, copy)
    damage(copy)
    with pytest.raises(CheckpointError) as raised:
        pull(copy)
    assert expected in str(raised.value), str(raised.value)
    assert "\n" not in str(raised.value)


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the `config.json` of a checkpoint."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def edit_tensors(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the tensors of a checkpoint that has them in one file."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


WEIGHTS = "model.safetensors"
TOKENISERS = ("tokenizer.json", "tekken.json", "merges.txt", "vocab.json")
OWNERS = ("text_model_id", "pretrained_llm")
"""The keys by which a checkpoint names the LLM that it has its tokeniser, and at times its weights, from."""
CODE = "{{ ''.__class__.__mro__[1].__subclasses__() }}"


class Hostile:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("exit 1",)


def edit_header(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the header of a safetensors file."""
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def hide_shard(folder: Path) -> None:
    """Name a second file of weights that is not there."""
    first, *others = load_file(folder / WEIGHTS)
    names = {first: "model-00002-of-00002.safetensors", **dict.fromkeys(others, WEIGHTS)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def round_to_float8(folder: Path) -> None:
    """Say that one tensor has a number format that is not known."""

    def change(header: dict[str, Any]) -> None:
        header[next(name for name in header if name.endswith(".weight"))].update(dtype="F8_E4M3")

    edit_header(folder / WEIGHTS, change)


def rename_family(folder: Path) -> None:
    """Say that the checkpoint is of another family."""
    edit_config(folder, lambda config: config.update(model_type="bert"))


def rename_tensors(folder: Path) -> None:
    """Give every tensor another name."""
    tensors = load_file(folder / WEIGHTS)
    save_file({f"odd.{name}": tensor for name, tensor in tensors.items()}, folder / WEIGHTS)


def cut_weights(folder: Path) -> None:
    """Leave out the last bytes of the weights."""
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def hide_tokeniser(folder: Path) -> None:
    """Delete the files of the tokeniser, in a copy of the LLM where that has them."""
    owner = own_llm(folder)
    for name in TOKENISERS:
        (owner / name).unlink(missing_ok=True)


def leave_only_pickle(folder: Path) -> None:
    """Put a pickle that runs a command in the place of the weights."""
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Hostile()))


def write_code_into_template(folder: Path) -> None:
    """Let the chat template look for Python's classes."""
    file = own_llm(folder) / "tokenizer_config.json"
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**content, "chat_template": CODE}))


def lie_about_the_llm(folder: Path) -> None:
    """Say that the LLM is twice as wide as it is, or that a CTC head has twice as many labels."""
    file = own_llm(folder) / "config.json"
    config = json.loads(file.read_text())
    part = config.get("text_config") or config
    part["hidden_size" if "hidden_size" in part else "vocab_size"] *= 2
    file.write_text(json.dumps(config))


def lie_about_the_encoder(folder: Path) -> None:
    """Say that the encoder is twice as wide as it is."""

    def change(config: dict[str, Any]) -> None:
        part = config.get("audio_config") or config.get("encoder_config") or config["perception"]["encoder"]
        part[next(name for name in ("d_model", "hidden_size", "hidden_dim") if name in part)] *= 2

    edit_config(folder, change)


def change_layers(folder: Path, change: Callable[[int], object]) -> None:
    """Change the number of layers that the LLM's `config.json` says, or the encoder's where there is no LLM."""
    file = own_llm(folder) / "config.json"
    config = json.loads(file.read_text())
    part = config.get("text_config") or config.get("encoder_config") or config
    key = next(key for key in ("num_hidden_layers", "encoder_layers") if key in part)
    part[key] = change(part[key])
    file.write_text(json.dumps(config))


def own_llm(folder: Path) -> Path:
    """Return a copy of the LLM's folder that the checkpoint names, which then names the copy; its own folder if there is none."""
    config = json.loads((folder / "config.json").read_text())
    key = next((key for key in OWNERS if config.get(key)), None)
    if key is None:
        return folder
    copy = folder.parent / f"{folder.name}-llm"
    copytree(config[key], copy)
    (folder / "config.json").write_text(json.dumps({**config, key: str(copy)}))
    return copy


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a missing shard": (hide_shard, "files of weights, one is model-00002-of-00002.safetensors"),
    "an unknown number format": (round_to_float8, "as F8_E4M3, known are F64, F32, F16, BF16"),
    "another family": (rename_family, "is of the kind 'bert'; known are granite_speech, "),
    "renamed tensors": (rename_tensors, ", one is odd."),
    "a file cut short": (cut_weights, "model.safetensors is cut short: "),
    "no tokeniser": (hide_tokeniser, "lacks tokenizer.json"),
    "a pickle alone": (leave_only_pickle, "only pytorch_model.bin, which may hold code and is not read"),
    "a lie about the LLM": (lie_about_the_llm, "says in its config.json that"),
    "a layer fewer than there are": (
        lambda folder: change_layers(folder, lambda layers: layers - 1),
        "layers is ",
    ),
    "a thousand million layers": (
        lambda folder: change_layers(folder, lambda _: 10**9),
        "layers is 1000000000, but its weights have ",
    ),
    "a number of layers that is none": (lambda folder: change_layers(folder, str), "layers is '"),
    "a lie about the encoder": (lie_about_the_encoder, "says in its config.json that"),
}
"""Faults of a checkpoint of any family, each with a part of its message."""
