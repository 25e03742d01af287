"""Give attention back what TensorRT's parser drops: which keys of a slot a query may see.

ONNX says it by `is_causal` with an input of filled lengths: query i of S sees key j where j <= i + length - S. The parser reads
the first as a triangle from the slot's first position and the second not at all, without an error. TensorRT can say the same:
`LOWER_RIGHT` with `key_value_lengths`. Every network with slots has to go through here before it is built.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx

from models.runtimes.cuda.tensorrt_library import TensorRT, TensorRTError

LENGTHS_INPUT = 6
"""The place at which ONNX's `Attention` takes the filled length of each row's keys."""


@dataclass(frozen=True)
class AttentionNode:
    """One `Attention` of an ONNX graph; `lengths` names its input of filled lengths, None where every key is to be seen."""

    name: str
    lengths: str | None
    causal: bool


def attention_nodes(model: onnx.ModelProto) -> list[AttentionNode]:
    """The graph's attentions, in its order."""
    nodes = []
    for node in model.graph.node:
        if node.op_type == "Attention":
            lengths = node.input[LENGTHS_INPUT] if len(node.input) > LENGTHS_INPUT else ""
            causal = any(attribute.name == "is_causal" and attribute.i for attribute in node.attribute)
            nodes.append(AttentionNode(node.name, lengths or None, causal))
    return nodes


def network_attentions(library: TensorRT, network: Any) -> Iterator[Any]:
    """The network's `IAttention`s, in its order."""
    trt = library.module
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            # get_layer gives the base class, which has no way to the attention.
            layer.__class__ = trt.IAttentionInputLayer
            yield layer.attention


def patch_attention(library: TensorRT, network: Any, nodes: list[AttentionNode]) -> None:
    """Set mask and lengths of every attention as its ONNX node says, `nodes` being those of the graph that was parsed.

    Raises `TensorRTError` where parser and graph do not have the same attentions.
    """
    trt = library.module
    inputs = {network.get_input(index).name: network.get_input(index) for index in range(network.num_inputs)}
    attentions = list(network_attentions(library, network))
    if len(attentions) != len(nodes):
        raise TensorRTError(f"the graph has {len(nodes)} attentions and TensorRT parsed {len(attentions)}: its parser changed")
    # TensorRT takes lengths in 32 bits, ONNX in 64.
    lengths = {
        name: network.add_cast(inputs[name], trt.int32).get_output(0)
        for name in dict.fromkeys(node.lengths for node in nodes if node.lengths)
    }
    for attention, node in zip(attentions, nodes, strict=True):
        if node.lengths:
            attention.key_value_lengths = lengths[node.lengths]
        attention.causal_kind = trt.CausalMaskKind.LOWER_RIGHT if node.causal else trt.CausalMaskKind.NONE
        # A build fails where no fused kernel takes the attention, rather than giving a slow plan.
        attention.decomposable = False
