"""A tiny LLM as a plan on a simulated GPU, and beside it the same graph on the CPU's runtime."""

from pathlib import Path

import numpy as np

from export.tensorrt_parts import llm_part
from export.tensorrt_profiles import Limits
from models.llms.llama import StandardAttention, build_decoder, embedding_table
from models.runtimes.cuda.llm_tensorrt import TensorRtLLM
from models.runtimes.cuda.plan import Plan
from models.runtimes.onnx.decoder import OnnxLLM
from tests.support.simulated_gpu.builder import build_simulated_part
from tests.support.simulated_gpu.device import SimulatedDevice
from tests.support.tiny.tiny_llama import MAX_POSITIONS, VOCABULARY, tiny_llama

SLOTS = 4
LIMITS = Limits(decode_rows=SLOTS, prefill_rows=2, prefill_tokens=40, wanted=34)


def build_llm_plan(folder: Path, limits: Limits = LIMITS, *, vocabulary: int = VOCABULARY) -> bytes:
    """The plan for the simulated GPU; `embedding.npy` is put beside it."""
    model, _ = tiny_llama(vocabulary=vocabulary)
    np.save(folder / "embedding.npy", embedding_table(model))
    part = llm_part(lambda: model, "fp32", MAX_POSITIONS, limits)
    return build_simulated_part(part, folder).content


def on_simulated_gpu(plan: bytes, folder: Path, *, slots: int = SLOTS, device: SimulatedDevice | None = None) -> TensorRtLLM:
    device = device or SimulatedDevice(2**28, threads=1)
    return TensorRtLLM(device, Plan(device, plan, "llm"), folder / "embedding.npy", slots=slots)


def on_cpu(folder: Path, *, slots: int = SLOTS, vocabulary: int = VOCABULARY) -> OnnxLLM:
    """Return the graph that the plan is written from, in the CPU's runtime."""
    model, _ = tiny_llama(vocabulary=vocabulary)
    build_decoder(model, max_positions=MAX_POSITIONS, attention=StandardAttention).save(folder / "standard.onnx")
    np.save(folder / "embedding.npy", embedding_table(model))
    return OnnxLLM(folder / "standard.onnx", folder / "embedding.npy", slots=slots, threads=1)
