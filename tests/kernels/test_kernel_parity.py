"""Every Triton kernel gives what its reference operator gives, run by Triton's interpreter."""

import inspect
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels import reference
from kernels import triton as triton_operators
from kernels.adapter.weights import rotary_tables
from kernels.reference.weights import pack_linear
from kernels.tiles import DEEP_SPLIT, MANY, WITH_NORM, LinearTiles
from kernels.triton.linear import run_linear
from tests.support.kernels.interpreter import interpreted
from tests.support.kernels.parity_cases import TOLERANCES, Case, all_cases, error

ROW_STRIDE = 2**30
LIVE_ROWS = torch.tensor([3], dtype=torch.int32)


@pytest.fixture(autouse=True)
def interpreter() -> Iterator[None]:
    with interpreted():
        yield


@pytest.mark.parametrize("case", all_cases(), ids=str)
def test_a_kernel_equals_its_reference(case: Case) -> None:
    for mine, expected in case.compare():
        assert mine.shape == expected.shape
        assert mine.dtype == expected.dtype
        assert error(mine, expected) <= TOLERANCES[mine.dtype]


@pytest.mark.parametrize("name", reference.__all__)
def test_kernels_and_references_have_one_signature(name: str) -> None:
    assert inspect.signature(getattr(triton_operators, name)) == inspect.signature(getattr(reference, name))


def test_every_kernel_has_a_reference() -> None:
    assert triton_operators.__all__ == reference.__all__


def test_an_error_shows() -> None:
    """The measure itself: what a kernel leaves unwritten is no small difference."""
    assert error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])) == 0.0
    assert not error(torch.empty(3), torch.ones(3)) <= TOLERANCES[torch.float32]
    assert error(torch.empty(3, dtype=torch.int32), torch.ones(3, dtype=torch.int32)) > 0


@pytest.fixture
def far_apart(tmp_path: Path) -> Tensor:
    """3 rows of 192 fp16 numbers, 2^30 numbers apart: the last lies past what 32 bits can count. The file has holes."""
    memory = np.memmap(tmp_path / "rows", dtype=np.float16, mode="w+", shape=(2 * ROW_STRIDE + 192,))
    rows = torch.from_numpy(memory).as_strided((3, 192), (ROW_STRIDE, 1))
    return rows.copy_(torch.randn(3, 192, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("tiles", [WITH_NORM[90], MANY[90]], ids=["tiles", "persistent"])
def test_linear_reads_rows_beyond_32_bit_offsets(far_apart: Tensor, tiles: LinearTiles) -> None:
    layer = pack_linear(torch.randn(16, 192) / 8, torch.zeros(16), torch.float16, (torch.ones(192), torch.zeros(192)))
    mine = run_linear(far_apart, layer, LIVE_ROWS, torch.float32, None, False, tiles)
    assert error(mine, reference.linear(far_apart, layer, LIVE_ROWS, torch.float32)) < 1e-5


def test_attention_reads_rows_beyond_32_bit_offsets(far_apart: Tensor) -> None:
    tables = rotary_tables(3, 32, 10000.0, torch.device("cpu"))
    boundaries = torch.tensor([0, 3], dtype=torch.int32)
    mine = triton_operators.attention(far_apart, boundaries, 2, *tables)
    assert error(mine, reference.attention(far_apart, boundaries, 2, *tables)) <= TOLERANCES[torch.float16]


def test_split_sums_are_the_same_in_each_run() -> None:
    x, layer = torch.randn(20, 512).half(), pack_linear(torch.randn(64, 512), torch.zeros(64), torch.float16)
    live = torch.tensor([20], dtype=torch.int32)
    first, second = (run_linear(x, layer, live, torch.float32, None, False, DEEP_SPLIT[90]) for _ in range(2))
    assert torch.equal(first, second)


def test_what_a_kernel_cannot_do_is_refused() -> None:
    x, live = torch.randn(8, 64).half(), torch.tensor([8], dtype=torch.int32)
    layer = pack_linear(torch.randn(16, 64), torch.zeros(16), torch.float16)
    with pytest.raises(ValueError, match="16 bytes"):
        triton_operators.linear(torch.randn(8, 68).half()[:, 4:], layer, live, torch.float16)
    with pytest.raises(ValueError, match="16 bytes"):
        triton_operators.linear(torch.randn(8, 65).half()[:, :64], layer, live, torch.float16)
    with pytest.raises(ValueError, match="contiguous rows"):
        triton_operators.linear(torch.randn(64, 8).half().T, layer, live, torch.float16)
    with pytest.raises(ValueError, match="fp16 or bf16"):
        triton_operators.linear(x.float(), layer, live, torch.float16)
    with pytest.raises(ValueError, match="32 wide"):
        triton_operators.linear(x[:, :32], layer, live, torch.float16)
    with pytest.raises(ValueError, match="residual"):
        triton_operators.linear(x, layer, live, torch.float16, residual=torch.zeros(8, 24).half())
    normed = pack_linear(torch.randn(16, 64), torch.zeros(16), torch.float16, (torch.ones(64), torch.zeros(64)))
    with pytest.raises(ValueError, match="cannot be split"):
        run_linear(x, normed, live, torch.float16, None, False, DEEP_SPLIT[90])
    with pytest.raises(ValueError, match="at least 8 rows"):
        triton_operators.ctc_topk(x, live, live, torch.zeros(7, 64).half(), torch.zeros(8, 64))
    with pytest.raises(ValueError, match="rotary tables"):
        triton_operators.attention(torch.zeros(8, 96).half(), live, 1, torch.zeros(7, 16), torch.zeros(7, 16))
