"""Serve on simulated GPUs: they are put in place of the real ones in the process that loads the models."""

import os
from pathlib import Path
from unittest import mock

import pytest

from models.bundle.io import open_bundle
from models.runtimes.cuda import chain
from models.runtimes.cuda.tensorrt_library import Builder
from server.engine import factory
from server.engine.ipc.client import ProcessEngine
from server.engine.router import EngineRouter
from server.engine.types.protocol import Engine
from server.settings import Settings
from tests.support.simulated_gpu.device import SimulatedDevice


def open_simulated_device(gpu: int, _library: Builder) -> SimulatedDevice:
    """Stand in for `models.runtimes.cuda.chain.open_device`."""
    return SimulatedDevice(ordinal=gpu, threads=max(1, len(os.sched_getaffinity(0)) // 2))


@pytest.fixture
def simulated_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let models that this process loads for a GPU be loaded on simulated ones."""
    monkeypatch.setattr(chain, "open_device", open_simulated_device)


def engine_in_child(folder: str, manifest: str, settings: str) -> Engine:
    """Do as `server.engine.factory.engine_in_child` does, on a simulated GPU."""
    # For the life of this process.
    mock.patch.object(chain, "open_device", open_simulated_device).start()
    return factory.engine_in_child(folder, manifest, settings)


def build_simulated_engine(bundle_path: Path, settings: Settings) -> Engine:
    """Return an engine whose child processes, one for each of the settings' GPUs, have a simulated one."""
    bundle = open_bundle(bundle_path)
    engines = {}
    for number in settings.gpu_numbers:
        chosen = factory.one_gpu(settings, number)
        engines[f"GPU {number}"] = ProcessEngine(
            f"{__name__}:engine_in_child",
            (str(bundle.folder), bundle.manifest.model_dump_json(), chosen.model_dump_json()),
            bundle.manifest.sample_rate_hz,
            bundle.manifest.max_audio_s,
            stall_timeout_s=chosen.stall_timeout_s,
            transcribes=bundle.manifest.transcribes,
        )
    return EngineRouter(engines) if len(engines) > 1 else next(iter(engines.values()))
