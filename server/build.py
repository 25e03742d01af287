"""From a bundle to an engine that serves it."""

from pathlib import Path

from models.bundle import Bundle, open_bundle
from server.process_engine import ProcessEngine
from server.request import Engine
from server.settings import Settings


def build_engine(bundle_path: Path, settings: Settings) -> Engine:
    """An engine, yet to be started, over a bundle's models. Raises `BundleError` where the bundle cannot be used.

    The bundle is verified here, once, and not again when a child process is replaced.
    """
    bundle = open_bundle(bundle_path)
    if settings.engine == "thread":
        return local_engine(bundle, settings)
    manifest, arguments = bundle.manifest, (bundle, settings)
    return ProcessEngine(
        f"{__name__}:{local_engine.__name__}",
        arguments,
        manifest.sample_rate_hz,
        manifest.max_audio_s,
        stall_timeout_s=settings.stall_timeout_s,
    )


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
    )
