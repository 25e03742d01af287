"""The architecture that a kernel runs on, and requirements of its tensors."""

import torch
import triton
from torch import Tensor

from kernels.tiles import ARCHITECTURES

INTERPRETED_AS = 90
# In the interpreter few enough that each takes several tiles.
INTERPRETED_MULTIPROCESSORS = 2
ALIGNMENT_BYTES = 16
FLOATS = (torch.float16, torch.bfloat16)


def architecture(device: torch.device) -> int:
    """The row of the tile tables for a device, as 90 for sm_90; a device without a row is refused.

    On a CPU kernels run in Triton's interpreter only, which takes the H100's row.
    """
    if device.type == "cpu":
        if not triton.knobs.runtime.interpret:
            raise ValueError(
                "Triton runs kernels on a CPU only in its interpreter: set TRITON_INTERPRET=1, or use kernels.reference"
            )
        return INTERPRETED_AS
    target = triton.runtime.driver.active.get_current_target()
    if target.arch not in ARCHITECTURES:
        raise ValueError(f"no tiles for {target.backend} {target.arch}, only for {ARCHITECTURES}: use kernels.reference there")
    return int(target.arch)


def multiprocessors(device: torch.device) -> int:
    """How many programs run at once, one a multiprocessor."""
    if device.type == "cpu":
        return INTERPRETED_MULTIPROCESSORS
    driver = triton.runtime.driver.active
    return int(driver.utils.get_device_properties(driver.get_current_device())["multiprocessor_count"])


def check_rows(name: str, tensor: Tensor) -> None:
    """Refuse a matrix whose rows are not each contiguous and aligned: the gated kernels are compiled for aligned ones."""
    size = tensor.element_size()
    if tensor.dim() != 2 or (tensor.shape[1] > 1 and tensor.stride(1) != 1):
        raise ValueError(f"{name} must be a matrix of contiguous rows, not {tuple(tensor.shape)} by {tensor.stride()}")
    if tensor.data_ptr() % ALIGNMENT_BYTES or tensor.stride(0) * size % ALIGNMENT_BYTES:
        raise ValueError(f"each row of {name} must begin at a multiple of {ALIGNMENT_BYTES} bytes: pad it ({tensor.stride()})")
