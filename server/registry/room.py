"""A check that there is memory for models, before they are loaded beside others."""

from collections.abc import Collection
from pathlib import Path

from models.bundle.io import read_manifest
from models.bundle.memory import loaded_bytes
from models.protocols import BackendError
from models.runtimes.onnx.machine import available_memory_bytes
from server.settings import Settings


def check_room(folders: Collection[Path], settings: Settings) -> None:
    """Raise `BackendError` if the models of these bundles do not fit together into the memory that is free now.

    Models on a GPU are not estimated: their own processes find out.
    """
    if settings.device != "cpu":
        return
    needed = sum(loaded_bytes(read_manifest(folder), settings.slots) for folder in folders)
    available = available_memory_bytes()
    if needed > available:
        raise BackendError(
            f"There is too little memory: about {needed / 2**20:.0f} MiB are needed for {len(folders)} "
            f"{'model' if len(folders) == 1 else 'models'} with {settings.slots} slots, and {available / 2**20:.0f} MiB are free."
        )
