"""The calls that are compiled: each operator of the default adapter, for one utterance of 10 s and for 32 of them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import triton as triton_operators
from kernels.reference.weights import LinearWeights
from kernels.triton.linear import FP8_ARCHITECTURE

BF16, FP16, FP32, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn

WIDTH, FEED_FORWARD, HEADS, EMBEDDING, VOCABULARY, STACKED = 512, 2048, 8, 576, 49152, 2048
SIDE = EMBEDDING + 8
ONE_UTTERANCE, UTTERANCES = 125, 32


@dataclass(frozen=True)
class CompileCase:
    """A call of an operator as serving makes it; its tensors have no memory."""

    name: str
    call: Callable[[], object]


def empty(*shape: int, dtype: torch.dtype = FP32) -> Tensor:
    """Return a tensor without memory: shape, strides and alignment are all that a compiler sees."""
    return torch.empty(*shape, dtype=dtype, device="meta")


def linear_case(
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
) -> CompileCase:
    stored, out = weight_dtype or dtype, out_dtype or dtype
    layer = LinearWeights(
        empty(columns, inner, dtype=stored),
        empty(columns),
        empty(columns) if norm else None,
        empty(columns) if stored == FP8 else None,
    )
    x, live = empty(rows, inner, dtype=dtype), empty(1, dtype=torch.int32)
    added = empty(rows, columns, dtype=dtype) if residual else None
    return CompileCase(f"{name}, {rows} rows", lambda: triton_operators.linear(x, layer, live, out, added, gelu))


def attention_case(rows: int, utterances: int, dtype: torch.dtype, name: str = "attention") -> CompileCase:
    qkv, tables = empty(rows, 3 * WIDTH, dtype=dtype), empty(4096, WIDTH // HEADS // 2)
    boundaries = empty(utterances + 1, dtype=torch.int32)
    return CompileCase(f"{name}, {rows} rows", lambda: triton_operators.attention(qkv, boundaries, HEADS, tables, tables))


def head_cases(rows: int) -> list[CompileCase]:
    live, side = empty(1, dtype=torch.int32), empty(rows, SIDE)
    queries, table = empty(rows, EMBEDDING, dtype=BF16), empty(VOCABULARY, EMBEDDING, dtype=BF16)
    kept = empty(rows, dtype=torch.int32)
    return [
        CompileCase(f"blank filter, {rows} rows", lambda: triton_operators.blank_filter(side[:, EMBEDDING], live, 0.5)),
        CompileCase(f"ctc topk, {rows} rows", lambda: triton_operators.ctc_topk(queries, kept, live, table, side[:, :EMBEDDING])),
    ]


def adapter_cases(utterances: int) -> list[CompileCase]:
    """Return the operators of the default adapter's pass in bf16, in their order."""
    rows = ONE_UTTERANCE * utterances
    return [
        linear_case("input", rows, WIDTH, STACKED),
        linear_case("qkv", rows, 3 * WIDTH, WIDTH, norm=True),
        attention_case(rows, utterances, BF16),
        linear_case("attention out", rows, WIDTH, WIDTH, residual=True),
        linear_case("feed-forward in", rows, FEED_FORWARD, WIDTH, norm=True, gelu=True),
        linear_case("feed-forward out", rows, WIDTH, FEED_FORWARD, residual=True),
        linear_case("queries", rows, EMBEDDING, WIDTH, norm=True),
        linear_case("side", rows, SIDE, WIDTH, norm=True, out_dtype=FP32),
        *head_cases(rows),
    ]


def other_types(architecture: int) -> list[CompileCase]:
    """Return cases in fp16, and with fp8 weights if the tensor cores can."""
    few, many = ONE_UTTERANCE, ONE_UTTERANCE * UTTERANCES
    cases = [
        linear_case("qkv, fp16", few, 3 * WIDTH, WIDTH, norm=True, dtype=FP16),
        attention_case(few, 1, FP16, "attention, fp16"),
    ]
    if architecture >= FP8_ARCHITECTURE:
        cases += [
            linear_case("qkv, fp8 weights", few, 3 * WIDTH, WIDTH, norm=True, weight_dtype=FP8),
            linear_case("feed-forward out, fp8 weights", few, WIDTH, FEED_FORWARD, residual=True, weight_dtype=FP8),
            linear_case("qkv, fp8 weights", many, 3 * WIDTH, WIDTH, norm=True, weight_dtype=FP8),
        ]
    return cases


GROUPS: dict[str, Callable[[int], list[CompileCase]]] = {
    "one utterance": lambda _architecture: adapter_cases(1),
    "many utterances": lambda _architecture: adapter_cases(UTTERANCES),
    "other types": other_types,
}


def unaligned_case() -> CompileCase:
    """Return the product of one utterance's queries, keys and values with rows that are not aligned."""
    return linear_case("qkv", ONE_UTTERANCE, 3 * WIDTH, WIDTH + 1, norm=True)
