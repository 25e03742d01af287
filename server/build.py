"""From a bundle to an engine that serves it."""

from pathlib import Path

from models.bundle import Bundle, Manifest, open_bundle
from server.engine_protocol import Engine
from server.process_engine import ProcessEngine
from server.settings import Settings


def build_engine(bundle_path: Path, settings: Settings) -> Engine:
    """An engine, yet to be started, over a bundle's models. Raises `BundleError` where the bundle cannot be used.

    The bundle is verified here, once, and not again when a child process is replaced.
    """
    bundle = open_bundle(bundle_path)
    if settings.engine == "thread":
        return local_engine(bundle, settings)
    manifest = bundle.manifest
    return ProcessEngine(
        f"{__name__}:{engine_in_child.__name__}",
        (str(bundle.folder), manifest.model_dump_json(), settings.model_dump_json()),
        manifest.sample_rate_hz,
        manifest.max_audio_s,
        stall_timeout_s=settings.stall_timeout_s,
        transcribes=manifest.adapter.transcribes,
    )


def engine_in_child(folder: str, manifest: str, settings: str) -> Engine:
    """The engine of a child: of a verified bundle's folder and manifest, and of settings, both as JSON."""
    bundle = Bundle(Path(folder), Manifest.model_validate_json(manifest))
    return local_engine(bundle, Settings.model_validate_json(settings))


def local_engine(bundle: Bundle, settings: Settings) -> Engine:
    """An engine, yet to be started, that runs the models in this process. Raises `BackendError` where they cannot be loaded."""
    # A server whose models run in its child loads no runtime itself.
    from models.chain import load_models
    from server.engine import LocalEngine

    models = load_models(bundle, settings.slots, settings.threads or 0)
    return LocalEngine(
        models,
        bundle.manifest.sample_rate_hz,
        bundle.manifest.max_audio_s,
        settings.queue_limit,
        encode_gather_s=settings.encode_gather_s,
        max_queue_wait_s=settings.max_queue_wait_s,
        encoder_cache_bytes=settings.encoder_cache_bytes,
        live_limit=settings.live_sessions,
    )
