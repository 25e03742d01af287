"""What is compiled and gated: each operator of the default adapter, for one utterance of 10 s and for 32 of them."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from kernels import fused
from kernels.fused.linear import FP8_ARCHITECTURE
from kernels.plain.weights import LinearWeights
from kernels.tiles import linear_tiles

BF16, FP16, FP32, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn

WIDTH, FEED_FORWARD, HEADS, EMBEDDING, VOCABULARY, STACKED, LAYERS = 512, 2048, 8, 576, 49152, 2048, 3
SIDE = EMBEDDING + 8
ONE_UTTERANCE, UTTERANCES = 125, 32
# The share of frames that the blank leaves, on real speech.
KEPT_SHARE = 0.38


@dataclass(frozen=True)
class GateCase:
    """`call` runs the operator; `flops` and `bytes_moved` are what it must do and move at the least; `tiles` how many pieces
    the work falls into, where it is not the number of programs. `times` it happens in one pass of the adapter.
    """

    name: str
    call: Callable[[], object]
    flops: float
    bytes_moved: float
    times: int = 0
    tiles: int | None = None


def empty(*shape: int, dtype: torch.dtype = FP32) -> Tensor:
    """Without memory: it has a shape, strides and an alignment, which is all that a compiler sees."""
    return torch.empty(*shape, dtype=dtype, device="meta")


def linear_case(
    architecture: int,
    name: str,
    rows: int,
    columns: int,
    inner: int,
    *,
    norm: bool = False,
    residual: bool = False,
    gelu: bool = False,
    dtype: torch.dtype = BF16,
    weight_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
    times: int = 0,
) -> GateCase:
    stored, out = weight_dtype or dtype, out_dtype or dtype
    layer = LinearWeights(
        empty(columns, inner, dtype=stored),
        empty(columns),
        empty(columns) if norm else None,
        empty(columns) if stored == FP8 else None,
    )
    x, live = empty(rows, inner, dtype=dtype), empty(1, dtype=torch.int32)
    added = empty(rows, columns, dtype=dtype) if residual else None
    tiles = linear_tiles(architecture, rows, columns, inner, norm)
    moved = rows * inner * dtype.itemsize + columns * inner * stored.itemsize + rows * columns * out.itemsize
    if residual:
        moved += rows * columns * dtype.itemsize
    if tiles.splits > 1:
        moved += 2 * tiles.splits * rows * columns * FP32.itemsize
    return GateCase(
        f"{name}, {rows} rows",
        lambda: fused.linear(x, layer, live, out, added, gelu),
        2 * rows * columns * inner,
        moved,
        times,
        ceil(rows / tiles.rows) * ceil(columns / tiles.columns) * tiles.splits,
    )


def attention_case(rows: int, utterances: int, dtype: torch.dtype, name: str = "attention", times: int = 0) -> GateCase:
    half = WIDTH // HEADS // 2
    qkv, tables = empty(rows, 3 * WIDTH, dtype=dtype), empty(4096, half)
    boundaries = empty(utterances + 1, dtype=torch.int32)
    frames = rows / utterances
    return GateCase(
        f"{name}, {rows} rows",
        lambda: fused.attention(qkv, boundaries, HEADS, tables, tables),
        4 * rows * frames * WIDTH,
        4 * rows * WIDTH * dtype.itemsize,
        times,
    )


def head_cases(rows: int) -> list[GateCase]:
    live, side = empty(1, dtype=torch.int32), empty(rows, SIDE)
    queries, table, kept = empty(rows, EMBEDDING, dtype=BF16), empty(VOCABULARY, EMBEDDING, dtype=BF16), round(KEPT_SHARE * rows)
    return [
        GateCase(f"keep, {rows} rows", lambda: fused.keep(side[:, EMBEDDING], live, 0.5), 0, 3 * 4 * rows, 1),
        GateCase(
            f"best tokens, {rows} rows",
            lambda: fused.best_tokens(queries, empty(rows, dtype=torch.int32), live, table, side[:, :EMBEDDING]),
            2 * kept * VOCABULARY * EMBEDDING,
            2 * VOCABULARY * EMBEDDING + kept * EMBEDDING * (2 + 4 + 4 + 2 * 8),
            1,
        ),
    ]


def adapter_cases(architecture: int, utterances: int) -> list[GateCase]:
    """The default adapter's pass in bf16, in its order; a layer's operators happen in each of its layers."""
    rows = ONE_UTTERANCE * utterances

    def linear(name: str, columns: int, inner: int, **options: object) -> GateCase:
        return linear_case(architecture, name, rows, columns, inner, **options)  # type: ignore[arg-type]

    return [
        linear("input", WIDTH, STACKED, times=1),
        linear("qkv", 3 * WIDTH, WIDTH, norm=True, times=LAYERS),
        attention_case(rows, utterances, BF16, times=LAYERS),
        linear("attention out", WIDTH, WIDTH, residual=True, times=LAYERS),
        linear("feed-forward in", FEED_FORWARD, WIDTH, norm=True, gelu=True, times=LAYERS),
        linear("feed-forward out", WIDTH, FEED_FORWARD, residual=True, times=LAYERS),
        linear("queries", EMBEDDING, WIDTH, norm=True, times=1),
        linear("side", SIDE, WIDTH, norm=True, out_dtype=FP32, times=1),
        *head_cases(rows),
    ]


def other_types(architecture: int) -> list[GateCase]:
    """fp16, and where the tensor cores can fp8 weights."""
    few, many = ONE_UTTERANCE, ONE_UTTERANCE * UTTERANCES
    cases = [
        linear_case(architecture, "qkv, fp16", few, 3 * WIDTH, WIDTH, norm=True, dtype=FP16),
        attention_case(few, 1, FP16, "attention, fp16"),
    ]
    if architecture >= FP8_ARCHITECTURE:
        cases += [
            linear_case(architecture, "qkv, fp8 weights", few, 3 * WIDTH, WIDTH, norm=True, weight_dtype=FP8),
            linear_case(architecture, "feed-forward out, fp8 weights", few, WIDTH, FEED_FORWARD, residual=True, weight_dtype=FP8),
            linear_case(architecture, "qkv, fp8 weights", many, 3 * WIDTH, WIDTH, norm=True, weight_dtype=FP8),
        ]
    return cases


GROUPS: dict[str, Callable[[int], list[GateCase]]] = {
    "one utterance": lambda architecture: adapter_cases(architecture, 1),
    "many utterances": lambda architecture: adapter_cases(architecture, UTTERANCES),
    "other types": other_types,
}


def unaligned_case(architecture: int) -> GateCase:
    """The queries, keys and values of one utterance as they would be compiled had nobody seen to the alignment of rows."""
    return linear_case(architecture, "qkv", ONE_UTTERANCE, 3 * WIDTH, WIDTH + 1, norm=True)
