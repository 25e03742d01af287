"""From a bundle to an engine that serves it."""

from pathlib import Path

from models.bundle import open_bundle
from models.chain import load_models
from server.engine import LocalEngine
from server.settings import Settings


def build_engine(bundle_path: Path, settings: Settings) -> LocalEngine:
    """An engine, yet to be started, over a bundle's models. Raises `BundleError` or `BackendError` where they cannot be used."""
    bundle = open_bundle(bundle_path)
    models = load_models(bundle, settings.slots, settings.threads or 0)
    return LocalEngine(models, bundle.manifest.sample_rate_hz, bundle.manifest.max_audio_s, settings.queue_limit)
