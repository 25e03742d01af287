"""The CTC head on the device: the vocabulary is scanned once, for kept frames alone."""

import torch
import triton
from torch import Tensor

from kernels.fused.device import FLOATS, architecture, check_rows
from kernels.fused.vocabulary_kernels import merge_kernel, scan_kernel
from kernels.plain.vocabulary import TOP_TOKENS
from kernels.tiles import MERGE_WARPS, VocabularyTiles, launch_options, vocabulary_tiles

NO_TOKEN = 2**31 - 1


def best_tokens(queries: Tensor, kept: Tensor, count: Tensor, table: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, probabilities and embeddings of the kept frames: the contract of `kernels.plain.best_tokens`.

    Logits must be finite. The workspace is 72 bytes a frame and part of the vocabulary, whatever its size.
    """
    return run_best_tokens(queries, kept, count, table, residual, vocabulary_tiles(architecture(queries.device), len(queries)))


def run_best_tokens(
    queries: Tensor, kept: Tensor, count: Tensor, table: Tensor, residual: Tensor, tiles: VocabularyTiles
) -> tuple[Tensor, Tensor, Tensor]:
    """`best_tokens` with tiles of one's own choice."""
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
