"""Canary-Qwen besides its tokens: its adapter, the tokeniser of another repository, and what it refuses."""

from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest

from export.checkpoints.conversion import PullOptions
from export.checkpoints.hub import Hub
from export.pull import pull_model
from export.store import Store
from models.chain import Models
from server.engine.runner.runner import Runner
from server.engine.runner.sequence_builder import lay_out_task, new_sequence
from server.engine.types.options import SamplingOptions
from server.engine.types.requests import InstructRequest, SpeechTask
from server.errors import InvalidRequest
from tests.export.checkpoints.conftest import Pull
from tests.support.broken_checkpoints import check_refusal, edit_config, edit_tensors
from tests.support.clients.runner_client import run
from tests.support.hub.local_hub import local_hub
from tests.support.tasks import change_task
from tests.support.tiny.tiny_speech_llms import write_canary_qwen

AUDIO = np.random.default_rng(5).normal(0, 0.1, 40_000).astype(np.float32)
WEIGHTS = "model.safetensors"
QUERY = "llm.base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("canary-qwen") / "twin"
    write_canary_qwen(folder)
    return folder


@pytest.fixture(scope="module")
def models(folder: Path, pull: Pull) -> Models:
    return pull(folder, "canary-qwen-twin")


def ask(instruction: str = "Transcribe.") -> InstructRequest:
    return InstructRequest("1", AUDIO, SpeechTask(instruction, SamplingOptions(max_tokens=8)))


def set_encoder(**values: Any) -> Callable[[Path], object]:
    return lambda folder: edit_config(folder, lambda config: config["perception"]["encoder"].update(values))


def test_what_asks_for_a_transcript_becomes_the_published_instruction(models: Models) -> None:
    asked, published = (lay_out_task(models, ask(text).task) for text in ("Transcribe.", "Transcribe the following:"))
    assert asked == published
    assert lay_out_task(models, ask("Who speaks?").task) != asked


def test_english_is_the_one_language_that_it_takes(models: Models) -> None:
    plain, english = (lay_out_task(models, each.task) for each in (ask(), change_task(ask(), language="en")))
    assert english == plain
    with pytest.raises(InvalidRequest, match="does not know the language 'de'"):
        new_sequence(models, change_task(ask(), language="de"), lambda _event: None)


def test_the_adapter_changes_the_answer(folder: Path, models: Models, tmp_path: Path, pull: Pull) -> None:
    copytree(folder, tmp_path / "plain")
    edit_config(tmp_path / "plain", lambda config: config.pop("lora"))
    plain = pull(tmp_path / "plain", "canary-qwen-plain")
    assert run(Runner(plain), ask())[1].tokens != run(Runner(models), ask())[1].tokens


def test_of_the_llm_that_it_names_no_weights_are_downloaded(folder: Path, models: Models, tmp_path: Path) -> None:
    copytree(folder, tmp_path / "hub" / "nvidia" / "canary")
    copytree(folder.parent / "canary-llm", tmp_path / "hub" / "Qwen" / "llm")
    edit_config(tmp_path / "hub" / "nvidia" / "canary", lambda config: config.update(pretrained_llm="Qwen/llm"))
    with local_hub(tmp_path / "hub") as served:
        hub, store = Hub(tmp_path / "checkpoints", served.url), Store(tmp_path / "models")
        pulled = pull_model("nvidia/canary", PullOptions("fp32", name="it"), hub, store, lambda path: path.touch())
    assert [name for name, _ in served.requests].count(WEIGHTS) == 1
    assert not any((tmp_path / "checkpoints").iterdir())
    assert pulled.manifest.prompt is not None
    assert pulled.manifest.prompt.prefix == models.template.prefix


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "another subsampling": (
        set_encoder(subsampling="striding"),
        "with subsampling 'striding'; known is 'dw_striding'",
    ),
    "attention within a context": (set_encoder(att_context_size=[70, 13]), "with att_context_size [70, 13]"),
    "a wrong width": (set_encoder(d_model=48), "says in its config.json that pre_encode.out.weight is"),
    "heads that do not fit": (set_encoder(n_heads=5), "which do not divide its width"),
    "more layers than there are": (set_encoder(n_layers=9), "says in its config.json that n_layers is 9, but its weights have"),
    "other features": (
        lambda folder: edit_config(folder, lambda config: config["perception"]["preprocessor"].update(normalize="NA")),
        "features with normalize 'NA'; known is 'per_feature'",
    ),
    "a modality adapter": (
        lambda folder: edit_config(folder, lambda config: config["perception"]["modality_adapter"].update(_target_="Q.Former")),
        "has the modality adapter Q.Former; known is IdentityConnector",
    ),
    "half an adapter": (
        lambda folder: edit_tensors(folder, lambda tensors: tensors.pop(f"{QUERY}.lora_B.default.weight")),
        "which belongs to no weight of the LLM",
    ),
    "an adapter of another size": (
        lambda folder: edit_tensors(
            folder, lambda tensors: tensors.update({f"{QUERY}.lora_B.default.weight": np.zeros((3, 4), np.float32)})
        ),
        "has an adapter for",
    ),
    "no projector": (
        lambda folder: edit_tensors(folder, lambda tensors: tensors.pop("perception.proj.weight")),
        "lacks the tensor perception.proj.weight",
    ),
    "an LLM that is not there": (
        lambda folder: edit_config(folder, lambda config: config.update(pretrained_llm="./nowhere")),
        "is neither a folder, nor a GGUF or .nemo file, nor a hub id",
    ),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_checkpoint_is_refused_in_one_sentence(name: str, folder: Path, tmp_path: Path, pull: Pull) -> None:
    damage, expected = BROKEN[name]
    check_refusal(folder, tmp_path / "broken", damage, expected, lambda broken: pull(broken, "broken"))
