"""The cases: each runs an operator twice on the same input and says how far the fused result is from the plain one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from kernels import reference
from kernels import triton as triton_operators
from kernels.adapter.weights import rotary_tables
from kernels.reference.weights import LinearWeights, pack_linear
from kernels.tiles import ATTENTION, DEEP_SPLIT, MANY, SPLIT, WITH_NORM, LinearTiles, TopkTiles
from kernels.triton.attention import run_attention
from kernels.triton.ctc_topk import run_ctc_topk
from kernels.triton.linear import run_linear

FLOAT_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
# Of the largest value of the result: two steps of its dtype. Whole numbers must be equal.
TOLERANCES = {torch.float16: 2 * 2**-11, torch.bfloat16: 2 * 2**-8, torch.float32: 1e-5, torch.int32: 0.0}
H100 = 90
ROPE_THETA = 10000.0


@dataclass(frozen=True)
class Case:
    """`compare` gives the results' defined parts, fused and plain in turn."""

    kernel: str
    dtype: str
    shape: str
    compare: Callable[[], list[tuple[Tensor, Tensor]]]

    def __str__(self) -> str:
        return f"{self.kernel}, {self.dtype}, {self.shape}"


def error(fused_result: Tensor, plain_result: Tensor) -> float:
    """The largest difference, as a part of the plain result's largest value; NaN if the fused result has any."""
    if not plain_result.numel():
        return 0.0
    expected = plain_result.double()
    return float((fused_result.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


@dataclass(frozen=True)
class LinearShape:
    """`live` of `rows` rows, `inner` wide, each the first of `reduction` rows in memory; `offset` is added to all of x."""

    rows: int
    live: int
    inner: int
    columns: int
    reduction: int = 1
    offset: float = 0.0


LINEAR_SHAPES = {
    "aligned": LinearShape(64, 64, 128, 128),
    "odd, every 4th row": LinearShape(77, 71, 80, 104, reduction=4),
    "one row": LinearShape(1, 1, 64, 40),
    "no live row": LinearShape(9, 0, 64, 64),
    "mean 30 times the deviation": LinearShape(20, 20, 160, 64, offset=30.0),
}
LINEAR_VARIANTS: dict[str, tuple[LinearTiles, bool]] = {
    "linear": (WITH_NORM[H100], False),
    "linear with norm": (WITH_NORM[H100], True),
    "split linear": (SPLIT[H100], False),
    "deep split linear": (DEEP_SPLIT[H100], False),
    "persistent linear": (MANY[H100], False),
    "persistent linear with norm": (MANY[H100], True),
}


def random_linear(shape: LinearShape, dtype: torch.dtype, has_norm: bool) -> LinearWeights:
    norm = (torch.rand(shape.inner) + 0.5, torch.randn(shape.inner)) if has_norm else None
    return pack_linear(torch.randn(shape.columns, shape.inner) / 8, torch.randn(shape.columns), dtype, norm)


def compare_linear(
    shape: LinearShape, tiles: LinearTiles, has_norm: bool, dtype: torch.dtype, weight_dtype: torch.dtype
) -> list[tuple[Tensor, Tensor]]:
    """Bare, and with GELU and residual."""
    torch.manual_seed(0)
    layer = random_linear(shape, weight_dtype, has_norm)
    x = (torch.randn(shape.rows * shape.reduction, shape.inner) + shape.offset).to(dtype)[:: shape.reduction]
    residual = torch.randn(shape.rows, shape.columns).to(dtype)
    live = torch.tensor([shape.live], dtype=torch.int32)
    pairs = []
    for out_dtype, added, gelu in ((torch.float32, None, False), (dtype, residual, True)):
        mine = run_linear(x, layer, live, out_dtype, added, gelu, tiles)
        pairs.append((mine[: shape.live], reference.linear(x, layer, live, out_dtype, added, gelu)[: shape.live]))
    return pairs


ATTENTION_SHAPES: dict[str, tuple[list[int], int, int]] = {
    "aligned": ([64], 2, 64),
    "odd, with empty and one-frame utterances": ([0, 1, 69, 0, 64, 33, 0], 3, 16),
    "head of 80, not a power of two": ([70], 2, 80),
    "no utterance": ([], 2, 32),
}


def compare_attention(frames: Sequence[int], heads: int, head_size: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    boundaries = torch.tensor([0, *frames]).cumsum(0).int()
    live = int(boundaries[-1])
    qkv = (2 * torch.randn(live + 7, 3 * heads * head_size)).to(dtype)
    tables = rotary_tables(live + 7, head_size, ROPE_THETA, qkv.device)
    result = run_attention(qkv, boundaries, heads, *tables, ATTENTION[H100])
    return [(result[:live], reference.attention(qkv, boundaries, heads, *tables)[:live])]


KEEP_SHAPES = {"odd": (1500, 1400), "one frame": (1, 1), "no live row": (9, 0)}


def compare_keep(rows: int, live: int) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    logits, count = torch.randn(rows, 3)[:, 1], torch.tensor([live], dtype=torch.int32)
    probability, kept, kept_count = triton_operators.blank_filter(logits, count, 0.4)
    expected_probability, expected_kept, expected_count = reference.blank_filter(logits, count, 0.4)
    return [
        (kept_count, expected_count),
        (probability[:live], expected_probability[:live]),
        (kept[: int(expected_count)], expected_kept[: int(expected_count)]),
    ]


VOCABULARY_SHAPES = {
    "aligned": (64, 64, 1024, 64),
    "odd, with equal embeddings": (77, 30, 333, 40),
    "one frame, as many tokens as are asked for": (1, 1, 8, 64),
    "no kept frame": (9, 0, 100, 64),
}
SCAN = TopkTiles(warps=4, stages=3, rows=64, tokens=64, inner=64, splits=3)


def compare_vocabulary(rows: int, count: int, vocabulary: int, inner: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    queries, table = torch.randn(rows, inner).to(dtype), torch.randn(vocabulary, inner).to(dtype)
    table[vocabulary // 2 :] = table[: vocabulary - vocabulary // 2].clone()
    residual = torch.randn(rows, inner + 8)[:, :inner]
    kept = torch.full((rows,), 2**30, dtype=torch.int32)
    kept[:count] = torch.randperm(rows)[:count].sort().values.int()
    live = torch.tensor([count], dtype=torch.int32)
    results = run_ctc_topk(queries, kept, live, table, residual, SCAN), reference.ctc_topk(queries, kept, live, table, residual)
    return [(mine[:count], expected[:count]) for mine, expected in zip(*results, strict=True)]


def all_cases() -> list[Case]:
    cases = [Case("keep", "fp32", name, partial(compare_keep, *shape)) for name, shape in KEEP_SHAPES.items()]
    for label, dtype in FLOAT_TYPES.items():
        for weight_label, weight_dtype in ((label, dtype), (f"{label}, fp8 weights", torch.float8_e4m3fn)):
            cases += [
                Case(kernel, weight_label, name, partial(compare_linear, shape, tiles, has_norm, dtype, weight_dtype))
                for kernel, (tiles, has_norm) in LINEAR_VARIANTS.items()
                for name, shape in LINEAR_SHAPES.items()
            ]
        cases += [
            Case("attention", label, name, partial(compare_attention, frames, heads, head_size, dtype))
            for name, (frames, heads, head_size) in ATTENTION_SHAPES.items()
        ]
        cases += [
            Case("best tokens", label, name, partial(compare_vocabulary, *sizes, dtype))
            for name, sizes in VOCABULARY_SHAPES.items()
        ]
    return cases
