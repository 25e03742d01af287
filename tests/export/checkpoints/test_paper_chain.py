"""SLM's own chain, trained on tiny sizes and served: over HTTP, whole and in pieces, its text is transformers'."""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import MT5ForConditionalGeneration, WhisperForConditionalGeneration

from export.bundle_parts import VOICE_WINDOW_SAMPLES
from export.checkpoints.conversion import PullOptions
from export.checkpoints.hub import Hub
from export.pull import pull_model
from export.store import Store
from models.assemble import load_models
from models.chain import Models
from models.features.log_mel import LogMel
from models.protocols import Float32
from models.text.tokeniser import Tokeniser
from server.engine.engine import LocalEngine
from tests.models.test_voice_onnx import write_graph
from tests.support.clients.live_server import LiveServer, audio_file, instruct, live_server
from tests.support.tiny.tiny_mt5 import PaperChain
from tests.support.tiny.tiny_whisper import reference_states
from tests.support.tiny.train_paper_chain import COPY, FOLDER, LAST, REVERSE, answer, speak
from training.adapter import Adapter
from training.checkpoint import load_exported

SPOKEN = (("tea", "milk"), ("one", "two", "three"), ("please", "green", "water", "red"), ("blue",), ("milk", "one", "tea"))


class Reference:
    """The chain in torch and transformers, from the committed weights, with greedy decoding."""

    def __init__(self, tokeniser: Tokeniser) -> None:
        whisper, llm = WhisperForConditionalGeneration, MT5ForConditionalGeneration
        self._whisper = whisper.from_pretrained(FOLDER / "whisper", dtype=torch.float32).eval()
        loaded = llm.from_pretrained(FOLDER / "mt5", dtype=torch.float32).eval()
        # Its head is not its table, which transformers ties where a configuration does not say otherwise.
        head = load_file(FOLDER / "mt5" / "model.safetensors")["lm_head.weight"].float()
        loaded.lm_head.weight = torch.nn.Parameter(head)
        self._chain = PaperChain(load_exported(FOLDER / "adapter.safetensors", Adapter), loaded)
        self._tokeniser, self._features = tokeniser, LogMel(mel_bins=80)

    def answer(self, audio: Float32, instruction: str) -> str:
        states = reference_states(self._whisper.model.encoder, self._features(audio))
        before = self._tokeniser.encode_after((), instruction)
        tokens = self._chain.write(states, before, [1], 12, transcribes=instruction == COPY)
        return self._tokeniser.decode(tokens).strip()


@pytest.fixture(scope="module")
def models(store: Store) -> Models:
    options = PullOptions("fp32", name="paper-chain", adapter=FOLDER / "adapter.safetensors")
    voice = partial(write_graph, window_samples=VOICE_WINDOW_SAMPLES)
    hub = Hub(store.root / "downloads")
    bundle = pull_model(str(FOLDER / "whisper"), options, hub, store, voice, str(FOLDER / "mt5"))
    return load_models(bundle, slots=2, threads=1)


@pytest.fixture(scope="module")
def server(models: Models) -> Iterator[LiveServer]:
    with live_server(LocalEngine(models, 16_000, 30.0, queue_limit=16, model_name="paper-chain")) as server:
        yield server


def post(server: LiveServer, audio: Float32, instruction: str, **fields: str) -> Any:
    return instruct(server, audio_file(audio, 16_000, "WAV", "FLOAT"), instruction, **fields)


def test_answers_are_transformers_and_right(server: LiveServer, models: Models) -> None:
    reference, right = Reference(models.tokeniser), 0
    for seed, words in enumerate(SPOKEN):
        audio = speak(words, 1000 + seed)
        for instruction in (COPY, REVERSE, LAST):
            reply = post(server, audio, instruction).json()
            assert reply["text"] == reference.answer(audio, instruction)
            assert reply["finish_reason"] == "stop"
            right += reply["text"] == " ".join(answer(instruction, words))
    assert right >= 12


def test_a_streamed_answer_is_the_same(server: LiveServer, models: Models) -> None:
    audio = speak(SPOKEN[2], 1002)
    reply = post(server, audio, REVERSE, stream="true", draft="off")
    events = [json.loads(line.removeprefix("data: ")) for line in reply.text.splitlines() if line.startswith("data: {")]
    deltas = [event["delta"] for event in events if event.get("type") == "instruct.text.delta"]
    assert "".join(deltas) == Reference(models.tokeniser).answer(audio, REVERSE)


def test_a_good_draft_saves_passes(server: LiveServer) -> None:
    audio = speak(SPOKEN[1], 1001)
    drafted, plain = (post(server, audio, COPY, draft=draft).json() for draft in ("exact", "off"))
    assert drafted["text"] == plain["text"]
    assert drafted["speculation"]["llm_passes"] < plain["speculation"]["llm_passes"]
