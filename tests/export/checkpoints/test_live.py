"""Live sessions of models that are pulled from several checkpoints: their answers are those of the same audio as a file.

The speech LLMs have their rows in `test_speech_llms.py`. A kind of model joins with a line in `KINDS`.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from export.bundle_parts import VOICE_WINDOW_SAMPLES
from export.checkpoints.conversion import PullOptions
from export.checkpoints.hub import Hub
from export.pull import pull_model
from export.store import Store
from models.assemble import load_models
from models.chain import Models
from tests.models.test_voice_onnx import write_graph
from tests.support.clients.live_utterance import make_all_hypotheses, speak
from tests.support.fakes.random_transcripts import take_any_transcript
from tests.support.tiny.tiny_checkpoints import write_whisper
from tests.support.tiny.tiny_llms import write_llm
from tests.support.tiny.train_paper_chain import FOLDER


def write_whisper_and_llm(folder: Path) -> tuple[Path, Path]:
    write_whisper(folder / "whisper")
    write_llm(folder / "llm", "qwen3")
    return folder / "whisper", folder / "llm"


def write_whisper_alone(folder: Path) -> tuple[Path, None]:
    write_whisper(folder / "whisper")
    return folder / "whisper", None


KINDS: dict[str, tuple[Callable[[Path], tuple[Path, Path | None]], PullOptions]] = {
    "whisper": (write_whisper_alone, PullOptions("int8", condenses_silence=True)),
    "whisper and an LLM": (write_whisper_and_llm, PullOptions("int8", condenses_silence=True)),
    "the paper's chain": (
        lambda _folder: (FOLDER / "whisper", FOLDER / "mt5"),
        PullOptions("int8", adapter=FOLDER / "adapter.safetensors"),
    ),
}


@pytest.fixture(params=list(KINDS))
def models(request: pytest.FixtureRequest, tmp_path: Path) -> Models:
    write, options = KINDS[request.param]
    speech, llm = write(tmp_path)
    store = Store(tmp_path / "store")
    voice = partial(write_graph, window_samples=VOICE_WINDOW_SAMPLES)
    bundle = pull_model(str(speech), options, Hub(store.root / "downloads"), store, voice, None if llm is None else str(llm))
    return load_models(bundle, slots=2, threads=1)


def test_a_live_answer_is_that_of_the_file_whatever_was_heard_before(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    make_all_hypotheses(monkeypatch)
    take_any_transcript(monkeypatch)
    audio = np.random.default_rng(3).normal(0, 0.1, 36_000).astype(np.float32)
    spoken = speak(models, audio, max_tokens=10)
    assert (spoken.live.done.text, spoken.live.done.finish_reason) == (spoken.file.text, spoken.file.finish_reason)
    assert spoken.hypotheses > 1
