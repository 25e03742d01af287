"""The kernels compile for every architecture and pass their checks, and each check fails where it should."""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import triton

from kernels.compile_checks import check
from kernels.compile_checks.cases import GROUPS
from kernels.compile_checks.check import BASELINE, Measured, numbers, read_baseline, sample_groups, violations
from kernels.compile_checks.compile import Compiled
from kernels.gpu_specs import GPU_SPECS, programs_at_once
from kernels.tiles import ARCHITECTURES

GOOD = Compiled("linear_kernel", 96, 4, 96, 0, 57344, Counter({"HGMMA": 8, "LDGSTS": 36, "IADD3": 1000}))
MEASURED = Measured(90, "qkv, 125 rows", (GOOD,))
GOOD_BASELINE = {"sm_90, qkv, 125 rows: linear_kernel": numbers(GOOD)}


def run_checks(*options: str) -> subprocess.CompletedProcess[str]:
    """In a process that compiles: this one interprets."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "kernels.compile_checks", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_a_sample_of_all_kernels_passes_its_checks() -> None:
    """`make check-kernels` compiles all of them for every architecture."""
    result = run_checks("--sample")
    assert result.returncode == 0, result.stderr
    assert {group for _, group in sample_groups()} == set(GROUPS)
    for case in ("sm_80, attention, 125 rows", "sm_90, ctc topk, 4000 rows", "sm_100, qkv, fp8 weights, 125 rows"):
        assert f"{case}: " in result.stdout


def test_a_forgotten_alignment_does_not_pass() -> None:
    result = run_checks("--unaligned")
    assert result.returncode == 1, result.stderr
    assert "spill registers" in result.stderr
    for architecture in ARCHITECTURES:
        found = "\n".join(line for line in result.stderr.splitlines() if line.startswith(f"sm_{architecture}, "))
        assert "nothing is copied while it multiplies" in found
        assert "registers, " in found
        assert "instructions, " in found


@pytest.mark.parametrize(
    ("kernel", "complaint"),
    [
        (replace(GOOD, opcodes=GOOD.opcodes + Counter(STL=1)), "spill"),
        (replace(GOOD, stack_bytes=8), "8 bytes of stack"),
        (replace(GOOD, opcodes=Counter({"HMMA": 32, "LDGSTS": 36})), "no HGMMA"),
        (replace(GOOD, opcodes=Counter({"HGMMA": 8, "LDG": 36})), "no LDGSTS or UTMALDG"),
        (replace(GOOD, shared_bytes=240_000), "do not fit"),
        (replace(GOOD, registers=97), "97 registers, 96 in the baseline"),
        (replace(GOOD, shared_bytes=57345), "57345 shared_bytes, 57344 in the baseline"),
        (replace(GOOD, opcodes=GOOD.opcodes + Counter(IADD3=60)), "1104 instructions, 1044 in the baseline"),
        (replace(GOOD, kernel="new_kernel"), "not in the baseline"),
    ],
)
def test_each_check_fails(kernel: Compiled, complaint: str) -> None:
    assert violations([MEASURED], GOOD_BASELINE) == []
    found = violations([replace(MEASURED, kernels=(kernel,))], GOOD_BASELINE)
    assert any(complaint in line for line in found)


def test_a_little_more_code_is_let_through() -> None:
    grown = replace(GOOD, opcodes=GOOD.opcodes + Counter(IADD3=50))
    assert violations([replace(MEASURED, kernels=(grown,))], GOOD_BASELINE) == []


def test_a_baseline_of_another_compiler_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert read_baseline()["triton"] == triton.__version__
    monkeypatch.setattr(check, "BASELINE", tmp_path / "baseline.json")
    (tmp_path / "baseline.json").write_text(BASELINE.read_text().replace(triton.__version__, "1.0.0", 1))
    with pytest.raises(ValueError, match=r"triton 1\.0\.0"):
        read_baseline()


def test_programs_a_multiprocessor_are_bounded_by_what_is_scarce() -> None:
    h100 = GPU_SPECS[90]
    assert programs_at_once(h100, warps=4, registers=128, shared_bytes=0) == 4
    assert programs_at_once(h100, warps=4, registers=32, shared_bytes=64 * 1024) == 3
    assert programs_at_once(h100, warps=8, registers=32, shared_bytes=0) == 8
    assert programs_at_once(h100, warps=4, registers=32, shared_bytes=228 * 1024) == 0
