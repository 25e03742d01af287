"""The trainer of any pair: the page's commands make a model that answers as torch does, and a run can be interrupted."""

import json
import re
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from safetensors.torch import load_file
from transformers import ParakeetEncoder, WhisperForConditionalGeneration

from export.bundle_parts import VOICE_WINDOW_SAMPLES
from export.checkpoints.conversion import PullOptions
from export.checkpoints.hub import Hub, local_source
from export.pull import pull_model
from export.store import Store
from models.assemble import load_models
from models.chain import Models
from models.features.log_mel import LogMel
from models.features.nemo_mel import NemoMel
from models.protocols import Float32
from server import cli
from server.engine.engine import LocalEngine
from tests.models.test_voice_onnx import write_graph
from tests.support.clients.live_server import audio_file, instruct, live_server
from tests.support.tiny.tiny_checkpoints import write_whisper
from tests.support.tiny.tiny_llms import write_llm
from tests.support.tiny.tiny_mt5 import write_mt5
from tests.support.tiny.tiny_speech_llms import write_parakeet
from tests.support.tiny.tiny_whisper import reference_states
from tests.support.tiny.train_paper_chain import COPY, FOLDER, LAST, WORDS, speak
from training import trainer
from training.adapter import FrameAdapter
from training.checkpoint import load_exported
from training.frozen_encoder import FrozenEncoder
from training.llm import open_llm
from training.train import main, parse

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "train.md"
COMMANDS = dict(
    re.findall(r"^\.venv/bin/(?:python -m )?(training\.train|thinbridge pull) ((?:.*\\\n)*.*)$", PAGE.read_text(), re.M)
)
TINY = ["--steps", "4", "--batch", "3", "--layers", "1", "--width", "32", "--heads", "2", "--save-every", "2", "--threads", "1"]
TINY += ["--validation-tokens", "8"]
PAIRS = (("whisper", "granite"), ("parakeet", "mt5"))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write tiny twins of each kind, ten recordings and their manifest."""
    folder = tmp_path_factory.mktemp("pairs")
    write_whisper(folder / "whisper")
    write_parakeet(folder / "parakeet")
    write_llm(folder / "granite", "granite")
    write_mt5(folder / "mt5")
    lines = []
    for number, word in enumerate(WORDS):
        soundfile.write(folder / f"{number}.wav", speak((word, "tea"), number), 16_000)
        instruction, text = (COPY, f"{word} tea") if number % 2 else (LAST, "tea")
        lines.append({"audio": f"{number}.wav", "instruction": instruction, "text": text})
    (folder / "speech.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:8]))
    (folder / "held_out.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[8:]))
    return folder


def page_words(command: str, folder: Path, encoder: str, llm: str) -> list[str]:
    """Return the words of the page's command, with our twins and our folder in the place of the reader's."""
    words = shlex.split(COMMANDS[command].replace("\\\n", " "))
    places = {"whisper-base": encoder, "Qwen2.5-0.5B-Instruct": llm, "work/slm": f"{encoder}-{llm}"}
    for old, new in places.items():
        words = [word.replace(old, str(folder / new)) for word in words]
    return [str(folder / word) if word.endswith(".jsonl") else word for word in words]


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def pair(request: pytest.FixtureRequest, folder: Path) -> tuple[str, str]:
    """Train a pair by the page's command."""
    encoder, llm = request.param
    assert main([*page_words("training.train", folder, encoder, llm), *TINY]) == 0
    return encoder, llm


def pull_pair(folder: Path, pair: tuple[str, str], store: Store) -> Models:
    """Pull a pair by the page's command, in float32, and load it."""
    options = cli._parser().parse_args(["pull", *page_words("thinbridge pull", folder, *pair)])
    wanted = PullOptions("fp32", name=options.name, adapter=options.adapter)
    voice = partial(write_graph, window_samples=VOICE_WINDOW_SAMPLES)
    bundle = pull_model(options.model, wanted, Hub(folder / "hub"), store, voice, options.llm)
    return load_models(bundle, slots=2, threads=1)


def torch_text(folder: Path, pair: tuple[str, str], audio: Float32, instruction: str) -> str:
    """Return the greedy text of transformers' encoder and LLM and the adapter between them."""
    kind, name = pair
    if kind == "whisper":
        whisper = WhisperForConditionalGeneration.from_pretrained(folder / kind).eval()
        states = torch.from_numpy(reference_states(whisper.model.encoder, LogMel(mel_bins=80)(audio)))[None]
    else:
        encoder: Any = ParakeetEncoder.from_pretrained(folder / kind).eval()
        with torch.inference_mode():
            states = encoder(torch.from_numpy(NemoMel(mel_bins=80)(audio)).T[None]).last_hidden_state
    adapter = load_exported(folder / f"{kind}-{name}" / "adapter.safetensors", FrameAdapter)
    llm = open_llm(local_source(folder / name))
    with torch.inference_mode():
        speech = adapter.frames(states, torch.tensor([-(-states.shape[1] // adapter.config.reduction)]))
    return llm.tokeniser.decode(llm.generate([instruction], [speech[0]], 12)[0]).strip()


def test_the_pages_commands_make_a_model_that_answers_as_torch(folder: Path, pair: tuple[str, str], tmp_path: Path) -> None:
    models = pull_pair(folder, pair, Store(tmp_path))
    with live_server(LocalEngine(models, 16_000, 30.0, queue_limit=16, model_name="slm")) as server:
        texts = set()
        for seed, words in enumerate((("red", "blue"), ("milk",), ("one", "two", "three"))):
            audio = speak(words, 90 + seed)
            for instruction in (COPY, LAST):
                reply = instruct(server, audio_file(audio, 16_000, "WAV", "FLOAT"), instruction, max_tokens="12").json()
                assert reply["text"] == torch_text(folder, pair, audio, instruction)
                texts.add(reply["text"])
    assert len(texts) > 1


def test_a_run_tells_of_its_loss_and_of_held_out_lines(folder: Path, pair: tuple[str, str]) -> None:
    (row,) = json.loads((folder / "-".join(pair) / "history.json").read_text())
    assert row["step"] == 4
    assert {"loss", "validation_loss", "validation_accuracy", "word_error_rate", "seconds"} <= row.keys()


def run_again(folder: Path, out: Path) -> int:
    names = ["--encoder", str(folder / "whisper"), "--llm", str(folder / "granite"), "--manifest", str(folder / "speech.jsonl")]
    return main([*names, "--validation", str(folder / "held_out.jsonl"), "--out", str(out), *TINY])


def test_a_run_that_was_interrupted_ends_as_a_whole_one(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, loss = iter(range(10)), trainer.Trainer.loss

    def interrupt_the_fourth(self: trainer.Trainer, utterances: Sequence[Any]) -> Any:
        if next(steps) == 3:
            raise KeyboardInterrupt
        return loss(self, utterances)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "loss", interrupt_the_fourth)
        with pytest.raises(KeyboardInterrupt):
            run_again(folder, tmp_path / "cut")
    for name in ("cut", "whole"):
        assert run_again(folder, tmp_path / name) == 0
    whole, cut = (load_file(tmp_path / name / "adapter.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_an_epoch_has_each_line_once() -> None:
    batches = trainer.draw_batches([1, 5, 2, 4, 3], 2, seed=0)
    epochs = [[number for _ in range(3) for number in next(batches)] for _ in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(5))] * 2


def test_an_adapter_learns_a_line_by_heart(tmp_path: Path) -> None:
    """The mT5 is the committed one, which copies words; through a random LLM little can be learned."""
    llm = open_llm(local_source(FOLDER / "mt5"))
    encoder = FrozenEncoder(local_source(FOLDER / "whisper"), tmp_path, 1)
    arguments = parse(["--encoder", "", "--llm", "", "--manifest", "", "--out", "", *TINY, "--dropout", "0"])
    adapter = trainer.new_adapter(arguments, encoder, llm)
    states = torch.from_numpy(encoder(speak(("red",), 1)))[None]
    frames = torch.tensor([-(-states.shape[1] // 4)])
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    for _ in range(40):
        loss, accuracy = llm.answer_loss([COPY], [adapter.frames(states, frames)[0]], [llm.ids("red tea")])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5
    assert accuracy == 1.0
    with torch.inference_mode():
        (answer,) = llm.generate([COPY], [adapter.frames(states, frames)[0]], 8)
    assert llm.tokeniser.decode(answer).strip() == "red tea"


BROKEN: dict[str, tuple[dict[str, str], str]] = {
    "no such encoder": ({"--encoder": "granite"}, "granite is of the kind 'granite'; encoders that an adapter can stand behind"),
    "no such llm": ({"--llm": "whisper"}, "whisper has an LLM of the kind 'whisper'"),
    "a line that is none": ({"--manifest": "broken.jsonl"}, "line 2 of"),
    "a recording that is missing": ({"--manifest": "missing.jsonl"}, "none.wav"),
    "nothing held out": ({"--validation": "empty.jsonl"}, "8 lines to train on and 0 held-out ones"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_told_in_a_sentence(name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = '{"audio": "0.wav", "text": "red tea"}\n'
    (folder / "broken.jsonl").write_text(line + '{"audio": "1.wav", "words": "red"}\n')
    (folder / "missing.jsonl").write_text(line.replace("0.wav", "none.wav"))
    (folder / "empty.jsonl").write_text("")
    changes, message = BROKEN[name]
    names = {"--encoder": "whisper", "--llm": "mt5", "--manifest": "speech.jsonl", "--validation": "held_out.jsonl", **changes}
    words = [word for option, value in names.items() for word in (option, str(folder / value))]
    assert main([*words, "--out", str(tmp_path / "out"), *TINY]) == 1
    assert message in capsys.readouterr().err


def test_a_run_goes_on_under_its_own_settings_alone(tmp_path: Path) -> None:
    trainer.require_same_run(tmp_path / "settings.json", {"layers": 2})
    trainer.require_same_run(tmp_path / "settings.json", {"layers": 2})
    with pytest.raises(trainer.TrainingError, match="was begun with layers 2, not 3"):
        trainer.require_same_run(tmp_path / "settings.json", {"layers": 3})
