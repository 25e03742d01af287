"""Checkpoints that are wrong, partial or unknown get one sentence that says what is there, and leave nothing in the store."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from export.checkpoints.conversion import PullOptions
from export.checkpoints.hub import Hub
from export.checkpoints.safetensors_file import CheckpointError, read_folder
from export.pull import pull_model
from export.store import Store
from tests.support.broken_checkpoints import DAMAGES, WEIGHTS, check_refusal, edit_tensors
from tests.support.tiny.tiny_checkpoints import write_whisper
from tests.support.tiny.tiny_llms import write_llm

FIRST = "model.encoder.layers.0.fc1.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_whisper(folder / "whisper")
    write_llm(folder / "llm", "qwen3")
    return folder


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def point_outside(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {FIRST: "../secret.safetensors"}}))


def rename_tensors(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({"odd": tensors.pop(FIRST)}))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    **{name: DAMAGES[name] for name in ("a missing shard", "an unknown number format", "a file cut short", "a pickle alone")},
    "an index that leaves the folder": (point_outside, "names a file outside the folder"),
    "renamed tensors": (rename_tensors, f"lacks the tensor {FIRST}"),
    "another architecture": (
        lambda folder: edit_json(folder / "config.json", model_type="bert"),
        "is of the kind 'bert'; known are",
    ),
    "a family that is not built": (
        lambda folder: edit_json(folder / "config.json", model_type="voxtral_realtime"),
        "cannot be served: it hears a piece of audio with each token that it writes, which the engine cannot do; known are",
    ),
    "no tokeniser": (lambda folder: (folder / "tokenizer.json").unlink(), "lacks tokenizer.json"),
    "a tokeniser of another kind": (
        lambda folder: edit_json(folder / "tokenizer.json", model={"type": "Unigram"}),
        "Only byte-level BPE and SentencePiece tokenisers are supported, not Unigram",
    ),
    "a config that lies": (lambda folder: edit_json(folder / "config.json", num_mel_bins=128), "says in its config.json that"),
    "a config that lacks a value": (lambda folder: edit_json(folder / "config.json", d_model=None), "has no d_model"),
    "a config that is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
    "a config with a value of another kind": (
        lambda folder: edit_json(folder / "config.json", encoder_attention_heads="many"),
        "cannot be converted: its files are not as those of this family are (ValueError: ",
    ),
    "no config": (lambda folder: (folder / "config.json").unlink(), "lacks config.json"),
    "a header that is none": (lambda folder: (folder / WEIGHTS).write_bytes(b"x" * 64), "is no safetensors file"),
}


def pull(folder: Path, store: Store, llm: Path | None = None) -> None:
    options, hub = PullOptions("fp32", name="broken"), Hub(store.root / "downloads")
    pull_model(str(folder), options, hub, store, lambda path: path.touch(), llm=None if llm is None else str(llm))


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_checkpoint_is_refused_in_one_sentence(name: str, whole: Path, tmp_path: Path) -> None:
    damage, expected = BROKEN[name]
    store = Store(tmp_path / "store")
    check_refusal(whole / "whisper", tmp_path / "whisper", damage, expected, lambda broken: pull(broken, store))
    assert store.names() == []
    assert not store.root.exists() or list(store.root.iterdir()) == []


LOOPS = "{% for a in range(99999999) %}{% endfor %}"
ESCAPES = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
REFUSES = "{{ raise_exception('Only two turns are supported.') }}"
EDITS = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (ESCAPES, "does not work here"),
        (LOOPS, "does not work here"),
        (REFUSES, "Only two turns are supported"),
        (EDITS, "does not keep the user's words"),
        ("", "does not keep the user's words"),
        (None, "has no chat template"),
    ],
)
def test_a_chat_template_runs_in_a_sandbox(template: str | None, expected: str, whole: Path, tmp_path: Path) -> None:
    copytree(whole / "llm", tmp_path / "llm")
    edit_json(tmp_path / "llm" / "tokenizer_config.json", chat_template=template)
    with pytest.raises(CheckpointError, match=expected):
        pull(whole / "whisper", Store(tmp_path / "store"), tmp_path / "llm")


def test_an_llm_alone_is_told_what_it_needs(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"llm is an LLM \(qwen3\): name the speech model too"):
        pull(whole / "llm", Store(tmp_path))


def test_scaled_rotary_embeddings_of_other_kinds_are_refused(whole: Path, tmp_path: Path) -> None:
    copytree(whole / "llm", tmp_path / "llm")
    edit_json(tmp_path / "llm" / "config.json", rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6})
    with pytest.raises(CheckpointError, match="scales its rotary embedding as 'yarn'; known are default, linear and llama3"):
        pull(whole / "whisper", Store(tmp_path / "store"), tmp_path / "llm")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_tensors_are_read_in_float32(dtype: str, tmp_path: Path) -> None:
    saved = {"a": np.arange(6, dtype=dtype).reshape(2, 3), "b": np.zeros((0, 4), dtype)}
    save_file(saved, tmp_path / "some.safetensors")
    tensors = read_folder(tmp_path)
    assert tensors["a"].dtype == np.float32
    np.testing.assert_array_equal(tensors["a"], saved["a"])
    assert tensors["b"].shape == (0, 4)


def test_bfloat16_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_tensors

    given = torch.randn(5, 7).to(torch.bfloat16)
    save_tensors({"a": given}, tmp_path / "some.safetensors")
    np.testing.assert_array_equal(read_folder(tmp_path)["a"], given.float().numpy())
