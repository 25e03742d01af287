"""Attention in a TensorRT network sees the keys that it sees in ONNX: the patch says so, and what it says is right."""

import platform
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.tensorrt_build import attention_nodes, network_attentions, patch_attention
from export.tensorrt_speech import build_by_head_encoder
from models.graph.silent_rest import SilentRest
from models.graph.writer import BFLOAT16, GraphBuilder
from models.llms.llama import build_decoder
from models.runtimes.cuda.tensorrt_library import TensorRT, TensorRTError, load_tensorrt
from tests.support.tiny.tiny_llama import tiny_llama
from tests.support.tiny.tiny_whisper import arrays_of, random_encoder

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="TensorRT-RTX has no package for this processor")

Array = npt.NDArray[Any]

SLOTS = 24


class Parsed:
    """A network as the parser leaves it, alive with all that it needs."""

    def __init__(self, graph: GraphBuilder, folder: Path) -> None:
        path = folder / "graph.onnx"
        graph.save(path)
        self.library = load_tensorrt("tensorrt_rtx")
        trt = self.library.module
        self.builder = trt.Builder(self.library.logger)
        self.network = self.builder.create_network(0)
        self.parser = trt.OnnxParser(self.network, self.library.logger)
        assert self.parser.parse_from_file(str(path))
        self.nodes = attention_nodes(onnx.load(path, load_external_data=False))

    def patch(self) -> None:
        patch_attention(self.library, self.network, self.nodes)

    def attentions(self) -> list[Any]:
        return list(network_attentions(self.library, self.network))


def twin(library: TensorRT, attention: Any, query: Array, key: Array, value: Array, lengths: Array) -> Array:
    """The mask that TensorRT documents for the `attention` of a network: its corner and, where it has lengths, what they cut off.

    query [R, H, S, h], key and value [R, G, P, h], lengths [R]; computed in float64.
    """
    kinds = library.module.CausalMaskKind
    rows, heads, new, size = query.shape
    key, value = (np.repeat(each, heads // each.shape[1], axis=1).astype(np.float64) for each in (key, value))
    filled = lengths if attention.key_value_lengths is not None else np.full(rows, key.shape[2])
    column, row = np.arange(key.shape[2]), np.arange(new)[:, None]
    scores = query @ key.swapaxes(2, 3) / np.sqrt(size)
    for each, length in enumerate(filled):
        seen = np.broadcast_to(column < length, (new, key.shape[2]))
        if attention.causal_kind == kinds.LOWER_RIGHT:
            seen = seen & (column <= row + length - new)
        elif attention.causal_kind == kinds.UPPER_LEFT:
            seen = seen & (column <= row)
        scores[each][:, ~seen] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    result: Array = weights / weights.sum(-1, keepdims=True) @ value
    return result


@pytest.fixture(scope="module")
def attention_alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Parsed, onnxruntime.InferenceSession]:
    """One causal attention over slots: for TensorRT in bfloat16, for ONNX Runtime in float32."""
    folder = tmp_path_factory.mktemp("attention")
    parsed = Parsed(attention_graph(BFLOAT16), folder)
    attention_graph(np.float32).save(folder / "float32.onnx")
    return parsed, onnxruntime.InferenceSession(folder / "float32.onnx", providers=["CPUExecutionProvider"])


def attention_graph(float_type: npt.DTypeLike) -> GraphBuilder:
    graph = GraphBuilder("attention", float_type)
    query = graph.input("query", np.float32, ["rows", 4, "tokens", 16])
    key, value = (graph.input(name, np.float32, ["rows", 2, SLOTS, 16]) for name in ("key", "value"))
    graph.input("kv_length", np.int64, ["rows"])
    attended = graph.node("Attention", query, key, value, "", "", "", "kv_length", is_causal=1)
    graph.output(attended, "attended", np.float32, ["rows", 4, "tokens", 16])
    return graph


@settings(max_examples=40)
@given(st.integers(1, 8).flatmap(lambda new: st.tuples(st.just(new), st.lists(st.integers(new, SLOTS), min_size=1, max_size=4))))
def test_the_patched_attention_means_what_onnx_runtime_computes(
    attention_alone: tuple[Parsed, onnxruntime.InferenceSession], case: tuple[int, list[int]]
) -> None:
    parsed, session = attention_alone
    parsed.patch()
    (attention,) = parsed.attentions()
    new, lengths = case
    generator = np.random.default_rng(new)
    query = generator.standard_normal((len(lengths), 4, new, 16)).astype(np.float32)
    key, value = generator.standard_normal((2, len(lengths), 2, SLOTS, 16)).astype(np.float32)
    feeds = {"query": query, "key": key, "value": value, "kv_length": np.array(lengths)}
    expected = session.run(None, feeds)[0]
    np.testing.assert_allclose(twin(parsed.library, attention, query, key, value, np.array(lengths)), expected, atol=1e-5)


def test_unpatched_it_would_mean_something_else(
    tmp_path: Path, attention_alone: tuple[Parsed, onnxruntime.InferenceSession]
) -> None:
    """The day this fails, the parser reads lengths, and the patch can go."""
    _, session = attention_alone
    parsed = Parsed(attention_graph(BFLOAT16), tmp_path)
    (attention,) = parsed.attentions()
    assert attention.key_value_lengths is None
    generator = np.random.default_rng(0)
    queries = generator.standard_normal((1, 4, 2, 16)).astype(np.float32)
    keys, values = generator.standard_normal((2, 1, 2, SLOTS, 16)).astype(np.float32)
    expected = session.run(None, {"query": queries, "key": keys, "value": values, "kv_length": np.array([9])})[0]
    assert np.abs(twin(parsed.library, attention, queries, keys, values, np.array([9])) - expected).max() > 0.1


def test_every_layer_of_a_decoder_is_patched(tmp_path: Path) -> None:
    parsed = Parsed(build_decoder(tiny_llama()[0], float_type=BFLOAT16), tmp_path)
    parsed.patch()
    attentions = parsed.attentions()
    kinds = parsed.library.module.CausalMaskKind
    assert len(attentions) == 2
    assert all(each.causal_kind == kinds.LOWER_RIGHT and each.key_value_lengths is not None for each in attentions)
    assert not any(each.decomposable for each in attentions)


def test_an_attention_with_a_bias_gets_neither_lengths_nor_a_corner(tmp_path: Path) -> None:
    encoder = build_by_head_encoder(arrays_of(random_encoder(0)), BFLOAT16, dropped=1, rest=SilentRest(60))
    parsed = Parsed(encoder, tmp_path)
    parsed.patch()
    attentions = parsed.attentions()
    assert len(attentions) == 2
    assert {each.causal_kind for each in attentions} == {parsed.library.module.CausalMaskKind.NONE}
    assert all(each.mask is not None and each.key_value_lengths is None for each in attentions)


def test_a_parser_that_loses_an_attention_is_found_out(tmp_path: Path) -> None:
    parsed = Parsed(build_decoder(tiny_llama()[0], float_type=BFLOAT16), tmp_path)
    with pytest.raises(TensorRTError, match="has 3 attentions and TensorRT parsed 2"):
        patch_attention(parsed.library, parsed.network, [*parsed.nodes, parsed.nodes[0]])
