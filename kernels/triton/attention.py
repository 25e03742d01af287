"""Attention within each utterance of a ragged batch, without padding and without a matrix of scores."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.tiles import ATTENTION, AttentionTiles
from kernels.triton.device import FLOATS, architecture, check_rows

LOG2_E = math.log2(math.e)


@triton.jit
def find_utterance(boundaries_pointer, utterances, block, block_queries: tl.constexpr):
    """The utterance that block number `block` belongs to: utterance i begins at block boundaries[i] // block_queries + i."""
    low = 0
    high = utterances
    while low < high:
        middle = (low + high) // 2
        if tl.load(boundaries_pointer + middle) // block_queries + middle <= block:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit
def load_turned(pointer, place, inside, half: tl.constexpr, half_block: tl.constexpr, cosines_pointer, sines_pointer):
    """Both halves [rows, half_block] of queries or keys, turned by their place in the utterance, in their own dtype."""
    lane = tl.arange(0, half_block)
    mask = inside[:, None] & (lane < half)[None, :]
    first = tl.load(pointer + lane[None, :], mask=mask, other=0.0)
    second = tl.load(pointer + half + lane[None, :], mask=mask, other=0.0)
    cosines = tl.load(cosines_pointer + place[:, None] * half + lane[None, :], mask=mask, other=0.0)
    sines = tl.load(sines_pointer + place[:, None] * half + lane[None, :], mask=mask, other=0.0)
    first_f, second_f = first.to(tl.float32), second.to(tl.float32)
    return (first_f * cosines - second_f * sines).to(first.dtype), (second_f * cosines + first_f * sines).to(first.dtype)


@triton.jit(do_not_specialize=["utterances"])
def attention_kernel(
    qkv_pointer,  # [rows, 3 * width] fp16 or bf16
    boundaries_pointer,  # [utterances + 1] int32
    cosines_pointer,  # [frames, half] fp32
    sines_pointer,  # [frames, half] fp32
    out_pointer,  # [rows, width]
    utterances,
    width,
    qkv_stride,
    scale,  # log2(e) / sqrt(head size)
    half: tl.constexpr,
    half_block: tl.constexpr,
    block_queries: tl.constexpr,
    block_keys: tl.constexpr,
):
    """One block of an utterance's queries with one head; keys and values are read once, block by block."""
    block = tl.program_id(0)
    utterance = find_utterance(boundaries_pointer, utterances, block, block_queries)
    start = tl.load(boundaries_pointer + utterance)
    frames = tl.load(boundaries_pointer + utterance + 1) - start
    first_query = (block - start // block_queries - utterance) * block_queries
    if first_query >= frames:
        return
    head = qkv_pointer + tl.program_id(1) * 2 * half
    query = first_query + tl.arange(0, block_queries)
    query_row = (start + query).to(tl.int64)
    query_pointer = head + query_row[:, None] * qkv_stride
    q1, q2 = load_turned(query_pointer, query, query < frames, half, half_block, cosines_pointer, sines_pointer)
    lane = tl.arange(0, 2 * half_block)
    largest = tl.full((block_queries,), float("-inf"), tl.float32)
    total = tl.zeros((block_queries,), tl.float32)
    attended = tl.zeros((block_queries, 2 * half_block), tl.float32)
    for first_key in range(0, frames, block_keys):
        key = first_key + tl.arange(0, block_keys)
        key_row = (start + key).to(tl.int64)
        inside = key < frames
        key_pointer = head + width + key_row[:, None] * qkv_stride
        k1, k2 = load_turned(key_pointer, key, inside, half, half_block, cosines_pointer, sines_pointer)
        scores = tl.dot(q2, k2.T, tl.dot(q1, k1.T)) * scale
        scores = tl.where(inside[None, :], scores, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp2(scores - new_largest[:, None])
        shrink = tl.exp2(largest - new_largest)
        value_pointer = head + 2 * width + key_row[:, None] * qkv_stride + lane[None, :]
        value = tl.load(value_pointer, mask=inside[:, None] & (lane < 2 * half)[None, :], other=0.0)
        total = total * shrink + tl.sum(weights, 1)
        attended = tl.dot(weights.to(value.dtype), value, attended * shrink[:, None])
        largest = new_largest
    out = out_pointer + query_row[:, None] * width + tl.program_id(1) * 2 * half + lane[None, :]
    mask = (query < frames)[:, None] & (lane < 2 * half)[None, :]
    tl.store(out, (attended / total[:, None]).to(out_pointer.dtype.element_ty), mask=mask)


def attention(qkv: Tensor, boundaries: Tensor, heads: int, cosines: Tensor, sines: Tensor) -> Tensor:
    """Attention within each utterance: the contract of `kernels.reference.attention`."""
    return run_attention(qkv, boundaries, heads, cosines, sines, ATTENTION[architecture(qkv.device)])


def run_attention(qkv: Tensor, boundaries: Tensor, heads: int, cosines: Tensor, sines: Tensor, tiles: AttentionTiles) -> Tensor:
    """`attention` with tiles of one's own choice."""
    check_rows("qkv", qkv)
    rows, width, utterances = len(qkv), qkv.shape[1] // 3, len(boundaries) - 1
    half = width // heads // 2
    if qkv.dtype not in FLOATS:
        raise ValueError(f"attention reads fp16 or bf16, not {qkv.dtype}")
    if qkv.shape[1] != 3 * heads * 2 * half or half != cosines.shape[1]:
        raise ValueError(f"{qkv.shape[1]} columns are not 3 x {heads} heads of even size {2 * cosines.shape[1]}")
    if rows > len(cosines) or cosines.shape != sines.shape:
        raise ValueError(f"{rows} rows need rotary tables of as many frames, not {len(cosines)} and {len(sines)}")
    out = torch.empty(rows, width, dtype=qkv.dtype, device=qkv.device)
    if not rows or not utterances:
        return out
    # Each utterance ends in a block of its own; no grid depends on lengths, which only the device knows.
    attention_kernel[(rows // tiles.queries + utterances, heads)](
        qkv, boundaries, cosines, sines, out, utterances, width, qkv.stride(0), LOG2_E / math.sqrt(2 * half),
        half=half, half_block=max(16, triton.next_power_of_2(half)), block_queries=tiles.queries, block_keys=tiles.keys,
        **tiles.options,
    )  # fmt: skip
    return out
