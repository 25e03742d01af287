"""The parts of a bundle that become plans: their graphs for TensorRT, written from the weights that the bundle was made from.

A bundle's own graphs are for ONNX Runtime's CPU kernels (8-bit products, attention over spans). These are the standard ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from export.importers.ctranslate2 import read_ctranslate2
from export.importers.gguf import read_llama
from export.tensorrt_build import Profile
from export.tensorrt_profiles import Limits, adapter_profiles, decoder_profiles, speech_encoder_profiles
from export.tensorrt_speech import build_by_head_encoder, build_dense_adapter
from export.tensorrt_weights import WEIGHT_FORMATS, float_type_of
from models.assemble import draft_table_path
from models.bundle.io import Bundle
from models.encoders.whisper import WhisperSection
from models.graph.linear import transposed_linear
from models.graph.writer import BFLOAT16, GraphBuilder
from models.llms.llama import Llama, build_decoder
from models.projectors.subsample import read_adapter
from models.runtimes.cuda.tensorrt_library import TensorRTError

PARTS = ("encoder", "adapter", "llm")
FLOAT_TYPE_NAMES = {BFLOAT16: "bf16", np.dtype(np.float32): "fp32"}


@dataclass(frozen=True)
class Part:
    """One plan to build. `max_positions` is the slots' length, 0 without slots; `write` makes the graph."""

    name: str
    precision: str
    max_positions: int
    profiles: Sequence[Profile]
    write: Callable[[], GraphBuilder]


@dataclass(frozen=True)
class Weights:
    """The files of the frozen models' weights: Whisper's in CTranslate2's format, the LLM's in GGUF."""

    whisper: Path
    gguf: Path


def encoder_part(weights: Weights, bundle: Bundle, limits: Limits, float_type: npt.DTypeLike = BFLOAT16) -> Part:
    """Return the bundle's speech encoder, a Whisper's, in bfloat16 or float32."""
    section = bundle.manifest.encoder
    if not isinstance(section, WhisperSection):
        raise TensorRTError(f"the encoder of bundle {bundle.manifest.name} is not a Whisper's")
    try:
        rest = section.rest
    except ValueError as error:
        raise TensorRTError(f"{bundle.manifest.name}: {error}") from None
    return Part(
        name="encoder",
        precision=FLOAT_TYPE_NAMES[np.dtype(float_type)],
        max_positions=0,
        profiles=speech_encoder_profiles(limits, section.silent_frames),
        write=lambda: build_by_head_encoder(read_ctranslate2(weights.whisper), float_type, dropped=section.dropped, rest=rest),
    )


def adapter_part(bundle: Bundle, limits: Limits, float_type: npt.DTypeLike = BFLOAT16) -> Part:
    """Return the bundle's adapter in bfloat16 or float32, with its scores against the whole vocabulary."""
    adapter = bundle.manifest.require_projector()

    def write() -> GraphBuilder:
        embedding = np.load(draft_table_path(bundle)).astype(np.float32)
        return build_dense_adapter(read_adapter(bundle.path(adapter.require_weights())), embedding, float_type)

    return Part("adapter", FLOAT_TYPE_NAMES[np.dtype(float_type)], 0, adapter_profiles(limits, adapter.subsampling), write)


def llm_part(llama: Callable[[], Llama], precision: str, max_positions: int, limits: Limits) -> Part:
    """Return the LLM with products in `precision` of `export.tensorrt_weights` and the rest in its float type."""

    def write() -> GraphBuilder:
        return build_decoder(
            llama(),
            max_positions=max_positions,
            body=WEIGHT_FORMATS[precision],
            head=transposed_linear,
            float_type=float_type_of(precision),
        )

    return Part("llm", precision, max_positions, decoder_profiles(limits), write)


def read_fitting_llama(path: Path, bundle: Bundle) -> Llama:
    """Return the LLM of a GGUF file. Raises `TensorRTError` where it is not of the shape that the bundle's is."""
    llama = read_llama(path)
    config, llm = llama.config, bundle.manifest.require_llm()
    for name in ("layers", "key_value_heads", "head_size", "embedding_size", "vocabulary_size"):
        ours, theirs = getattr(llm, name), getattr(config, name)
        if ours != theirs:
            raise TensorRTError(
                f"{path.name} is not the LLM of bundle {bundle.manifest.name}: its {name} is {theirs}, not {ours}"
            )
    return llama
