"""A Parakeet in a `.nemo` file writes what transformers' does, and nothing in it is run: other files get one sentence."""

import io
import os
import tarfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.checkpoints.hub import local_source
from export.checkpoints.safetensors_file import CheckpointError
from export.importers.torch_file import FilePart, read_torch_file
from models.chain import Models
from server.engine.runner.runner import Runner
from server.engine.types.requests import InstructRequest, SpeechTask
from tests.export.checkpoints.conftest import Pull
from tests.support.broken_checkpoints import Hostile
from tests.support.clients.runner_client import run
from tests.support.tiny.tiny_speech_llms import write_archive, write_parakeet_nemo

RATE_HZ = 16_000
ASKED = "Transcribe the speech to text."
ENCODER = {"n_layers": 3, "d_model": 32, "n_heads": 2}
TRANSDUCER = "nemo.collections.asr.models.rnnt_bpe_models.EncDecRNNTBPEModel"
CANARY = "nemo.collections.asr.models.aed_multitask_models.EncDecMultiTaskModel"


def noise(seed: int) -> Any:
    return np.random.default_rng(seed).normal(0, 0.1, 40_000).astype(np.float32)


def read_archive(file: Path) -> dict[str, bytes]:
    with tarfile.open(file) as archive:
        return {entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]


def save(content: Any) -> bytes:
    saved = io.BytesIO()
    torch.save(content, saved)
    return saved.getvalue()


def read(content: bytes, folder: Path) -> Any:
    file = folder / "weights.ckpt"
    file.write_bytes(b"before" + content + bytes(1000))
    return read_torch_file(FilePart(file, 6, len(content)), "weights.ckpt")


@pytest.mark.parametrize("hybrid", [False, True])
def test_it_writes_the_references_tokens(hybrid: bool, tmp_path: Path, pull: Pull) -> None:
    greedy = write_parakeet_nemo(tmp_path / "Parakeet-Twin.nemo", hybrid=hybrid)
    models: Models = pull(tmp_path / "Parakeet-Twin.nemo", f"nemo-{hybrid}")
    for seed in range(4):
        sequence, _ = run(Runner(models), InstructRequest("1", noise(seed), SpeechTask(ASKED)))
        assert len(sequence.tokens) > 3
        assert sequence.tokens == greedy(noise(seed), (), (), 1000)


def test_a_folder_into_which_it_was_unpacked_is_the_same(tmp_path: Path) -> None:
    write_parakeet_nemo(tmp_path / "twin.nemo")
    folder = tmp_path / "unpacked"
    folder.mkdir()
    for name, content in read_archive(tmp_path / "twin.nemo").items():
        (folder / name).write_bytes(content)
    packed, unpacked = (local_source(path).checkpoint for path in (tmp_path / "twin.nemo", folder))
    assert packed.config == unpacked.config
    assert packed.tokeniser_json == unpacked.tokeniser_json
    assert set(packed.tensors) == set(unpacked.tensors)
    np.testing.assert_array_equal(packed.tensors["ctc_head.bias"], unpacked.tensors["ctc_head.bias"])


def drop(member: str) -> Callable[[Path], None]:
    return lambda file: write_archive(file, {name: each for name, each in read_archive(file).items() if name != member})


def put(member: str, content: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda file: write_archive(file, {**read_archive(file), member: content(read_archive(file)[member])})


BROKEN: dict[str, tuple[dict[str, Any], Callable[[Path], object], str]] = {
    "a Canary": ({"target": CANARY}, lambda _file: None, "holds a EncDecMultiTaskModel; known are EncDecCTCModelBPE"),
    "a transducer": ({"target": TRANSDUCER}, lambda _file: None, "is an encoder (parakeet_rnnt), and the text that its own head"),
    "an encoder of another kind": (
        {"encoder": {**ENCODER, "subsampling": "striding"}},
        lambda _file: None,
        "has an encoder with subsampling 'striding'; known is 'dw_striding'",
    ),
    "a lie about the encoder": ({"encoder": {**ENCODER, "d_model": 64}}, lambda _file: None, "says in its config.json that"),
    "a lie about the head": ({"decoder": {"num_classes": 3}}, lambda _file: None, "says in its config.json that ctc_head.weight"),
    "a tokeniser of another kind": (
        {"tokenizer": {"type": "wpe", "vocab_path": "nemo:vocab.txt"}},
        lambda _file: None,
        "has a tokeniser of the type 'wpe'; known is SentencePiece's",
    ),
    "no weights": ({}, drop("./model_weights.ckpt"), "lacks model_weights.ckpt: in it are "),
    "no configuration": ({}, drop("./model_config.yaml"), "lacks model_config.yaml: in it are "),
    "a configuration that runs code": (
        {},
        put("./model_config.yaml", lambda _content: b"!!python/object/apply:os.system ['exit 1']"),
        "has a model_config.yaml that cannot be read",
    ),
    "weights cut short": ({}, put("./model_weights.ckpt", lambda content: content[:-200]), "is cut short, or no file of torch"),
    "a hostile pickle": (
        {},
        put("./model_weights.ckpt", lambda _content: save({"a": Hostile()})),
        f"names {os.name}.system when it is unpickled, which may run code and is not done",
    ),
    "a compressed archive": (
        {},
        lambda file: write_archive(file, read_archive(file), "w:gz"),
        "is no plain tar archive: where it is a compressed one, unpack it into a folder (`tar -xf`), and pull that",
    ),
    "an archive cut short": ({}, lambda file: file.write_bytes(file.read_bytes()[:3000]), "twin.nemo"),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_others_are_refused_in_one_sentence(name: str, tmp_path: Path, pull: Pull) -> None:
    changes, damage, expected = BROKEN[name]
    file = tmp_path / "twin.nemo"
    write_parakeet_nemo(file, **changes)
    damage(file)
    with pytest.raises(CheckpointError) as raised:
        pull(file, "broken")
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_are_those_that_torch_saved(dtype: torch.dtype, tmp_path: Path) -> None:
    whole = torch.randn(6, 5).to(dtype)
    saved = OrderedDict(whole=whole, part=whole[2:4], one=whole.sum(), none=whole[:0], counter=torch.tensor(3))
    saved["parameter"] = torch.nn.Parameter(torch.ones(3))
    found = read(save(saved), tmp_path)
    assert set(found) == set(saved) - {"counter"}
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor.read(), saved[name].detach().float().numpy())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (save(torch.nn.Linear(2, 2)), "names torch.nn.modules.linear.Linear when it is unpickled"),
        (save({"turned": torch.randn(3, 2).T}), "is broken, or holds something else than tensors by name"),
        (save([1, 2]), "is broken, or holds something else than tensors by name"),
        (b"PK no archive", "is cut short, or no file of torch 1.6 or later"),
    ],
)
def test_what_is_no_dictionary_of_tensors_is_refused(content: bytes, expected: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as raised:
        read(content, tmp_path)
    assert expected in str(raised.value)


def test_damaged_weights_are_refused_or_read(tmp_path: Path) -> None:
    content = save({"a": torch.randn(40, 3), "b": torch.randn(7)})
    random = np.random.default_rng(0)
    for _ in range(400):
        damaged = bytearray(content)
        for place in random.integers(0, len(content), 3):
            damaged[place] = random.integers(256)
        try:
            for tensor in read(bytes(damaged), tmp_path).values():
                tensor.read()
        except CheckpointError:
            continue
