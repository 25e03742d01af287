"""All models of a bundle, loaded for a GPU."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from models.assemble import chain_models, draft_table_path, load_speech_decoder, read_trained
from models.bundle.io import Bundle
from models.bundle.plans import PlanError, find_plan
from models.bundle.schema import Manifest
from models.bundle.sections import EncoderDecoderSection
from models.chain import Models
from models.projectors.searched import SearchedProjector
from models.protocols import BackendError, Encoder, EncoderStates, Projector
from models.runtimes.cuda.adapter_tensorrt import TensorRtAdapter
from models.runtimes.cuda.adapter_triton import TritonAdapter, buckets_up_to
from models.runtimes.cuda.device import Device, Stream, copy, plan_key
from models.runtimes.cuda.encoder_onnx import OnnxDeviceEncoder
from models.runtimes.cuda.encoder_tensorrt import TensorRtEncoder
from models.runtimes.cuda.gpu import CPU_ONLY_PRECISION
from models.runtimes.cuda.llm_tensorrt import TensorRtLLM
from models.runtimes.cuda.plan import Plan
from models.runtimes.cuda.tensorrt_library import Builder, TensorRTError
from models.runtimes.cuda.utterances import FRAMES_PER_STATE, settling
from models.runtimes.onnx.decoder import OnnxMemoryDecoder

EncoderRuntime = Literal["onnxruntime", "tensorrt"]
AdapterRuntime = Literal["triton", "tensorrt"]


def load_gpu_models(
    bundle: Bundle,
    *,
    gpu: int,
    slots: int,
    threads: int,
    encoder_runtime: EncoderRuntime,
    adapter_runtime: AdapterRuntime,
    tensorrt_library: Builder,
    positions: int | None = None,
) -> Models:
    """Load a verified bundle's models on GPU number `gpu`; what stays on the CPU takes `threads`, 0 for one per core.

    Slots have at least `positions` positions, by default as many as the bundle names.

    Raises `BackendError`, for the operator, where something is missing: the GPU, a library, a plan, memory.
    """
    if encoder_runtime == "onnxruntime":
        _require_gpu_encoder(bundle)
    try:
        device = open_device(gpu, tensorrt_library)
        return load_models_on(device, bundle, slots, threads, encoder_runtime, adapter_runtime, positions)
    except (PlanError, TensorRTError) as error:
        raise BackendError(str(error)) from error


def load_models_on(
    device: Device,
    bundle: Bundle,
    slots: int,
    threads: int,
    encoder_runtime: EncoderRuntime,
    adapter_runtime: AdapterRuntime,
    positions: int | None = None,
) -> Models:
    """Load the models on a device. Raises `BackendError` and `PlanError`."""
    manifest = bundle.manifest
    if manifest.llm is None or manifest.projector is None:
        raise BackendError(f"Bundle {manifest.name} has no {'LLM' if manifest.llm is None else 'projector'}: serve it on a CPU.")
    if manifest.projector.weights is None:
        raise BackendError(
            f"Bundle {manifest.name} has a projector of the kind {manifest.projector.architecture}: serve it on a CPU."
        )
    if isinstance(manifest.llm, EncoderDecoderSection):
        raise BackendError(f"Bundle {manifest.name} has an LLM of the kind {manifest.llm.architecture}: serve it on a CPU.")
    # The plan that takes longest to build is asked for first.
    llm = _load_plan(device, bundle, "llm", positions or manifest.require_llm().max_positions)
    stream, embedding = device.stream(), bundle.path(manifest.llm.embedding)
    projector = load_adapter(device, stream, bundle, adapter_runtime)
    if search := manifest.projector.search:
        projector = SearchedProjector(projector, search, TensorRtLLM(device, llm, embedding, slots=search.hypotheses))
    models = chain_models(
        bundle,
        encoder=load_encoder(device, stream, bundle, encoder_runtime, threads),
        projector=projector,
        llm=TensorRtLLM(device, llm, embedding, slots=slots),
        speech_decoder=load_speech_decoder(bundle, slots, threads, partial(HostSpeechDecoder, device)),
    )
    return replace(models, encodes_beside=True, check=device.check)


def open_device(gpu: int, tensorrt_library: Builder) -> Device:
    """Return GPU number `gpu`. Raises `BackendError` or `TensorRTError` if the GPU or a library is missing."""
    # Tests put a GPU that they simulate in place of this function, and need none of torch_device's libraries.
    from models.runtimes.cuda.torch_device import TorchDevice

    return TorchDevice(gpu, tensorrt_library)


def longest_audio_frames(manifest: Manifest) -> int:
    """Adapter frames of the longest audio that the bundle takes."""
    return math.ceil(manifest.max_audio_s * manifest.encoder.states_per_s / manifest.require_projector().subsampling)


def load_encoder(device: Device, stream: Stream, bundle: Bundle, runtime: EncoderRuntime, threads: int) -> Encoder:
    """Raises `BackendError` and `PlanError`."""
    manifest = bundle.manifest
    if runtime == "tensorrt":
        return TensorRtEncoder(_load_plan(device, bundle, "encoder"), stream)
    largest_frames = longest_audio_frames(manifest) * manifest.require_projector().subsampling * FRAMES_PER_STATE
    graph = bundle.path(manifest.encoder.graph)
    encoder = OnnxDeviceEncoder(graph, device, stream, largest_frames=largest_frames, threads=threads)
    bundle.require_values(manifest.encoder, "encoder", manifest.encoder.graph, manifest.encoder.graph_values(encoder.shapes))
    return encoder


def load_adapter(device: Device, stream: Stream, bundle: Bundle, runtime: AdapterRuntime) -> Projector:
    """Raises `BackendError` and `PlanError`."""
    manifest = bundle.manifest
    trained = read_trained(bundle)
    embedding = np.load(draft_table_path(bundle), mmap_mode="r")
    if runtime == "tensorrt":
        return TensorRtAdapter(_load_plan(device, bundle, "adapter"), stream, trained, embedding)
    return TritonAdapter(device, stream, trained, embedding, buckets_up_to(longest_audio_frames(manifest)))


def _load_plan(device: Device, bundle: Bundle, part: str, positions: int = 0) -> Plan:
    """Raises `PlanError` where the bundle has none for this device."""
    plan = find_plan(bundle, part, plan_key(device), positions=positions)
    return Plan(device, bundle.path(plan.file).read_bytes(), plan.file)


def _require_gpu_encoder(bundle: Bundle) -> None:
    precision = bundle.manifest.encoder.precision
    if precision == CPU_ONLY_PRECISION:
        raise BackendError(
            f"Bundle {bundle.folder} has its encoder in {precision}, by products that ONNX Runtime has for CPUs only: serve one "
            "in fp32 (`python -m export.default_bundle --precision fp32` builds the default one), or run the encoder on TensorRT."
        )


class HostSpeechDecoder(OnnxMemoryDecoder):
    """Implements `models.protocols.SpeechDecoder` for states that lie on a device. For one thread, which may be the LLM's.

    The copies have a stream of their own, so that they wait for neither the encoder nor the LLM. States are finished when an
    encoder returns them.
    """

    def __init__(
        self, device: Device, graph: Path, memory: Path, embeddings: Path, *, max_states: int, slots: int = 8, threads: int = 2
    ) -> None:
        super().__init__(graph, memory, embeddings, max_states=max_states, slots=slots, threads=threads)
        self._device = device
        self._stream = device.stream()
        self._staged = device.staging((self._cross.max_states, self.embedding_size), torch.float32)

    def write_memory(self, slot: int, states: EncoderStates) -> None:
        """Write the keys and values of an utterance's states, a tensor [states, width] of the device, to a slot."""
        self._cross.require_room(len(states))
        staged = self._staged[: len(states)]
        with settling(self._stream):
            copy(self._device, staged, states, self._stream)
        super().write_memory(slot, staged.numpy())
