"""Granite-speech besides its tokens: its adapter merged, its CTC head as a draft, its own instruction, and what it refuses."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models.chain import Models
from models.ctc import find_runs
from models.protocols import CtcDraft, EncoderStates, ProjectorOutput
from server.engine.runner.runner import Runner
from server.engine.runner.sequence_builder import lay_out_task, new_sequence
from server.engine.types.options import SamplingOptions
from server.engine.types.requests import InstructRequest, SpeechTask
from server.errors import InvalidRequest
from tests.export.checkpoints.conftest import Pull
from tests.support.broken_checkpoints import check_refusal, edit_config
from tests.support.clients.runner_client import run
from tests.support.tiny.tiny_speech_llms import write_granite_speech

AUDIO = np.random.default_rng(6).normal(0, 0.1, 50_000).astype(np.float32)
PUBLISHED = "can you transcribe the speech into a written format?"
ADAPTED = ("q_proj", "v_proj", "o_proj")
WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("granite") / "twin"
    write_granite_speech(folder, head=True)
    return folder


@pytest.fixture(scope="module")
def models(folder: Path, pull: Pull) -> Models:
    return pull(folder, "granite-head")


def ask(instruction: str, **options: Any) -> InstructRequest:
    return InstructRequest("1", AUDIO, SpeechTask(instruction, SamplingOptions(max_tokens=12), **options))


def write_adapter(folder: Path) -> None:
    """Add a LoRA adapter as the 3.3 releases have it."""
    random, tensors = np.random.default_rng(1), {}
    weights = load_file(folder / WEIGHTS)
    for layer in range(3):
        for part in ADAPTED:
            name = next(each for each in weights if each.endswith(f"language_model.model.layers.{layer}.self_attn.{part}.weight"))
            outputs, inputs = weights[name].shape
            place = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{place}.lora_A.weight"] = random.normal(0, 0.1, (4, inputs)).astype(np.float32)
            tensors[f"{place}.lora_B.weight"] = random.normal(0, 0.1, (outputs, 4)).astype(np.float32)
    save_file(tensors, folder / ADAPTER)
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, "bias": "none"}))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(weights, WEIGHTS)}))
    edit_config(folder, lambda config: config.update(has_lora_adapter=True))


def test_the_adapter_is_merged(folder: Path, models: Models, tmp_path: Path, pull: Pull) -> None:
    for name in ("adapted", "merged"):
        copytree(folder, tmp_path / name)
    write_adapter(tmp_path / "adapted")
    weights, adapter = load_file(tmp_path / "merged" / WEIGHTS), load_file(tmp_path / "adapted" / ADAPTER)
    for first in [name for name in adapter if ".lora_A." in name]:
        name = first.removeprefix("base_model.model.").replace(".lora_A.", ".")
        weights[name] = weights[name] + 2 * adapter[first.replace(".lora_A.", ".lora_B.")] @ adapter[first]
    save_file(weights, tmp_path / "merged" / WEIGHTS)
    adapted, merged = (pull(tmp_path / name, name) for name in ("adapted", "merged"))
    answers = [run(Runner(each), ask("Who speaks?"))[1] for each in (adapted, merged, models)]
    assert answers[0] == answers[1] != answers[2]


def test_the_draft_is_what_the_published_code_computes(folder: Path, models: Models) -> None:
    (states,) = models.encoder.encode([models.features(AUDIO)])
    draft = models.projector.project([states])[0].require_draft()
    head = load_file(folder / "out_llm.safetensors")
    padded = np.pad(states, ((0, -len(states) % 4), (0, 0))).reshape(-1, 4, states.shape[1])
    weights = padded[..., -1:] / (padded[..., -1:].sum(1, keepdims=True) + 1e-8)
    labels = ((padded[..., :-1] * weights).sum(1) @ head["weight"].T + head["bias"]).argmax(-1)
    assert draft.best_token.tolist() == (labels - 1).tolist()
    np.testing.assert_allclose(draft.probability + draft.blank_probability <= 1.001, True)


class Heard:
    """A projector whose draft is a given text."""

    def __init__(self, models: Models, tokens: list[int]) -> None:
        self._projector, self._tokens = models.projector, np.array(tokens, np.int64)
        self.boundary_before, self.boundary_after = models.projector.boundary_before, models.projector.boundary_after

    def project(self, states: Sequence[EncoderStates]) -> list[ProjectorOutput]:
        sure = np.ones(len(self._tokens), np.float32)
        kept = np.arange(len(self._tokens))
        draft = CtcDraft(self._tokens, sure, 1 - sure, kept, self._tokens[:, None], sure[:, None])
        return [replace(each, draft=draft) for each in self._projector.project(states)]


def test_a_good_draft_saves_passes_and_changes_no_token(models: Models) -> None:
    plain, answer = run(Runner(models), ask(PUBLISHED, draft="off"))
    tokens = [run.token for run in find_runs(plain.tokens)]
    drafted, same = run(Runner(replace(models, projector=Heard(models, tokens))), ask(PUBLISHED))
    assert plain.drafted == 0
    assert same == answer
    assert drafted.accepted > 0
    assert drafted.llm_passes < plain.llm_passes


def test_whatever_asks_for_a_transcript_becomes_its_own_instruction(models: Models) -> None:
    own = lay_out_task(models, ask(PUBLISHED).task)
    assert lay_out_task(models, ask("Transcribe the audio.").task) == own
    other = lay_out_task(models, ask("translate the speech to French").task)
    assert "translate the speech to French" in models.tokeniser.decode(other.after_speech)


@pytest.mark.parametrize(
    ("asked", "published"),
    [
        ("Translate the speech into English.", "translate the speech to English"),
        ("translate this to French", "translate the speech to French"),
        ("Translate the speech into Chinese.", "translate the speech to Mandarin"),
        ("Translate the speech into Klingon.", "Translate the speech into Klingon."),
    ],
)
def test_a_translation_is_asked_for_as_published(models: Models, asked: str, published: str) -> None:
    assert models.tokeniser.decode(lay_out_task(models, ask(asked).task).after_speech).startswith(f"{published}\n")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "an adapter that is missing": (
        lambda folder: edit_config(folder, lambda config: config.update(has_lora_adapter=True)),
        f"and lacks {ADAPTER}",
    ),
    "a head for another model": (
        lambda folder: save_file(
            {"weight": np.zeros((9, 7), np.float32), "bias": np.zeros(9, np.float32)}, folder / "out_llm.safetensors"
        ),
        "has a head in out_llm.safetensors of [9, 7]",
    ),
    "another LLM": (
        lambda folder: edit_config(folder, lambda config: config.update(text_config={"model_type": "gemma"})),
        "has an LLM of the kind 'gemma'; known behind Granite-speech is granite",
    ),
    "windows of another size": (
        lambda folder: edit_config(folder, lambda config: config.update(window_size=30)),
        "says in its config.json that query is",
    ),
}


def test_a_language_is_refused_with_the_way_to_a_translation(models: Models) -> None:
    with pytest.raises(
        InvalidRequest, match=r"name none that is spoken. A translation is asked for in the instruction"
    ) as raised:
        new_sequence(models, ask("Transcribe.", language="fr"), lambda _event: None)
    assert raised.value.param == "language"


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_checkpoint_is_refused_in_one_sentence(name: str, folder: Path, tmp_path: Path, pull: Pull) -> None:
    damage, expected = BROKEN[name]
    check_refusal(folder, tmp_path / "broken", damage, expected, lambda broken: pull(broken, "broken"))
