"""Twin of `kernels.triton.ctc_topk`."""

import torch
from torch import Tensor

TOP_TOKENS = 8


def ctc_topk(queries: Tensor, kept: Tensor, count: Tensor, table: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The CTC head: each kept frame's 8 best tokens, their probabilities, and what the LLM reads of the frame.

    queries [rows, embedding_size] are scored against the embedding `table` [vocabulary, embedding_size] of the same dtype,
    where row kept[i] is the i-th of `count` [1] int32. Returns tokens [rows, 8] int32, best first (of equals the lower
    number), probabilities [rows, 8] float32 over the whole vocabulary, and embeddings [rows, embedding_size] float32: the
    table's rows of the 8 tokens, weighted by their probabilities (as shares of the 8), plus residual[kept[i]] float32.
    Rows after the first `count` are not defined.
    """
    rows = kept[: int(count)].long()
    logits = queries[rows].float() @ table.float().T
    tokens = logits.sort(stable=True, dim=-1, descending=True).indices[:, :TOP_TOKENS]
    probabilities = logits.softmax(-1).gather(-1, tokens)
    shares = probabilities / probabilities.sum(-1, keepdim=True)
    expected = torch.einsum("nk,nke->ne", shares, table[tokens].float()) + residual[rows]
    outputs = []
    for values, dtype in ((tokens, torch.int32), (probabilities, torch.float32), (expected, torch.float32)):
        out = torch.empty(len(queries), values.shape[1], dtype=dtype, device=queries.device)
        out[: len(rows)] = values
        outputs.append(out)
    return outputs[0], outputs[1], outputs[2]
