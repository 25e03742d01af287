"""mT5 behind a Whisper: through our adapter, token for token as transformers', and over transcripts; and what is refused."""

import json
import queue
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from export.bundle_parts import VOICE_WINDOW_SAMPLES
from export.checkpoints.checkpoint import Checkpoint
from export.checkpoints.conversion import PullOptions
from export.checkpoints.hub import Hub
from export.checkpoints.safetensors_file import CheckpointError
from export.checkpoints.t5 import read_t5
from export.pull import pull_model
from export.store import Store
from models.assemble import load_models
from models.chain import Models
from models.protocols import Float32
from server.engine.engine import LocalEngine
from server.engine.runner.runner import Runner
from server.engine.runner.sequence_builder import lay_out_task, new_sequence
from server.engine.types.events import Delta, Done, Event
from server.engine.types.options import Constraint, SamplingOptions
from server.engine.types.requests import InstructRequest, SpeechTask
from server.errors import PromptTooLong
from tests.export.checkpoints.conftest import Pull
from tests.export.checkpoints.test_speech_llms import run_together
from tests.models.test_voice_onnx import write_graph
from tests.support.broken_checkpoints import check_refusal, edit_config
from tests.support.clients.runner_client import run
from tests.support.fakes.random_transcripts import take_any_transcript
from tests.support.tasks import change_task
from tests.support.tiny.tiny_checkpoints import write_whisper
from tests.support.tiny.tiny_mt5 import INSTRUCTIONS, PaperChain, write_mt5, write_random_adapter
from tests.support.tiny.tiny_whisper import reference_states

TOKENS = 8


class Twins:
    """A tiny Whisper, mT5 and adapter in a folder, and the same in torch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.whisper = write_whisper(folder / "whisper")
        llm = write_mt5(folder / "mt5")
        self.chain = PaperChain(write_random_adapter(folder / "adapter.safetensors", encoder_width=32), llm)

    def states(self, features: Float32) -> Float32:
        return reference_states(self.whisper.model.encoder, features)


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    return Twins(tmp_path_factory.mktemp("mt5"))


def pull_chain(store: Store, folder: Path, name: str, precision: str = "fp32", adapter: str = "adapter.safetensors") -> Models:
    """Pull the twins in a folder, with the LLM behind the adapter."""
    options = PullOptions(precision, name=name, adapter=folder / adapter)
    voice = partial(write_graph, window_samples=VOICE_WINDOW_SAMPLES)
    hub = Hub(store.root / "downloads")
    return load_models(pull_model(str(folder / "whisper"), options, hub, store, voice, str(folder / "mt5")), slots=3, threads=1)


@pytest.fixture(scope="module")
def models(twins: Twins, store: Store) -> Models:
    return pull_chain(store, twins.folder, "paper")


@pytest.fixture(scope="module")
def rounded(twins: Twins, store: Store) -> Models:
    return pull_chain(store, twins.folder, "paper-int8", "int8")


def ask(seed: int, **options: Any) -> InstructRequest:
    random = np.random.default_rng(seed)
    # Tones of a tenth of a second, each as loud as it happens to be.
    tones = random.uniform(100, 6000, (20 + seed, 1)) * np.arange(1600) / 16_000
    audio = (np.sin(2 * np.pi * tones) * random.exponential(0.3, (20 + seed, 1))).ravel().astype(np.float32)
    sampling = options.pop("sampling", SamplingOptions(max_tokens=TOKENS, logprobs=1))
    return InstructRequest(str(seed), audio, SpeechTask(INSTRUCTIONS[seed % 3], sampling, **options))


def test_twenty_prompts_get_the_tokens_of_transformers(twins: Twins, models: Models) -> None:
    answers = set()
    runner = Runner(models)
    for seed in range(20):
        request = ask(seed)
        ids = lay_out_task(models, request.task)
        states = twins.states(models.features(request.audio))
        transcribes = models.transcribes(request.task.instruction)
        expected = twins.chain.write(states, ids.before_speech, ids.after_speech, TOKENS, transcribes=transcribes)
        sequence, answer = run(runner, request)
        end = [] if answer.finish_reason == "length" else [1]
        assert [*sequence.tokens, *end] == expected
        answers.add(answer.tokens)
    assert len(answers) > 10
    assert sum(runner.counters.drafted) > 0


def test_neither_neighbours_nor_cuts_nor_drafts_nor_preemption_change_a_bit(rounded: Models) -> None:
    requests = [ask(seed) for seed in range(3)]
    alone = [run(Runner(rounded), request)[1] for request in requests]
    assert [run(Runner(rounded), request, chunks=(1, 3), preempt_at=(3, 5))[1] for request in requests] == alone
    assert [run(Runner(rounded), ask(seed, draft="off"))[1] for seed in range(3)] == alone
    assert run_together(Runner(rounded), requests) == alone


def test_a_constraint_holds(models: Models) -> None:
    sampling = SamplingOptions(max_tokens=40, constraint=Constraint("choice", json.dumps(["the end", "file name"])))
    assert run(Runner(models), ask(1, sampling=sampling))[1].text in ("the end", "file name")


def test_prompts_have_the_encoders_room_and_answers_the_decoders(models: Models) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 20_000).astype(np.float32)
    longest = InstructRequest("1", noise, SpeechTask("end " * 150, SamplingOptions(max_tokens=4096)))
    sequence = new_sequence(models, longest, lambda _event: None)
    Runner(models).encode([sequence])
    assert (sequence.error, sequence.max_tokens, sequence.entry.to_prefill) == (None, 511, 1 + len(sequence.proposal))
    with pytest.raises(PromptTooLong):
        new_sequence(models, InstructRequest("1", noise, SpeechTask("end " * 1100)), lambda _event: None)


def test_text_never_becomes_a_special_token_and_comes_back(models: Models) -> None:
    tokeniser = models.tokeniser
    assert set(tokeniser.special_tokens) == {"<pad>", "</s>", "<unk>"}
    assert set(tokeniser.encode("</s><pad> <extra_id_0>")).isdisjoint({0, 1})
    assert tokeniser.decode(tokeniser.encode("the  empty output file name")).split() == [
        "the",
        "empty",
        "output",
        "file",
        "name",
    ]
    assert tokeniser.encode_template("the end</s>")[-1] == 1


def answer_with_engine(models: Models, *requests: InstructRequest) -> list[Done]:
    """Answer requests one after the other."""
    engine, done = LocalEngine(models, 16_000, 30.0, queue_limit=2), []
    engine.start()
    for request in requests:
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        engine.submit(request, events.put)
        while not isinstance(event := events.get(timeout=60), Done):
            assert isinstance(event, Delta), event
        done.append(event)
    engine.drain(5)
    return done


def test_without_an_adapter_it_answers_about_a_transcript(twins: Twins, pull: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    take_any_transcript(monkeypatch)
    models = pull(twins.folder / "whisper", "whisper-mt5", twins.folder / "mt5")
    template, tokeniser = models.template, models.tokeniser
    assert tokeniser.decode(template.after_instruction) == ' This is what the speaker said: "'
    spoken = change_task(ask(1), instruction=models.transcription_instruction, sampling=SamplingOptions())
    asked = replace(ask(1), id="2")
    transcript, answered = answer_with_engine(models, spoken, asked)
    instruction = tokeniser.encode_after((), asked.task.instruction)
    said = tokeniser.encode(transcript.text)
    prompt = torch.tensor([[*instruction, *template.after_instruction, *said, *template.suffix]])
    written = twins.chain.llm.generate(input_ids=prompt, max_new_tokens=TOKENS)
    expected: list[int] = written[0, 1:].tolist()
    assert answered.text == tokeniser.decode(expected).strip()


def test_an_original_t5_is_read_with_its_scale(tmp_path: Path) -> None:
    theirs = write_mt5(tmp_path / "t5", "t5")
    assert theirs.config.scale_decoder_outputs
    ours = read_t5(Checkpoint(tmp_path / "t5", "t5"))
    head = theirs.lm_head.weight.detach().numpy() * theirs.config.d_model**-0.5
    np.testing.assert_array_equal(ours.weights["lm_head.weight"], head.astype(np.float32))
    for name, weight in ours.weights.items():
        if name != "lm_head.weight":
            np.testing.assert_array_equal(weight, theirs.state_dict()[name].numpy())


def drop_tensor(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({each: tensor for each, tensor in tensors.items() if each != name}, folder / "model.safetensors")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "another width": (
        lambda folder: edit_config(folder, lambda config: config.update(d_model=64)),
        "says in its config.json that shared.weight is",
    ),
    "another activation": (
        lambda folder: edit_config(folder, lambda config: config.update(feed_forward_proj="gated-silu")),
        "has feed-forward layers of the kind 'gated-silu'; known are gated-gelu, relu",
    ),
    "a deeper decoder": (
        lambda folder: edit_config(folder, lambda config: config.update(num_decoder_layers=3)),
        "has 2 encoder layers and 3 of the decoder",
    ),
    "no start token": (
        lambda folder: edit_config(folder, lambda config: config.update(decoder_start_token_id=None)),
        "has no decoder_start_token_id in its config.json",
    ),
    "a tensor that is missing": (
        lambda folder: drop_tensor(folder, "decoder.block.1.layer.1.EncDecAttention.k.weight"),
        "lacks the tensor decoder.block.1.layer.1.EncDecAttention.k.weight",
    ),
    "no tokeniser": (lambda folder: (folder / "tokenizer.json").unlink(), "lacks tokenizer.json"),
    "several decoders": (
        lambda folder: edit_config(folder, lambda config: config.update(model_type="umt5")),
        "has an LLM of the kind 'umt5'; known are",
    ),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_checkpoint_is_refused_in_one_sentence(name: str, twins: Twins, tmp_path: Path, pull: Pull) -> None:
    damage, expected = BROKEN[name]
    whisper = twins.folder / "whisper"
    check_refusal(twins.folder / "mt5", tmp_path / "broken", damage, expected, lambda broken: pull(whisper, "broken", broken))


def test_an_adapter_that_does_not_fit_is_refused(twins: Twins, store: Store) -> None:
    write_random_adapter(twins.folder / "wide.safetensors", encoder_width=64)
    with pytest.raises(CheckpointError, match="was trained for encoder_width 64, and whisper has 32"):
        pull_chain(store, twins.folder, "wide", adapter="wide.safetensors")
    with pytest.raises(CheckpointError, match="cannot be used as an adapter"):
        pull_chain(store, twins.folder, "none", adapter="none.safetensors")
    options = PullOptions("fp32", name="alone", adapter=twins.folder / "adapter.safetensors")
    with pytest.raises(CheckpointError, match="name that by --llm"):
        pull_model(str(twins.folder / "whisper"), options, Hub(store.root / "downloads"), store, write_graph)
    assert torch.is_tensor(twins.chain.table)
