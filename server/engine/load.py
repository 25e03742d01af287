"""A bundle's models on the device that the settings name."""

from models.assemble import Models, load_models
from models.bundle.io import Bundle
from models.protocols import BackendError
from server.settings import Settings


def load_on_device(bundle: Bundle, settings: Settings) -> Models:
    """The bundle's models on the settings' device, which has one GPU. Raises `BackendError`, which says what to do."""
    if settings.device == "cpu":
        return load_models(bundle, settings.slots, settings.threads or 0)
    (gpu,) = settings.gpu_numbers
    try:
        # The default install has no torch, and so nothing of this.
        from models.runtimes.cuda.chain import load_gpu_models

        return load_gpu_models(
            bundle,
            device=settings.device,
            gpu=gpu,
            slots=settings.slots,
            threads=settings.threads or 0,
            encoder_runtime=settings.encoder_runtime,
            adapter_runtime=settings.adapter_runtime,
            tensorrt_library=settings.tensorrt_library,
            positions=settings.slot_positions,
        )
    except ModuleNotFoundError as error:
        raise BackendError(f"The device {settings.device} needs {error.name}: pip install -e '.[gpu]'.") from error
