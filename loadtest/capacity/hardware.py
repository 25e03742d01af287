"""Predicted stage costs on GPUs, by roofline. Nothing has confirmed them: this project has not run on these machines.

A stage takes as long as its operations at a share of the peak rate, or as its bytes at a share of the peak bandwidth, if that is
longer; then launches and the host's work. The work of requests (positions, passes) is what was measured on a CPU.
"""

from dataclasses import dataclass, replace

from loadtest.capacity.costs import DecoderCost, EncodeCost, Spread, StageCosts

# Shares of the peaks that well-made kernels reach on layers of this size; assumed.
COMPUTE_SHARE = 0.4
BANDWIDTH_SHARE = 0.6
# Assumed: one launch, its number per layer, and the host's work per row of a pass (sampling, text, events).
LAUNCH_S = 4e-6
LAUNCHES_PER_LAYER = 12
HOST_ROW_S = 1e-4
WEIGHT_BYTES = 2
# Encoder states per second of audio, before the frames that the decoders see are counted.
STATES_PER_S = 50
# As many slots, places in the queue and positions per step as the server has on a GPU.
GPU_SLOTS, GPU_QUEUE, GPU_STEP_TOKENS = 32, 128, 512


@dataclass(frozen=True)
class Gpu:
    """Peak rates from the maker's data sheet: dense 16-bit operations and bytes per second."""

    name: str
    operations_hz: float
    bytes_hz: float


@dataclass(frozen=True)
class DecoderShape:
    """The size of a decoder; `cache_bytes` are read per row and pass, for a context of usual length."""

    parameters: float
    layers: int
    cache_bytes: float


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model's parts that its costs follow from."""

    name: str
    encoder_parameters: float
    encoder_layers: int
    encoder_width: int
    decoders: tuple[DecoderShape, ...]


GPUS = {
    "h100": Gpu("H100 SXM", 989e12, 3.35e12),
    "h200": Gpu("H200 SXM", 989e12, 4.8e12),
}
SHAPES = {
    # 10 s of memory (500 states) and 40 positions, or 100 positions of the LLM, in 16 bits.
    "base": ModelShape(
        "Whisper base and Qwen2.5 0.5B",
        2.0e7,
        6,
        512,
        (DecoderShape(5.2e7, 6, 6 * 2 * 512 * 540 * 2), DecoderShape(4.94e8, 24, 24 * 2 * 128 * 100 * 2)),
    ),
    "large-v3": ModelShape(
        "Whisper large-v3 and a Llama of 8B",
        6.37e8,
        32,
        1280,
        (DecoderShape(9.07e8, 32, 32 * 2 * 1280 * 540 * 2), DecoderShape(8.0e9, 32, 32 * 2 * 1024 * 100 * 2)),
    ),
}


def predict_costs(gpu: Gpu, shape: ModelShape, measured: StageCosts) -> StageCosts:
    """Return the costs of a model on a GPU, with the work, the padding and the host's costs of a measurement on a CPU."""
    operations_hz, bytes_hz = COMPUTE_SHARE * gpu.operations_hz, BANDWIDTH_SHARE * gpu.bytes_hz
    second_s = 2 * shape.encoder_parameters * STATES_PER_S / operations_hz
    square_s = 4 * shape.encoder_layers * shape.encoder_width * STATES_PER_S**2 / operations_hz
    encode = EncodeCost(
        shape.encoder_parameters * WEIGHT_BYTES / bytes_hz + _launches_s(shape.encoder_layers),
        measured.encode.lengths_s,
        tuple(second_s * each + square_s * each**2 for each in measured.heard_s),
    )
    decoders = tuple(_predict_decoder(each, operations_hz, bytes_hz) for each in shape.decoders[: len(measured.decoders)])
    return replace(
        measured,
        name=f"{shape.name} on an {gpu.name} (prediction)",
        measured=False,
        encode=encode,
        decoders=decoders,
        encodes_beside=True,
        slots=GPU_SLOTS,
        queue_limit=GPU_QUEUE,
        step_tokens=GPU_STEP_TOKENS,
        spread=Spread(),
        conditions={},
    )


def _predict_decoder(shape: DecoderShape, operations_hz: float, bytes_hz: float) -> DecoderCost:
    call_s = shape.parameters * WEIGHT_BYTES / bytes_hz + _launches_s(shape.layers)
    position_s = 2 * shape.parameters / operations_hz
    row_s = shape.cache_bytes / bytes_hz + HOST_ROW_S
    return DecoderCost(call_s, row_s, position_s, call_s, row_s, position_s)


def _launches_s(layers: int) -> float:
    return layers * LAUNCHES_PER_LAYER * LAUNCH_S
