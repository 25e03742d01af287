"""The precisions that a bundle can be written in."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from models.encoders.whisper import Arrays, rotated_encoder
from models.graph.linear import INT4, INT8, Linear, block_linear, float32_linear, linear_by_name, row_linear
from models.llms.llama import Llama, rotated
from models.runtimes.onnx.machine import adds_byte_products_exactly
from models.speech_decoders.whisper import rotated_decoder

Model = TypeVar("Model")


@dataclass(frozen=True)
class Precision:
    """How the products of a bundle's models are written.

    `speech` writes those of encoder and adapter, `speech_decoder` those of its layers and its memory, `body` those of the LLM's
    layers, and `head` the logits of both decoders and the adapter's scores against an embedding table, which are the same
    product. `prepare_encoder`, `prepare_speech_decoder` and `prepare_llm` rewrite the weights before.
    """

    speech: Linear
    speech_decoder: Linear
    body: Linear
    head: Linear
    prepare_encoder: Callable[[Arrays], Arrays]
    prepare_speech_decoder: Callable[[Arrays], Arrays]
    prepare_llm: Callable[[Llama], Llama]


def unchanged(model: Model) -> Model:
    return model


def with_blocks(rest: Linear) -> Linear:
    """Return a writer of an LLM's layers that writes in blocks what reads channels of different sizes, and by `rest` all else."""
    return linear_by_name({"o_proj": block_linear(INT8), "down_proj": block_linear(INT8)}, rest)


def int8_precision(row_bits: int) -> Precision:
    """Return "int8" with weights by rows of 7 or 8 bits.

    Most of the rounding's harm comes from the first layer of Whisper's encoder, and in its decoder from what reads the wide inner
    layers: those are in blocks (`export/PRECISIONS.md`).
    """
    rows, blocks = row_linear(row_bits), block_linear(INT8)
    return Precision(
        speech=linear_by_name({"layer_0/": blocks}, rows),
        speech_decoder=linear_by_name({"layer_0/": blocks, "ffn/linear_1": blocks}, rows),
        body=with_blocks(rows),
        head=rows,
        prepare_encoder=rotated_encoder,
        prepare_speech_decoder=rotated_decoder,
        prepare_llm=rotated,
    )


PRECISIONS: dict[str, Precision] = {
    "fp32": Precision(float32_linear, float32_linear, float32_linear, float32_linear, unchanged, unchanged, unchanged),
    "int8": int8_precision(8 if adds_byte_products_exactly() else 7),
    "int4": Precision(
        block_linear(INT8), block_linear(INT8), block_linear(INT4), block_linear(INT8), unchanged, unchanged, unchanged
    ),
}
"""By name. Weights of "int8" by rows have the bits that are quick on this machine.

In "int8" and "int4" ONNX Runtime's product of a row has the same bits beside any number of rows. Block formats other than 8 bits
in blocks of 32 or 64 and 4 bits in blocks of 32 take another path for a single row: its last bits differ, the rounding of the
next activations makes that tenths of a logit, and a neighbour changes the answer.
"""
