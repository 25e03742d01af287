"""The least time that a request can take on this machine: its operations at the measured rate of matrix products, its weights
at the measured rate of memory reads, whichever takes longer, stage by stage."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

STATES_PER_S = 50
STAGES = ("encode_ms", "adapter_ms", "prefill_ms", "decode_ms")

# Values of the frozen models that bundle.json does not hold: Whisper base's encoder and SmolLM2-135M.
ENCODER_LAYERS = 6
ENCODER_GROWTH = 4
LLM_HEADS = 9
LLM_FEED_FORWARD = 1536


@dataclass(frozen=True)
class Rates:
    """Operations per second in 8-bit and float32 products, and bytes per second: the best that was measured."""

    int8_flops: float
    fp32_flops: float
    read_bytes: float


@dataclass(frozen=True)
class Shapes:
    """Sizes of a bundle's models; `*_bytes` are those of the weights that every run of a graph reads."""

    encoder_width: int
    mel_bins: int
    adapter_width: int
    adapter_layers: int
    adapter_feed_forward: int
    adapter_input: int
    reduction: int
    boundary_vectors: int
    layers: int
    key_value_heads: int
    head_size: int
    width: int
    vocabulary: int
    encoder_bytes: int
    adapter_bytes: int
    llm_bytes: int
    eight_bit: bool


@dataclass(frozen=True)
class Work:
    """The work of a stage: operations of weight products, operations in float32 whatever the precision, bytes to read."""

    product_flops: float
    float_flops: float
    bytes: float

    def floor_s(self, rates: Rates, eight_bit: bool) -> float:
        compute_s = (
            self.product_flops / (rates.int8_flops if eight_bit else rates.fp32_flops) + self.float_flops / rates.fp32_flops
        )
        return max(compute_s, self.bytes / rates.read_bytes)


def better_rates(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Of two measurements by `loadtest.peers.machine_rates`, the faster of each figure."""
    gemm = [max(pair, key=lambda row: float(row["gflops"])) for pair in zip(first["gemm"], second["gemm"], strict=True)]
    return {"gemm": gemm, "read_gb_per_s": max(first["read_gb_per_s"], second["read_gb_per_s"])}


def read_rates(measured: dict[str, Any]) -> Rates:
    """From the object that `loadtest.peers.machine_rates` prints."""
    best = {kind: max(row["gflops"] for row in measured["gemm"] if row["kind"] == kind) for kind in ("int8", "fp32")}
    return Rates(best["int8"] * 1e9, best["fp32"] * 1e9, measured["read_gb_per_s"] * 1e9)


def read_shapes(bundle: Path) -> Shapes:
    """From a bundle's folder."""
    manifest = json.loads((bundle / "bundle.json").read_text())
    encoder, adapter, llm = manifest["encoder"], manifest["projector"], manifest["llm"]
    with safe_open(bundle / adapter["weights"], framework="numpy") as file:
        trained = json.loads(file.metadata()["config"])

    def weight_bytes(graph: str) -> int:
        return sum(entry["bytes"] for name, entry in manifest["files"].items() if name.startswith(graph))

    reduction = trained["reduction"]
    return Shapes(
        encoder_width=encoder["width"],
        mel_bins=encoder["mel_bins"],
        adapter_width=trained["width"],
        adapter_layers=trained["layers"],
        adapter_feed_forward=trained["feed_forward"],
        adapter_input=trained["encoder_width"] * (reduction if trained["subsampling"] == "stack" else 1),
        reduction=reduction,
        boundary_vectors=2 * trained["boundary_vectors"],
        layers=llm["layers"],
        key_value_heads=llm["key_value_heads"],
        head_size=llm["head_size"],
        width=llm["embedding_size"],
        vocabulary=llm["vocabulary_size"],
        encoder_bytes=weight_bytes(encoder["graph"]),
        adapter_bytes=weight_bytes(adapter["graph"]),
        llm_bytes=weight_bytes(llm["graph"]),
        eight_bit=llm["precision"] != "fp32",
    )


def decode_passes(reply: dict[str, Any]) -> int:
    """Passes of the LLM after the prefill: each of them, as the prefill, gives one token besides those it accepts of a draft, and
    the end of an answer is a token too."""
    tokens = int(reply["usage"]["output_tokens"]) + (0 if reply["finish_reason"] == "length" else 1)
    accepted = int((reply.get("speculation") or {}).get("accepted", 0))
    return max(0, tokens - accepted - 1)


def request_work(shapes: Shapes, reply: dict[str, Any]) -> dict[str, Work]:
    """The work behind a reply of the server, by stage. Cached and drafted work counts as such."""
    usage = reply["usage"]
    drafted = int((reply.get("speculation") or {}).get("drafted", 0))
    prompt = usage["audio_frames"] + usage["text_tokens"] + shapes.boundary_vectors
    fresh = prompt - usage.get("cached_tokens", 0) + drafted
    passes = decode_passes(reply)
    kv_bytes = 2 * shapes.layers * shapes.key_value_heads * shapes.head_size * 4
    context = prompt + usage["output_tokens"] / 2
    return {
        "encode_ms": encoder_work(shapes, reply["audio_s"]),
        "adapter_ms": adapter_work(shapes, reply["audio_s"], usage["audio_frames"]),
        "prefill_ms": llm_work(shapes, fresh, prompt, 1 + drafted),
        "decode_ms": Work(
            passes * llm_work(shapes, 1, context, 1).product_flops,
            passes * llm_work(shapes, 1, context, 1).float_flops,
            passes * (shapes.llm_bytes + context * kv_bytes),
        ),
    }


def encoder_work(shapes: Shapes, audio_s: float) -> Work:
    states, width = audio_s * STATES_PER_S, shapes.encoder_width
    products = ENCODER_LAYERS * 2 * states * width * width * (4 + 2 * ENCODER_GROWTH)
    convolutions = 2 * 3 * width * (2 * states * shapes.mel_bins + states * width)
    attention = ENCODER_LAYERS * 4 * states * states * width
    return Work(products, convolutions + attention, shapes.encoder_bytes)


def adapter_work(shapes: Shapes, audio_s: float, scored: int) -> Work:
    """`scored` frames meet the vocabulary: at least as many as the LLM reads."""
    frames, width = audio_s * STATES_PER_S / shapes.reduction, shapes.adapter_width
    layer = 4 * width * width + 2 * width * shapes.adapter_feed_forward
    products = 2 * frames * (shapes.adapter_input * width + shapes.adapter_layers * layer)
    head = 2 * scored * shapes.width * (2 * width + shapes.vocabulary)
    return Work(products + head, shapes.adapter_layers * 4 * frames * frames * width, shapes.adapter_bytes)


def llm_work(shapes: Shapes, positions: float, context: float, logits: float) -> Work:
    """One pass over `positions` that attend to `context` others, with the vocabulary scored at `logits` of them."""
    queries, keys = LLM_HEADS * shapes.head_size, shapes.key_value_heads * shapes.head_size
    layer = shapes.width * (2 * queries + 2 * keys + 3 * LLM_FEED_FORWARD)
    products = 2 * positions * shapes.layers * layer + 2 * logits * shapes.width * shapes.vocabulary
    return Work(products, shapes.layers * 4 * positions * context * queries, shapes.llm_bytes)


def floor_ms(shapes: Shapes, rates: Rates, reply: dict[str, Any]) -> dict[str, float]:
    """The floor of each stage of a reply in milliseconds."""
    return {stage: 1000 * work.floor_s(rates, shapes.eight_bit) for stage, work in request_work(shapes, reply).items()}
