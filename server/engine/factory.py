"""From a bundle to an engine that serves it."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from models.bundle.io import Bundle, open_bundle
from models.bundle.schema import Manifest
from models.protocols import BackendError
from models.runtimes.onnx.machine import usable_cores
from server.engine.ipc.client import START_TIMEOUT_S, ProcessEngine
from server.engine.router import EngineRouter
from server.engine.types.protocol import Engine
from server.settings import Settings

if TYPE_CHECKING:
    from models.chain import Models

# The first start on a GPU compiles kernels, some seconds each; later ones find them on the disk.
GPU_START_TIMEOUT_S = 600.0


def build_engine(bundle_path: Path, settings: Settings) -> Engine:
    """Build an engine, yet to be started, over a bundle's models. Raises `BundleError` if the bundle cannot be used, and
    `BackendError` if models that run in this process cannot be loaded.

    The bundle is verified here, once, and not again when a child process is replaced.
    """
    bundle = open_bundle(bundle_path)
    if settings.engine == "thread":
        return local_engine(bundle, settings)
    engines = {f"GPU {number}": _process_engine(bundle, one_gpu(settings, number)) for number in settings.gpu_numbers}
    return EngineRouter(engines) if len(engines) > 1 else next(iter(engines.values()))


def one_gpu(settings: Settings, number: int) -> Settings:
    """Return the settings of the engine that has this one of the GPUs, and its share of the CPU's cores."""
    if settings.device == "cpu":
        return settings
    share = max(1, usable_cores() // len(settings.gpu_numbers))
    return settings.model_copy(update={"gpus": str(number), "threads": settings.threads or share})


def _process_engine(bundle: Bundle, settings: Settings) -> ProcessEngine:
    manifest = bundle.manifest
    return ProcessEngine(
        f"{__name__}:{engine_in_child.__name__}",
        (str(bundle.folder), manifest.model_dump_json(), settings.model_dump_json()),
        manifest.sample_rate_hz,
        manifest.max_audio_s,
        stall_timeout_s=settings.stall_timeout_s,
        start_timeout_s=START_TIMEOUT_S if settings.device == "cpu" else GPU_START_TIMEOUT_S,
        transcribes=manifest.transcribes,
        model_name=manifest.name,
    )


def engine_in_child(folder: str, manifest: str, settings: str) -> Engine:
    """Build the engine of a child from a verified bundle's folder and manifest, and settings, both as JSON."""
    bundle = Bundle(Path(folder), Manifest.model_validate_json(manifest))
    return local_engine(bundle, Settings.model_validate_json(settings))


def local_engine(bundle: Bundle, settings: Settings) -> Engine:
    """Build an engine, yet to be started, that runs the models in this process. Raises `BackendError` if that is not possible."""
    # Imported here, because a server whose models run in its child loads no runtime.
    from server.engine.engine import LocalEngine
    from server.engine.scheduler.scheduler import GPU_STEP_TOKENS, STEP_TOKENS

    return LocalEngine(
        load_on_device(bundle, settings),
        bundle.manifest.sample_rate_hz,
        bundle.manifest.max_audio_s,
        settings.queue_limit,
        step_tokens=STEP_TOKENS if settings.device == "cpu" else GPU_STEP_TOKENS,
        max_queue_wait_s=settings.max_queue_wait_s,
        request_timeout_s=settings.request_timeout_s,
        encoder_cache_bytes=settings.encoder_cache_bytes,
        live_limit=settings.live_sessions,
        model_name=bundle.manifest.name,
    )


def _threads() -> int:
    """Return the threads of a runtime by the quota of a container; 0 without one, where the runtime sees the cores itself."""
    cores = usable_cores()
    return 0 if cores == len(os.sched_getaffinity(0)) else cores


def load_on_device(bundle: Bundle, settings: Settings) -> "Models":
    """Load a bundle's models on the settings' device, which has one GPU. Raises `BackendError`, which says what to do."""
    from models.assemble import load_models

    if settings.device == "cpu":
        return load_models(bundle, settings.slots, settings.threads or _threads())
    (gpu,) = settings.gpu_numbers
    try:
        # The default install has no torch, which this needs.
        from models.runtimes.cuda.chain import load_gpu_models

        return load_gpu_models(
            bundle,
            gpu=gpu,
            slots=settings.slots,
            threads=settings.threads or _threads(),
            encoder_runtime=settings.encoder_runtime,
            adapter_runtime=settings.adapter_runtime,
            tensorrt_library=settings.tensorrt_library,
            positions=settings.slot_positions,
        )
    except ModuleNotFoundError as error:
        raise BackendError(f"The device {settings.device} needs {error.name}: pip install -e '.[gpu]'.") from error
