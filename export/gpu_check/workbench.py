"""What the steps share: the device, the bundle in a folder of its own, its plans, the oracles and the clips."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import soundfile

from export.default_bundle import default_cache_dir, ensure_default_bundle
from export.default_recipe import GPU_PRECISION
from export.gpu_check.alignment import SLOTS
from export.gpu_check.steps import ROOT
from export.importers.gguf import read_llama
from export.parity_prompts import PREFIX, PROMPTS, SUFFIX
from export.tensorrt_parts import Weights
from export.tensorrt_plans import default_weights
from models.bundle.io import Bundle, open_bundle
from models.bundle.plans import find_plan
from models.features.log_mel import SAMPLE_RATE_HZ, log_mel
from models.llms.llama import Llama
from models.projectors.subsample_ctc import TrainedAdapter, read_adapter
from models.protocols import Float32
from models.runtimes.cuda.chain import DeviceKind
from models.runtimes.cuda.device import Device, plan_key
from models.runtimes.cuda.gpu import gpu_count, load_driver
from models.runtimes.cuda.llm_tensorrt import TensorRtLLM
from models.runtimes.cuda.plan import Plan
from models.runtimes.onnx.encoder import OnnxEncoder
from models.runtimes.onnx.projector import OnnxProjector
from models.text.tokeniser import Tokeniser

CLIPS = ROOT / "tests" / "clips"
FOLDER = "gpu-check"
"""In the cache folder."""


@dataclass(frozen=True)
class Scale:
    """How much is measured. The interpreter takes seconds for what takes a GPU microseconds.

    `adapter_utterances` by the frames of each; `vocabulary` cuts the table that the adapter's kernels score, 0 leaves it whole.
    """

    repeats: int
    slots: int
    prefill_tokens: tuple[int, ...]
    adapter_utterances: tuple[tuple[int, int], ...]
    vocabulary: int
    calls_in_graph: int
    rounds: int


SCALES: dict[DeviceKind, Scale] = {
    "cuda": Scale(50, 32, (32, 128, 512), ((125, 1), (125, 8), (125, 32)), 0, 20, 8),
    "simulated": Scale(1, SLOTS, (32, 128, 512), ((8, 2),), 512, 1, 1),
}
"""`slots` are what the LLM is loaded with, `rounds` how often the server is asked for each clip."""


@dataclass(frozen=True)
class Clip:
    """A recording of the repository: its file, its text, and features [80, frames] of its audio."""

    file: Path
    text: str
    features: Float32


@dataclass(frozen=True)
class LoadedLLM:
    """The LLM on the device, and how much of its memory was free before its plan, after it, and after its slots."""

    llm: TensorRtLLM
    plan: Plan
    free_bytes: tuple[int, int, int]


class Workbench:
    """Everything is made when it is first asked for, and kept. Use it within `workbench`."""

    def __init__(self, kind: DeviceKind, given_bundle: Path | None, scratch: Path, threads: int) -> None:
        self.kind = kind
        self.scale = SCALES[kind]
        self.scratch = scratch
        self.threads = threads
        self.cache_dir = default_cache_dir()
        self._given_bundle = given_bundle

    @cached_property
    def device(self) -> Device:
        # Neither device needs the other's libraries.
        if self.kind == "simulated":
            from models.runtimes.cuda.simulated import SimulatedDevice

            return SimulatedDevice(threads=self.threads)
        from models.runtimes.cuda.torch_device import TorchDevice

        return TorchDevice()

    @cached_property
    def gpus(self) -> int:
        """How many there are; of simulated ones there are two."""
        return 2 if self.kind == "simulated" else gpu_count(load_driver())

    @cached_property
    def folder(self) -> Path:
        """The bundle that plans go into: the given one, or a copy of the default one, which other programs rely on as it is."""
        if self._given_bundle:
            return self._given_bundle
        source = ensure_default_bundle(self.cache_dir, GPU_PRECISION)
        folder = self.cache_dir / FOLDER / source.name
        if not folder.exists():
            partial = folder.with_name(folder.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(source, partial)
            partial.rename(folder)
        return folder

    @cached_property
    def bundle(self) -> Bundle:
        """Whoever adds plans to its folder puts the new one here. Raises `BundleError` where it is not whole."""
        return open_bundle(self.folder)

    @cached_property
    def weights(self) -> Weights:
        """The frozen weights that the default bundle is made from, for as long as `workbench` lasts."""
        raise RuntimeError("the weights are unpacked by `workbench`")

    @cached_property
    def llama(self) -> Llama:
        return read_llama(self.weights.gguf)

    def plan(self, part: str) -> Plan:
        """The bundle's plan for this device. Raises `PlanError` where it has none."""
        found = find_plan(self.bundle, part, plan_key(self.device))
        return Plan(self.device, self.bundle.path(found.file).read_bytes(), found.file)

    @cached_property
    def loaded_llm(self) -> LoadedLLM:
        before = self.device.free_memory_bytes()
        plan = self.plan("llm")
        after_plan = self.device.free_memory_bytes()
        llm = TensorRtLLM(self.device, plan, self.bundle.path(self.bundle.manifest.llm.embedding), slots=self.scale.slots)
        return LoadedLLM(llm, plan, (before, after_plan, self.device.free_memory_bytes()))

    @cached_property
    def clips(self) -> list[Clip]:
        clips = []
        for each in json.loads((CLIPS / "clips.json").read_text()):
            samples, rate_hz = soundfile.read(CLIPS / each["file"], dtype="float32")
            if rate_hz != SAMPLE_RATE_HZ:
                raise ValueError(f"{each['file']} has {rate_hz} Hz, not {SAMPLE_RATE_HZ}")
            clips.append(Clip(CLIPS / each["file"], each["text"], log_mel(samples)))
        return clips

    @cached_property
    def text(self) -> list[int]:
        """Chat turns as tokens, one after the other."""
        tokeniser = Tokeniser.from_file(self.bundle.path(self.bundle.manifest.llm.tokeniser))
        return [token for prompt in PROMPTS for token in tokeniser.encode_template(PREFIX + prompt + SUFFIX)]

    @cached_property
    def adapter_weights(self) -> TrainedAdapter:
        return read_adapter(self.bundle.path(self.bundle.manifest.projector.weights))

    @cached_property
    def embedding(self) -> Float32:
        """The LLM's table [vocabulary, embedding_size]."""
        return np.asarray(np.load(self.bundle.path(self.bundle.manifest.llm.embedding)), np.float32)

    @cached_property
    def cpu_states(self) -> list[Float32]:
        """Of the clips, by ONNX Runtime on the CPU in float32."""
        encoder = OnnxEncoder(self.bundle.path(self.bundle.manifest.encoder.graph), self.threads)
        return encoder.encode([clip.features for clip in self.clips])

    @cached_property
    def cpu_adapter(self) -> OnnxProjector:
        trained = self.adapter_weights
        graph = self.bundle.path(self.bundle.manifest.projector.graph)
        return OnnxProjector(graph, self.embedding, trained.boundary_before, trained.boundary_after, self.threads)


@contextmanager
def workbench(kind: DeviceKind, given_bundle: Path | None, scratch: Path, threads: int) -> Iterator[Workbench]:
    """A workbench with the default bundle's weights at hand. Raises `FetchError`."""
    bench = Workbench(kind, given_bundle, scratch, threads)
    with default_weights(bench.cache_dir) as weights:
        bench.weights = weights
        yield bench


def commit() -> str:
    """Which commit this is, and whether files differ from it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or "unknown: not a git checkout"
