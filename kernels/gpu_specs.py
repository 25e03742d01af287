"""The GPUs that the kernels are gated for, as their data sheets have them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GpuSpec:
    """`shared_bytes`: what one program may have of shared memory.

    `tensor_instruction` and `async_copies` are the SASS opcodes that a product must show: others work, and are slow.
    """

    name: str
    architecture: int
    multiprocessors: int
    registers: int
    shared_bytes: int
    warps: int
    bytes_per_s: float
    tensor_instruction: str
    async_copies: tuple[str, ...]


GPU_SPECS = {
    80: GpuSpec("A100 SXM 80 GB", 80, 108, 65536, 163 * 1024, 64, 2.04e12, "HMMA", ("LDGSTS",)),
    90: GpuSpec("H100 SXM", 90, 132, 65536, 227 * 1024, 64, 3.35e12, "HGMMA", ("LDGSTS", "UTMALDG")),
    100: GpuSpec("B200", 100, 148, 65536, 227 * 1024, 64, 8.0e12, "UTCHMMA", ("LDGSTS", "UTMALDG")),
}


def programs_at_once(gpu: GpuSpec, warps: int, registers: int, shared_bytes: int) -> int:
    """Return how many programs of a kernel one multiprocessor holds; `registers` are those of a thread."""
    per_warp = -(-registers * 32 // 256) * 256
    by_registers = gpu.registers // (per_warp * warps) if registers else gpu.warps // warps
    # Each program costs a kilobyte of shared memory more than it asks for.
    by_shared = (gpu.shared_bytes + 1024) // (shared_bytes + 1024)
    return min(gpu.warps // warps, by_registers, by_shared, 32)
