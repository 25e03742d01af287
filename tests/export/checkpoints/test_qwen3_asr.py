"""Qwen3-ASR besides its tokens: the hub's own layout, languages, labels, and what it refuses."""

import json
import queue
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models.chain import Models
from server.engine.engine import LocalEngine
from server.engine.runner.runner import Runner
from server.engine.runner.sequence_builder import lay_out_task, new_sequence
from server.engine.types.events import Done, Event, Failed
from server.engine.types.options import Constraint, SamplingOptions
from server.engine.types.requests import InstructRequest, SpeechTask
from server.errors import InvalidRequest, PromptTooLong
from tests.export.checkpoints.conftest import Pull
from tests.support.broken_checkpoints import check_refusal, edit_config
from tests.support.clients.runner_client import run
from tests.support.tiny.tiny_speech_llms import write_qwen3_asr

AUDIO = np.random.default_rng(5).normal(0, 0.1, 20_000).astype(np.float32)
ASKED = "Transcribe the speech to text."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen3-asr") / "twin"
    write_qwen3_asr(folder)
    return folder


@pytest.fixture(scope="module")
def models(folder: Path, pull: Pull) -> Models:
    return pull(folder, "qwen3-asr-twin")


def write_hub_layout(folder: Path) -> None:
    """Rename a twin's tensors and nest its configuration as the hub's checkpoints have them."""
    names = {
        "model.multi_modal_projector.linear_": "thinker.audio_tower.proj",
        "model.audio_tower.": "thinker.audio_tower.",
        "model.language_model.": "thinker.model.",
        "lm_head.": "thinker.lm_head.",
    }
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        old = next(old for old in names if name.startswith(old))
        tensors[names[old] + name.removeprefix(old)] = tensor
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    text = {**config["text_config"], "model_type": "qwen3_asr_text"}
    text["rope_scaling"] = {"type": "mrope", "mrope_section": [4, 4, 4], "mrope_interleaved": True}
    text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
    nested = {"audio_config": config["audio_config"], "text_config": text}
    content = {"model_type": "qwen3_asr", "thinker_config": nested, "support_languages": ["English", "German", "Cantonese"]}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": config["eos_token_id"]}))


def ask(**options: Any) -> InstructRequest:
    return InstructRequest("1", AUDIO, SpeechTask(options.pop("instruction", ASKED), SamplingOptions(max_tokens=8), **options))


def test_the_hubs_own_layout_gives_the_same_answer(folder: Path, models: Models, tmp_path: Path, pull: Pull) -> None:
    copytree(folder, tmp_path / "hub")
    write_hub_layout(tmp_path / "hub")
    hub = pull(tmp_path / "hub", "qwen3-asr-hub")
    assert run(Runner(hub), ask())[1] == run(Runner(models), ask())[1]
    assert hub.template == models.template
    assert set(hub.languages) == {"en", "de", "yue"}


def test_the_transcript_is_the_text_behind_the_label(models: Models) -> None:
    events: list[object] = []
    request = InstructRequest("1", AUDIO, SpeechTask(ASKED, SamplingOptions(max_tokens=40, logprobs=0)))
    sequence = new_sequence(models, request, events.append)
    label = models.label
    assert label is not None
    for token in (*label.force(models.tokeniser, "de"), *models.tokeniser.encode(" Guten Tag")):
        sequence.logprobs.append(sequence.sampler.logprob(np.zeros(400, np.float32), token, models.tokeniser))
        sequence.append(token)
    sequence.finish("stop")
    done = sequence.terminal_event()
    assert isinstance(done, Done)
    assert (done.text, done.language) == ("Guten Tag", "de")
    assert done.logprobs is not None
    assert b"".join(each.bytes for each in done.logprobs) == b" Guten Tag"


def test_a_language_that_is_named_is_forced(models: Models) -> None:
    ids = lay_out_task(models, ask(language="en").task)
    plain = lay_out_task(models, ask().task)
    forced = ids.after_speech[len(plain.after_speech) :]
    assert models.tokeniser.decode(forced) == "language English"
    assert forced[-1] == models.tokeniser.special_tokens["<asr_text>"]
    sequence, answer = run(Runner(models), ask(language="en"))
    assert sequence.language == "en"
    assert answer.text == models.tokeniser.decode(answer.tokens).strip()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"instruction": "Who speaks?"}, "only transcribes \\('Transcribe"),
        ({"language": "tlh"}, "does not know the language 'tlh'"),
        ({"word_times": "required"}, "cannot tell when a word was said"),
    ],
)
def test_what_it_cannot_do_is_refused(models: Models, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        new_sequence(models, ask(**options), lambda _event: None)


def test_a_constraint_is_refused(models: Models) -> None:
    sampling = SamplingOptions(constraint=Constraint("regex", "a+"))
    with pytest.raises(InvalidRequest, match="only transcribes, without regex"):
        new_sequence(models, InstructRequest("1", AUDIO, SpeechTask(ASKED, sampling)), lambda _event: None)


@pytest.mark.parametrize(("options", "field"), [({"prompt": "so " * 2000}, "prompt"), ({"keywords": ("so",) * 2000}, "keywords")])
def test_a_context_that_is_too_long_is_refused(models: Models, options: dict[str, Any], field: str) -> None:
    with pytest.raises(PromptTooLong) as raised:
        new_sequence(models, ask(**options), lambda _event: None)
    assert raised.value.param == field


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a forced aligner": (
        lambda folder: edit_config(folder, lambda config: config.update(architectures=["Qwen3ASRForTokenClassification"])),
        "is a forced aligner",
    ),
    "a wrong width": (
        lambda folder: edit_config(folder, lambda config: config["audio_config"].update(d_model=48)),
        "says in its config.json that conv_out.weight is",
    ),
    "odd windows": (
        lambda folder: edit_config(folder, lambda config: config["audio_config"].update(n_window_infer=250)),
        "are no whole number of chunks",
    ),
    "no audio part": (
        lambda folder: edit_config(folder, lambda config: config.pop("audio_config")),
        "has no audio_config in its config.json",
    ),
    "a tokeniser of another model": (
        lambda folder: (folder / "tokenizer_config.json").write_text('{"added_tokens_decoder": {}}'),
        "has a tokeniser without <|im_start|>",
    ),
    "no tokeniser": (lambda folder: (folder / "merges.txt").unlink(), "lacks tokenizer.json"),
    "broken merges": (lambda folder: (folder / "merges.txt").write_text("zzz yyy\n"), "merges.txt that cannot be used"),
    "no projector": (
        lambda folder: save_file(
            {name: each for name, each in load_file(folder / "model.safetensors").items() if "linear_2.weight" not in name},
            folder / "model.safetensors",
        ),
        "lacks the tensor",
    ),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_checkpoint_is_refused_in_one_sentence(name: str, folder: Path, tmp_path: Path, pull: Pull) -> None:
    damage, expected = BROKEN[name]
    check_refusal(folder, tmp_path / "broken", damage, expected, lambda broken: pull(broken, "broken"))


def test_an_engine_warms_up_on_it_and_answers(models: Models) -> None:
    engine = LocalEngine(models, 16_000, 30.0, queue_limit=2)
    engine.start()
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    engine.submit(ask(), events.put)
    told = [events.get(timeout=30)]
    while not isinstance(told[-1], Done | Failed):
        told.append(events.get(timeout=30))
    engine.drain(10)
    assert isinstance(told[-1], Done)
    assert told[-1].text == run(Runner(models), ask())[1].text
