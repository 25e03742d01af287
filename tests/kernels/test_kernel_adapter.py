"""The chain of operators gives what the trained adapter gives: by reference operators, by kernels, and in captured buckets."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from kernels import reference
from kernels import triton as triton_operators
from kernels.adapter.forward import AdapterFrames, Operators, UtteranceFrames, adapt
from kernels.adapter.graphs import Bucket, GraphAdapter
from kernels.adapter.weights import AdapterWeights, pack_adapter
from tests.support.kernels.interpreter import interpreted
from training.adapter import Adapter, AdapterConfig

TRAINED = Path(__file__).parents[2] / "export" / "adapter.safetensors"
REFERENCE, TRITON = cast(Operators, reference), cast(Operators, triton_operators)
VOCABULARY = 600
THRESHOLD = 0.5
MAX_FRAMES = 64


def packed(
    adapter: Adapter, table: Tensor, dtype: torch.dtype, layer_dtype: torch.dtype, threshold: float = THRESHOLD
) -> AdapterWeights:
    config = {**vars(adapter.config), "blank_threshold": threshold}
    return pack_adapter(adapter.state_dict(), config, table, dtype, layer_dtype, MAX_FRAMES)


def random_adapter(subsampling: str, seed: int = 1, layers: int = 2) -> Adapter:
    torch.manual_seed(seed)
    config = AdapterConfig(
        encoder_width=24, width=32, layers=layers, heads=2, feed_forward=48, embedding_size=32, subsampling=subsampling
    )
    adapter = Adapter(config).eval()
    torch.nn.init.normal_(adapter.residual.weight, std=0.2)
    for norm in (module for module in adapter.modules() if isinstance(module, torch.nn.LayerNorm)):
        torch.nn.init.normal_(norm.weight, 1.0, 0.2)
        torch.nn.init.normal_(norm.bias, 0.0, 0.2)
    return adapter


def trained_adapter() -> Adapter:
    with safe_open(TRAINED, framework="pt") as file:
        config = json.loads(file.metadata()["config"])
        weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    adapter = Adapter(AdapterConfig(**{name: config[name] for name in vars(AdapterConfig()) if name in config})).eval()
    adapter.load_state_dict(weights)
    return adapter


def utterances(adapter: Adapter, frames: list[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(4 * count, adapter.config.encoder_width, generator=generator) for count in frames]


def batch(states: list[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor, list[int]]:
    frames = [len(each) // 4 for each in states]
    return torch.cat(states).to(dtype), torch.tensor([0, *frames]).cumsum(0).int(), frames


@torch.inference_mode()
def trained_results(adapter: Adapter, states: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P(blank) [frames], logits [frames, vocabulary] and residual [frames, embedding_size] of one utterance in float32."""
    hidden, _ = adapter(states[None], torch.tensor([len(states) // 4]))
    logits = adapter.token_queries(hidden)[0] @ table.T
    return torch.sigmoid(adapter.blank(hidden))[0, :, 0], logits, adapter.residual(hidden)[0]


def check(
    mine: UtteranceFrames, adapter: Adapter, states: Tensor, table: Tensor, tolerance: float, threshold: float = THRESHOLD
) -> None:
    """Against the module: probabilities within `tolerance`, embeddings within 4 times of it, tokens as good as the best."""
    assert len(mine.blank_probability) == len(states) // 4
    if not len(states):
        assert mine.embeddings.shape == (0, table.shape[1])
        return
    blank, logits, residual = trained_results(adapter, states, table)
    assert np.abs(mine.blank_probability - blank.numpy()).max() < tolerance
    is_sure = (blank - threshold).abs().numpy() > tolerance
    is_kept = np.isin(np.arange(len(blank)), mine.kept)
    assert np.array_equal(is_kept[is_sure], (blank < threshold).numpy()[is_sure])
    tokens, probabilities = torch.from_numpy(mine.tokens), logits.softmax(-1)[mine.kept]
    chosen = probabilities.gather(1, tokens)
    shares = chosen / chosen.sum(-1, keepdim=True)
    embeddings = torch.einsum("nk,nke->ne", shares, table[tokens]) + residual[mine.kept]
    assert np.abs((probabilities.topk(8).values - chosen).numpy()).max(initial=0) < tolerance
    assert np.abs(mine.probabilities - chosen.numpy()).max(initial=0) < tolerance
    assert np.abs(mine.embeddings - embeddings.numpy()).max(initial=0) < 4 * tolerance


TYPES = [
    pytest.param(torch.float16, torch.float16, 4e-3, id="fp16"),
    pytest.param(torch.bfloat16, torch.bfloat16, 3e-2, id="bf16"),
    pytest.param(torch.bfloat16, torch.float8_e4m3fn, 1e-1, id="bf16 with fp8 weights"),
]


@pytest.mark.parametrize(("dtype", "layer_dtype", "tolerance"), TYPES)
@pytest.mark.parametrize("subsampling", ["uniform", "stack"])
def test_chain_equals_the_module(subsampling: str, dtype: torch.dtype, layer_dtype: torch.dtype, tolerance: float) -> None:
    adapter, table = random_adapter(subsampling), torch.randn(VOCABULARY, 32)
    weights = packed(adapter, table, dtype, layer_dtype)
    states = utterances(adapter, [9, 0, 1, 30])
    packed_states, boundaries, frames = batch(states, dtype)
    for mine, each in zip(adapt(weights, REFERENCE, packed_states, boundaries).of_utterances(frames), states, strict=True):
        check(mine, adapter, each, table, tolerance)


# On random states bfloat16 moves a probability by up to 0.05, over twelve seeds and two trainings of the adapter.
COMMITTED = [
    pytest.param(REFERENCE, torch.float16, torch.float16, 1e-2, id="reference fp16"),
    pytest.param(REFERENCE, torch.bfloat16, torch.bfloat16, 8e-2, id="reference bf16"),
    pytest.param(REFERENCE, torch.bfloat16, torch.float8_e4m3fn, 1e-1, id="reference bf16 with fp8 weights"),
]


@pytest.mark.parametrize(("operators", "dtype", "layer_dtype", "tolerance"), COMMITTED)
def test_committed_weights_give_what_the_module_gives(
    operators: Operators, dtype: torch.dtype, layer_dtype: torch.dtype, tolerance: float
) -> None:
    adapter = trained_adapter()
    table = torch.randn(VOCABULARY, adapter.config.embedding_size, generator=torch.Generator().manual_seed(0)) * 0.1
    weights = packed(adapter, table, dtype, layer_dtype, threshold=1.0)
    states = utterances(adapter, [2, 0, 1])
    packed_states, boundaries, frames = batch(states, dtype)
    with interpreted():
        results = adapt(weights, operators, packed_states, boundaries).of_utterances(frames)
    for mine, each in zip(results, states, strict=True):
        assert len(mine.kept) == len(each) // 4
        check(mine, adapter, each, table, tolerance, threshold=1.0)


class Replay:
    """A graph without a GPU: the work is done again, and its results take the same memory."""

    def __init__(self, work: Callable[[], AdapterFrames]) -> None:
        self.work = work
        self.output = work()

    def replay(self) -> None:
        for old, new in zip(self.output, self.work(), strict=True):
            old.copy_(new)


def replaying(work: Callable[[], AdapterFrames]) -> tuple[AdapterFrames, Replay]:
    graph = Replay(work)
    return graph.output, graph


def zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.zeros(tuple(shape), dtype=dtype)


def run(graphs: GraphAdapter, states: list[Tensor]) -> list[UtteranceFrames]:
    packed_states, boundaries, frames = batch(states, states[0].dtype)
    slot = graphs.slot(sum(frames), len(frames))
    slot.states[: len(packed_states)] = packed_states
    slot.boundaries[:] = sum(frames)
    slot.boundaries[: len(boundaries)] = boundaries
    slot.graph.replay()
    return slot.output.of_utterances(frames)


BUCKETS = [Bucket(40, 4), Bucket(12, 2), Bucket(12, 4)]
BATCHES = [[9, 0, 1, 30], [3], [12, 0], [0, 0, 0], [12, 1], [5, 5]]


@pytest.mark.parametrize(
    ("operators", "buckets", "batches"),
    [(REFERENCE, BUCKETS, BATCHES), (TRITON, BUCKETS[1:2], BATCHES[1:3])],
    ids=["reference", "triton"],
)
def test_buckets_give_what_the_module_gives_for_each_batch_in_turn(
    operators: Operators, buckets: list[Bucket], batches: list[list[int]]
) -> None:
    """Memory of a bucket that an earlier batch has written."""
    adapter, table = random_adapter("stack"), torch.randn(VOCABULARY, 32)
    weights = packed(adapter, table, torch.float16, torch.float16)
    with interpreted():
        graphs = GraphAdapter(weights, operators, buckets, zeros, replaying)
        for frames in batches:
            states = utterances(adapter, frames)
            for mine, each in zip(run(graphs, [each.half() for each in states]), states, strict=True):
                check(mine, adapter, each, table, 4e-3)


def test_an_utterance_in_a_batch_is_what_it_is_alone() -> None:
    adapter = random_adapter("uniform", layers=1)
    weights = packed(adapter, torch.randn(100, 32), torch.bfloat16, torch.bfloat16)
    states = [each.bfloat16() for each in utterances(adapter, [9, 10])]
    with interpreted():
        graphs = GraphAdapter(weights, TRITON, [Bucket(20, 2)], zeros, replaying)
        for together, each in zip(run(graphs, states), states, strict=True):
            for mine, alone in zip(vars(together).values(), vars(run(graphs, [each])[0]).values(), strict=True):
                assert np.array_equal(mine, alone)


def test_buckets_are_captured_largest_first_and_the_smallest_with_room_is_taken() -> None:
    adapter, captured = random_adapter("uniform"), []

    def capture(work: Callable[[], AdapterFrames]) -> tuple[AdapterFrames, Replay]:
        output, graph = replaying(work)
        captured.append(len(output.kept))
        return output, graph

    weights = packed(adapter, torch.randn(VOCABULARY, 32), torch.float16, torch.float16)
    graphs = GraphAdapter(weights, REFERENCE, BUCKETS, zeros, capture)
    assert captured == [40, 12, 12]
    chosen = [graphs.slot(frames, utterances).bucket for frames, utterances in ((12, 2), (12, 3), (13, 1))]
    assert chosen == [Bucket(12, 2), Bucket(12, 4), Bucket(40, 4)]
    with pytest.raises(ValueError, match="no bucket for 41 frames"):
        graphs.slot(41, 1)
    with pytest.raises(ValueError, match="no bucket for 1 frames in 5"):
        graphs.slot(1, 5)


def test_a_call_beyond_the_rotary_tables_is_refused() -> None:
    adapter = random_adapter("uniform")
    weights = packed(adapter, torch.randn(VOCABULARY, 32), torch.float16, torch.float16)
    with pytest.raises(ValueError, match=f"at most {MAX_FRAMES} frames"):
        adapt(weights, REFERENCE, torch.zeros(4 * MAX_FRAMES + 4, 24).half(), torch.tensor([0, 65], dtype=torch.int32))
