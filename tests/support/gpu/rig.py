"""A device with a bundle and its plans: a GPU with the default models, or a simulated one with tiny models."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch

from models.assemble import draft_table_path
from models.bundle.io import Bundle
from models.features.log_mel import MEL_BINS, log_mel
from models.llms.llama import Llama
from models.projectors.subsample import read_adapter
from models.protocols import BackendError, Float32, ProjectorOutput
from models.runtimes.cuda.device import Device
from models.runtimes.cuda.gpu import gpu_count, load_driver
from models.runtimes.onnx.encoder import OnnxEncoder
from models.runtimes.onnx.projector import OnnxProjector
from models.text.tokeniser import Tokeniser
from tests.support.gpu.attention import SLOTS
from tests.support.simulated_gpu.device import SimulatedDevice
from tests.support.tiny.tiny_bundle import add_simulated_plans, write_speaking_bundle

CLIPS = Path(__file__).parents[2] / "clips"
THREADS = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Rig:
    """The parts that tests of a device share. `features` are those of some clips; `text` is given as tokens."""

    device: Device
    bundle: Bundle
    llama: Llama
    slots: int
    features: Sequence[Float32]
    text: Sequence[int]

    @property
    def is_exact(self) -> bool:
        """Whether the device computes in float32."""
        return self.device.float_type == torch.float32

    def encode_on_cpu(self) -> list[Float32]:
        """Return the states of the clips by ONNX Runtime on the CPU in float32."""
        return OnnxEncoder(self.bundle.path(self.bundle.manifest.encoder.graph), THREADS).encode(self.features)

    def adapt_on_cpu(self, states: Sequence[Float32]) -> list[ProjectorOutput]:
        manifest = self.bundle.manifest
        trained = read_adapter(self.bundle.path(manifest.require_projector().require_weights()))
        embedding = np.load(draft_table_path(self.bundle)).astype(np.float32)
        graph = self.bundle.path(manifest.require_projector().graph)
        return OnnxProjector(graph, embedding, trained.boundary_before, trained.boundary_after, THREADS).project(states)


def reason_without_gpu() -> str:
    """Return why the tests cannot use a GPU here; an empty string if they can."""
    try:
        gpu_count(load_driver())
    except BackendError as error:
        return str(error)
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "Triton interprets kernels in this process: set TRITON_INTERPRET=0, as `make gpu-check` does"
    return ""


def simulated_rig(folder: Path, device: Device | None = None) -> Rig:
    """Return tiny models on a simulated GPU."""
    tiny = write_speaking_bundle(folder)
    bundle = add_simulated_plans(folder, tiny)
    noise = np.random.default_rng(0).standard_normal((MEL_BINS, 64)).astype(np.float32)
    features = [noise[:, :frames] for frames in (64, 8, 40)]
    text = range(bundle.manifest.require_llm().vocabulary_size)
    return Rig(device or SimulatedDevice(threads=1), bundle, tiny.llama, SLOTS, features, text)


def gpu_rig() -> Rig:
    """Return the default models on the GPU of this machine; plans that are missing are built."""
    # Only where there is a GPU are the packages that these need.
    from export.default_bundle import default_cache_dir
    from export.gpu_bench.__main__ import prepare_bundle
    from export.importers.gguf import read_llama
    from export.parity import PREFIX, PROMPTS, SUFFIX
    from export.tensorrt_plans import default_weights
    from models.runtimes.cuda.torch_device import TorchDevice

    device = TorchDevice()
    bundle = prepare_bundle(device)
    with default_weights(default_cache_dir()) as weights:
        llama = read_llama(weights.gguf)
    tokeniser = Tokeniser.from_file(bundle.path(bundle.manifest.require_llm().tokeniser))
    text = [token for prompt in PROMPTS for token in tokeniser.encode_template(PREFIX + prompt + SUFFIX)]
    read = partial(soundfile.read, dtype="float32")
    features = [log_mel(read(CLIPS / each["file"])[0]) for each in json.loads((CLIPS / "clips.json").read_text())]
    return Rig(device, bundle, llama, 32, features, text)
