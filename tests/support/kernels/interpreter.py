"""Triton's interpreter, put right for bf16 and for memory that was not written.

The interpreter holds bf16 as bits: its products multiply the bits, and its conversion from float32 cuts instead of rounding.
The kernels convert to float32 before any arithmetic, so products and conversions are all that needs putting right.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

EXACT_IN_FLOAT32 = {tl.bfloat16: ml_dtypes.bfloat16, tl.float8e4nv: ml_dtypes.float8_e4m3fn}
UNWRITTEN_INTEGER = -(2**30)


def widen(handle: Any) -> Any:
    """A float16, bf16 or fp8 handle as float32."""
    if handle.dtype.scalar in EXACT_IN_FLOAT32:
        stored = np.ascontiguousarray(handle.data).view(EXACT_IN_FLOAT32[handle.dtype.scalar])
        return interpreter.TensorHandle(stored.astype(np.float32), tl.float32)
    return interpreter.TensorHandle(handle.data.astype(np.float32), tl.float32)


def create_dot(_builder: Any, a: Any, b: Any, sums: Any, _precision: Any, _imprecise: Any) -> Any:
    """Multiply with float64 sums: a float32 product of numpy may round an element differently at another place of a tile."""
    products = np.matmul(widen(a).data, widen(b).data, dtype=np.float64).astype(np.float32)
    return interpreter.TensorHandle(products + sums.data, sums.dtype.scalar)


def convert(unpatched: Any) -> Any:
    def converted(builder: Any, source: Any, target: Any, *mode: Any) -> Any:
        if source.dtype.scalar in EXACT_IN_FLOAT32:
            source = widen(source)
        if source.dtype.scalar == tl.float32 and target.scalar == tl.bfloat16:
            return interpreter.TensorHandle(source.data.astype(ml_dtypes.bfloat16).view(np.uint16), tl.bfloat16)
        if source.dtype.scalar == target.scalar:
            return source
        return unpatched(builder, source, target, *mode)

    return converted


def with_unwritten(unpatched: Any) -> Any:
    def empty(*size: Any, **options: Any) -> torch.Tensor:
        made: torch.Tensor = unpatched(*size, **options)
        if made.is_floating_point():
            return made.fill_(float("nan"))
        return made.fill_(UNWRITTEN_INTEGER) if made.dtype in (torch.int32, torch.int64) else made

    return empty


@contextmanager
def interpreted() -> Iterator[None]:
    """Inside, kernels may be called on CPU tensors, and what `torch.empty` gives is NaN (whole numbers: far below zero).

    TRITON_INTERPRET=1 must have been set before triton was imported.
    """
    if not triton.knobs.runtime.interpret:
        raise RuntimeError("set TRITON_INTERPRET=1 before Python starts: Triton decides at its import")
    builder = interpreter.InterpreterBuilder
    with (
        mock.patch.object(builder, "create_dot", create_dot),
        mock.patch.object(builder, "cast_impl", convert(builder.cast_impl)),
        mock.patch.object(builder, "create_fp_to_fp", convert(builder.create_fp_to_fp)),
        mock.patch.object(torch, "empty", with_unwritten(torch.empty)),
    ):
        yield
