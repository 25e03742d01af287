"""The CTC head on the device: the vocabulary is scanned once, for kept frames alone."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.reference.ctc_topk import TOP_TOKENS
from kernels.tiles import MERGE_WARPS, TopkTiles, launch_options, topk_tiles
from kernels.triton.device import FLOATS, architecture, check_rows

NO_TOKEN = 2**31 - 1


def ctc_topk(queries: Tensor, kept: Tensor, count: Tensor, table: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, probabilities and embeddings of the kept frames: the contract of `kernels.reference.best_tokens`.

    Logits must be finite. The workspace is 72 bytes a frame and part of the vocabulary, whatever its size.
    """
    return run_ctc_topk(queries, kept, count, table, residual, topk_tiles(architecture(queries.device), len(queries)))


def run_ctc_topk(
    queries: Tensor, kept: Tensor, count: Tensor, table: Tensor, residual: Tensor, tiles: TopkTiles
) -> tuple[Tensor, Tensor, Tensor]:
    """`ctc_topk` with tiles of one's own choice."""
    check_rows("queries", queries)
    check_rows("table", table)
    if queries.dtype not in FLOATS or table.dtype != queries.dtype:
        raise ValueError(f"queries and table must both be fp16 or both bf16, not {queries.dtype} and {table.dtype}")
    if len(table) < TOP_TOKENS or not table.is_contiguous() or table.shape[1] != queries.shape[1]:
        raise ValueError(f"a table of {tuple(table.shape)} for queries of {tuple(queries.shape)}: it must have at least "
                         f"{TOP_TOKENS} rows of the same width, without gaps")  # fmt: skip
    rows, inner = queries.shape
    device, shape = queries.device, (tiles.splits, rows, TOP_TOKENS)
    values, candidates = torch.empty(shape, device=device), torch.empty(shape, dtype=torch.int32, device=device)
    largest, totals = torch.empty(shape[:2], device=device), torch.empty(shape[:2], device=device)
    tokens = torch.empty(rows, TOP_TOKENS, dtype=torch.int32, device=device)
    probabilities, embeddings = torch.empty(rows, TOP_TOKENS, device=device), torch.empty(rows, inner, device=device)
    if not rows:
        return tokens, probabilities, embeddings
    scan_kernel[(tiles.splits, triton.cdiv(rows, tiles.rows))](
        queries, kept, count, table, values, candidates, largest, totals, rows, len(table), inner, queries.stride(0),
        no_token=NO_TOKEN, top=TOP_TOKENS, splits=tiles.splits, even_inner=inner % tiles.inner == 0,
        block_rows=tiles.rows, block_tokens=tiles.tokens, block_inner=tiles.inner,
        **tiles.options,
    )  # fmt: skip
    merge_kernel[(rows,)](
        kept, count, table, residual, values, candidates, largest, totals, tokens, probabilities, embeddings,
        rows, inner, residual.stride(0),
        no_token=NO_TOKEN, top=TOP_TOKENS, splits=tiles.splits, block_splits=triton.next_power_of_2(tiles.splits),
        block_inner=triton.next_power_of_2(inner), **launch_options(MERGE_WARPS),
    )  # fmt: skip
    return tokens, probabilities, embeddings


@triton.jit
def insert_candidates(logits, column, first_token, values, tokens):
    """Take into values and tokens [rows, top] what of logits [rows, columns] is better than the worst there.

    Tokens rise from tile to tile, and of equal logits the lower token is taken first and stays: the same as one stable sort.
    After the first tiles few frames find anything, so the loop is mostly not entered.
    """
    best = tl.max(logits, 1)
    worst = tl.min(values, 1)
    while tl.max((best > worst).to(tl.int32), 0) > 0:
        place = tl.argmax(logits, 1)
        is_worst = values == worst[:, None]
        youngest = tl.max(tl.where(is_worst, tokens, -1), 1)
        replaced = is_worst & (tokens == youngest[:, None]) & (best > worst)[:, None]
        values = tl.where(replaced, best[:, None], values)
        tokens = tl.where(replaced, (first_token + place)[:, None], tokens)
        logits = tl.where(column[None, :] == place[:, None], float("-inf"), logits)
        best = tl.max(logits, 1)
        worst = tl.min(values, 1)
    return values, tokens


@triton.jit(do_not_specialize=["rows"])
def scan_kernel(
    queries_pointer,  # [rows, inner] fp16 or bf16
    kept_pointer,  # [rows] int32
    count_pointer,  # [1] int32
    table_pointer,  # [vocabulary, inner]
    values_pointer,  # [splits, rows, top] fp32
    tokens_pointer,  # [splits, rows, top] int32
    largest_pointer,  # [splits, rows] fp32
    totals_pointer,  # [splits, rows] fp32: sums of exp(logit - largest)
    rows,
    vocabulary,
    inner,
    queries_stride,
    no_token: tl.constexpr,
    top: tl.constexpr,
    splits: tl.constexpr,
    even_inner: tl.constexpr,
    block_rows: tl.constexpr,
    block_tokens: tl.constexpr,
    block_inner: tl.constexpr,
):
    """One block of kept frames with one part of the vocabulary."""
    first_row = tl.program_id(1) * block_rows
    count = tl.load(count_pointer)
    if first_row >= count:
        return
    place = first_row + tl.arange(0, block_rows)
    row = tl.load(kept_pointer + tl.minimum(place, count - 1)).to(tl.int64)
    depth = tl.arange(0, block_inner)
    column = tl.arange(0, block_tokens)
    query_tile = queries_pointer + row[:, None] * queries_stride + depth[None, :]
    slot = tl.arange(0, top)
    values = tl.full((block_rows, top), float("-inf"), tl.float32)
    # Empty places hold distinct numbers past any token: no_token and those below.
    tokens = tl.zeros((block_rows, top), tl.int32) + (no_token - slot)[None, :]
    largest = tl.full((block_rows,), float("-inf"), tl.float32)
    total = tl.zeros((block_rows,), tl.float32)
    part = tl.program_id(0)
    chunk = tl.cdiv(tl.cdiv(vocabulary, block_tokens), splits) * block_tokens
    for first_token in range(part * chunk, tl.minimum(part * chunk + chunk, vocabulary), block_tokens):
        token = tl.minimum(first_token + column, vocabulary - 1).to(tl.int64)
        table_tile = table_pointer + token[:, None] * inner + depth[None, :]
        logits = tl.zeros((block_rows, block_tokens), tl.float32)
        for start in range(0, inner, block_inner):
            if even_inner:
                query = tl.load(query_tile + start)
                embedding = tl.load(table_tile + start)
            else:
                query = tl.load(query_tile + start, mask=depth[None, :] < inner - start, other=0.0)
                embedding = tl.load(table_tile + start, mask=depth[None, :] < inner - start, other=0.0)
            logits = tl.dot(query, embedding.T, logits)
        logits = tl.where((first_token + column < vocabulary)[None, :], logits, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(logits, 1))
        total = total * tl.exp(largest - new_largest) + tl.sum(tl.exp(logits - new_largest[:, None]), 1)
        largest = new_largest
        values, tokens = insert_candidates(logits, column, first_token, values, tokens)
    target = part.to(tl.int64) * rows + place
    inside = place < count
    tl.store(values_pointer + target[:, None] * top + slot[None, :], values, mask=inside[:, None])
    tl.store(tokens_pointer + target[:, None] * top + slot[None, :], tokens, mask=inside[:, None])
    tl.store(largest_pointer + target, largest, mask=inside)
    tl.store(totals_pointer + target, total, mask=inside)


@triton.jit(do_not_specialize=["rows"])
def merge_kernel(
    kept_pointer,  # [rows] int32
    count_pointer,  # [1] int32
    table_pointer,  # [vocabulary, inner]
    residual_pointer,  # [rows, inner] fp32
    values_pointer,  # [splits, rows, top] fp32
    tokens_pointer,  # [splits, rows, top] int32
    largest_pointer,  # [splits, rows] fp32
    totals_pointer,  # [splits, rows] fp32
    best_tokens_pointer,  # [rows, top] int32
    probabilities_pointer,  # [rows, top] fp32
    embeddings_pointer,  # [rows, inner] fp32
    rows,
    inner,
    residual_stride,
    no_token: tl.constexpr,
    top: tl.constexpr,
    splits: tl.constexpr,
    block_splits: tl.constexpr,
    block_inner: tl.constexpr,
):
    """One kept frame: the best of the parts' candidates in order, and the expected embedding plus the frame's residual."""
    place = tl.program_id(0).to(tl.int64)
    if place >= tl.load(count_pointer):
        return
    part = tl.arange(0, block_splits)
    largest = tl.load(largest_pointer + part.to(tl.int64) * rows + place, mask=part < splits, other=float("-inf"))
    totals = tl.load(totals_pointer + part.to(tl.int64) * rows + place, mask=part < splits, other=0.0)
    overall = tl.max(largest, 0)
    total = tl.sum(totals * tl.exp(largest - overall), 0)
    candidate = tl.arange(0, block_splits * top)
    source = ((candidate // top).to(tl.int64) * rows + place) * top + candidate % top
    values = tl.load(values_pointer + source, mask=candidate < splits * top, other=float("-inf"))
    tokens = tl.load(tokens_pointer + source, mask=candidate < splits * top, other=no_token)
    lane = tl.arange(0, block_inner)
    expected = tl.zeros((block_inner,), tl.float32)
    shares = 0.0
    for rank in tl.static_range(top):
        best = tl.max(values, 0)
        token = tl.min(tl.where(values == best, tokens, no_token), 0)
        probability = tl.exp(best - overall) / total
        tl.store(best_tokens_pointer + place * top + rank, token)
        tl.store(probabilities_pointer + place * top + rank, probability)
        embedding = tl.load(table_pointer + token.to(tl.int64) * inner + lane, mask=lane < inner, other=0.0)
        expected += probability * embedding.to(tl.float32)
        shares += probability
        values = tl.where(tokens == token, float("-inf"), values)
    row = tl.load(kept_pointer + place).to(tl.int64)
    residual = tl.load(residual_pointer + row * residual_stride + lane, mask=lane < inner, other=0.0)
    tl.store(embeddings_pointer + place * inner + lane, expected / shares + residual, mask=lane < inner)
