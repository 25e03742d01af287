"""Tiny checkpoints and their bundles, made once."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from export.bundle_parts import VOICE_WINDOW_SAMPLES
from export.checkpoints.conversion import PullOptions
from export.checkpoints.hub import Hub
from export.pull import pull_model
from export.store import Store
from models.assemble import load_models
from models.chain import Models
from tests.models.test_voice_onnx import write_graph

Pull = Callable[..., Models]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Let torch compute in one thread: for models this small several take ten times as long where cores are busy."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def pull(store: Store) -> Pull:
    """Pull a checkpoint from a folder, in float32, and load it."""

    def pull_folder(
        folder: Path, name: str, llm: Path | None = None, precision: str = "fp32", condenses_silence: bool = False
    ) -> Models:
        hub = Hub(store.root / "downloads")
        options = PullOptions(precision, name=name, condenses_silence=condenses_silence)
        bundle = pull_model(
            str(folder),
            options,
            hub,
            store,
            partial(write_graph, window_samples=VOICE_WINDOW_SAMPLES),
            llm=None if llm is None else str(llm),
        )
        return load_models(bundle, slots=2, threads=1)

    return pull_folder
